//! `lightbox score`: scores maps that were made anywhere, by the code that scores a run's.

use super::scorer::{Cell, Scene, score};
use super::spec::MetricChoice;
use crate::choice::ExplainerChoice;
use crate::error::{Error, Result};
use clap::Args;
use lightbox_core::metrics::batch_cache::BatchCache;
use lightbox_core::metrics::{self, Masks, NoBench, Score, Status};
use lightbox_core::{checkpoint, files, tensors};
use serde::Serialize;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

#[derive(Args)]
pub struct ScoreArgs {
    /// Maps [images, h, w], float32 or float64: .npy, or .safetensors with one tensor, `maps`, or a tensor [h, w] an image
    #[arg(long)]
    maps: PathBuf,
    /// Masks [images, H, W], 0 outside: .npy, or .safetensors as the maps are; under the same names where images have names.
    /// Maps are brought to their size
    #[arg(long)]
    masks: Option<PathBuf>,
    /// Maps of other images, on which metrics as iou choose their threshold
    #[arg(long, requires = "validation_masks")]
    validation_maps: Option<PathBuf>,
    /// The masks of those
    #[arg(long, requires = "validation_maps")]
    validation_masks: Option<PathBuf>,
    /// NAME or NAME:param=value,...; one that asks neither the model nor the explainer [repeatable]
    #[arg(long = "metric", required = true)]
    metrics: Vec<String>,
    /// The sign of the maps' values means something
    #[arg(long)]
    signed: bool,
    /// Of metrics that draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Images at a time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    batch_size: u64,
    /// Every value as JSON on stdout
    #[arg(long)]
    json: bool,
    /// Every value as a CSV file: image, metric, value, status, reason
    #[arg(long)]
    output: Option<PathBuf>,
}

/// A metric's values.
#[derive(Debug, Serialize)]
pub struct Values {
    pub metric: String,
    /// Of the images that have one; of a metric of a set, its value.
    pub mean: Option<f64>,
    /// Of each image, in the maps' order; empty for a metric of a set.
    pub values: Vec<Option<f64>>,
    /// Why an image has none, or what is odd about it, by its place.
    pub reasons: Vec<(usize, String)>,
}

/// An array [n, h, w] of a file, with the images' names where it has them.
fn read(path: &Path) -> Result<(Option<Vec<String>>, Tensor)> {
    let wrong = |what: String| Error::input(format!("{}: {what}", path.display()));
    let (names, all) = match path.extension().and_then(|e| e.to_str()) {
        Some("npy") => (None, tensors::read_array(path)?),
        Some("safetensors") => {
            let mut state = checkpoint::safetensors(&files::read(path)?).map_err(|e| e.with_path(path))?;
            match state.iter().position(|(name, _)| ["maps", "masks"].contains(&name.as_str())) {
                Some(at) => (None, state.swap_remove(at).1),
                None => {
                    state.sort_by(|a, b| a.0.cmp(&b.0));
                    let (names, parts): (Vec<String>, Vec<Tensor>) = state.into_iter().unzip();
                    if let Some(other) = parts.iter().find(|t| t.size() != parts[0].size()) {
                        let (a, b) = (parts[0].size(), other.size());
                        return Err(wrong(format!("its tensors are of shape {a:?} and {b:?}; one shape is expected")));
                    }
                    match parts.as_slice() {
                        [] => return Err(wrong("it holds no tensor".into())),
                        [one] if one.dim() == 3 => (None, one.shallow_clone()),
                        _ => (Some(names), Tensor::f_stack(&parts, 0)?),
                    }
                }
            }
        }
        _ => return Err(wrong("a file .npy or .safetensors is expected".into())),
    };
    let all = match (all.dim(), all.size().get(1)) {
        (3, _) => all,
        (4, Some(1)) => all.f_squeeze_dim(1)?,
        _ => return Err(wrong(format!("an array [images, h, w] is expected, this has shape {:?}", all.size()))),
    };
    if all.size().contains(&0) {
        return Err(wrong(format!("it is empty: {:?}", all.size())));
    }
    Ok((names, all))
}

/// Maps [n, h, w] and their masks [n, H, W], of which anything but 0 is inside.
pub struct Given {
    pub maps: Tensor,
    pub masks: Option<Tensor>,
}

impl Given {
    /// Reads both; with the images' names.
    fn read(maps: &Path, masks: Option<&Path>) -> Result<(Option<Vec<String>>, Self)> {
        let (names, maps) = read(maps)?;
        let Some(path) = masks else { return Ok((names, Given { maps, masks: None })) };
        let (of, masks) = read(path)?;
        if let (Some(names), Some(of)) = (&names, &of)
            && names != of
        {
            let missing = names.iter().find(|n| !of.contains(n)).or(of.iter().find(|n| !names.contains(n)));
            let missing = missing.map_or("", String::as_str);
            return Err(Error::input(format!("maps and masks are not of the same images: {missing}")));
        }
        Ok((names, Given { maps, masks: Some(masks) }))
    }

    /// Shows all to a cell's metrics, a batch at a time.
    fn show(&self, cell: &mut Cell, batch: i64) -> Result<()> {
        let n = self.maps.size()[0];
        if let Some(masks) = &self.masks
            && masks.size()[0] != n
        {
            return Err(Error::input(format!("{n} maps and {} masks", masks.size()[0])));
        }
        for from in (0..n).step_by(batch.max(1) as usize) {
            let count = batch.min(n - from);
            let part = self.maps.f_narrow(0, from, count)?.f_to_kind(Kind::Float)?.f_contiguous()?;
            let (inside, known) = match &self.masks {
                Some(masks) => (masks.f_narrow(0, from, count)?.f_ne(0)?.f_to_kind(Kind::Uint8)?.f_contiguous()?, true),
                None => (Tensor::f_zeros(part.size(), (Kind::Uint8, Device::Cpu))?, false),
            };
            let scene = Scene::of_masks(&inside, from as usize, known)?;
            score(cell, &part, &scene, &BatchCache::default(), &mut NoBench)?;
        }
        Ok(())
    }
}

/// Scores maps. `validation` are maps of other images, on which metrics choose a threshold.
///
/// # Errors
/// A metric that does not exist, asks the model, or needs masks or validation images where there are none.
pub fn score_maps(
    given: &Given,
    validation: Option<&Given>,
    choices: &[MetricChoice],
    (signed, seed, batch): (bool, u64, i64),
) -> Result<Vec<Values>> {
    for choice in choices {
        let needs = metrics::find(&choice.name)?.needs();
        let label = choice.label();
        let what = match needs {
            n if n.maps.is_none() => "is of predictions, not of maps",
            n if n.asks() => "asks the model; use it in a run",
            n if n.validation && validation.is_none() => {
                "chooses its threshold on other images: --validation-maps and --validation-masks; iou-otsu and dice-otsu need none"
            }
            n if n.masks == Masks::Shortcut => "needs a planted shortcut; use it in a run",
            n if n.masks == Masks::Finding && given.masks.is_none() => "needs --masks",
            _ => continue,
        };
        return Err(Error::input(format!("metric {label} {what}")));
    }
    let all: Vec<&MetricChoice> = choices.iter().collect();
    let mut cell = Cell::start("maps", "", signed, &all, seed)?;
    given.show(&mut cell, batch)?;
    if let Some(validation) = validation {
        let mut other = Cell::start("maps", "", signed, &all, seed)?;
        validation.show(&mut other, batch)?;
        for ((_, needs, to), (_, _, from)) in cell.evaluations.iter_mut().zip(&other.evaluations) {
            if needs.validation {
                to.tune(&from.state()?)?;
            }
        }
    }
    let mut all = Vec::new();
    let rows = cell.take();
    for (at, (choice, _, evaluation)) in cell.evaluations.iter().enumerate() {
        let own: Vec<&(usize, usize, Score)> = rows.iter().filter(|(_, metric, _)| *metric == at).collect();
        let found = |s: &Score| s.value.filter(|_| s.status == Status::Ok);
        let set = evaluation.finish()?;
        // Of a metric with a threshold they are known in the end.
        let mut late = evaluation.images()?;
        late.sort_by_key(|(id, ..)| *id);
        let late: Vec<Score> = late.into_iter().map(|(.., score)| score).collect();
        let scores: Vec<&Score> =
            if late.is_empty() { own.iter().map(|(.., s)| s).collect() } else { late.iter().collect() };
        let reasons = scores.iter().enumerate().filter(|(_, s)| !s.reason.is_empty());
        let reasons = reasons.map(|(i, s)| (i, s.reason.to_string())).collect();
        let values: Vec<Option<f64>> = if set.is_some() { vec![] } else { scores.iter().map(|s| found(s)).collect() };
        let there: Vec<f64> = values.iter().flatten().copied().collect();
        let mean = match set {
            Some(score) => found(&score),
            None => (!there.is_empty()).then(|| there.iter().sum::<f64>() / there.len() as f64),
        };
        all.push(Values { metric: choice.label().into(), mean, values, reasons });
    }
    Ok(all)
}

/// Scores the files; what is printed.
///
/// # Errors
/// As [`score_maps`], and files that cannot be read or do not go together.
pub fn main(args: &ScoreArgs) -> Result<String> {
    let (names, given) = Given::read(&args.maps, args.masks.as_deref())?;
    let validation = match &args.validation_maps {
        Some(maps) => Some(Given::read(maps, args.validation_masks.as_deref())?.1),
        None => None,
    };
    // The syntax is that of explainers.
    let choice = |text: &String| {
        let ExplainerChoice { name, label, params, .. } = ExplainerChoice::parse(text)?;
        Ok(MetricChoice { name, label, params })
    };
    let choices = args.metrics.iter().map(choice).collect::<Result<Vec<_>>>()?;
    let all = score_maps(&given, validation.as_ref(), &choices, (args.signed, args.seed, args.batch_size as i64))?;
    let name = |i: usize| names.as_ref().map_or(i.to_string(), |n| n[i].clone());
    if let Some(path) = &args.output {
        let mut text = String::from("image,metric,value,reason\n");
        for Values { metric, values, reasons, .. } in &all {
            for (i, value) in values.iter().enumerate() {
                let reason = reasons.iter().find(|(at, _)| *at == i).map_or("", |(_, r)| r);
                let value = value.map(|v| v.to_string()).unwrap_or_default();
                let image = name(i).replace('"', "\"\"");
                text += &format!("\"{image}\",\"{metric}\",{value},{reason}\n");
            }
        }
        files::write_atomic(path, |w| w.write_all(text.as_bytes()))?;
    }
    if args.json {
        let value = serde_json::json!({ "images": names, "count": given.maps.size()[0], "metrics": all });
        return Ok(serde_json::to_string(&value).map_err(|e| Error::input(e.to_string()))? + "\n");
    }
    let width = all.iter().map(|v| v.metric.len()).max().unwrap_or(0);
    let line = |v: &Values| {
        let there = v.values.iter().flatten().count();
        let of = if v.values.is_empty() { "a value of the set".into() } else { format!("mean of {there} images") };
        let mean = v.mean.map_or("N/A".into(), |m| format!("{m:.4}"));
        format!("{:width$}  {mean:>8}  {of}\n", v.metric)
    };
    Ok(all.iter().map(line).collect())
}
