//! Deletion: how fast the explained class's score falls when the pixels that a map ranks highest are taken away.
//! Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018,
//! arXiv:1806.07421, section 3.
//!
//! `sum_k (s_k + s_(k-1)) / 2 / steps` with `s_k` the target's score after the share `k / steps` of the pixels, in the
//! map's order, is replaced by the baseline. Pixels of equal value come in an order drawn from the run's seed and the image's
//! id. The endpoints are the image itself and the baseline alone. Quantus `PixelFlipping` leaves out the first and takes
//! steps of length 1.

use super::map_metric::{Ask, Asking, Found, share};
use super::removal::{Baseline, Order, area, even, scores};
use super::{Bench, Better, Form, MetricSpec, Needs, Reference, Score, Size};
use crate::Result;
use lightbox_sdk::params::Params;

/// See the file's head.
pub static DELETION: Asking = Asking {
    spec,
    needs: Needs { model: true, ..Needs::of_maps(Size::Mask, Form::Raw) },
    axes: Some(("share of pixels removed, highest first", "score of the explained class")),
    score,
};

/// Of metrics that remove pixels step by step.
#[derive(Params)]
pub(super) struct Settings {
    /// in how many equal shares the pixels are removed
    #[param(default = 16, range = (1, 10_000))]
    pub steps: usize,
    #[param(default = Baseline::Mean)]
    pub baseline: Baseline,
}

fn spec() -> MetricSpec {
    MetricSpec {
        title: "Deletion (MoRF): area under the target's score as the highest pixels are removed",
        formula: "sum over k = 1..steps of (s_k + s_(k-1)) / (2 steps), s_k the target's score with the share k / steps of the pixels, highest first, replaced by the baseline",
        better: Better::Lower,
        chance: "that of the control `noise`",
        cost: "steps - 1 forward; the endpoints are shared by all explainers",
        edge_cases: "a map that is not finite is a failure and counts as 1; of equal pixels the order is drawn from seed and image, and a constant map is counted",
        reference: Reference::new("Petsiuk, Das, Saenko", "RISE", "BMVC", 2018, "arXiv:1806.07421"),
        parameters: Settings::specs(),
        ..share("deletion", "faithfulness")
    }
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    let Settings { steps, baseline } = ask.settings()?;
    let curves = scores(ask.batch, bench, baseline, Order::Highest, &even(ask.batch, steps), ask.seed)?;
    let found = ask.each(|i| Score::ok(area(&curves[i])));
    Ok(Found { curves: curves.to_vec(), ..found })
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::removal::tests::{Linear, check};
    use super::*;
    use serde_json::Value;

    #[test]
    fn a_curve_by_hand() {
        // Mean 0, so that a removed pixel counts nothing. What is left after 0..4 pixels: 0, -3, -4, -3, 0.
        let image: &[f32] = &[3.0, 1.0, -1.0, -3.0];
        let mut bench = Linear::new(&[1.0; 4]);
        let four = [("steps", Value::from(4.0))];
        let maps: [&[f32]; 3] = [&[4.0, 3.0, 2.0, 1.0], &[1.0, 2.0, 3.0, 4.0], &[f32::NAN, 0.0, 0.0, 0.0]];
        let found = check(&DELETION, &four, &[image; 3], &maps, 2, &mut bench);
        assert_eq!((found[0].value, found[1].value), (Some(-2.5), Some(2.5)));
        assert_eq!((found[2].status, found[2].value), (Status::Failed, None));
        // Both endpoints of three images, and three steps of the two maps that can be scored.
        assert_eq!(bench.runs, 3 + 3 + 6);
        let flat = check(&DELETION, &four, &[image], &[&[0.5; 4]], 2, &mut bench);
        assert_eq!(flat[0].reason, Score::CONSTANT);
    }

    #[test]
    fn a_baseline_is_what_it_says() {
        // After all is removed, the baseline is left: the mean 2, or 0.
        let image: &[f32] = &[1.0, 1.0, 3.0, 3.0];
        let value = |baseline: &str| {
            let given = [("steps", Value::from(1.0)), ("baseline", Value::from(baseline))];
            check(&DELETION, &given, &[image], &[&[4.0, 3.0, 2.0, 1.0]], 2, &mut Linear::new(&[1.0; 4]))[0].value
        };
        assert_eq!((value("mean"), value("zero"), value("noisy")), (Some(8.0), Some(4.0), Some(8.0)));
    }
}
