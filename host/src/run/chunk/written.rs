//! What a chunk leaves on the disk: maps as they come, a file an explainer; then tables and states. The record, which says
//! that they are whole, is the worker's.

use super::Failures;
use super::explained::Explaining;
use super::prepared::{Prepared, Rows};
use super::scored::Scored;
use crate::engine::{Engine, Outputs};
use crate::error::{Error, Result};
use crate::run::folder::{CellRecord, RunFolder};
use crate::run::scorer::keep_states;
use crate::run::spec::RunSpec;
use crate::run::unit_result::UnitResult;
use crate::run::worker::Worker;
use lightbox_core::checkpoint::{self, State};
use lightbox_core::maps_file::MapsWriter;
use lightbox_core::results;
use lightbox_core::summary::CHANCE;
use std::collections::BTreeMap;

/// The files of a unit that are being written.
pub struct Written<'a> {
    folder: &'a RunFolder,
    stem: &'a str,
    engine: &'a Engine,
    /// By explainer: the names of its maps, and their file.
    maps: BTreeMap<usize, (Vec<String>, MapsWriter)>,
}

impl<'a> Written<'a> {
    pub fn new(folder: &'a RunFolder, stem: &'a str, engine: &'a Engine) -> Self {
        Written { folder, stem, engine, maps: BTreeMap::new() }
    }

    /// Appends an explainer's maps of a batch.
    pub fn maps(&mut self, index: usize, all: &Rows, outputs: &Outputs) -> Result<()> {
        let name = &self.engine.explainers[index].label;
        if let std::collections::btree_map::Entry::Vacant(entry) = self.maps.entry(index) {
            let images = all.0.iter().map(|r| r.image as i64).collect();
            let targets = all.0.iter().map(|r| r.class.map_or(-1, |c| c as i64)).collect();
            let writer = MapsWriter::new(&self.folder.maps(self.stem, name), images, targets)?;
            entry.insert((outputs.names.clone(), writer));
        }
        let Some((names, writer)) = self.maps.get_mut(&index) else { return Ok(()) };
        if *names != outputs.names {
            return Err(Error::plugin(format!(
                "explainer {name} names its maps {:?}, before {names:?}",
                outputs.names
            )));
        }
        writer.append(&outputs.maps).map_err(|e| match e.disk_full {
            true => Error::from(e),
            false => Error::plugin(format!("explainer {name} gives {e}")),
        })
    }

    /// Closes the maps' files, and writes scores and states. What failed leaves nothing.
    pub fn finish(
        mut self,
        worker: &Worker,
        spec: &RunSpec,
        chunk: usize,
        scored: &mut Scored<'_>,
        explaining: &Explaining<'_>,
        failures: &Failures<'_>,
        prepared: &Prepared,
        result: &mut UnitResult,
    ) -> Result<()> {
        let ids = &worker.identities;
        let (mut rows, mut states): (_, State) = (scored.table(), Vec::new());
        for (index, explainer) in self.engine.explainers.iter().enumerate() {
            let maps = self.maps.remove(&index);
            if failures.is_broken(index) {
                continue;
            }
            let name = &explainer.label;
            // Of a chunk without an image to explain there are no maps, and that is all of them.
            let mut outputs = vec![];
            if let Some((names, writer)) = maps {
                writer.finish()?;
                outputs = names;
            }
            for mut cell in scored.cells_of(index) {
                rows.take(&mut cell);
                keep_states(&cell, &mut states)?;
            }
            let choice = spec.explainers.iter().find(|e| e.label() == name);
            let plugin = choice.map(|c| worker.plan.environment.plugin("explainer", &c.name)).transpose()?;
            result.cells.insert(
                name.clone(),
                CellRecord {
                    id: ids.maps(name, chunk)?.to_string(),
                    maps: true,
                    outputs,
                    scores: ids.metrics_of(&scored.choices)?,
                    plugin: plugin.map_or(String::new(), |p| p.sha256.clone()),
                    version: plugin.map_or(String::new(), |p| p.version.clone()),
                    seconds: explaining.seconds.get(&index).copied().unwrap_or_default(),
                    runs: explaining.ran[index],
                    images: prepared.rows.len(),
                },
            );
        }
        if let Some(mut cell) = scored.chance_cell() {
            rows.take(&mut cell);
            keep_states(&cell, &mut states)?;
            let scores = ids.metrics_of(&scored.chance)?;
            let id = ids.maps(CHANCE, chunk)?.to_string();
            result.cells.insert(CHANCE.into(), CellRecord { id, scores, ..CellRecord::default() });
        }
        if !states.is_empty() {
            checkpoint::write(&self.folder.unit(self.stem, "states.safetensors"), &states)?;
        }
        Ok(results::write_scores(&self.folder.unit(self.stem, "scores.parquet"), &rows.names, &rows.rows)?)
    }
}
