//! Sensitivity-n: whether what a map gives to n pixels correlates with what the class loses without them, over sizes n. Ancona et
//! al., "Towards better understanding of gradient-based attribution methods", ICLR 2018, arXiv:1711.06104, section 4. Sets are
//! of cells of a grid, their sizes spread evenly on a logarithm from one cell to four fifths of them. Quantus 0.6 draws its sets along the map's order and correlates across images of
//! the first batch, which is another quantity.

use super::map_metric::{Ask, Asking, Found, share};
use super::removal::SetBaseline;
use super::subsets::{cells, effects, sums};
use super::{Bench, Form, MetricSpec, Needs, Reference, Score, Size};
use crate::Result;
use crate::maps::Fault;
use crate::stats::correlation::pearson;
use lightbox_sdk::params::Params;

/// See the file's head.
pub static SENSITIVITY_N: Asking =
    Asking { spec, needs: Needs { model: true, ..Needs::of_maps(Size::Mask, Form::Raw) }, axes: None, score };

#[derive(Params)]
struct Settings {
    /// how many n
    #[param(default = 6, range = (1, 100))]
    sizes: usize,
    /// sets of each size, an image
    #[param(default = 16, range = (3, 100_000))]
    samples: usize,
    /// cells along each side
    #[param(default = 16, range = (2, 64))]
    grid: usize,
    #[param(default = SetBaseline::Mean)]
    baseline: SetBaseline,
}

fn spec() -> MetricSpec {
    MetricSpec {
        short: "sensitivity-n",
        title: "Sensitivity-n: correlation of a map's sum over n cells and the logit's fall without them, mean over n",
        formula: "mean over sizes n of Pearson over sets S of n cells of (sum over S of a, f(x) - f(x without S)), f the target's logit",
        range: [-1.0, 1.0],
        unit: "",
        chance: "0",
        cost: "sizes x samples forward, shared by all explainers",
        edge_cases: "sizes at which no set changes the logit are left out, and where that is all the image is N/A; sums that are all equal correlate by 0, as those of a constant map do, which is counted; a map that is not finite is a failure and counts as -1",
        reference: Reference::new(
            "Ancona, Ceolini, Öztireli, Gross",
            "Towards better understanding of gradient-based attribution methods",
            "ICLR",
            2018,
            "arXiv:1711.06104",
        ),
        parameters: Settings::specs(),
        version: 2,
        ..share("sensitivity-n", "faithfulness")
    }
}

/// Sizes from 1 to four fifths of `cells`, each once.
fn sizes(many: usize, cells: usize) -> Vec<usize> {
    let most = (cells as f64 * 0.8).max(1.0);
    let at = |k: usize| if many > 1 { k as f64 / (many - 1) as f64 } else { 0.5 };
    let mut sizes: Vec<usize> = (0..many).map(|k| most.powf(at(k)).round() as usize).collect();
    sizes.dedup();
    sizes
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    let Settings { sizes: many, samples, grid, baseline } = ask.settings()?;
    let sizes = sizes(many, grid * grid);
    let name = format!("n {sizes:?} {samples} {grid}");
    let draw = |rng: &mut rand_chacha::ChaCha8Rng, size| {
        sizes.iter().flat_map(|n| cells(rng, grid, *n, samples, size)).collect::<Vec<_>>()
    };
    let effects = effects(ask.batch, bench, baseline.into(), ask.seed, &name, draw)?;
    let (values, width) = ask.batch.values()?;
    let pixels = values.len() / ask.batch.targets.len().max(1);
    Ok(ask.each(|i| {
        let sums = sums(&values[i * pixels..][..pixels], width, &effects.subsets[i]);
        // A constant map says nothing of the logit, though its sums follow the cells' sizes.
        let constant = ask.batch.faults[i] == Fault::Constant;
        let correlate = |a: &[f64], b: &[f64]| if constant { 0.0 } else { pearson(a, b).unwrap_or(0.0) };
        let parts = sums.chunks(samples).zip(effects.drops[i].chunks(samples));
        let varies = parts.filter(|(_, drops)| drops.iter().any(|d| *d != drops[0]));
        let found: Vec<f64> = varies.map(|(sums, drops)| correlate(sums, drops)).collect();
        match found.is_empty() {
            true => Score::not_applicable("no set of pixels changes the logit"),
            false => Score::ok(crate::stats::mean(&found)),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::removal::tests::{Linear, check};
    use super::*;
    use serde_json::Value;

    #[test]
    fn sizes_are_spread_and_distinct() {
        assert_eq!(sizes(6, 256), [1, 3, 8, 24, 71, 205]);
        assert_eq!(sizes(9, 4), [1, 2, 3]);
        assert_eq!(sizes(1, 100), [9]);
    }

    #[test]
    fn contributions_correlate_at_every_size() {
        let image: Vec<f32> = (0..256).map(|i| ((i * 29) % 17) as f32 - 8.0).collect();
        let weights: Vec<f32> = (0..256).map(|i| ((i * 13) % 7) as f32 - 3.0).collect();
        let exact: Vec<f32> = image.iter().zip(&weights).map(|(x, w)| 3.0 * x * w).collect();
        let wrong: Vec<f32> = exact.iter().map(|v| -v).collect();
        let zero = [("baseline", Value::from("zero"))];
        let found = check(&SENSITIVITY_N, &zero, &[&image[..]; 2], &[&exact, &wrong], 16, &mut Linear::new(&weights));
        assert!((found[0].value.unwrap() - 1.0).abs() < 1e-5 && (found[1].value.unwrap() + 1.0).abs() < 1e-5);
        let none = check(&SENSITIVITY_N, &zero, &[&image], &[&exact], 16, &mut Linear::new(&[0.0; 256]));
        assert_eq!(none[0].status, Status::NotApplicable);
    }
}
