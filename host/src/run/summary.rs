//! Reads the units of a run and writes its tables and pictures.

use super::events::Unit;
use super::folder::{Cells, Folder, read_json};
use super::spec::RunSpec;
use super::train::Epoch;
use super::worker::block;
use crate::error::Result;
use lightbox_core::checkpoint;
use lightbox_core::data::split::Split;
use lightbox_core::data::store::Store;
use lightbox_core::data::{Source, resize};
use lightbox_core::files;
use lightbox_core::metrics::auroc::auroc;
use lightbox_core::metrics::average_precision::{Pixels, average_precision, min_max};
use lightbox_core::picture::{Picture, sheet};
use lightbox_core::results::{self, Status};
use lightbox_core::table::{Cell, Group, Row, Table, csv};
use std::collections::BTreeMap;
use tch::Device;

/// What all units of a model say.
struct ModelResult {
    auprc: Vec<f64>,
    auroc: Vec<f64>,
    /// By explainer.
    pixels: BTreeMap<String, PixelResult>,
}

#[derive(Default)]
struct PixelResult {
    /// Mean over images, a fold.
    means: Vec<f64>,
    pooled: Vec<f64>,
    failed: usize,
}

/// The maps of one fold and explainer, raised to the masks' side, a unit at a time.
fn for_each_map(
    folder: &Folder,
    units: &[Unit],
    explainer: &str,
    side: usize,
    see: &mut dyn FnMut(usize, Vec<f32>),
) -> Result<()> {
    for unit in units {
        let state = checkpoint::read(&folder.maps(unit))?;
        let find = |name: &str| state.iter().find(|(n, _)| n == name).map(|(_, t)| t);
        let (Some(maps), Some(images)) = (find(explainer), find("images")) else { continue };
        let size = maps.size();
        let (h, w) = (size[1] as usize, size[2] as usize);
        for (at, index) in Vec::<i64>::try_from(images)?.into_iter().enumerate() {
            let map = Vec::<f32>::try_from(maps.f_get(at as i64)?.f_flatten(0, -1)?)?;
            if map.iter().all(|v| v.is_finite()) {
                let mut map = resize::upsample(&map, 1, (h, w), (side, side));
                min_max(&mut map);
                see(index as usize, map);
            }
        }
    }
    Ok(())
}

fn explain_units(spec: &RunSpec, split: &Split, model: &str, fold: usize) -> Vec<Unit> {
    let blocks = split.test.len().div_ceil(spec.block);
    (0..blocks).map(|block| Unit::Explain { model: model.into(), fold, block }).collect()
}

/// Writes summary.json, .csv, .md, .tex and sheet.png; the tables for a terminal.
/// `sides` are the models' input sides, `controls` the labels of explainers that know nothing of the model.
pub fn write(
    spec: &RunSpec,
    sides: &[usize],
    folder: &Folder,
    source: &dyn Source,
    split: &Split,
    cells: &Cells,
    controls: &[String],
) -> Result<String> {
    let mut models = BTreeMap::new();
    // Share of the mask, a test image with the finding; none where the mask is unknown. The same for every model.
    let mut shares: Option<Vec<Option<f64>>> = None;
    for (choice, &side) in spec.models.iter().zip(sides) {
        let label = choice.label();
        if cells.failures.iter().any(|f| f.model == label && f.explainer.is_none()) {
            continue;
        }
        let Some(store) = open_store(folder, side)? else { continue };
        shares.get_or_insert_with(|| {
            let positive = split.test.iter().filter(|&&i| source.samples()[i].label == 1);
            let share = |mask: &[u8]| mask.iter().map(|&m| f64::from(m)).sum::<f64>() / mask.len() as f64;
            positive.map(|&i| store.mask(i).map(share)).collect()
        });
        let mut result = ModelResult { auprc: vec![], auroc: vec![], pixels: BTreeMap::new() };
        for fold in 0..split.folds.len() {
            let units = explain_units(spec, split, label, fold);
            let mut rows = Vec::new();
            for unit in &units {
                rows.extend(results::read(&folder.rows(unit))?);
            }
            let scores: Vec<f64> = rows.iter().filter(|r| r.metric == "score").filter_map(|r| r.value).collect();
            let labels: Vec<u8> =
                rows.iter().filter(|r| r.metric == "score" && r.value.is_some()).map(|r| r.label as u8).collect();
            result.auprc.extend(average_precision(&scores, &labels));
            result.auroc.extend(auroc(&scores, &labels));
            for explainer in &spec.explainers {
                let name = explainer.label();
                let mine: Vec<_> = rows.iter().filter(|r| r.explainer == name).collect();
                if mine.is_empty() {
                    continue;
                }
                let pixel = result.pixels.entry(name.to_string()).or_default();
                let values: Vec<f64> = mine.iter().filter_map(|r| r.value).collect();
                pixel.failed += mine.iter().filter(|r| r.status == Status::Failed).count();
                if !values.is_empty() {
                    pixel.means.push(values.iter().sum::<f64>() / values.len() as f64);
                }
                // Twice through the maps: the positives are the thresholds that all pixels are counted into.
                let mut positives = Vec::new();
                for_each_map(folder, &units, name, side, &mut |i, map| {
                    if let Some(mask) = store.mask(i) {
                        positives.extend(map.iter().zip(mask).filter(|(_, m)| **m != 0).map(|(v, _)| *v));
                    }
                })?;
                if let Some(mut pixels) = Pixels::new(positives) {
                    for_each_map(folder, &units, name, side, &mut |i, map| {
                        if store.mask(i).is_some() {
                            pixels.count(&map);
                        }
                    })?;
                    pixel.pooled.push(pixels.finish());
                }
            }
        }
        models.insert(label.to_string(), result);
    }
    let shares = shares.unwrap_or_default();
    let unknown = shares.iter().filter(|s| s.is_none()).count();
    let shares: Vec<f64> = shares.into_iter().flatten().collect();
    let chance = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
    let tables = tables(spec, split, source, cells, &models, chance, shares.len(), unknown);
    let json = serde_json::json!({ "name": spec.name, "tables": tables, "cells": cells });
    super::folder::write_json(&folder.0.join("summary.json"), &json)?;
    let join = |f: &dyn Fn(&Table) -> String| tables.iter().map(f).collect::<Vec<_>>().join("\n");
    files::write_text(&folder.0.join("summary.csv"), &csv(&tables))?;
    files::write_text(&folder.0.join("summary.md"), &join(&Table::markdown))?;
    files::write_text(&folder.0.join("summary.tex"), &join(&Table::latex))?;
    pictures(spec, sides, folder, source, split, controls)?;
    Ok(join(&Table::terminal))
}

fn open_store(folder: &Folder, side: usize) -> Result<Option<Store>> {
    let file = folder.prepared(side);
    // Only masks and grey values are wanted, which do not depend on a model's normalisation.
    file.is_file().then(|| Ok(Store::open(&file, &[0.0], &[1.0], Device::Cpu, 0)?)).transpose()
}

fn tables(
    spec: &RunSpec,
    split: &Split,
    source: &dyn Source,
    cells: &Cells,
    models: &BTreeMap<String, ModelResult>,
    chance: f64,
    masks: usize,
    unknown: usize,
) -> Vec<Table> {
    let explainers: Vec<String> = spec.explainers.iter().map(|e| e.label().to_string()).collect();
    let cell = |model: &str, explainer: Option<&str>, values: Option<(&[f64], usize)>| {
        let failure = cells.failures.iter().find(|f| {
            f.model == model && (f.explainer.is_none() || f.explainer.as_deref() == explainer && explainer.is_some())
        });
        let not = cells.not_applicable.iter().find(|c| c.model == model && Some(c.explainer.as_str()) == explainer);
        match (failure, not, values) {
            (Some(f), ..) => Cell::Failed { reason: f.reason.clone() },
            (_, Some(c), _) => Cell::NotApplicable { reason: c.reason.clone() },
            (.., Some((values, failed))) if !values.is_empty() => Cell::over_folds(values.to_vec(), failed, unknown),
            (.., Some((_, failed))) if failed > 0 => Cell::Failed { reason: format!("{failed} maps were not finite") },
            _ => Cell::NotApplicable { reason: "no image of the test set has a mask".into() },
        }
    };
    let table = |title: String, classification: bool, pixels: &dyn Fn(&PixelResult) -> &Vec<f64>, heading: &str| {
        let mut groups = Vec::new();
        if classification {
            groups.push(Group { title: "classification".into(), columns: vec!["AUPRC".into(), "AUROC".into()] });
        }
        if !explainers.is_empty() {
            let columns = explainers.iter().cloned().chain(["chance".into()]).collect();
            groups.push(Group { title: heading.into(), columns });
        }
        let row = |label: &str| {
            let result = models.get(label);
            let mut row = Vec::new();
            if classification {
                row.push(cell(label, None, result.map(|r| (r.auprc.as_slice(), 0))));
                row.push(cell(label, None, result.map(|r| (r.auroc.as_slice(), 0))));
            }
            for explainer in &explainers {
                let pixel = result.and_then(|r| r.pixels.get(explainer));
                row.push(cell(label, Some(explainer), pixel.map(|p| (pixels(p).as_slice(), p.failed))));
            }
            if !explainers.is_empty() {
                row.push(match masks {
                    0 => Cell::NotApplicable { reason: "no image of the test set has a mask".into() },
                    _ => Cell::over_folds(vec![chance], 0, 0),
                });
            }
            Row { title: label.into(), cells: row }
        };
        let rows = spec.models.iter().map(|m| row(m.label())).collect();
        Table { title, groups, rows, notes: vec![] }
    };
    let title = if spec.title.is_empty() { spec.name.clone() } else { spec.title.clone() };
    let mut first = table(title, true, &|p| &p.means, "pixel AUPRC, mean over images");
    let positive = split.test.iter().filter(|&&i| source.samples()[i].label == 1).count();
    let (test, folds) = (split.test.len(), split.folds.len());
    let spread = if folds > 1 { format!("Mean and standard deviation over {folds} folds") } else { "One fold".into() };
    first.notes.push(format!(
        "{spread}, in percent. {test} test images, {positive} with the finding, {masks} of them with a mask; chance is the \
         share of their pixels in it."
    ));
    for model in &spec.models {
        let label = model.label();
        let weights = model.weights.as_ref().map(|w| w.rsplit('/').next().unwrap_or(w));
        first.notes.push(match (weights, &model.train) {
            (from, Some(t)) => {
                let mixed = if t.precision == "mixed" { " in mixed precision" } else { "" };
                let from = from.unwrap_or("seeded random values");
                format!("{label}: trained for {} epochs{mixed} from {from}.", t.epochs)
            }
            (Some(file), None) => format!("{label}: weights of {file}."),
            (None, None) => format!("{label}: seeded random values, not trained."),
        });
    }
    if unknown > 0 {
        first.notes.push(format!("{unknown} images with the finding have no mask and are only classified."));
    }
    let some = |n: usize| n > 0 && n < folds;
    for (label, result) in models {
        for (explainer, pixel) in result.pixels.iter().filter(|(_, p)| some(p.means.len())) {
            let n = pixel.means.len();
            first.notes.push(format!("{label} x {explainer}: only {n} of {folds} folds have a value."));
        }
        for (explainer, pixel) in result.pixels.iter().filter(|(_, p)| p.failed > 0) {
            first.notes.push(format!("{label} x {explainer}: {} maps were not finite.", pixel.failed));
        }
    }
    for c in &cells.not_applicable {
        first.notes.push(format!("{} x {}: not applicable: {}.", c.model, c.explainer, c.reason));
    }
    for f in &cells.failures {
        let cell = f.explainer.as_ref().map_or(f.model.clone(), |e| format!("{} x {e}", f.model));
        first.notes.push(format!("{cell}: failed: {}.", f.reason.lines().next().unwrap_or_default()));
    }
    let mut tables = vec![first];
    if !explainers.is_empty() {
        let title = "Pixels of all images with a mask pooled, each map scaled to [0, 1]".into();
        let mut pooled = table(title, false, &|p| &p.pooled, "pixel AUPRC, pooled");
        pooled.notes.push(format!("{spread}, in percent."));
        tables.push(pooled);
    }
    tables
}

/// The sheet: images in rows, model x explainer in columns, fold 0, the finding outlined.
fn pictures(
    spec: &RunSpec,
    sides: &[usize],
    folder: &Folder,
    source: &dyn Source,
    split: &Split,
    controls: &[String],
) -> Result<()> {
    let mut columns = vec!["image".to_string()];
    let mut rows: BTreeMap<usize, Vec<Picture>> = BTreeMap::new();
    let mut chosen: Vec<usize> = Vec::new();
    let mut controls_shown = false;
    let mut bare = Picture::new(1, 1, [255; 3]);
    for (choice, &side) in spec.models.iter().zip(sides) {
        let Some(store) = open_store(folder, side)? else { continue };
        let factor = (256 / side).max(1);
        if chosen.is_empty() {
            let positive: Vec<usize> = split.test.iter().copied().filter(|&i| source.samples()[i].label == 1).collect();
            let masked: Vec<usize> =
                positive.into_iter().filter(|&i| store.mask(i).is_some_and(|m| m.contains(&1))).collect();
            let n = spec.pictures.min(masked.len());
            // Spread over the test set, not picked.
            chosen = (0..n).map(|k| masked[k * masked.len() / n]).collect();
            for &i in &chosen {
                let mut picture = Picture::grey(&store.grey(i), side);
                picture.outline(store.mask(i).unwrap_or_default());
                rows.insert(i, vec![picture.enlarge(factor)]);
            }
            bare = Picture::new(side * factor, side * factor, [235; 3]);
        }
        let units: Vec<Unit> = explain_units(spec, split, choice.label(), 0);
        let units: Vec<Unit> = units
            .into_iter()
            .filter(|u| {
                let Unit::Explain { block: b, .. } = u else { return false };
                folder.rows(u).is_file() && block(split, spec.block, *b).iter().any(|i| chosen.contains(i))
            })
            .collect();
        // A control's map is the same for every model; it is shown once, from the first that has maps.
        let first = !controls_shown && !units.is_empty();
        controls_shown |= first;
        for explainer in spec.explainers.iter().filter(|e| first || !controls.iter().any(|c| c == e.label())) {
            let control = controls.iter().any(|c| c == explainer.label());
            let model = if control || spec.models.len() == 1 { "" } else { choice.label() };
            columns.push(format!("{model}\n{}", explainer.label()).trim_start().to_string());
            let at = columns.len();
            for_each_map(folder, &units, explainer.label(), side, &mut |i, map| {
                if let Some(row) = rows.get_mut(&i) {
                    let mut picture = Picture::grey(&store.grey(i), side);
                    picture.overlay(&map);
                    picture.outline(store.mask(i).unwrap_or_default());
                    row.push(picture.enlarge(factor));
                }
            })?;
            // A cell that failed or does not apply is an empty field.
            rows.values_mut().for_each(|row| row.resize(at, bare.clone()));
        }
    }
    let rows: Vec<(String, Vec<Picture>)> =
        chosen.iter().filter_map(|i| rows.remove(i).map(|row| (source.samples()[*i].id.clone(), row))).collect();
    Ok(sheet(&columns, &rows).write(&folder.0.join("sheet.png"))?)
}

/// What training came to, a line a model and fold.
pub fn training(spec: &RunSpec, folder: &Folder, folds: usize) -> Result<String> {
    let mut text = String::new();
    for model in spec.models.iter().filter(|m| m.train.is_some()) {
        for fold in 0..folds {
            let checkpoint = folder.checkpoint(model.label(), fold);
            if !checkpoint.join("history.json").is_file() {
                continue;
            }
            let history: Vec<Epoch> = read_json(&checkpoint.join("history.json"))?;
            if let Some(best) = history.iter().rev().find(|e| e.best) {
                let auroc = best.validation_auroc.map_or("-".into(), |v| format!("{v:.3}"));
                text += &format!(
                    "{} fold {fold}: best epoch {} of {}, validation loss {:.4}, AUROC {auroc}: {}\n",
                    model.label(),
                    best.epoch + 1,
                    history.len(),
                    best.validation_loss,
                    checkpoint.join("best.safetensors").display()
                );
            }
        }
    }
    Ok(text)
}
