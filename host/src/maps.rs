//! `lightbox maps`: the maps of a run as files for other tools, at the explainers' own resolution and scale.

use crate::error::{Error, Result};
use crate::report::Run;
use clap::Args;
use lightbox_core::maps_file::MapsFile;
use lightbox_core::{checkpoint, files};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tch::{Kind, Tensor};

#[derive(Args)]
pub struct MapsArgs {
    /// The folder of a run that has ended
    run: PathBuf,
    /// By its label
    #[arg(long)]
    model: String,
    /// By its label
    #[arg(long)]
    explainer: String,
    #[arg(long, default_value_t = 0)]
    fold: usize,
    /// The number of the training
    #[arg(long, default_value_t = 0, alias = "seed")]
    training: usize,
    /// NAME.safetensors: a tensor [h, w] an image, under its name ([maps, h, w] of several). NAME.npy: [images, h, w]
    /// ([images, maps, h, w]), and the images' names in NAME.txt
    #[arg(long)]
    output: PathBuf,
}

fn damaged(file: &std::path::Path) -> Error {
    Error::input(format!("{}: its maps are missing", file.display())).hint("run the spec again")
}

/// Writes the maps; a line for stdout.
pub fn maps(args: &MapsArgs) -> Result<String> {
    let run = Run::open(&args.run)?;
    let mine: Vec<_> = run
        .stored()
        .iter()
        .filter(|s| {
            s.model == args.model && s.explainer == args.explainer && (s.fold, s.training) == (args.fold, args.training)
        })
        .collect();
    if mine.is_empty() {
        let mut known: Vec<String> = run.stored().iter().map(|s| format!("{} x {}", s.model, s.explainer)).collect();
        known.sort();
        known.dedup();
        let (m, e, f, s) = (&args.model, &args.explainer, args.fold, args.training);
        let known = known.join(", ");
        return Err(Error::input(format!("no maps of {m} x {e}, fold {f}, training {s} (known: {known})")));
    }
    let outputs = mine[0].outputs.clone();
    let names: BTreeMap<i64, &str> = run.images().iter().map(|i| (i64::from(i.index), i.image.as_str())).collect();
    let mut all: Vec<(String, Tensor)> = Vec::new();
    for s in mine {
        let path = run.folder.inside(&s.file)?;
        let file = MapsFile::open(&path).map_err(|e| damaged(&path).hint(e.to_string()))?;
        let maps = file.rows(0, file.images.len())?;
        for (row, image) in file.images.iter().enumerate() {
            let name = names.get(image).ok_or_else(|| Error::input(format!("{}: an unknown image", path.display())))?;
            // An image with several targets has a map each, under the target's number.
            let several = file.images.iter().filter(|i| *i == image).count() > 1;
            let name = if several { format!("{name}.{}", file.targets[row]) } else { name.to_string() };
            let map = maps.f_get(row as i64)?.f_to_kind(Kind::Float)?;
            all.push((name, if s.outputs.len() == 1 { map.f_get(0)? } else { map }));
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    if all.is_empty() {
        return Err(Error::input(format!("no image of the run was explained by {}", args.explainer)));
    }
    let (shown, n) = (args.output.display().to_string(), all.len());
    match args.output.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => checkpoint::write(&args.output, &all)?,
        Some("npy") => {
            let maps: Vec<&Tensor> = all.iter().map(|(_, m)| m).collect();
            let stacked = Tensor::f_stack(&maps, 0)?;
            lightbox_core::tensors::write_npy(&args.output, &stacked)?;
            let list: String = all.iter().map(|(name, _)| format!("{name}\n")).collect();
            files::write_text(&args.output.with_extension("txt"), &list)?;
        }
        _ => return Err(Error::input(format!("--output {shown}: .safetensors or .npy expected"))),
    }
    let of = if outputs.len() > 1 { format!(" of {}: {}", outputs.len(), outputs.join(", ")) } else { String::new() };
    Ok(format!("{n} maps{of} in {shown}\n"))
}
