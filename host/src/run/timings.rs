//! Where the time of a run goes: what units said at their ends, and what came after them.

use super::folder::RunFolder;
use crate::error::Result;
use serde::{Deserialize, Serialize};

/// Seconds of all workers together, each of one of them: threads do not count. On CUDA what is still running when a call
/// returns counts where its result is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Decoding, resizing and fetching images.
    pub data: f64,
    pub training: f64,
    /// The runs of models that explainers share, and classification.
    pub model: f64,
    /// Explainers' own code, and what they run models for.
    pub explainers: f64,
    /// Metrics, and what they run models and explainers for; of those on other cores, how long was waited for them.
    pub metrics: f64,
    /// Writing units' files.
    pub files: f64,
    /// The rest of units: opening models, checks of what explainers were given, counting.
    pub rest: f64,
    /// Tables, statistics and pictures after the units; the report, which shows this, comes later.
    pub summary: f64,
}

impl Timings {
    /// Names and seconds.
    pub fn parts(&self) -> [(&'static str, f64); 8] {
        let Timings { data, training, model, explainers, metrics, files, rest, summary } = *self;
        [
            ("data", data),
            ("training", training),
            ("model", model),
            ("explainers", explainers),
            ("metrics", metrics),
            ("files", files),
            ("rest", rest),
            ("summary", summary),
        ]
    }

    pub fn total(&self) -> f64 {
        self.parts().iter().map(|(_, seconds)| seconds).sum()
    }

    fn add(&mut self, other: &Timings) {
        self.data += other.data;
        self.training += other.training;
        self.model += other.model;
        self.explainers += other.explainers;
        self.metrics += other.metrics;
        self.files += other.files;
        self.rest += other.rest;
    }

    /// What is not yet in a part is the unit's rest.
    pub fn rest_of(mut self, seconds: f64) -> Self {
        self.rest += (seconds - self.total()).max(0.0);
        self
    }

    /// `412 s: model 31.2 %, explainers 55.0 %, ...`, without parts of nothing.
    pub fn shown(&self) -> String {
        let total = self.total();
        let parts = self.parts().into_iter().filter(|(_, seconds)| *seconds > 0.0);
        let parts: Vec<String> =
            parts.map(|(name, seconds)| format!("{name} {:.1} %", seconds / total * 100.0)).collect();
        format!("{total:.0} s: {}", parts.join(", "))
    }

    /// Of all units that ended in this folder, in this run of the program and earlier ones.
    pub fn of(folder: &RunFolder) -> Result<Self> {
        #[derive(Deserialize)]
        struct Line {
            spent: Timings,
        }
        let mut all = Timings::default();
        let text = String::from_utf8_lossy(&lightbox_core::files::read(&folder.0.join("events.jsonl"))?).into_owned();
        for line in text.lines().filter(|l| l.contains("\"unit-finished\"")) {
            // Lines of a version that did not say it, and one that a kill cut off.
            if let Ok(line) = serde_json::from_str::<Line>(line) {
                all.add(&line.spent);
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_to_the_units() {
        let folder = tempfile::tempdir().unwrap();
        let unit = Timings { model: 2.0, metrics: 1.0, ..Timings::default() }.rest_of(4.0);
        assert_eq!((unit.rest, unit.total()), (1.0, 4.0));
        let line = |spent: &Timings| {
            let spent = serde_json::to_string(spent).unwrap();
            format!(
                "{{\"time\":1.0,\"event\":\"unit-finished\",\"unit\":\"u\",\"seconds\":4.0,\"images\":1,\"spent\":{spent}}}\n"
            )
        };
        let text =
            line(&unit) + "{\"event\":\"ready\"}\n" + &line(&unit) + "{\"event\":\"unit-finished\",\"unit\":\"old";
        std::fs::write(folder.path().join("events.jsonl"), text).unwrap();
        let all = Timings::of(&RunFolder(folder.path().into())).unwrap();
        assert_eq!((all.model, all.total()), (4.0, 8.0));
        assert_eq!(all.shown(), "8 s: model 50.0 %, metrics 25.0 %, rest 25.0 %");
    }
}
