//! Insertion: how fast the explained class's score rises when the pixels that a map ranks highest are put into a baseline.
//! Petsiuk, Das and Saenko, "RISE", BMVC 2018, arXiv:1806.07421, section 3. The baseline is the blurred image, as theirs: a
//! Gaussian of a twentieth of the image's width, so that a nodule vanishes in it (theirs has a deviation of 5 pixels of 224
//! and ends after one deviation).

use super::map_metric::{Ask, Asking, Found, share};
use super::removal::{Baseline, Order, area, even, scores};
use super::{Bench, Form, MetricSpec, Needs, Reference, Score, Size};
use crate::Result;
use lightbox_sdk::params::Params;

/// See the file's head.
pub static INSERTION: Asking = Asking {
    spec,
    needs: Needs { model: true, ..Needs::of_maps(Size::Mask, Form::Raw) },
    axes: Some(("share of pixels inserted, highest first", "score of the explained class")),
    score,
};

#[derive(Params)]
struct Settings {
    /// in how many equal shares the pixels are removed
    #[param(default = 16, range = (1, 10_000))]
    steps: usize,
    #[param(default = Baseline::Blur)]
    baseline: Baseline,
}

fn spec() -> MetricSpec {
    MetricSpec {
        title: "Insertion (LeRF read backwards): area under the target's score as the highest pixels are inserted",
        formula: "sum over k = 1..steps of (s_k + s_(k-1)) / (2 steps), s_k the target's score of the baseline in which the share k / steps of the pixels, highest first, is the image's",
        chance: "that of the control `noise`",
        cost: "steps - 1 forward; the endpoints are shared by all explainers",
        edge_cases: "a map that is not finite is a failure and counts as 0; of equal pixels the order is drawn from seed and image, and a constant map is counted",
        reference: Reference::new("Petsiuk, Das, Saenko", "RISE", "BMVC", 2018, "arXiv:1806.07421"),
        parameters: Settings::specs(),
        ..share("insertion", "faithfulness")
    }
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    let Settings { steps, baseline } = ask.settings()?;
    // What is not yet removed when the lowest go first is what was inserted when the highest come first.
    let removed = scores(ask.batch, bench, baseline, Order::Lowest, &even(ask.batch, steps), ask.seed)?;
    let curves: Vec<Vec<f64>> = removed.iter().map(|c| c.iter().rev().copied().collect()).collect();
    let found = ask.each(|i| Score::ok(area(&curves[i])));
    Ok(Found { curves, ..found })
}

#[cfg(test)]
mod tests {
    use super::super::removal::tests::{Linear, check};
    use super::*;
    use serde_json::Value;

    #[test]
    fn a_curve_by_hand() {
        // Mean 0: what is inserted after 0..4 pixels is 0, 3, 4, 3, 0.
        let image: &[f32] = &[3.0, 1.0, -1.0, -3.0];
        let given = [("steps", Value::from(4.0)), ("baseline", Value::from("mean"))];
        let mut bench = Linear::new(&[1.0; 4]);
        let maps: [&[f32]; 2] = [&[4.0, 3.0, 2.0, 1.0], &[1.0, 2.0, 3.0, 4.0]];
        let found = check(&INSERTION, &given, &[image; 2], &maps, 2, &mut bench);
        assert_eq!((found[0].value, found[1].value), (Some(2.5), Some(-2.5)));
    }
}
