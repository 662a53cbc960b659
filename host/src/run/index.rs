//! Where a run's results are, by what they are of.

use super::folder::Record;
use super::unit::Unit;
use std::collections::BTreeMap;

/// Where results are, by what they are of.
#[derive(Default)]
pub struct Index {
    /// Model, fold, training, chunk -> identity and record.
    predictions: BTreeMap<(String, usize, usize, usize), Vec<(String, String)>>,
    /// ..., explainer.
    maps: BTreeMap<(String, usize, usize, usize, String), Vec<(String, String)>>,
    /// ..., metric -> identities of maps and metric, record.
    scores: BTreeMap<(String, usize, usize, usize, String, String), Vec<(String, String, String)>>,
    reduced: BTreeMap<(String, usize, usize), Vec<(String, String)>>,
}

impl Index {
    pub fn new(records: &BTreeMap<String, Record>) -> Self {
        let mut index = Index::default();
        for (stem, record) in records {
            let Some((model, fold, training)) = record.unit.place() else { continue };
            let (Unit::Explain { chunk, .. } | Unit::Score { chunk, .. }) = &record.unit else {
                let entry = index.reduced.entry((model.into(), fold, training)).or_default();
                entry.extend(record.reduced.iter().map(|id| (id.clone(), stem.clone())));
                continue;
            };
            let place = (model.to_string(), fold, training, *chunk);
            if let Some(id) = &record.predictions {
                index.predictions.entry(place.clone()).or_default().push((id.clone(), stem.clone()));
            }
            for (explainer, cell) in &record.cells {
                let (model, fold, training, chunk) = place.clone();
                if cell.maps {
                    let key = (model.clone(), fold, training, chunk, explainer.clone());
                    index.maps.entry(key).or_default().push((cell.id.clone(), stem.clone()));
                }
                for (metric, id) in &cell.scores {
                    let key = (model.clone(), fold, training, chunk, explainer.clone(), metric.clone());
                    index.scores.entry(key).or_default().push((cell.id.clone(), id.clone(), stem.clone()));
                }
            }
        }
        index
    }

    /// The record that holds these predictions.
    pub fn predictions(&self, place: (&str, usize, usize), chunk: usize, id: &str) -> Option<&str> {
        let found = self.predictions.get(&(place.0.into(), place.1, place.2, chunk))?;
        found.iter().find(|(i, _)| i == id).map(|(_, stem)| stem.as_str())
    }

    /// The record that holds these maps.
    pub fn maps(&self, place: (&str, usize, usize), chunk: usize, explainer: &str, id: &str) -> Option<&str> {
        let found = self.maps.get(&(place.0.into(), place.1, place.2, chunk, explainer.into()))?;
        found.iter().find(|(i, _)| i == id).map(|(_, stem)| stem.as_str())
    }

    /// The record that holds these maps' scores by a metric.
    pub fn scores(
        &self,
        place: (&str, usize, usize),
        chunk: usize,
        explainer: &str,
        metric: &str,
        ids: (&str, &str),
    ) -> Option<&str> {
        let found = self.scores.get(&(place.0.into(), place.1, place.2, chunk, explainer.into(), metric.into()))?;
        found.iter().find(|(m, k, _)| (m.as_str(), k.as_str()) == ids).map(|(.., stem)| stem.as_str())
    }

    pub fn reduced(&self, place: (&str, usize, usize), id: &str) -> Option<&str> {
        let found = self.reduced.get(&(place.0.into(), place.1, place.2))?;
        found.iter().find(|(i, _)| i == id).map(|(_, stem)| stem.as_str())
    }
}
