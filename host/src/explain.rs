//! `lightbox explain`: overlays of images, or raw maps of a batch.

use crate::choice::ExplainerChoice;
use crate::device;
use crate::engine::{self, Engine, Missing, Settings, load_model, weights_folder};
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
use lightbox_sdk::spec::{ImageRecord, Meaning, ModelOptions, ModelSpec, Plan, TargetKind};
use lightbox_sdk::{Array, Request, Score, Target};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

#[derive(Args)]
pub struct ExplainArgs {
    /// Images (PNG, JPEG, MetaImage, DICOM), or one normalised batch [B,3,H,W] (.npy, .safetensors)
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// A model of a plugin, or an exported program (.pt2)
    #[arg(long)]
    pub model: String,
    /// A checkpoint (.safetensors or PyTorch's .pth), or a folder of Hugging Face
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
    #[arg(long, default_value = "auto", value_parser = ["auto", "full", "percentile", "depth"])]
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
    let choices = check_arguments(args)?;
    let (mut engine, random) = open_model(args, registry)?;
    add_explainers(&mut engine, args, &choices, registry)?;
    let input = read_input(args, &engine)?;
    engine.set_records(input.pictures.iter().filter_map(|(path, _)| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        Some(ImageRecord { name, ..ImageRecord::default() })
    }));
    let explained = run(args, &mut engine, &input)?;
    for (index, reason) in &explained.failures {
        eprintln!("failed: {}: {reason}", engine.explainers[*index].label);
    }
    match &args.raw {
        Some(path) => write_raw(path, &engine, &explained)?,
        None => write_overlays(args, &engine, &input, &explained, random)?,
    }
    Ok(if explained.failures.is_empty() { Exit::Ok } else { Exit::FailedCells })
}

/// What can be wrong with the arguments alone; the explainers that they name.
fn check_arguments(args: &ExplainArgs) -> Result<Vec<ExplainerChoice>> {
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
    Ok(choices)
}

/// The model with its weights, in an engine; true where it has random values.
fn open_model(args: &ExplainArgs, registry: &Registry) -> Result<(Engine, bool)> {
    let mut params = BTreeMap::new();
    for pair in &args.model_params {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| Error::input(format!("--model-param {pair}: name=value expected")))?;
        params.insert(key.to_string(), serde_json::Value::from(value));
    }
    let device = device::choose(&args.device)?;
    let is_program = programs::is_program(&args.model);
    let weights = args.weights.as_deref().map(weights_folder::file_of).transpose()?;
    let classes = match (args.classes, &weights) {
        (Some(n), _) => n,
        (None, Some(path)) if !is_program => head_classes(path)?.unwrap_or(0),
        _ => 0,
    };
    let options = ModelOptions { device: device::name(device), classes, seed: args.seed, params };
    let (found, described) = registry.model(&args.model)?;
    if described.own_weights && args.random_weights {
        return Err(Error::input(format!("{} has weights of its own: --random-weights is not for it", args.model)));
    }
    if args.weights.is_none() && !args.random_weights && !described.own_weights {
        return Err(Error::input(format!("{} has no weights: a map of random values says nothing", args.model))
            .hint("--weights FILE, or --random-weights where that is what you want"));
    }
    let missing = if args.random_weights { Missing::Random } else { Missing::Refused };
    let (model, notes) = load_model(&found.file, &args.model, &options, weights.as_deref(), missing)?;
    notes.iter().for_each(|n| eprintln!("note: {n}"));
    let random =
        args.random_weights && (args.weights.is_none() || notes.iter().any(|n| n.starts_with("the head is new")));
    if random {
        eprintln!("note: {} has random values, as --random-weights asks: its maps say nothing", args.model);
    }
    let spec = model.spec()?;
    let preparation = match spec.input.flat() {
        Ok(size) => Some(Preparation { size, colour: args.colour, intensity: args.intensity()? }),
        Err(_) => None,
    };
    let mut settings = Settings { at_once: args.batch_size, preparation, ..Settings::new(device, args.seed) };
    if is_class_map(&spec) {
        settings.targets = vec![TargetKind::Region];
    }
    Ok((Engine::new(model, settings, terminal())?, random))
}

/// Whether the first output has a logit a class and place.
fn is_class_map(spec: &ModelSpec) -> bool {
    matches!(spec.outputs.first().map(|o| &o.meaning), Some(Meaning::ClassMap { .. }))
}

/// Binds the explainers; an error where none applies, or one has to learn first.
fn add_explainers(
    engine: &mut Engine,
    args: &ExplainArgs,
    choices: &[ExplainerChoice],
    registry: &Registry,
) -> Result<()> {
    for choice in choices {
        engine.add(&registry.explainer(&choice.name)?.0.file, choice)?;
        if let Some(Plan::NotApplicable { reason }) = engine.explainers.last().map(|e| &e.plan) {
            eprintln!("not applicable: {} x {}: {reason}", args.model, choice.label());
        }
    }
    if !engine.explainers.iter().any(|e| matches!(e.plan, Plan::Run(_))) {
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
    match args.target.filter(|t| !(0..classes).contains(t)) {
        Some(bad) => Err(Error::input(format!("--target {bad}: {} has classes 0 to {}", args.model, classes - 1))),
        None => Ok(()),
    }
}

/// The images or the batch.
fn read_input(args: &ExplainArgs, engine: &Engine) -> Result<Input> {
    if is_batch(&args.images[0]) {
        let batch = tensors::read_batch(&args.images[0])?;
        let (found, wanted) = (batch.size(), engine.spec.input.shape(batch.size()[0] as usize));
        if found.iter().map(|n| *n as usize).ne(wanted.iter().copied()) {
            let what = format!("{}: a batch of shape {found:?}", args.images[0].display());
            return Err(Error::input(format!("{what}; {} takes [B, {:?}]", args.model, &wanted[1..])));
        }
        return Ok(Input { batch, pictures: vec![] });
    }
    let size = engine
        .spec
        .input
        .flat()
        .map_err(|_| Error::input(format!("{} takes volumes, not images: give one batch file", args.model)))?;
    let preparation = Preparation { size, colour: args.colour, intensity: args.intensity()? };
    read_images(&args.images, &engine.spec.input, &preparation)
}

/// What is explained of each image: the class asked for, else the highest; of a segmentation the region in which the class is
/// the highest, that of the largest such region where none is asked for.
fn targets(args: &ExplainArgs, engine: &Engine, images: &Tensor) -> Result<Vec<Option<Target>>> {
    let n = images.size()[0];
    if !is_class_map(&engine.spec) {
        return Ok(vec![args.target.map(|t| Target::Class(t as usize)); n as usize]);
    }
    let logits = engine.request(&Request::forward(Array::from_tensor(images)?))?.logits.share_tensor()?;
    let classes = logits.size()[1];
    let highest = logits.f_argmax(1, false)?.f_to_device(Device::Cpu)?;
    let size: Vec<i64> = engine.spec.input.size.iter().map(|n| *n as i64).collect();
    let mut targets = Vec::new();
    for row in 0..n {
        let places = highest.f_get(row)?;
        let counts = Vec::<i64>::try_from(places.f_flatten(0, -1)?.f_bincount(None::<&Tensor>, classes)?)?;
        let largest = (0..counts.len()).max_by_key(|k| (counts[*k], std::cmp::Reverse(*k))).unwrap_or(0);
        let class = args.target.map_or(largest, |t| t as usize);
        if counts[class] == 0 {
            return Err(Error::input(format!("--target {class}: nowhere in image {row} is this class the highest"))
                .hint(format!("class {largest} has the largest region")));
        }
        let region = places.f_eq(class as i64)?.f_to_kind(Kind::Float)?.f_unsqueeze(0)?.f_unsqueeze(0)?;
        let region = match size.as_slice() {
            [h, w] => region.f_upsample_nearest2d([*h, *w], None, None)?,
            [d, h, w] => region.f_upsample_nearest3d([*d, *h, *w], None, None, None)?,
            _ => return Err(Error::input(format!("a segmentation of {} axes", size.len()))),
        };
        let mask = Array::from_tensor(&region.f_reshape(size.as_slice())?.f_contiguous()?)?;
        targets.push(Some(Target::Region { class, mask }));
    }
    Ok(targets)
}

/// What came of it.
struct Explained {
    logits: Tensor,
    /// The class explained of each image.
    classes: Vec<i64>,
    targets: Vec<Target>,
    /// By explainer: names, and maps [n, K, size...].
    maps: BTreeMap<usize, (Vec<String>, Tensor)>,
    failures: BTreeMap<usize, String>,
}

/// Explains batch after batch.
fn run(args: &ExplainArgs, engine: &mut Engine, input: &Input) -> Result<Explained> {
    let interrupted = || match crate::signals::interrupted() {
        true => Err(Error::new(Exit::Interrupted, "interrupted")),
        false => Ok(()),
    };
    let n = input.batch.size()[0] as usize;
    let active: Vec<usize> = (0..engine.explainers.len()).collect();
    let (mut logits, mut targets) = (Vec::new(), Vec::new());
    let mut maps: BTreeMap<usize, (Vec<String>, Vec<Tensor>)> = BTreeMap::new();
    let mut failures: BTreeMap<usize, String> = BTreeMap::new();
    for start in (0..n).step_by(args.batch_size) {
        interrupted()?;
        let size = args.batch_size.min(n - start);
        let images = input.batch.f_narrow(0, start as i64, size as i64)?;
        // An image file has the number that it has in a run: its name's.
        let id = |i: usize| match input.pictures.get(i).and_then(|(path, _)| path.file_name()) {
            Some(name) => crate::engine::image_id(&name.to_string_lossy()),
            None => i as u64,
        };
        let ids: Vec<u64> = (start..start + size).map(id).collect();
        let wanted = self::targets(args, engine, &images)?;
        let batch = engine.run(&images, &wanted, &ids, &active, &mut |_| {})?;
        if let Some(culprit) = batch.tampered {
            return Err(engine::tampered(&engine.explainers[culprit].label).into());
        }
        logits.push(batch.logits);
        targets.extend(batch.targets);
        for (index, outcome) in batch.maps {
            match outcome {
                Ok(outputs) => {
                    let native = outputs.maps.f_to_device(Device::Cpu)?;
                    // A volume's slices lie below each other.
                    let each = native.f_flatten(0, 1)?.f_flatten(1, -2)?;
                    if maps::faults(&each)?.contains(&Fault::NotFinite) {
                        failures.entry(index).or_insert("a map holds values that are not finite".into());
                    }
                    maps.entry(index).or_insert_with(|| (outputs.names, vec![])).1.push(native);
                }
                Err(e) => {
                    interrupted()?;
                    failures.entry(index).or_insert(e.to_string());
                }
            }
        }
    }
    interrupted()?;
    let mut whole: BTreeMap<usize, (Vec<String>, Tensor)> = BTreeMap::new();
    for (index, (names, tensors)) in maps.into_iter().filter(|(index, _)| !failures.contains_key(index)) {
        whole.insert(index, (names, Tensor::f_cat(&tensors, 0)?));
    }
    let classes = targets.iter().filter_map(Target::class).map(|c| c as i64).collect();
    Ok(Explained { logits: Tensor::f_cat(&logits, 0)?, classes, targets, maps: whole, failures })
}

fn write_raw(path: &Path, engine: &Engine, explained: &Explained) -> Result<()> {
    let (logits, classes) = (explained.logits.shallow_clone(), Tensor::f_from_slice(&explained.classes)?);
    let mut state = vec![("logits".to_string(), logits), ("target".into(), classes)];
    for (index, (names, all)) in &explained.maps {
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
    explained: &Explained,
    random: bool,
) -> Result<()> {
    let [h, w] = engine.spec.input.flat()?;
    let mut names = std::collections::HashMap::new();
    for (at, (path, grey)) in input.pictures.iter().enumerate() {
        let stem = path.file_stem().map_or("image".into(), |s| s.to_string_lossy().into_owned());
        // Two images of one name in different folders do not overwrite each other.
        let same = names.entry(stem.clone()).and_modify(|n: &mut usize| *n += 1).or_insert(0);
        let stem = if *same > 0 { format!("{stem}-{same}") } else { stem };
        let (class, target) = (explained.classes[at], &explained.targets[at]);
        let row = Vec::<f32>::try_from(explained.logits.f_get(at as i64)?.f_flatten(0, -1)?)?;
        let probability = target.score(&engine.spec, &row, Score::Probability)?;
        let logit = target.score(&engine.spec, &row, Score::Logit)?;
        let mut written = BTreeMap::new();
        for (index, (names, all)) in &explained.maps {
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
