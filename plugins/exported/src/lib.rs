//! Any network that `torch.export` takes: a model from a `.pt2` file, without Python.
//!
//! The program is interpreted through libtorch's dispatcher, operator by operator; every module's output is a site under the
//! module's name. `archive.rs` reads the file, `program.rs` its program; `layout.rs`, `attention.rs` and `sites.rs` find what
//! the values are; `plan.rs` is what is known of it, `network.rs` runs it.

mod archive;
mod attention;
mod layout;
mod network;
mod plan;
mod program;
mod sites;

use archive::{Archive, HOW, Stored};
use lightbox_sdk::nn::{self, Base, NetModel, Parameters};
use lightbox_sdk::prelude::*;
use network::Exported;
use plan::Plan;
use program::{Dim, Program};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

lightbox_sdk::export!();
register_model!(@hidden "exported", spec, make);

choice! {
    /// how images become what the network takes: as the file's lightbox.json says; ImageNet's statistics, (value - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]; or values of [0, 1] as they are. Other statistics are mean and std
    pub enum InputKind { File = "file", Imagenet = "imagenet", Unit = "unit" }
}

choice! {
    /// what makes scores of the logits: as the file's lightbox.json says, else softmax (sigmoid of a single logit)
    pub enum ActivationKind { File = "file", Softmax = "softmax", Sigmoid = "sigmoid", Linear = "linear" }
}

choice! {
    /// how it is run: with batch norms folded into convolutions where nobody looks in between, or operator by operator; the same up to rounding
    pub enum Way { Fast = "fast", Plain = "plain" }
}

#[derive(Params)]
struct Settings {
    /// the program
    #[param(default = "")]
    file: PathBuf,
    #[param(default = InputKind::File)]
    input: InputKind,
    /// subtracted from each channel's values of [0, 1], as `0.485, 0.456, 0.406`; empty: as `input` says
    #[param(default = "")]
    mean: String,
    /// what they are then divided by; 1/2048 with mean 0.5 is TorchXRayVision's range of [-1024, 1024]
    #[param(default = "")]
    std: String,
    #[param(default = ActivationKind::File)]
    activation: ActivationKind,
    /// the site that class activation maps read; empty: the tensor that is pooled
    #[param(default = "")]
    cam_site: String,
    /// values of the program that are to be sites too, by their names in the file, as `add_3, mul_2`
    #[param(default = "")]
    sites: String,
    #[param(default = Way::Fast)]
    way: Way,
}

/// What `lightbox.export` writes beside the program.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Description {
    mean: Option<Vec<f64>>,
    std: Option<Vec<f64>>,
    classes: Vec<String>,
    activation: Option<Activation>,
    cam_site: String,
}

/// Where it lies in the archive: `torch.export.save(..., extra_files={"lightbox.json": ...})`.
const DESCRIPTION: &str = "extra/lightbox.json";

/// Numbers with commas between them.
fn numbers(name: &str, text: &str) -> Result<Option<Vec<f64>>> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let one = |t: &str| t.trim().parse::<f64>().ok().filter(|n| n.is_finite());
    let all: Option<Vec<f64>> = text.split(',').map(one).collect();
    all.map(Some)
        .ok_or_else(|| Error::invalid(format!("{name} = \"{text}\": numbers with commas between them are expected")))
}

/// One number a channel.
fn channels(name: &str, values: Vec<f64>, count: usize) -> Result<Vec<f64>> {
    match values.len() {
        1 => Ok(vec![values[0]; count]),
        n if n == count => Ok(values),
        n => Err(Error::invalid(format!("{name} has {n} numbers, the network's images {count} channels"))),
    }
}

/// What is subtracted and what divides; `None` where nobody has said it.
fn statistics(settings: &Settings, described: &Description, count: usize) -> Result<Option<(Vec<f64>, Vec<f64>)>> {
    let (mean, std) = (numbers("mean", &settings.mean)?, numbers("std", &settings.std)?);
    let (mean, std) = match (settings.input, mean, std) {
        (_, Some(mean), Some(std)) => (mean, std),
        (_, Some(_), None) | (_, None, Some(_)) => {
            return Err(Error::invalid("mean and std are given together"));
        }
        (InputKind::Unit, ..) => (vec![0.0], vec![1.0]),
        (InputKind::Imagenet, ..) if count != 3 => {
            return Err(Error::invalid(format!(
                "input = \"imagenet\": the network's images have {count} channels; give mean and std"
            )));
        }
        (InputKind::Imagenet, ..) => {
            let imagenet = InputSpec::imagenet(1);
            (imagenet.mean, imagenet.std)
        }
        (InputKind::File, ..) => match (&described.mean, &described.std) {
            (Some(mean), Some(std)) => (mean.clone(), std.clone()),
            _ => return Ok(None),
        },
    };
    let (mean, std) = (channels("mean", mean, count)?, channels("std", std, count)?);
    if std.iter().any(|s| *s <= 0.0) || mean.iter().chain(&std).any(|v| !v.is_finite()) {
        return Err(Error::invalid("mean and std are finite, and std is above 0"));
    }
    Ok(Some((mean, std)))
}

/// What a result of a program is: a logit a class, a class map, or numbers.
fn output(name: &str, shape: &[Dim], spatial: &[usize], activation: Activation) -> Result<Output> {
    let sizes: Option<Vec<usize>> =
        shape.iter().skip(1).map(|d| if let Dim::Is(n) = d { Some(*n as usize) } else { None }).collect();
    let wrong = || {
        Error::unsupported(format!(
            "its result {name} is no batch of logits [B, classes] or of maps [B, classes, H, W]"
        ))
    };
    let sizes = sizes.filter(|s| !s.is_empty() && shape.first() == Some(&Dim::Batch)).ok_or_else(wrong)?;
    Ok(match sizes.len() {
        1 => Output::classes(name, sizes[0], activation),
        n if n == spatial.len() + 1 => Output {
            name: name.into(),
            meaning: Meaning::ClassMap { classes: sizes[0], activation, grid: sizes[1..].to_vec() },
        },
        _ => Output { name: name.into(), meaning: Meaning::Numbers { shape: sizes } },
    })
}

/// An opened file.
struct Opened {
    spec: ModelSpec,
    plan: Plan,
    archive: Archive,
    /// Of each of the program's weights.
    stored: Vec<Stored>,
    settings: Settings,
    /// Whether anybody has said how images become what the network takes.
    is_normalised: bool,
}

fn open(options: &ModelOptions) -> Result<Opened> {
    let settings = Settings::resolve(&options.params)?;
    if settings.file.as_os_str().is_empty() {
        return Err(Error::invalid("no program: give a .pt2 file as the model"));
    }
    let path: &Path = &settings.file;
    let archive = Archive::open(path)?;
    let described: Description = match archive.has(DESCRIPTION) {
        true => serde_json::from_value(archive.json(DESCRIPTION)?)
            .map_err(|e| archive.error(format!("{DESCRIPTION}: {e}")))?,
        false => Description::default(),
    };
    let (program, stored) = Program::load(&archive)?;
    let wrong = |e: Error| Error { message: archive.error(&e.message).message, ..e };
    let (count, size) = program.input().map_err(wrong)?;
    let said = statistics(&settings, &described, count).map_err(wrong)?;
    let is_normalised = said.is_some();
    let (mean, std) = said.unwrap_or((vec![0.0; count], vec![1.0; count]));
    let shapes: Vec<&[Dim]> =
        program.outputs.iter().map(|id| program.values[*id].shape.as_deref().unwrap_or_default()).collect();
    let single = shapes[0].len() == 2 && shapes[0][1] == Dim::Is(1);
    let activation = match settings.activation {
        ActivationKind::File => {
            described.activation.unwrap_or(if single { Activation::Sigmoid } else { Activation::Softmax })
        }
        ActivationKind::Softmax => Activation::Softmax,
        ActivationKind::Sigmoid => Activation::Sigmoid,
        ActivationKind::Linear => Activation::Linear,
    };
    let mut outputs = Vec::new();
    for (i, shape) in shapes.iter().enumerate() {
        let name = if i == 0 { "logits".to_string() } else { format!("output{i}") };
        outputs.push(output(&name, shape, &size, activation).map_err(wrong)?);
    }
    let classes = outputs[0].class_count().unwrap_or(0);
    if !described.classes.is_empty() && described.classes.len() != classes {
        let n = described.classes.len();
        return Err(archive.error(format!("{DESCRIPTION} names {n} classes, the network has {classes} outputs")));
    }
    if options.classes > classes {
        let wanted = options.classes;
        return Err(archive.error(format!(
            "the network has {classes} outputs, {wanted} are asked for; export it with a head of as many"
        )));
    }
    let cam_site = if settings.cam_site.is_empty() { &described.cam_site } else { &settings.cam_site };
    let asked: Vec<&str> = settings.sites.split(',').map(str::trim).filter(|s| !s.is_empty()).collect();
    let sites = sites::sites(&program, &asked, cam_site).map_err(wrong)?;
    let plan = Plan::new(program, sites);
    let stem = path.file_stem().map_or_else(|| "exported".into(), |s| s.to_string_lossy().into_owned());
    let mut spec = ModelSpec {
        title: format!("Exported program {stem}"),
        version: env!("CARGO_PKG_VERSION").into(),
        reference: Reference::own("an exported program"),
        outputs,
        sites: plan.sites.sites.clone(),
        cam_site: plan.sites.cam_site.clone(),
        attention_site: plan.sites.attention_site.clone(),
        rules: plan.rules(),
        parameters: Settings::specs(),
        trainable: true,
        own_weights: true,
        interpreter: None,
        class_names: described.classes.clone(),
        notes: plan.lost(),
        ..ModelSpec::new(&stem, InputSpec { channels: count, size, mean, std }, 0)
    };
    // The file is the model: it is no setting of it.
    spec.parameters.retain(|p| p.name != "file");
    Ok(Opened { spec, plan, archive, stored, settings, is_normalised })
}

/// Describes a file and makes its model without running anything: for the fuzzer.
#[doc(hidden)]
pub fn read(file: &Path) -> Result<ModelSpec> {
    let params = [("file", file.to_string_lossy().into_owned()), ("input", "unit".into())];
    let params = params.into_iter().map(|(k, v)| (k.to_string(), v.into())).collect();
    let options = ModelOptions { params, ..ModelOptions::default() };
    make(&options)?.parameters()?;
    spec(&options)
}

fn spec(options: &ModelOptions) -> Result<ModelSpec> {
    Ok(open(options)?.spec)
}

fn make(options: &ModelOptions) -> Result<Box<dyn Model>> {
    let Opened { spec, plan, archive, stored, settings, is_normalised } = open(options)?;
    if !is_normalised {
        return Err(Error::invalid(format!(
            "{}: the file does not say how images become what the network takes; set input = \"imagenet\" (or \"unit\", values of \
             [0, 1]), or mean and std; {HOW}",
            settings.file.display()
        )));
    }
    let mut params = Parameters::new(nn::device(&options.device)?, options.seed);
    let mut fixed = Vec::new();
    let weights = archive.read(stored.iter(), nn::device(&options.device)?)?;
    for (weight, tensor) in plan.program.weights.iter().zip(weights) {
        match weight.is_kept {
            true => params.insert(&weight.key, tensor),
            false => fixed.push((weight.id, tensor)),
        }
    }
    let fast = settings.way == Way::Fast && !lightbox_sdk::is_plain();
    let base = Base { spec, params };
    Ok(Box::new(NetModel::new(Exported::new(Arc::new(plan), base, fixed, fast, options.seed))))
}
