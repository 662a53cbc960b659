//! Insertion: how fast the explained class's score rises when the pixels that a map ranks highest are put into a baseline.
//! Petsiuk, Das and Saenko, "RISE", BMVC 2018, arXiv:1806.07421, section 3. The baseline is the blurred image, as theirs: a
//! Gaussian of a twentieth of the image's width, so that a nodule vanishes in it (theirs has a deviation of 5 pixels of 224
//! and ends after one deviation).

use super::deletion::parameters;
use super::each::{Ask, Asking, Constant, Found, share};
use super::removal::{Baseline, Order, area, even, scores};
use super::{Bench, Form, MetricSpec, Needs, Score, Size};
use crate::Result;

pub static INSERTION: Asking = Asking {
    spec,
    needs: Needs { model: true, ..Needs::of_maps(Size::Mask, Form::Raw) },
    constant: Constant::Counts,
    axes: Some(("share of pixels inserted, highest first", "score of the explained class")),
    score,
};

/// The blurred image first: the default.
const WORDS: [&str; 4] = ["blur", "mean", "zero", "noisy"];

fn spec() -> MetricSpec {
    MetricSpec {
        title: "Insertion (LeRF read backwards): area under the target's score as the highest pixels are inserted",
        formula: "sum over k = 1..steps of (s_k + s_(k-1)) / (2 steps), s_k the target's score of the baseline in which the share k / steps of the pixels, highest first, is the image's",
        chance: "that of the control `noise`",
        cost: "steps - 1 forward; the endpoints are shared by all explainers",
        edge_cases: "a map that is not finite is a failure and counts as 0; of equal pixels the order is drawn from seed and image, and a constant map is counted",
        reference: "Petsiuk, Das, Saenko: RISE, BMVC 2018, arXiv:1806.07421",
        parameters: parameters(&WORDS),
        ..share("insertion", "faithfulness")
    }
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    let steps = ask.number("steps")? as usize;
    let baseline = match WORDS.get(ask.number("baseline")? as usize) {
        Some(&"mean") => Baseline::Mean,
        Some(&"zero") => Baseline::Zero,
        Some(&"noisy") => Baseline::Noisy,
        _ => Baseline::Blur,
    };
    // What is not yet removed when the lowest go first is what was inserted when the highest come first.
    let removed = scores(ask.batch, bench, baseline, Order::Lowest, &even(ask.batch, steps), ask.seed)?;
    let curves: Vec<Vec<f64>> = removed.iter().map(|c| c.iter().rev().copied().collect()).collect();
    let found = ask.each(|i| Score::ok(area(&curves[i])));
    Ok(Found { curves, ..found })
}

#[cfg(test)]
mod tests {
    use super::super::Setting;
    use super::super::removal::tests::{Linear, check};
    use super::*;

    #[test]
    fn a_curve_by_hand() {
        // Mean 0: what is inserted after 0..4 pixels is 0, 3, 4, 3, 0.
        let image: &[f32] = &[3.0, 1.0, -1.0, -3.0];
        let given = [("steps", Setting::Number(4.0)), ("baseline", Setting::Choice("mean".into()))];
        let mut bench = Linear::new(&[1.0; 4]);
        let maps: [&[f32]; 2] = [&[4.0, 3.0, 2.0, 1.0], &[1.0, 2.0, 3.0, 4.0]];
        let found = check(&INSERTION, &given, &[image; 2], &maps, 2, &mut bench);
        assert_eq!((found[0].value, found[1].value), (Some(2.5), Some(-2.5)));
    }
}
