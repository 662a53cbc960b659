//! Random logit: how alike the maps of the explained class and of another are. Sixt, Granz and Landgraf, "When Explanations Lie: Why
//! Many Modified BP Attributions Fail", ICML 2020, arXiv:1912.09818, section 4. Rank correlation in place of their SSIM, which
//! needs a scale; the other class is drawn from the run's seed and the image's id.

use super::map_metric::{Ask, Asking, Found, of_two_maps, share};
use super::removal::plain;
use super::{Bench, Better, Form, MetricSpec, Needs, Reference, Score, Size};
use crate::stats::correlation::spearman;
use crate::{Result, maps, seed};

/// See the file's head.
pub static RANDOM_LOGIT: Asking = Asking {
    spec,
    needs: Needs { model: true, explainer: true, ..Needs::of_maps(Size::Native, Form::Raw) },
    axes: None,
    score,
};

fn spec() -> MetricSpec {
    MetricSpec {
        short: "random logit",
        title: "Random logit: rank correlation of the maps of the explained class and of another",
        formula: "Spearman(a of the class, a of another class, drawn)",
        better: Better::Lower,
        range: [-1.0, 1.0],
        unit: "",
        chance: "1, of a map that does not look at the class",
        cost: "1 explanation",
        edge_cases: "N/A for a model of one output; a map that is not finite is a failure and counts as 1; a constant map correlates by 0 with another and by 1 with a constant one, and is counted",
        reference: Reference::new("Sixt, Granz, Landgraf", "When Explanations Lie", "ICML", 2020, "arXiv:1912.09818"),
        version: 2,
        ..share("random-logit", "randomisation")
    }
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    let batch = ask.batch;
    let classes = plain(batch, bench)?.logits.size()[1];
    if classes < 2 {
        return Ok(ask.each(|_| Score::not_applicable("the model has one output")));
    }
    let draw = |(id, target): (&u64, &i64)| {
        let other = (seed::derive(ask.seed, "other class", &[*id]) % (classes as u64 - 1)) as i64;
        if other >= *target { other + 1 } else { other }
    };
    let others: Vec<i64> = batch.ids.iter().zip(batch.targets).map(draw).collect();
    let theirs = maps::values(&bench.explain(batch.images, &others, batch.ids)?)?;
    let own = maps::values(ask.maps()?)?;
    let size = own.len() / batch.targets.len().max(1);
    if theirs.len() != own.len() {
        return Ok(ask.each(|_| Score::failed("the other class's map has another size")));
    }
    Ok(ask.each(|i| {
        let list = |v: &[f32]| v[i * size..][..size].iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
        let (own, theirs) = (list(&own), list(&theirs));
        match theirs.iter().all(|v| v.is_finite()) {
            true => Score::ok(of_two_maps(&own, &theirs, spearman)),
            false => Score::failed("the other class's map is not finite"),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::super::removal::tests::{Linear, check};
    use super::*;

    #[test]
    fn constant_maps_say_nothing_of_another_and_are_the_same_as_each_other() {
        let (flat, other) = ([1.0, 1.0, 1.0], [1.0, 2.0, 4.0]);
        assert_eq!(of_two_maps(&flat, &other, spearman), 0.0);
        assert_eq!(of_two_maps(&other, &flat, spearman), 0.0);
        assert_eq!(of_two_maps(&flat, &[0.0; 3], spearman), 1.0);
        assert_eq!(of_two_maps(&other, &[3.0, 2.0, 1.0], spearman), -1.0);
    }

    #[test]
    fn evidence_of_the_other_of_two_classes_is_the_negative() {
        let image: &[f32] = &[3.0, 1.0, -1.0, 2.0];
        let map: &[f32] = &[3.0, 2.0, -3.0, 8.0];
        let found = check(&RANDOM_LOGIT, &[], &[image], &[map], 2, &mut Linear::new(&[1.0, 2.0, 3.0, 4.0]));
        assert_eq!(found[0].value, Some(-1.0));
    }
}
