//! `lightbox explain`: overlays of images, or raw maps of a batch.

use crate::choice::ExplainerChoice;
use crate::device;
use crate::engine::{self, Engine, Missing, Settings, load_model};
use crate::error::{Error, Exit, Result};
use crate::images::{Input, read_images};
use crate::registry::{Registry, programs};
use crate::run::spec::file_name;
use crate::watch::terminal;
use clap::Args;
use lightbox_core::data::image::Intensity;
use lightbox_core::data::preparation::Preparation;
use lightbox_core::maps::{self, Fault};
use lightbox_core::picture::Picture;
use lightbox_core::{checkpoint, files, tensors};
use lightbox_sdk::spec::{ImageRecord, ModelOptions, Plan};
use lightbox_sdk::{Score, Target};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};

#[derive(Args)]
pub struct ExplainArgs {
    /// Images (PNG, JPEG, MetaImage, DICOM), or one normalised batch [B,3,H,W] (.npy, .safetensors)
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// A model of a plugin, or an exported program (.pt2)
    #[arg(long)]
    pub model: String,
    /// A checkpoint (.safetensors or PyTorch's .pth)
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Random values in place of weights, or of a head that the checkpoint does not give: maps of an untrained model
    #[arg(long)]
    random_weights: bool,
    /// Number of classes [default: the checkpoint's head, else the model's own]
    #[arg(long)]
    classes: Option<usize>,
    /// A parameter of the model, as name=value [repeatable]
    #[arg(long = "model-param", value_name = "NAME=VALUE")]
    model_params: Vec<String>,
    /// NAME or NAME:param=value,... [repeatable]
    #[arg(long = "explainer", required = true, value_name = "NAME[:PARAM=VALUE,...]")]
    explainers: Vec<String>,
    /// The class to explain [default: each image's highest]
    #[arg(long)]
    target: Option<i64>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, default_value_t = 16)]
    batch_size: usize,
    /// Keep the images' three channels, as `colour = true` of a run's data; otherwise colour becomes luminance
    #[arg(long)]
    colour: bool,
    /// How values become [0, 1], as `intensity` of a run's data
    #[arg(long, default_value = "auto", value_parser = ["auto", "full", "percentile"])]
    intensity: String,
    /// The folder for overlays
    #[arg(long, default_value = "overlays")]
    out: PathBuf,
    /// Write logits, targets and native-resolution maps to this .safetensors instead of overlays
    #[arg(long, value_name = "FILE")]
    raw: Option<PathBuf>,
}

impl ExplainArgs {
    /// The rule of values, by its name in a spec.
    fn intensity(&self) -> Result<Intensity> {
        let name = serde_json::Value::from(self.intensity.as_str());
        serde_json::from_value(name).map_err(|e| Error::input(format!("--intensity: {e}")))
    }
}

fn is_batch(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "npy" || e == "safetensors")
}

/// The number of classes that a checkpoint's head has: the rows of its weight, or the number of heads with a class each.
fn head_classes(path: &Path) -> Result<Option<usize>> {
    let state = checkpoint::read(path)?;
    // Behind whatever prefix, and with a number where the head is a sequence.
    let tail = |name: &str, wanted: &str| name == wanted || name.ends_with(&format!(".{wanted}"));
    let heads = ["classifier.weight", "classifier.0.weight", "head.weight", "fc.weight"];
    let found = state.iter().find(|(name, t)| heads.iter().any(|head| tail(name, head)) && t.dim() == 2);
    let single =
        |name: &str| name.rsplit_once("head.").and_then(|(_, n)| n.strip_suffix(".weight")?.parse::<usize>().ok());
    let heads = state.iter().filter(|(name, t)| single(name).is_some() && t.dim() == 2 && t.size()[0] == 1).count();
    Ok(found.map(|(_, t)| t.size()[0] as usize).or((heads > 0).then_some(heads)))
}

/// Runs the command.
pub fn explain(args: &ExplainArgs, registry: &Registry) -> Result<Exit> {
    let batched = args.images.iter().any(|p| is_batch(p));
    if batched && args.images.len() > 1 {
        return Err(Error::input("a batch file is explained alone: give one .npy or .safetensors, or only images"));
    }
    if batched && args.raw.is_none() {
        return Err(Error::input("a batch file needs --raw FILE.safetensors: overlays are drawn over image files"));
    }
    if args.batch_size == 0 {
        return Err(Error::input("--batch-size 0: at least 1 expected"));
    }
    let choices: Vec<ExplainerChoice> =
        args.explainers.iter().map(|e| ExplainerChoice::parse(e)).collect::<Result<_>>()?;
    for (i, choice) in choices.iter().enumerate() {
        if ["logits", "target"].contains(&choice.label()) || choices[..i].iter().any(|c| c.label() == choice.label()) {
            return Err(Error::input(format!("--explainer {}: the name is taken", choice.label())));
        }
    }
    let mut params = BTreeMap::new();
    for pair in &args.model_params {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| Error::input(format!("--model-param {pair}: name=value expected")))?;
        params.insert(key.to_string(), serde_json::Value::from(value));
    }
    let device = device::choose(&args.device)?;
    let classes = match (args.classes, &args.weights) {
        (Some(n), _) => n,
        (None, Some(path)) => head_classes(path)?.unwrap_or(0),
        (None, None) => 0,
    };
    let options = ModelOptions { device: device::name(device), classes, seed: args.seed, params };
    let (found, _) = registry.model(&args.model)?;
    let is_program = programs::is_program(&args.model);
    if is_program && args.random_weights {
        return Err(Error::input(format!("{} has weights of its own: --random-weights is not for it", args.model)));
    }
    if args.weights.is_none() && !args.random_weights && !is_program {
        return Err(Error::input(format!("{} has no weights: a map of random values says nothing", args.model))
            .hint("--weights FILE, or --random-weights where that is what you want"));
    }
    let missing = if args.random_weights { Missing::Random } else { Missing::Refused };
    let (model, notes) = load_model(&found.file, &args.model, &options, args.weights.as_deref(), missing)?;
    notes.iter().for_each(|n| eprintln!("note: {n}"));
    let random =
        args.random_weights && (args.weights.is_none() || notes.iter().any(|n| n.starts_with("the head is new")));
    if random {
        eprintln!("note: {} has random values, as --random-weights asks: its maps say nothing", args.model);
    }
    let preparation = match model.spec()?.input.flat() {
        Ok(size) => Some(Preparation { size, colour: args.colour, intensity: args.intensity()? }),
        Err(_) => None,
    };
    let settings =
        Settings { at_once: args.batch_size, preparation: preparation.clone(), ..Settings::new(device, args.seed) };
    let mut engine = Engine::new(model, settings, terminal())?;
    for choice in &choices {
        engine.add(&registry.explainer(&choice.name)?.0.file, choice)?;
        if let Some(Plan::NotApplicable { reason }) = engine.explainers.last().map(|e| &e.plan) {
            eprintln!("not applicable: {} x {}: {reason}", args.model, choice.label());
        }
    }
    let applies = |e: &engine::Planned| matches!(e.plan, Plan::Run(_));
    if !engine.explainers.iter().any(applies) {
        let reason = |e: &engine::Planned| match &e.plan {
            Plan::NotApplicable { reason } => format!("{}: {reason}", e.label),
            _ => e.label.clone(),
        };
        let reasons: Vec<String> = engine.explainers.iter().map(reason).collect();
        let (model, reasons) = (&args.model, reasons.join("; "));
        return Err(Error::input(format!("nothing to draw: none of the explainers applies to {model} ({reasons})"))
            .hint(format!("lightbox info {model} lists its sites")));
    }
    if let Some(fits) = engine.explainers.iter().find(|e| e.fit().is_some()) {
        let label = &fits.label;
        return Err(Error::input(format!("{label} learns from a training set first: use it in a run (lightbox run)")));
    }
    let classes = engine.spec.classes() as i64;
    if let Some(bad) = args.target.filter(|t| !(0..classes).contains(t)) {
        return Err(Error::input(format!("--target {bad}: {} has classes 0 to {}", args.model, classes - 1)));
    }
    let input = match batched {
        true => Input { batch: tensors::read_batch(&args.images[0])?, pictures: vec![] },
        false => {
            let volumes = || Error::input(format!("{} takes volumes, not images: give one batch file", args.model));
            read_images(&args.images, &engine.spec.input, preparation.as_ref().ok_or_else(volumes)?)?
        }
    };
    engine.set_records(input.pictures.iter().filter_map(|(path, _)| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        Some(ImageRecord { name, ..ImageRecord::default() })
    }));

    let n = input.batch.size()[0] as usize;
    let active: Vec<usize> = (0..engine.explainers.len()).collect();
    let (mut logits, mut targets) = (Vec::new(), Vec::new());
    let mut maps: BTreeMap<usize, (Vec<String>, Vec<Tensor>)> = BTreeMap::new();
    let mut failures: BTreeMap<usize, String> = BTreeMap::new();
    for start in (0..n).step_by(args.batch_size) {
        if crate::signals::interrupted() {
            return Err(Error::new(Exit::Interrupted, "interrupted"));
        }
        let size = args.batch_size.min(n - start);
        let images = input.batch.f_narrow(0, start as i64, size as i64)?;
        // An image file has the number that it has in a run: its name's.
        let id = |i: usize| match input.pictures.get(i).and_then(|(path, _)| path.file_name()) {
            Some(name) => crate::engine::image_id(&name.to_string_lossy()),
            None => i as u64,
        };
        let ids: Vec<u64> = (start..start + size).map(id).collect();
        let wanted = vec![args.target.map(|t| Target::Class(t as usize)); size];
        let batch = engine.run(&images, &wanted, &ids, &active, &mut |_| {})?;
        if let Some(culprit) = batch.tampered {
            return Err(engine::tampered(&engine.explainers[culprit].label).into());
        }
        logits.push(batch.logits);
        targets.extend(batch.targets.iter().filter_map(Target::class).map(|c| c as i64));
        for (index, outcome) in batch.maps {
            match outcome {
                Ok(outputs) => {
                    let native = outputs.maps.f_to_device(Device::Cpu)?;
                    let each = native.f_flatten(0, 1)?;
                    if maps::faults(&each)?.contains(&Fault::NotFinite) {
                        failures.entry(index).or_insert("a map holds values that are not finite".into());
                    }
                    maps.entry(index).or_insert_with(|| (outputs.names, vec![])).1.push(native);
                }
                Err(_) if crate::signals::interrupted() => return Err(Error::new(Exit::Interrupted, "interrupted")),
                Err(e) => drop(failures.entry(index).or_insert(e.to_string())),
            }
        }
    }
    if crate::signals::interrupted() {
        return Err(Error::new(Exit::Interrupted, "interrupted"));
    }
    // By explainer: names, and maps [n, K, h, w].
    let mut whole: BTreeMap<usize, (Vec<String>, Tensor)> = BTreeMap::new();
    for (index, (names, tensors)) in maps {
        whole.insert(index, (names, Tensor::f_cat(&tensors, 0)?));
    }
    let mut maps = whole;
    for (index, reason) in &failures {
        eprintln!("failed: {}: {reason}", engine.explainers[*index].label);
        maps.remove(index);
    }
    let logits = Tensor::f_cat(&logits, 0)?;
    match &args.raw {
        Some(path) => write_raw(path, &engine, &logits, &targets, &maps)?,
        None => write_overlays(args, &engine, &input, &logits, &targets, &maps, random)?,
    }
    Ok(if failures.is_empty() { Exit::Ok } else { Exit::FailedCells })
}

fn write_raw(
    path: &Path,
    engine: &Engine,
    logits: &Tensor,
    targets: &[i64],
    maps: &BTreeMap<usize, (Vec<String>, Tensor)>,
) -> Result<()> {
    let mut state =
        vec![("logits".to_string(), logits.shallow_clone()), ("target".into(), Tensor::f_from_slice(targets)?)];
    for (index, (names, all)) in maps {
        let label = &engine.explainers[*index].label;
        for (k, name) in names.iter().enumerate() {
            let key = if name.is_empty() { label.clone() } else { format!("{label}.{name}") };
            state.push((key, all.f_select(1, k as i64)?));
        }
    }
    checkpoint::write(path, &state)?;
    println!("{}", path.display());
    Ok(())
}

fn write_overlays(
    args: &ExplainArgs,
    engine: &Engine,
    input: &Input,
    logits: &Tensor,
    targets: &[i64],
    maps: &BTreeMap<usize, (Vec<String>, Tensor)>,
    random: bool,
) -> Result<()> {
    let [h, w] = engine.spec.input.flat()?;
    let mut names = std::collections::HashMap::new();
    for (at, (path, grey)) in input.pictures.iter().enumerate() {
        let stem = path.file_stem().map_or("image".into(), |s| s.to_string_lossy().into_owned());
        // Two images of one name in different folders do not overwrite each other.
        let same = names.entry(stem.clone()).and_modify(|n: &mut usize| *n += 1).or_insert(0);
        let stem = if *same > 0 { format!("{stem}-{same}") } else { stem };
        let class = targets[at];
        let row = Vec::<f32>::try_from(logits.f_get(at as i64)?.f_flatten(0, -1)?)?;
        let target = Target::Class(class as usize);
        let probability = target.score(&engine.spec, &row, Score::Probability)?;
        let logit = target.score(&engine.spec, &row, Score::Logit)?;
        let mut written = BTreeMap::new();
        for (index, (names, all)) in maps {
            let label = &engine.explainers[*index].label;
            for (k, name) in names.iter().enumerate() {
                let native = all.f_narrow(0, at as i64, 1)?.f_select(1, k as i64)?;
                let map = maps::min_max(&maps::upsample(&native, (h, w))?)?;
                let mut picture = Picture::grey(grey, w);
                picture.overlay(&Vec::<f32>::try_from(map.f_flatten(0, -1)?)?);
                if random {
                    let mut banner = Picture::new(w.min(116), 12, [255, 220, 0]);
                    banner.text("RANDOM WEIGHTS", 2, 2);
                    picture.paste(&banner, 0, 0);
                }
                let key = if name.is_empty() { label.clone() } else { format!("{label}.{name}") };
                let file = args.out.join(format!("{stem}.{}.png", file_name(&key)));
                picture.write(&file)?;
                println!("{}", file.display());
                written.insert(key, file.to_string_lossy().into_owned());
            }
        }
        let side = serde_json::json!({
            "image": path.to_string_lossy(), "model": engine.spec.name, "class": class, "logit": logit, "probability": probability,
            "random_weights": random,
            "overlays": written,
        });
        let text = serde_json::to_string_pretty(&side).map_err(|e| Error::input(e.to_string()))? + "\n";
        files::write_text(&args.out.join(format!("{stem}.json")), &text)?;
        eprintln!("{}: class {class}, probability {probability:.4}", path.display());
    }
    Ok(())
}
