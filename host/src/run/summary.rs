//! Gathers the tables of a run's units into one summary, and writes its forms and the pictures.

use super::chunk::prepared::explained_rows;
use super::folder::{
    AgreementRecord, CurveRecord, INTERVENTIONS, RunFolder, read_json, read_lines, write_json, write_lines,
};
use super::index::Index;
use super::manifest::RunManifest;
use super::spec::{ModelChoice, OWN, RANDOM, RunSpec, file_name};
use super::state::{RunState, Verdict, chance_metrics, map_metrics};
use super::unit::Failure;
use super::unit_train::Epoch;
use crate::error::Result;
use lightbox_core::aggregate::Gather;
use lightbox_core::compare::{Comparisons, MapAgreement};
use lightbox_core::data::store::Store;
use lightbox_core::data::{Sample, Source};
use lightbox_core::files;
use lightbox_core::intervention::{self, Intervention};
use lightbox_core::maps::{self, Fault};
use lightbox_core::maps_file::MapsFile;
use lightbox_core::metrics::{self, threshold::Regions};
use lightbox_core::picture::{Picture, sheet};
use lightbox_core::results::{self, ImageRow, ScoreWriter};
use lightbox_core::summary::{self, Absent, CHANCE, Column, ImageFacts, MetricColumn, Summary};
use lightbox_core::table::{Table, csv};
use lightbox_core::tables::tables;
use lightbox_core::task::{Explained, Kind};
use lightbox_core::text::plain;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use tch::{Device, Tensor};

/// The version of `summary.json`.
pub const SCHEMA: &str = "lightbox-summary-4";
/// That of `comparisons.json`.
const COMPARISONS: &str = "lightbox-comparisons-1";

/// `summary.json` of a run: all its cells. Values are fractions, not percent; an end of a range that is open is null.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "summary.json of a run")]
pub struct SummaryFile {
    /// `lightbox-summary-4`.
    #[schemars(extend("const" = SCHEMA))]
    pub schema: String,
    /// Of the run.
    pub name: String,
    /// What was found.
    pub summary: Summary,
    /// The same as tables.
    pub tables: Vec<Table>,
    /// What the run's models, explainers and metrics are.
    pub about: RunManifest,
}

/// `comparisons.json` of a run: how explainers compare on each model by each metric of images.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "comparisons.json of a run")]
pub struct ComparisonsFile {
    /// `lightbox-comparisons-1`.
    #[schemars(extend("const" = COMPARISONS))]
    pub schema: String,
    /// Columns of maps; the comparisons name them by their places here.
    pub columns: Vec<Column>,
    /// All of them.
    pub comparisons: Comparisons,
}

/// The JSON schema of `summary.json` or of `comparisons.json`, with its title, as text.
pub fn json_schema<T: JsonSchema>() -> Result<String> {
    let text = serde_json::to_string_pretty(&schemars::schema_for!(T));
    Ok(text.map_err(|e| crate::error::Error::input(e.to_string()))? + "\n")
}

/// A model's name, with its fold and training where there are several.
fn place<'a>(model: &'a ModelChoice, spec: &RunSpec, folds: usize) -> Vec<(&'a str, usize, usize)> {
    let seeds = if model.train.is_some() { spec.seeds } else { 1 };
    (0..folds).flat_map(|fold| (0..seeds).map(move |training| (model.label(), fold, training))).collect()
}

/// What a run set out to do, for its summary.
fn plan_of(
    state: &RunState<'_>,
    images: &[ImageRow],
    samples: &[Sample],
    controls: &[String],
    notes: Vec<String>,
) -> Result<summary::Plan> {
    let spec = state.spec();
    let mut columns = Vec::new();
    for choice in &spec.metrics {
        let metric = metrics::find(&choice.name)?;
        columns.push(MetricColumn { label: choice.label().into(), metric, spec: metric.spec() });
    }
    let classes: HashMap<&str, usize> = samples.iter().map(|s| (s.id.as_str(), s.stratum())).collect();
    let facts = |row: &ImageRow| ImageFacts {
        patient: row.patient.clone(),
        class: classes.get(row.image.as_str()).copied().unwrap_or(0),
        classes: row.class.clone(),
        size: row.mask.filter(|m| *m > 0.0),
    };
    let facts = images.iter().map(|row| (row.image.clone(), facts(row))).collect();
    Ok(summary::Plan {
        name: spec.name.clone(),
        title: if spec.title.is_empty() { spec.name.clone() } else { spec.title.clone() },
        task: spec.task.clone(),
        seed: spec.seed,
        folds: state.folds(),
        seeds: spec.seeds,
        models: spec.models.iter().map(|m| (m.label().to_string(), m.is_shared())).collect(),
        explainers: spec.explainers.iter().map(|e| (e.label().to_string(), e.maps.clone())).collect(),
        metrics: columns,
        controls: controls.to_vec(),
        images: facts,
        notes,
    })
}

/// Cells without a value, and why.
fn absent(state: &RunState<'_>) -> Result<Vec<Absent>> {
    let (spec, mut absent) = (state.spec(), Vec::new());
    for model in spec.models.iter().map(ModelChoice::label) {
        let failed = |f: &Failure, explainer: Option<String>| Absent {
            model: model.into(),
            explainer,
            failed: true,
            reason: f.reason.clone(),
        };
        absent.extend(state.model_failure(model)?.map(|f| failed(f, None)));
        for explainer in &spec.explainers {
            let label = explainer.label().to_string();
            match state.verdict(model, explainer)? {
                Verdict::Failed(f) => absent.push(failed(f, Some(label))),
                Verdict::NotApplicable(reason) => {
                    absent.push(Absent { model: model.into(), explainer: Some(label), failed: false, reason });
                }
                Verdict::Runs { .. } | Verdict::Unknown => {}
            }
        }
    }
    Ok(absent)
}

/// Reads all tables of a run.
fn gather(
    state: &RunState<'_>,
    folder: &RunFolder,
    images: &[ImageRow],
    samples: &[Sample],
    controls: &[String],
    notes: Vec<String>,
) -> Result<(Summary, Comparisons, Vec<Curves>)> {
    let (spec, ids) = (state.spec(), state.identities());
    let shape = plan_of(state, images, samples, controls, notes)?;
    let records = folder.records()?;
    let index = Index::new(&records);
    // Seconds and images, by model and explainer.
    let mut times: BTreeMap<(String, String), (f64, usize)> = BTreeMap::new();
    let mut gather = Gather::new(&shape);
    let mut sink = ScoreWriter::new(&folder.0.join("scores.parquet"))?;
    let mut curves = Vec::new();
    let mut interventions = Vec::new();
    let mut alike: BTreeMap<&str, Vec<AgreementRecord>> = BTreeMap::new();
    let (of_maps, chance) = (map_metrics(spec)?, chance_metrics(spec)?);
    for model in &spec.models {
        let running = state.running(model.label())?;
        for place in place(model, spec, state.folds()) {
            let (label, fold, training) = place;
            // Each file is read once, for what is wanted of it.
            let mut wanted: BTreeMap<&str, BTreeSet<(String, String)>> = BTreeMap::new();
            for chunk in 0..ids.chunks() {
                if let Some(stem) = index.predictions(place, chunk, &ids.predictions(label, fold, training, chunk)?) {
                    gather.predictions(&folder.unit(stem, "predictions.parquet"))?;
                    let file = folder.unit(stem, INTERVENTIONS);
                    if spec.task.intervene && file.is_file() {
                        interventions.extend(read_lines::<Intervention>(&file)?);
                    }
                }
                for explainer in running.iter().map(|(e, _)| e.as_str()).chain([CHANCE]) {
                    let maps = ids.maps(label, fold, training, chunk, explainer)?;
                    let stem = index.maps(place, chunk, explainer, &maps);
                    if let Some(cell) = stem.and_then(|s| records.get(s)).and_then(|r| r.cells.get(explainer)) {
                        // A record of an older build does not say how many images its seconds are of.
                        let time = times.entry((label.to_string(), explainer.to_string())).or_default();
                        if cell.images > 0 {
                            *time = (time.0 + cell.seconds, time.1 + cell.images);
                        }
                    }
                    for metric in if explainer == CHANCE { &chance } else { &of_maps } {
                        let metric = metric.label();
                        let id = ids.metric(metric);
                        if let Some(stem) = index.scores(place, chunk, explainer, metric, (&maps, &id)) {
                            wanted.entry(stem).or_default().insert((explainer.into(), metric.into()));
                        }
                    }
                }
            }
            for (stem, pairs) in wanted {
                let take = |e: &str, m: &str| pairs.contains(&(e.to_string(), m.to_string()));
                gather.scores(&folder.unit(stem, "scores.parquet"), &take, Some(&mut sink))?;
            }
            if let Some(stem) = index.reduced(place, &state.reduced(label, fold, training)?) {
                gather.scores(&folder.unit(stem, "scores.parquet"), &|_, _| true, Some(&mut sink))?;
                let (file, agreement) = (folder.unit(stem, "curves.jsonl"), folder.unit(stem, "agreement.jsonl"));
                if file.is_file() {
                    let curve = |record: CurveRecord| Curves { model: label.into(), fold, training, record };
                    curves.extend(read_lines::<CurveRecord>(&file)?.into_iter().map(curve));
                }
                if agreement.is_file() {
                    alike.entry(label).or_default().extend(read_lines(&agreement)?);
                }
            }
        }
    }
    sink.finish()?;
    let (predictions, names) = gather.all_predictions();
    results::write_predictions(&folder.0.join("predictions.parquet"), names, &predictions)?;
    let (mut summary, mut comparisons) = gather.finish(&absent(state)?)?;
    summary.interventions = intervention::effects(&summary.models, &interventions);
    comparisons.maps = alike.into_iter().map(|(model, records)| agreement_of(&summary, model, &records)).collect();
    let measured = |((model, explainer), (seconds, images)): (&(String, String), &(f64, usize))| summary::Seconds {
        model: model.clone(),
        explainer: explainer.clone(),
        seconds: seconds / *images as f64,
    };
    let timings: Vec<summary::Seconds> = times.iter().filter(|(_, (_, n))| *n > 0).map(measured).collect();
    write_json(&folder.0.join("timings.json"), &timings)?;
    if spec.seconds {
        summary.seconds = timings;
    }
    Ok((summary, comparisons, curves))
}

/// The curve of a cell in one fold and training.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Curves {
    pub model: String,
    pub fold: usize,
    pub training: usize,
    #[serde(flatten)]
    pub record: CurveRecord,
}

/// The mean over folds and images of how alike the maps of a model's explainers are.
fn agreement_of(summary: &Summary, model: &str, records: &[AgreementRecord]) -> MapAgreement {
    let n = summary.columns.len();
    let mut sums = vec![(0.0, 0.0, 0u64); n * n];
    for record in records {
        let place = |(explainer, output): &(String, String)| {
            summary.columns.iter().position(|c| c.explainer == *explainer && c.output == *output)
        };
        let places: Vec<Option<usize>> = record.maps.iter().map(place).collect();
        let k = places.len();
        for (a, b) in (0..k).flat_map(|a| (0..k).map(move |b| (a, b))) {
            if let (Some(x), Some(y)) = (places[a], places[b]) {
                let (into, from) = (&mut sums[x * n + y], a * k + b);
                *into =
                    (into.0 + record.correlation[from], into.1 + record.overlap[from], into.2 + record.counts[from]);
            }
        }
    }
    let columns: Vec<usize> = (0..n).filter(|c| sums[c * n + c].2 > 0).collect();
    let table = |f: &dyn Fn(&(f64, f64, u64)) -> f64| -> Vec<Vec<Option<f64>>> {
        let one = |a: usize, b: usize| Some(&sums[a * n + b]).filter(|s| s.2 > 0).map(|s| f(s) / s.2 as f64);
        columns.iter().map(|&a| columns.iter().map(|&b| one(a, b)).collect()).collect()
    };
    MapAgreement {
        model: model.into(),
        images: records.iter().map(|r| r.images).max().unwrap_or(0),
        correlation: table(&|s| s.0),
        overlap: table(&|s| s.1),
        columns,
    }
}

/// What is known of each test image.
fn images(state: &RunState<'_>, folder: &RunFolder, source: &dyn Source) -> Result<Vec<ImageRow>> {
    let (spec, samples) = (state.spec(), source.samples());
    let mut store = None;
    for model in &spec.models {
        if store.is_none() {
            store = open_store(folder, state.identities().size(model.label())?)?;
        }
    }
    let explained = spec.task.explained()?;
    let one = |&i: &usize| -> Result<ImageRow> {
        let sample = &samples[i];
        let class = if let Explained::Class(class) = explained { class } else { sample.stratum() };
        let mask = store.as_ref().and_then(|s| s.mask(i, sample.mask_bit(class)));
        let planted = store.as_ref().filter(|s| s.known(i)).map(|s| s.shortcut(i));
        let share = |m: &Vec<u8>| m.iter().filter(|v| **v == 1).count() as f64 / m.len().max(1) as f64;
        let regions = |m: &Vec<u8>| {
            let width = store.as_ref().map_or(1, |s| s.holding().size[1]);
            Regions::of(&m.iter().map(|v| *v == 1).collect::<Vec<_>>(), width).count as i32
        };
        Ok(ImageRow {
            index: i as i32,
            image: sample.id.clone(),
            patient: sample.patient.clone(),
            class: {
                let name = |c: &usize| spec.task.classes.get(*c).map_or("", String::as_str);
                sample.classes.iter().map(name).collect::<Vec<_>>().join("|")
            },
            explained: match &store {
                Some(store) => !explained_rows(&spec.task, sample, store, i)?.is_empty(),
                None => false,
            },
            mask: mask.as_ref().map(share),
            shortcut: planted.as_ref().map(share),
            findings: mask.as_ref().map(regions),
        })
    };
    state.resolved.split.test.iter().map(one).collect()
}

/// Sentences below the first table.
fn notes(state: &RunState<'_>, source: &dyn Source, unmasked: usize) -> Result<Vec<String>> {
    let spec = state.spec();
    let samples = source.samples();
    let mut notes = Vec::new();
    let test = state.resolved.split.test.len();
    notes.push(match (spec.task.explained()?, spec.task.kind) {
        (Explained::Class(class), _) => {
            let positive = state.resolved.split.test.iter().filter(|&&i| samples[i].has(class)).count();
            let masked = positive - unmasked;
            let of = match (spec.task.kind, class) {
                (Kind::Binary, 1) => "with the finding".to_string(),
                _ => format!("of class {}, which is explained", spec.task.classes[class]),
            };
            format!(
                "{test} test images, {positive} {of}, {masked} of them with a mask. Shares are in percent; chance is the score \
                 of a constant map on the same images."
            )
        }
        (explained, _) => {
            let what = match explained {
                Explained::Label => "its own class",
                Explained::EachLabel => "each of its classes",
                _ => "the predicted class",
            };
            format!(
                "{test} test images, each explained for {what}. Shares are in percent; chance is the score of a constant map \
                 on the same images."
            )
        }
    });
    for model in &spec.models {
        let label = model.label();
        let weights = model.weights.as_ref().filter(|w| *w != RANDOM);
        let weights = weights.map(|w| w.rsplit('/').next().unwrap_or(w));
        notes.push(match (weights, &model.train) {
            (from, Some(t)) => {
                let mixed = if t.precision == "mixed" { " in mixed precision" } else { "" };
                let own = if model.is_program() { "its own weights" } else { "seeded random values" };
                let from = from.unwrap_or(own);
                let once = if spec.seeds == 1 { "one draw a fold" } else { "several a fold" };
                format!("{label}: trained for {} epochs{mixed} from {from}; {once}.", t.epochs)
            }
            (Some(file), None) if model.random_head => {
                format!("{label}: weights of {file}, but a RANDOM head: what it says of classes is chance.")
            }
            (Some(OWN), None) => format!("{label}: a network with its own weights."),
            (Some(file), None) => format!("{label}: weights of {file}."),
            (None, None) if model.is_program() => {
                format!(
                    "{label}: an exported program with its own weights, {}.",
                    model.name.rsplit('/').next().unwrap_or(&model.name)
                )
            }
            (None, None) => format!("{label}: RANDOM weights, not trained: a control."),
        });
    }
    if !state.resolved.environment.patients_known {
        notes.push("The source has no patient numbers: leakage by patient cannot be excluded.".into());
    }
    if state.resolved.environment.machines.len() > 1 {
        notes.push(format!(
            "Computed under {} different conditions; see environment.json.",
            state.resolved.environment.machines.len()
        ));
    }
    for model in spec.models.iter().map(ModelChoice::label) {
        if let Some(f) = state.model_failure(model)? {
            notes.push(format!("{model}: failed: {}.", f.reason.lines().next().unwrap_or_default()));
            continue;
        }
        for explainer in &spec.explainers {
            let place = format!("{model} x {}", explainer.label());
            match state.verdict(model, explainer)? {
                Verdict::Failed(f) => {
                    notes.push(format!("{place}: failed: {}.", f.reason.lines().next().unwrap_or_default()));
                }
                Verdict::NotApplicable(reason) => notes.push(format!("{place}: not applicable: {reason}.")),
                Verdict::Runs { .. } | Verdict::Unknown => {}
            }
        }
    }
    Ok(notes)
}

/// Writes all that a run comes to (`docs/user-guide.md` has the list); the tables for a terminal.
pub fn write(state: &RunState<'_>, folder: &RunFolder, source: &dyn Source, about: &RunManifest) -> Result<String> {
    let unmasked = unmasked(state, folder, source)?;
    let mut notes = notes(state, source, unmasked)?;
    if unmasked > 0 {
        notes.push(format!("{unmasked} images of the explained class have no mask and are only classified."));
    }
    notes.extend(state.spec().notes.clone());
    let images = images(state, folder, source)?;
    results::write_images(&folder.0.join("images.parquet"), &images)?;
    let (summary, comparisons, curves) = gather(state, folder, &images, source.samples(), &about.controls(), notes)?;
    let columns = summary.columns.clone();
    write_json(
        &folder.0.join("comparisons.json"),
        &ComparisonsFile { schema: COMPARISONS.into(), columns, comparisons },
    )?;
    write_lines(&folder.0.join("curves.jsonl"), &curves)?;
    let (tables, name, about) = (tables(&summary), summary.name.clone(), about.clone());
    let written = SummaryFile { schema: SCHEMA.into(), name, summary, tables, about };
    write_json(&folder.0.join("summary.json"), &written)?;
    let SummaryFile { tables, about, .. } = written;
    let join = |f: &dyn Fn(&Table) -> String| tables.iter().map(f).collect::<Vec<_>>().join("\n");
    files::write_text(&folder.0.join("summary.csv"), &csv(&tables))?;
    files::write_text(&folder.0.join("summary.md"), &join(&Table::markdown))?;
    files::write_text(&folder.0.join("summary.tex"), &plain(&join(&Table::latex)))?;
    write_json(&folder.0.join("maps.json"), &stored(state, folder)?)?;
    pictures(state, folder, source, &about.controls())?;
    Ok(plain(&join(&Table::terminal)).into_owned())
}

/// Where the maps of test images are: files of units, with what they hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    pub model: String,
    pub fold: usize,
    pub training: usize,
    pub chunk: usize,
    /// Height and width of the model's input, and so of the prepared images.
    pub size: [usize; 2],
    pub explainer: String,
    /// Names of its maps; one empty name for a single map.
    pub outputs: Vec<String>,
    /// In the run's folder, see [`lightbox_core::maps_file`].
    pub file: PathBuf,
}

fn stored(state: &RunState<'_>, folder: &RunFolder) -> Result<Vec<Stored>> {
    let (spec, ids) = (state.spec(), state.identities());
    let records = folder.records()?;
    let index = Index::new(&records);
    let mut all = Vec::new();
    for model in &spec.models {
        let running = state.running(model.label())?;
        for place in place(model, spec, state.folds()) {
            let (label, fold, training) = place;
            for chunk in 0..ids.chunks() {
                for (explainer, _) in &running {
                    let id = ids.maps(label, fold, training, chunk, explainer)?;
                    let Some(stem) = index.maps(place, chunk, explainer, &id) else { continue };
                    let cell = records.get(stem).and_then(|r| r.cells.get(explainer)).filter(|c| c.images > 0);
                    // A chunk without an image to explain has no file.
                    let Some(outputs) = cell.map(|c| c.outputs.clone()) else { continue };
                    let file = folder.maps(stem, explainer);
                    let file = file.strip_prefix(&folder.0).unwrap_or(&file).to_path_buf();
                    let (model, size) = (label.to_string(), ids.size(label)?);
                    all.push(Stored {
                        model,
                        fold,
                        training,
                        chunk,
                        size,
                        explainer: explainer.clone(),
                        outputs,
                        file,
                    });
                }
            }
        }
    }
    Ok(all)
}

fn open_store(folder: &RunFolder, size: [usize; 2]) -> Result<Option<Store>> {
    let file = folder.prepared(size);
    // Only masks and grey values are wanted, which do not depend on a model's normalisation.
    file.is_file().then(|| Ok(Store::open(&file, &[0.0], &[1.0], Device::Cpu, 0)?)).transpose()
}

/// Test images of the explained class whose mask is not known.
fn unmasked(state: &RunState<'_>, folder: &RunFolder, source: &dyn Source) -> Result<usize> {
    let Explained::Class(class) = state.spec().task.explained()? else { return Ok(0) };
    for model in &state.spec().models {
        if let Some(store) = open_store(folder, state.identities().size(model.label())?)? {
            return Ok(state
                .resolved
                .split
                .test
                .iter()
                .filter(|&&i| source.samples()[i].has(class) && !store.known(i))
                .count());
        }
    }
    Ok(0)
}

/// More explainers than this, and every model has a sheet of its own, of those that apply to it.
pub const WIDE: usize = 12;

/// The sheet: images in rows, model x explainer in columns, fold 0, the finding outlined.
fn pictures(state: &RunState<'_>, folder: &RunFolder, source: &dyn Source, controls: &[String]) -> Result<()> {
    let (spec, ids) = (state.spec(), state.identities());
    let samples = source.samples();
    let index = Index::new(&folder.records()?);
    let mut columns = vec!["image".to_string()];
    let mut rows: BTreeMap<usize, Vec<Picture>> = BTreeMap::new();
    let mut chosen: Vec<usize> = Vec::new();
    let mut controls_shown = false;
    let mut bare = Picture::new(1, 1, [255; 3]);
    let explained = spec.task.explained()?;
    let class = |i: usize| if let Explained::Class(class) = explained { class } else { samples[i].stratum() };
    let wide = spec.explainers.len() > WIDE;
    let write = |columns: &[String], rows: &mut BTreeMap<usize, Vec<Picture>>, chosen: &[usize], name: &str| {
        let taken = |i: &usize| rows.remove(i).map(|row| (samples[*i].id.clone(), row));
        let rows: Vec<(String, Vec<Picture>)> = chosen.iter().filter_map(taken).collect();
        sheet(columns, &rows).write(&folder.0.join(name))
    };
    for choice in &spec.models {
        let model = choice.label();
        let size = ids.size(model)?;
        let [height, width] = size;
        let Some(store) = open_store(folder, size)? else { continue };
        let mask = |i: usize| store.mask(i, samples[i].mask_bit(class(i))).unwrap_or_else(|| vec![0; height * width]);
        // The first image's overlays as files of their own.
        let own = folder.0.join("sheets").join(file_name(model));
        if wide {
            std::fs::create_dir_all(&own)?;
        }
        let factor = if wide { 1 } else { (256 / width.max(height)).max(1) };
        if chosen.is_empty() || wide {
            let masked: Vec<usize> =
                state.resolved.split.test.iter().copied().filter(|&i| mask(i).contains(&1)).collect();
            let n = spec.pictures.min(masked.len());
            // Spread over the test set, not picked.
            chosen = (0..n).map(|k| masked[k * masked.len() / n]).collect();
            for &i in &chosen {
                let mut picture = Picture::grey(&store.grey(i), width);
                picture.outline(&mask(i));
                rows.insert(i, vec![picture.enlarge(factor)]);
            }
            bare = Picture::new(width * factor, height * factor, [235; 3]);
        }
        let chunks: Vec<usize> = (0..ids.chunks())
            .filter(|&b| {
                state
                    .resolved
                    .split
                    .test
                    .chunks(spec.chunk)
                    .nth(b)
                    .is_some_and(|part| part.iter().any(|i| chosen.contains(i)))
            })
            .collect();
        let running = state.running(model)?;
        let any = !running.is_empty();
        // A control's map is the same for every model; it is shown once a sheet, from the first that has maps.
        let first = wide || (!controls_shown && any);
        controls_shown |= first;
        for explainer in spec.explainers.iter().filter(|e| first || !controls.iter().any(|c| c == e.label())) {
            if wide && !running.iter().any(|(name, _)| name == explainer.label()) {
                continue;
            }
            let control = controls.iter().any(|c| c == explainer.label());
            let title = if control || wide || spec.models.len() == 1 { "" } else { model };
            let random = choice.random_part().filter(|_| !control).map(|part| format!("({part}) ")).unwrap_or_default();
            columns.push(format!("{random}{title}\n{}", explainer.label()).trim_start().to_string());
            let at = columns.len();
            for &chunk in &chunks {
                let id = ids.maps(model, 0, 0, chunk, explainer.label())?;
                let Some(stem) = index.maps((model, 0, 0), chunk, explainer.label(), &id) else { continue };
                let file = folder.maps(stem, explainer.label());
                if !file.is_file() {
                    continue;
                }
                let file = MapsFile::open(&file)?;
                for (row, &i) in file.images.iter().enumerate() {
                    let Some(pictures) = rows.get_mut(&(i as usize)).filter(|p| p.len() < at) else { continue };
                    let map = file.rows(row, 1)?.f_select(1, 0)?;
                    if maps::faults(&map)? == [Fault::NotFinite] {
                        continue;
                    }
                    let map = maps::min_max(&maps::upsample(&map, (height, width))?)?;
                    let mut picture = Picture::grey(&store.grey(i as usize), width);
                    picture.overlay(&Vec::<f32>::try_from(Tensor::f_flatten(&map, 0, -1)?)?);
                    picture.outline(&mask(i as usize));
                    if wide && chosen.first() == Some(&(i as usize)) {
                        picture.write(&own.join(format!("{}.png", file_name(explainer.label()))))?;
                    }
                    pictures.push(picture.enlarge(factor));
                }
            }
            // A cell that failed or does not apply is an empty field.
            rows.values_mut().for_each(|row| row.resize(at, bare.clone()));
        }
        if wide {
            write(&columns, &mut rows, &chosen, &format!("sheets/{}.png", file_name(model)))?;
            columns.truncate(1);
        }
    }
    if !wide {
        write(&columns, &mut rows, &chosen, "sheet.png")?;
    }
    Ok(())
}

/// What training came to, a line a model, fold and training.
pub fn training(spec: &RunSpec, folder: &RunFolder, folds: usize) -> Result<String> {
    let mut text = String::new();
    for model in spec.models.iter().filter(|m| m.train.is_some()) {
        for (label, fold, training) in place(model, spec, folds) {
            let checkpoint = folder.checkpoint(label, fold, training);
            if !checkpoint.join("history.json").is_file() {
                continue;
            }
            let history: Vec<Epoch> = read_json(&checkpoint.join("history.json"))?;
            if let Some(best) = history.iter().rev().find(|e| e.best) {
                let auroc = best.validation_auroc.map_or("-".into(), |v| format!("{v:.3}"));
                let number = if spec.seeds > 1 { format!(" training {training}") } else { String::new() };
                text += &format!(
                    "{label} fold {fold}{number}: best epoch {} of {}, validation loss {:.4}, AUROC {auroc}: {}\n",
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
