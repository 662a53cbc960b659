//! FROC: how many of all findings are found at how many false alarms an image, as the limit on a candidate's score falls; and
//! its summary, the competition performance metric: the mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false alarms an
//! image. Niemeijer et al., "On Combining Computer-Aided Detection Systems", IEEE Transactions on Medical Imaging 2011; as in
//! the LUNA16 challenge (Setio et al., Medical Image Analysis 2017, arXiv:1612.08012). Candidates are regions above the
//! threshold frozen on validation images, scored by their peak in the map as it is, so that maps of several images are compared by the
//! explainer's own scale. A finding counts once; a further candidate in it is no false alarm. Images without a finding count
//! where they are explained (`task.select = "all"`).

use super::map_metric::share;
use super::threshold::{AtThreshold, Entry, KNOWN};
use super::{Curve, Level, MetricSpec, Reference, Score};

/// See the file's head.
pub static FROC: AtThreshold = AtThreshold { spec, candidates: true, image: None, set: Some(froc) };

/// False alarms an image.
const RATES: [f64; 7] = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0];

fn spec() -> MetricSpec {
    MetricSpec {
        short: "FROC",
        title: "FROC: mean sensitivity at 1/8 to 8 false alarms an image (CPM)",
        level: Level::Set,
        formula: "mean over r = 1/8, 1/4, 1/2, 1, 2, 4, 8 of the greatest share of findings found with at most r false alarms an image",
        chance: "that of the controls",
        cost: "0; maps of up to a chunk of validation images a fold",
        edge_cases: "false alarms are counted an explained image: with task.select = `masked` those all have a finding, and images without one count with `all`; the threshold of candidates is that of `dice`; equal peaks come together; a constant map has no candidate; a map that is not finite has one, a false alarm at every limit; without a finding N/A",
        reference: Reference::new(
            "Niemeijer et al.",
            "On Combining Computer-Aided Detection Systems",
            "IEEE Transactions on Medical Imaging",
            2011,
            "",
        ),
        version: 2,
        ..share("froc", "localisation")
    }
}

/// Sensitivity and false alarms an image, from the strictest limit on.
fn curve(entries: &[Entry], step: usize) -> Option<Vec<[f64; 2]>> {
    let counted: Vec<&Entry> = entries.iter().filter(|e| e.state & KNOWN != 0).collect();
    let findings: i64 = counted.iter().map(|e| e.nodules).sum();
    if findings == 0 {
        return None;
    }
    let mut all: Vec<(f64, usize, i64)> = Vec::new();
    for (i, entry) in counted.iter().enumerate() {
        all.extend(entry.candidates.get(step).into_iter().flatten().map(|c| (c.peak, i, c.nodule)));
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut seen = std::collections::HashSet::new();
    let (mut alarms, mut points) = (0usize, vec![[0.0, 0.0]]);
    let mut at = 0;
    while at < all.len() {
        let peak = all[at].0;
        while at < all.len() && all[at].0 == peak {
            match all[at] {
                (_, _, -1) => alarms += 1,
                (_, image, nodule) => drop(seen.insert((image, nodule))),
            }
            at += 1;
        }
        points.push([alarms as f64 / counted.len() as f64, seen.len() as f64 / findings as f64]);
    }
    Some(points)
}

fn froc(entries: &[Entry], step: usize) -> (Score, Option<Curve>) {
    let Some(points) = curve(entries, step) else {
        return (Score::not_applicable("no image has a finding"), None);
    };
    let at = |rate: f64| points.iter().filter(|p| p[0] <= rate).map(|p| p[1]).fold(0.0, f64::max);
    let value = RATES.iter().map(|r| at(*r)).sum::<f64>() / RATES.len() as f64;
    let (x, y) = ("false alarms an image".into(), "share of findings found".into());
    // Beyond the last rate nothing counts.
    let shown: Vec<[f64; 2]> = points.into_iter().filter(|p| p[0] <= 2.0 * RATES[6]).collect();
    (Score::ok(value), Some(Curve { x, y, points: super::pooled::thinned(shown, 200) }))
}

#[cfg(test)]
mod tests {
    use super::super::threshold::tests::check;
    use super::super::threshold::{Candidate, STEPS};
    use super::*;

    fn entry(nodules: i64, candidates: &[(f64, i64)]) -> Entry {
        let list: Vec<Candidate> =
            candidates.iter().map(|(peak, nodule)| Candidate { peak: *peak, nodule: *nodule }).collect();
        Entry { id: 0, target: 1, state: KNOWN, nodules, overlaps: Default::default(), candidates: vec![list; STEPS] }
    }

    #[test]
    fn a_curve_by_hand() {
        // Two images, three findings. By falling peak: found, alarm, again the first, found, alarm.
        let entries = [entry(2, &[(9.0, 0), (7.0, 0), (5.0, -1)]), entry(1, &[(8.0, -1), (6.0, 0)])];
        let third = 1.0 / 3.0;
        let wanted = [[0.0, 0.0], [0.0, third], [0.5, third], [0.5, third], [0.5, 2.0 * third], [1.0, 2.0 * third]];
        assert_eq!(curve(&entries, 3).unwrap(), wanted);
        // At 1/8 and 1/4 one third, from 1/2 on two thirds.
        let value = froc(&entries, 0).0.value.unwrap();
        assert!((value - (2.0 * third + 5.0 * 2.0 * third) / 7.0).abs() < 1e-12);
        // Equal peaks come together: no order among them is better.
        let tied = [entry(1, &[(1.0, 0), (1.0, -1)])];
        assert_eq!(curve(&tied, 0).unwrap(), [[0.0, 0.0], [1.0, 1.0]]);
        assert!(curve(&[entry(0, &[(1.0, -1)])], 0).is_none());
    }

    #[test]
    fn maps_become_candidates() {
        let validation: (&[f32], &[u8]) = (&[0.0, 0.5, 0.6, 1.0], &[0, 1, 1, 1]);
        let found: (&[f32], &[u8]) = (&[0.0, 0.0, 0.0, 3.0], &[0, 0, 0, 1]);
        let missed: (&[f32], &[u8]) = (&[9.0, 0.0, 0.0, 0.5], &[0, 0, 0, 1]);
        // One of two found, after an alarm in one of two images: 0 at 1/8 and 1/4, then 1/2.
        let (_, set) = check(&FROC, &[validation], &[found, missed], 4);
        assert!((set.unwrap().value.unwrap() - 5.0 * 0.5 / 7.0).abs() < 1e-12);
        // A map that is not finite is worse than one that says nothing: an alarm before all others. Of two images with a
        // finding each, one found: at 1/8 already beside the constant map, from 1/2 on beside the broken one.
        let (constant, broken): ([f32; 4], [f32; 4]) = ([1.0; 4], [f32::NAN, 0.0, 0.0, 1.0]);
        let beside = |map: &[f32]| {
            let (_, set) = check(&FROC, &[validation], &[found, (map, &[0, 0, 0, 1])], 4);
            set.unwrap().value.unwrap()
        };
        assert!((beside(&constant) - 0.5).abs() < 1e-12 && (beside(&broken) - 5.0 * 0.5 / 7.0).abs() < 1e-12);
    }
}
