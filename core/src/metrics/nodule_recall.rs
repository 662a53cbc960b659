//! Nodule recall: the share of an image's findings that a candidate's peak lies in, whatever else is predicted. Candidates and
//! findings are those of `froc`, at one operating point: the threshold that is frozen on validation images.

use super::map_metric::share;
use super::threshold::{AtThreshold, Entry};
use super::{MetricSpec, Reference, Score};

/// See the file's head.
pub static NODULE_RECALL: AtThreshold = AtThreshold { spec, candidates: true, image: Some(recall), set: None };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "nodule recall",
        title: "Nodule recall: share of the findings that hold a candidate's peak",
        formula: "findings with the peak of a candidate in them / findings; a finding is an 8-connected region of the mask, a candidate one of the pixels at or above the threshold",
        chance: "that of the controls",
        cost: "0; maps of up to a chunk of validation images a fold",
        edge_cases: "the threshold is that of `dice`; many candidates find more: read it beside `froc`; an empty or unknown mask is N/A; a map that is not finite is a failure and counts as 0; a constant map marks nothing, gives 0 and is counted",
        reference: Reference::new(
            "Bandos, Rockette, Song, Gur",
            "Area under the Free-Response ROC Curve",
            "Biometrics",
            2009,
            "",
        ),
        version: 2,
        ..share("nodule-recall", "localisation")
    }
}

/// How many of the image's nodules are found.
pub(super) fn found(entry: &Entry, step: usize) -> usize {
    let mut seen: Vec<i64> = entry.candidates[step].iter().map(|c| c.nodule).filter(|n| *n >= 0).collect();
    seen.sort_unstable();
    seen.dedup();
    seen.len()
}

fn recall(entry: &Entry, step: usize) -> Score {
    match entry.candidates.get(step) {
        Some(_) => Score::ok(found(entry, step) as f64 / entry.nodules.max(1) as f64),
        None => Score::failed("the image has no candidates"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::threshold::tests::check;
    use super::*;

    #[test]
    fn each_nodule_counts_once() {
        // Three nodules in a row of nine pixels: two are found, the first by two pixels of one candidate.
        let validation: (&[f32], &[u8]) =
            (&[0.0, 0.5, 0.6, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], &[0, 1, 1, 1, 0, 0, 0, 0, 0]);
        let test: (&[f32], &[u8]) = (&[0.9, 1.0, 0.0, 0.8, 0.0, 0.05, 0.0, 0.7, 0.0], &[1, 1, 0, 1, 0, 1, 0, 0, 0]);
        assert_eq!(check(&NODULE_RECALL, &[validation], &[test], 9).0[0].value, Some(2.0 / 3.0));
    }
}
