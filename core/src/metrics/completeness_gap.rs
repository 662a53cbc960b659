//! Completeness gap: how far a map's sum is from what the class's logit gains over a baseline. Sundararajan, Taly and Yan, "Axiomatic Attribution for
//! Deep Networks", ICML 2017, arXiv:1703.01365, section 3 (completeness). The sum is over the map as the explainer gave it,
//! not brought to another size. Only methods whose maps are signed claim it. Quantus 0.6 asks for equality, after normalising.

use super::map_metric::{Ask, Asking, Found, share};
use super::removal::{SetBaseline, at_targets, of_blank, plain};
use super::{Bench, Better, Form, MetricSpec, Needs, Reference, Score, Size};
use crate::Result;
use lightbox_sdk::params::Params;
use tch::{Device, Kind};

/// See the file's head.
pub static COMPLETENESS_GAP: Asking =
    Asking { spec, needs: Needs { model: true, ..Needs::of_maps(Size::Native, Form::Raw) }, axes: None, score };

/// A gain of the logit below this counts as this.
const LEAST: f64 = 1e-3;

#[derive(Params)]
struct Settings {
    // What the methods' own baselines are by default.
    #[param(default = SetBaseline::Zero)]
    baseline: SetBaseline,
}

fn spec() -> MetricSpec {
    MetricSpec {
        short: "completeness",
        title: "Completeness gap: distance of a map's sum from the logit's gain over a baseline, of that gain",
        formula: "|sum a - (f(x) - f(x'))| / max(|f(x) - f(x')|, 0.001), f the target's logit, x' the baseline",
        better: Better::Lower,
        range: [0.0, f64::INFINITY],
        unit: "",
        chance: "1, of a map of zeros",
        cost: "2 forward, shared by all explainers",
        edge_cases: "N/A for maps without a sign; a map that is not finite is a failure, and in no mean; a constant map is counted",
        reference: Reference::new(
            "Sundararajan, Taly, Yan",
            "Axiomatic Attribution for Deep Networks",
            "ICML",
            2017,
            "arXiv:1703.01365",
        ),
        parameters: Settings::specs(),
        ..share("completeness-gap", "faithfulness")
    }
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    let batch = ask.batch;
    if !batch.signed {
        return Ok(ask.each(|_| Score::not_applicable("the method's maps have no sign")));
    }
    let Settings { baseline } = ask.settings()?;
    let (with, without) = (plain(batch, bench)?, of_blank(batch, bench, baseline.into())?);
    let (with, without) = (at_targets(&with.logits, batch.targets)?, at_targets(&without.logits, batch.targets)?);
    let sums = ask.maps()?.f_to_kind(Kind::Double)?.f_sum_dim_intlist([1i64, 2].as_slice(), false, Kind::Double)?;
    let sums = Vec::<f64>::try_from(sums.f_to_device(Device::Cpu)?)?;
    Ok(ask.each(|i| {
        let gain = with[i] - without[i];
        Score::ok((sums[i] - gain).abs() / gain.abs().max(LEAST))
    }))
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::removal::tests::{Linear, check, check_with};
    use super::*;
    use serde_json::Value;

    #[test]
    fn contributions_are_complete() {
        let image: &[f32] = &[3.0, 1.0, -1.0, 2.0];
        let mut bench = Linear::new(&[1.0, 2.0, 3.0, 0.0]);
        // Contributions 3, 2, -3, 0: the logit is 2.
        let maps: [&[f32]; 3] = [&[3.0, 2.0, -3.0, 0.0], &[0.0; 4], &[3.0, 2.0, 0.0, 0.0]];
        let found = check(&COMPLETENESS_GAP, &[], &[image; 3], &maps, 2, &mut bench);
        assert_eq!(found.iter().map(|s| s.value).collect::<Vec<_>>(), [Some(0.0), Some(1.0), Some(1.5)]);
        // Against the image's mean, 1.25: the gain is 2 - 7.5.
        let mean = [("baseline", Value::from("mean"))];
        assert_eq!(check(&COMPLETENESS_GAP, &mean, &[image], &maps[..1], 2, &mut bench)[0].value, Some(7.5 / 5.5));
        let none = check_with(&COMPLETENESS_GAP, &[], &[image], &maps[..1], 2, &mut bench, false);
        assert_eq!(none[0].status, Status::NotApplicable);
    }
}
