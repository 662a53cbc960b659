//! Infidelity: the squared error of a map's account of what the class loses without random squares. Yeh et al., "On the
//! (In)fidelity and Sensitivity of Explanations", NeurIPS 2019, arXiv:1901.09392, definition 2.1 and square removal; the map is
//! first multiplied by the factor that makes the error least (their section 3.1, Captum's `normalize = True`), so that its
//! scale does not matter. A pixel of a map stands for what the pixel contributes, so the perturbation is 1 in the square: what Captum asks
//! for of methods that multiply by the input. Quantus 0.6 removes squares one after the other and never puts them back.

use super::map_metric::{Ask, Asking, Found, share};
use super::removal::SetBaseline;
use super::subsets::{effects, squares, sums};
use super::{Bench, Better, Form, MetricSpec, Needs, Reference, Score, Size};
use crate::Result;
use lightbox_sdk::params::Params;

/// See the file's head.
pub static INFIDELITY: Asking =
    Asking { spec, needs: Needs { model: true, ..Needs::of_maps(Size::Mask, Form::Raw) }, axes: None, score };

#[derive(Params)]
struct Settings {
    /// squares an image
    #[param(default = 64, range = (2, 100_000))]
    samples: usize,
    /// of a square, of the image's width
    #[param(default = 0.25, range = (0.0, 1.0))]
    side: f64,
    #[param(default = SetBaseline::Mean)]
    baseline: SetBaseline,
}

fn spec() -> MetricSpec {
    MetricSpec {
        title: "Infidelity: squared error of a map's sums over random squares, best scaled, against the logit's fall",
        formula: "mean over squares S of (b sum over S of a - (f(x) - f(x without S)))^2, b = E[sum fall] / E[sum^2], f the target's logit",
        better: Better::Lower,
        range: [0.0, f64::INFINITY],
        unit: "squared logit",
        chance: "that of the controls; a map of zeros has E[fall^2]",
        cost: "samples forward, shared by all explainers",
        edge_cases: "sums that are all 0 leave b = 0; a map that is not finite is a failure, and in no mean; a constant map is counted",
        reference: Reference::new(
            "Yeh, Hsieh, Suggala, Inouye, Ravikumar",
            "On the (In)fidelity and Sensitivity of Explanations",
            "NeurIPS",
            2019,
            "arXiv:1901.09392",
        ),
        parameters: Settings::specs(),
        ..share("infidelity", "faithfulness")
    }
}

/// The error of `sums` for `drops`, best scaled.
pub fn error(sums: &[f64], drops: &[f64]) -> f64 {
    let n = drops.len().max(1) as f64;
    let (both, square) =
        sums.iter().zip(drops).fold((0.0, 0.0), |(both, square), (s, d)| (both + s * d, square + s * s));
    let scale = if square > 0.0 { both / square } else { 0.0 };
    sums.iter().zip(drops).map(|(s, d)| (scale * s - d).powi(2)).sum::<f64>() / n
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    let Settings { samples, side: share, baseline } = ask.settings()?;
    let name = format!("squares {samples} {share}");
    let draw = |rng: &mut rand_chacha::ChaCha8Rng, size: (usize, usize)| {
        squares(rng, (size.1 as f64 * share).round() as usize, samples, size)
    };
    let effects = effects(ask.batch, bench, baseline.into(), ask.seed, &name, draw)?;
    let (values, width) = ask.batch.values()?;
    let pixels = values.len() / ask.batch.targets.len().max(1);
    Ok(ask.each(|i| {
        let sums = sums(&values[i * pixels..][..pixels], width, &effects.subsets[i]);
        Score::ok(error(&sums, &effects.drops[i]))
    }))
}

#[cfg(test)]
mod tests {
    use super::super::removal::tests::{Linear, check};
    use super::*;
    use serde_json::Value;

    #[test]
    fn contributions_of_any_scale_have_no_error_and_zeros_have_the_falls() {
        let image: Vec<f32> = (0..64).map(|i| ((i * 29) % 17) as f32 - 8.0).collect();
        let weights: Vec<f32> = (0..64).map(|i| ((i * 13) % 7) as f32 - 3.0).collect();
        let exact: Vec<f32> = image.iter().zip(&weights).map(|(x, w)| -7.0 * x * w).collect();
        let mut other = exact.clone();
        other.reverse();
        let zero = [("baseline", Value::from("zero"))];
        let maps: [&[f32]; 3] = [&exact, &other, &[0.0; 64]];
        let found = check(&INFIDELITY, &zero, &[&image[..]; 3], &maps, 8, &mut Linear::new(&weights));
        let value: Vec<f64> = found.iter().map(|s| s.value.unwrap()).collect();
        assert!(value[0] < 1e-6 && value[1] > 1.0, "{value:?}");
        // No scale makes it worse than saying nothing, up to the images' different squares.
        assert!(value[1] < 3.0 * value[2] && value[2] > 1.0, "{value:?}");
        assert_eq!(error(&[0.0, 0.0], &[3.0, 1.0]), 5.0);
        // b = (1 * 2 + 2 * 2) / 5 = 1.2: errors 0.8 and 0.4.
        assert!((error(&[1.0, 2.0], &[2.0, 2.0]) - 0.4).abs() < 1e-12);
    }
}
