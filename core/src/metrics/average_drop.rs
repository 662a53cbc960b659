//! Average drop: how much of the explained class's score is lost when the image is multiplied by its map. Chattopadhay et al.,
//! "Grad-CAM++", WACV 2018, arXiv:1710.11063, section 4.1. The map is scaled to [0, 1] by its own range and multiplies the
//! normalised image, as in pytorch-grad-cam, so that 0 is the mean of the model's training images. A map that is 1 almost everywhere loses nothing:
//! read it beside the controls.

use super::map_metric::{Ask, Asking, Found, share};
use super::removal::{at_targets, plain};
use super::{Bench, Better, Form, MetricSpec, Needs, Reference, Score, Size};
use crate::Result;
use std::rc::Rc;

/// See the file's head.
pub static AVERAGE_DROP: Asking =
    Asking { spec, needs: Needs { model: true, ..Needs::of_maps(Size::Mask, Form::MinMax) }, axes: None, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "average drop",
        title: "Average drop: share of the target's score that is lost when the map multiplies the image",
        formula: "max(0, s(x) - s(x m)) / s(x), m the map scaled to [0, 1], x the normalised image",
        better: Better::Lower,
        chance: "that of the controls",
        cost: "1 forward, shared with `average-increase`",
        edge_cases: "a score of 0 is N/A; a map that is not finite is a failure and counts as 1; a constant map becomes 0, hides all of the image and is counted",
        reference: Reference::new(
            "Chattopadhay, Sarkar, Howlader, Balasubramanian",
            "Grad-CAM++",
            "WACV",
            2018,
            "arXiv:1710.11063",
        ),
        version: 2,
        ..share("average-drop", "faithfulness")
    }
}

/// The target's score of each image, and of each image multiplied by its map.
pub(super) fn masked(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Rc<(Vec<f64>, Vec<f64>)>> {
    let before = plain(ask.batch, bench)?;
    ask.batch.cell.get("multiplied by the map", || {
        let maps = ask.maps()?.f_to_device(ask.batch.images.device())?.f_unsqueeze(1)?;
        let after = bench.run(&ask.batch.images.f_mul(&maps)?)?;
        Ok((at_targets(&before.scores, ask.batch.targets)?, at_targets(&after.scores, ask.batch.targets)?))
    })
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    let found = masked(ask, bench)?;
    Ok(ask.each(|i| match (found.0[i], found.1[i]) {
        (before, _) if before <= 0.0 => Score::not_applicable("the model's score is 0"),
        (before, after) => Score::ok((before - after).max(0.0) / before),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::average_increase::AVERAGE_INCREASE;
    use super::super::removal::tests::{Linear, check};
    use super::*;

    #[test]
    fn drop_and_increase_by_hand() {
        // The image's sum is 4; times the map (0, 0, 1, 1) it is 1, times (1, 1, 0, 0) it is 3, and of the last 5.
        let (same, last): (&[f32], &[f32]) = (&[2.0, 1.0, 0.5, 0.5], &[3.0, 2.0, -0.5, -0.5]);
        let images = [same, same, last, same, &[0.0; 4]];
        let maps: [&[f32]; 5] =
            [&[1.0, 1.0, 3.0, 3.0], &[5.0, 5.0, 0.0, 0.0], &[1.0, 1.0, 0.0, 0.0], &[2.0; 4], &[0.0, 1.0, 2.0, 3.0]];
        let mut bench = Linear::new(&[1.0; 4]);
        let drop = check(&AVERAGE_DROP, &[], &images, &maps, 2, &mut bench);
        assert_eq!((drop[0].value, drop[1].value, drop[2].value), (Some(0.75), Some(0.25), Some(0.0)));
        assert_eq!(
            (drop[3].value, drop[3].reason, drop[4].status),
            (Some(1.0), Score::CONSTANT, Status::NotApplicable)
        );
        let more = check(&AVERAGE_INCREASE, &[], &images, &maps, 2, &mut bench);
        assert_eq!((more[0].value, more[1].value, more[2].value), (Some(0.0), Some(0.0), Some(1.0)));
    }
}
