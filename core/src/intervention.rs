//! What a planted shortcut does to a model, by intervention: each test image is classified with the shortcut painted in and
//! painted out, everything else being equal. Pearl, "Causality", 2009, chapter 3: what a model does when the marker is set says
//! whether it follows the marker; that its maps lie there does not.

use crate::metrics::auroc::auroc;
use crate::stats::mean;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a model says of an image with the shortcut painted out and in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intervention {
    /// As the data source names it.
    pub image: String,
    /// The model's label.
    pub model: String,
    /// From 0.
    pub fold: usize,
    /// The number of the training, from 0.
    pub training: usize,
    /// Whether the image has the finding.
    pub finding: bool,
    /// Whether the image has the shortcut as it is.
    pub planted: bool,
    /// The finding's logit without and with the shortcut.
    pub logits: [f64; 2],
    /// The finding's score, from 0 to 1, without and with the shortcut.
    pub scores: [f64; 2],
}

/// What the shortcut does to a model: means over images, folds and trainings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Effect {
    /// Its label.
    pub model: String,
    /// Images, folds and trainings together.
    pub images: usize,
    /// How much the finding's logit rises when the shortcut is painted in: of images with the finding, and without; none where
    /// there is none.
    pub logit: [Option<f64>; 2],
    /// The mean score of images as they are, by finding and shortcut: `[finding, no finding]`, each `[shortcut, none]`.
    pub cells: [[Option<f64>; 2]; 2],
    /// AUROC over images of which none has the shortcut.
    pub auroc_without: Option<f64>,
    /// AUROC over images of which all have it.
    pub auroc_with: Option<f64>,
}

fn of(values: Vec<f64>) -> Option<f64> {
    (!values.is_empty()).then(|| mean(&values))
}

/// The effect on each model, in the order of `models`. Models without an intervention are left out.
pub fn effects(models: &[String], all: &[Intervention]) -> Vec<Effect> {
    let one = |model: &String| {
        let mine: Vec<&Intervention> = all.iter().filter(|i| i.model == *model).collect();
        let rise = |finding: bool| {
            of(mine.iter().filter(|i| i.finding == finding).map(|i| i.logits[1] - i.logits[0]).collect())
        };
        let cell = |finding: bool, planted: bool| {
            let here = mine.iter().filter(|i| i.finding == finding && i.planted == planted);
            of(here.map(|i| i.scores[usize::from(planted)]).collect())
        };
        let area = |with: usize| {
            let mut parts: BTreeMap<(usize, usize), (Vec<f64>, Vec<u8>)> = BTreeMap::new();
            for i in &mine {
                let part = parts.entry((i.fold, i.training)).or_default();
                part.0.push(i.scores[with]);
                part.1.push(u8::from(i.finding));
            }
            of(parts.values().map(|(scores, labels)| auroc(scores, labels)).collect::<Option<Vec<f64>>>()?)
        };
        (!mine.is_empty()).then(|| Effect {
            model: model.clone(),
            images: mine.len(),
            logit: [rise(true), rise(false)],
            cells: [true, false].map(|finding| [true, false].map(|planted| cell(finding, planted))),
            auroc_without: area(0),
            auroc_with: area(1),
        })
    };
    models.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_of_the_shortcut_is_told_from_one_of_the_finding() {
        let mut all = Vec::new();
        for i in 0..40 {
            let (finding, planted) = (i % 2 == 0, i % 5 < 4);
            let mut add = |model: &str, logits: [f64; 2]| {
                let scores = logits.map(|l| 1.0 / (1.0 + (-l).exp()));
                let (model, image) = (model.to_string(), format!("{i}"));
                all.push(Intervention { image, model, fold: 0, training: 0, finding, planted, logits, scores });
            };
            // The first looks at the shortcut alone, the second at the finding alone.
            add("marker", [-1.0, 2.0]);
            add("nodule", if finding { [1.5; 2] } else { [-1.5; 2] });
        }
        let found = effects(&["marker".into(), "nodule".into(), "other".into()], &all);
        assert_eq!(found.len(), 2);
        let [marker, nodule] = &found[..] else { panic!() };
        assert_eq!((marker.logit, nodule.logit), ([Some(3.0); 2], [Some(0.0); 2]));
        assert_eq!((marker.auroc_without, marker.auroc_with), (Some(0.5), Some(0.5)));
        assert_eq!((nodule.auroc_without, nodule.auroc_with), (Some(1.0), Some(1.0)));
        let score = |l: f64| 1.0 / (1.0 + (-l).exp());
        let near = |v: Option<f64>, w: f64| (v.unwrap() - w).abs() < 1e-12;
        assert!(
            marker.cells.iter().all(|row| near(row[0], score(2.0)) && near(row[1], score(-1.0))),
            "{:?}",
            marker.cells
        );
        assert!(nodule.cells[0].iter().all(|v| near(*v, score(1.5))));
    }
}
