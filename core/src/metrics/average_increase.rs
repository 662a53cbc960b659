//! Average increase in confidence: the share of images whose score rises when they are multiplied by their map. Chattopadhay
//! et al., "Grad-CAM++", WACV 2018, arXiv:1710.11063, section 4.1. See `average-drop` for the multiplication.

use super::average_drop::masked;
use super::map_metric::{Ask, Asking, Found, share};
use super::{Bench, Form, MetricSpec, Needs, Reference, Score, Size};
use crate::Result;

/// See the file's head.
pub static AVERAGE_INCREASE: Asking =
    Asking { spec, needs: Needs { model: true, ..Needs::of_maps(Size::Mask, Form::MinMax) }, axes: None, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "increase",
        title: "Average increase: share of images whose score rises when the map multiplies them",
        formula: "1 where s(x m) > s(x), else 0; m the map scaled to [0, 1], x the normalised image",
        chance: "that of the controls",
        cost: "1 forward, shared with `average-drop`",
        edge_cases: "a map that is not finite is a failure and counts as 0; a constant map becomes 0, hides all of the image and is counted",
        reference: Reference::new(
            "Chattopadhay, Sarkar, Howlader, Balasubramanian",
            "Grad-CAM++",
            "WACV",
            2018,
            "arXiv:1710.11063",
        ),
        version: 2,
        ..share("average-increase", "faithfulness")
    }
}

/// Tested beside `average-drop`, of whose images it reads the scores.
fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    let found = masked(ask, bench)?;
    Ok(ask.each(|i| Score::ok(f64::from(u8::from(found.1[i] > found.0[i])))))
}
