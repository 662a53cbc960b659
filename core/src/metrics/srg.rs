//! Symmetric relevance gain: how much later the score falls when the lowest pixels are removed first than when the highest are.
//! Blücher, Vielhaben and Strodthoff, "Decoupling Pixel Flipping and Occlusion Strategy for Consistent XAI Benchmarks", TMLR
//! 2024, arXiv:2401.06654: the difference orders explainers alike whatever stands in a removed pixel's place, which deletion
//! and insertion alone do not. With `s` the score it is the area between the curves (ABPC) of Samek et al., TNNLS 2017.

use super::deletion::Settings;
use super::map_metric::{Ask, Asking, Found, share};
use super::removal::{Order, area, even, scores};
use super::{Bench, Form, MetricSpec, Needs, Reference, Score, Size};
use crate::Result;
use lightbox_sdk::params::Params;

/// See the file's head.
pub static SRG: Asking = Asking {
    spec,
    needs: Needs { model: true, ..Needs::of_maps(Size::Mask, Form::Raw) },
    axes: Some(("share of pixels removed", "score, lowest first less highest first")),
    score,
};

fn spec() -> MetricSpec {
    MetricSpec {
        short: "SRG",
        title: "Symmetric relevance gain: area between the curves of removing the lowest and the highest pixels first",
        formula: "area(lowest first) - area(highest first), areas as of `deletion`",
        range: [-1.0, 1.0],
        unit: "",
        chance: "0",
        cost: "2 (steps - 1) forward, of which deletion and insertion of the same baseline and steps are made",
        edge_cases: "a map that is not finite is a failure and counts as -1; a constant map is a random order, about 0, and counted",
        reference: Reference::new(
            "Blücher, Vielhaben, Strodthoff",
            "Decoupling Pixel Flipping and Occlusion Strategy",
            "TMLR",
            2024,
            "arXiv:2401.06654",
        ),
        parameters: Settings::specs(),
        ..share("srg", "faithfulness")
    }
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    let Settings { steps, baseline } = ask.settings()?;
    let counts = even(ask.batch, steps);
    let most = scores(ask.batch, bench, baseline, Order::Highest, &counts, ask.seed)?;
    let least = scores(ask.batch, bench, baseline, Order::Lowest, &counts, ask.seed)?;
    let curves: Vec<Vec<f64>> =
        least.iter().zip(most.iter()).map(|(l, m)| l.iter().zip(m).map(|(l, m)| l - m).collect()).collect();
    let found = ask.each(|i| Score::ok(area(&curves[i])));
    Ok(Found { curves, ..found })
}

#[cfg(test)]
mod tests {
    use super::super::removal::tests::{Linear, check};
    use super::super::{deletion::DELETION, insertion::INSERTION};
    use super::*;
    use serde_json::Value;

    #[test]
    fn is_insertion_less_deletion() {
        let image: &[f32] = &[3.0, 1.0, -1.0, -3.0];
        let given = [("steps", Value::from(4.0)), ("baseline", Value::from("mean"))];
        let maps: [&[f32]; 2] = [&[4.0, 3.0, 2.0, 1.0], &[1.0, 4.0, 2.0, 3.0]];
        let value = |metric: &Asking| -> Vec<f64> {
            let found = check(metric, &given, &[image; 2], &maps, 2, &mut Linear::new(&[1.0, 2.0, -1.0, 0.5]));
            found.iter().map(|s| s.value.unwrap()).collect()
        };
        let (srg, insertion, deletion) = (value(&SRG), value(&INSERTION), value(&DELETION));
        for i in 0..2 {
            assert!((srg[i] - (insertion[i] - deletion[i])).abs() < 1e-12);
        }
        // By hand, of the first map: removed lowest first leaves -1.5+... of weights times image: 3, 2, 1, -1.5.
        // Highest first: 4.5, 1.5, -0.5, -1.5, 0: area 1.75 / 4... lowest first: 4.5, 6, 5, 3, 0: area 16.25 / 4.
        assert!((srg[0] - (16.25 - 1.75) / 4.0).abs() < 1e-12, "{}", srg[0]);
    }
}
