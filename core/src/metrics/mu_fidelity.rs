//! Mu-fidelity: whether what a map gives to a set of pixels goes with what the class loses without them. Bhatt, Weller and Moura,
//! "Evaluating and Aggregating Feature-based Model Explanations", IJCAI 2020, arXiv:2005.00631 (faithfulness); with Spearman's
//! correlation and sets of cells of a grid as in Xplique 1.4 `MuFidelity`, which gives 0 where a side does not vary.

use super::map_metric::{Ask, Asking, Found, share};
use super::removal::SetBaseline;
use super::subsets::{cells, effects, sums};
use super::{Bench, Form, MetricSpec, Needs, Reference, Score, Size};
use crate::Result;
use crate::maps::Fault;
use crate::stats::correlation::spearman;
use lightbox_sdk::params::Params;

/// See the file's head.
pub static MU_FIDELITY: Asking =
    Asking { spec, needs: Needs { model: true, ..Needs::of_maps(Size::Mask, Form::Raw) }, axes: None, score };

#[derive(Params)]
struct Settings {
    /// sets an image
    #[param(default = 64, range = (3, 100_000))]
    samples: usize,
    /// cells along each side
    #[param(default = 9, range = (2, 64))]
    grid: usize,
    /// of the cells in a set
    #[param(default = 0.2, range = (0.0, 1.0))]
    share: f64,
    #[param(default = SetBaseline::Mean)]
    baseline: SetBaseline,
}

fn spec() -> MetricSpec {
    MetricSpec {
        short: "mu-fidelity",
        title: "Mu-fidelity: rank correlation of a map's sum over sets of pixels and the logit's fall without them",
        formula: "Spearman over sets S of (sum over S of a, f(x) - f(x without S)), f the target's logit",
        range: [-1.0, 1.0],
        unit: "",
        chance: "0",
        cost: "samples forward, shared by all explainers",
        edge_cases: "a logit that no set changes is N/A; a map that is not finite is a failure and counts as -1; a constant map, whose sums are all equal, correlates by 0 and is counted",
        reference: Reference::new(
            "Bhatt, Weller, Moura",
            "Evaluating and Aggregating Feature-based Model Explanations",
            "IJCAI",
            2020,
            "arXiv:2005.00631",
        ),
        parameters: Settings::specs(),
        version: 2,
        ..share("mu-fidelity", "faithfulness")
    }
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    let Settings { samples, grid, share, baseline } = ask.settings()?;
    let count = ((grid * grid) as f64 * share).round() as usize;
    let name = format!("mu {samples} {grid} {count}");
    let draw = |rng: &mut rand_chacha::ChaCha8Rng, size| cells(rng, grid, count, samples, size);
    let effects = effects(ask.batch, bench, baseline.into(), ask.seed, &name, draw)?;
    let (values, width) = ask.batch.values()?;
    let pixels = values.len() / ask.batch.targets.len().max(1);
    Ok(ask.each(|i| {
        let drops = &effects.drops[i];
        if drops.iter().all(|d| *d == drops[0]) {
            return Score::not_applicable("no set of pixels changes the logit");
        }
        // A constant map says nothing of the logit, though its sums follow the cells' sizes.
        if ask.batch.faults[i] == Fault::Constant {
            return Score::ok(0.0);
        }
        let sums = sums(&values[i * pixels..][..pixels], width, &effects.subsets[i]);
        Score::ok(spearman(&sums, drops).unwrap_or(0.0))
    }))
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::removal::tests::{Linear, check};
    use super::*;
    use serde_json::Value;

    #[test]
    fn contributions_are_faithful_and_their_negatives_are_not() {
        let image: Vec<f32> = (0..81).map(|i| ((i * 29) % 17) as f32 - 8.0).collect();
        let weights: Vec<f32> = (0..81).map(|i| ((i * 13) % 7) as f32 - 3.0).collect();
        let exact: Vec<f32> = image.iter().zip(&weights).map(|(x, w)| x * w).collect();
        let wrong: Vec<f32> = exact.iter().map(|v| -v).collect();
        let zero = [("baseline", Value::from("zero"))];
        let mut bench = Linear::new(&weights);
        let found = check(&MU_FIDELITY, &zero, &[&image[..]; 2], &[&exact, &wrong], 9, &mut bench);
        assert_eq!(found.iter().map(|s| s.value.unwrap()).collect::<Vec<_>>(), [1.0, -1.0]);
        // The image itself, and 64 sets, of two images.
        assert_eq!(bench.runs, 2 * 65);
        // A constant map says nothing, though its sums follow the sizes of a grid's cells that does not divide the image.
        let flat = check(&MU_FIDELITY, &[("grid", Value::from(4))], &[&image], &[&[2.0; 81]], 9, &mut bench);
        assert_eq!((flat[0].value, flat[0].reason), (Some(0.0), Score::CONSTANT));
        let none = check(&MU_FIDELITY, &zero, &[&image], &[&exact], 9, &mut Linear::new(&[0.0; 81]));
        assert_eq!(none[0].status, Status::NotApplicable);
    }
}
