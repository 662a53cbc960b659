//! `lightbox data make` and `lightbox data inspect`.

use crate::error::{Error, Result};
use crate::registry::Registry;
use crate::run::class_names;
use crate::run::preflight::notes;
use crate::run::spec::RunSpec;
use clap::{Args, Subcommand};
use lightbox_core::data::duplicates::{Duplicates, to_split};
use lightbox_core::data::phantom::Phantom;
use lightbox_core::data::split::Split;
use lightbox_core::data::{self, DataSpec, Truth, image, mha};
use lightbox_core::files;
use lightbox_core::task::{Kind, Task};
use rayon::prelude::*;
use std::fmt::Write;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum DataCommand {
    /// Write phantoms (or nodules inserted into real radiographs) with their annotation to a folder
    #[command(after_help = "Examples:\n  lightbox data make out --count 100 --pixels 512\n  \
        lightbox data make out --spec my.toml --format node21")]
    Make(MakeArgs),
    /// Count a data source's images, boxes and splits, and read some of its images
    #[command(
        after_help = "Examples:\n  lightbox data inspect my.toml\n  lightbox data inspect study --set data.root=node21"
    )]
    Inspect {
        /// A run spec: its [data] and [split] sections are looked at
        spec: PathBuf,
        /// Change a key of the spec [repeatable]
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
pub struct MakeArgs {
    /// The new folder
    out: PathBuf,
    /// Take the [data] section of this run spec
    #[arg(long, conflicts_with_all = ["count", "pixels", "nodules", "seed"])]
    spec: Option<PathBuf>,
    #[arg(long, default_value_t = 100)]
    count: usize,
    /// Height and width
    #[arg(long, default_value_t = 512)]
    pixels: usize,
    /// Share of images with nodules
    #[arg(long, default_value_t = 0.5)]
    nodules: f64,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// table: PNG and table.csv; node21: images/*.mha and metadata.csv
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Format {
    Table,
    Node21,
}

/// Runs one of the two; what is to be printed.
pub fn data(command: &DataCommand) -> Result<String> {
    match command {
        DataCommand::Make(args) => make(args),
        DataCommand::Inspect { spec, set, json } => inspect(&RunSpec::read(spec, set, &[])?, *json),
    }
}

fn make(args: &MakeArgs) -> Result<String> {
    let spec = match &args.spec {
        Some(path) => RunSpec::read(path, &[], &[])?.data,
        // Nothing else is made of other tasks than a binary one.
        None => DataSpec::Phantom(Phantom {
            count: args.count,
            pixels: args.pixels,
            nodules: args.nodules,
            seed: args.seed,
            ..Phantom::default()
        }),
    };
    let source = data::open(&spec, &Task::default())?;
    if args.out.exists() && std::fs::read_dir(&args.out).is_ok_and(|mut d| d.next().is_some()) {
        return Err(Error::input(format!("{}: the folder is not empty", args.out.display())));
    }
    let node21 = args.format == Format::Node21;
    let name = |i: usize| {
        let id = &source.samples()[i].id;
        let stem = Path::new(id).file_stem().map_or(id.clone(), |s| s.to_string_lossy().into_owned());
        if node21 { format!("{stem}.mha") } else { format!("{stem}.png") }
    };
    let n = source.samples().len();
    (0..n).into_par_iter().try_for_each(|i| -> Result<()> {
        let grey = source.image(i)?;
        let unit = grey.unit_by(source.intensity())?;
        let (w, h) = (grey.width, grey.height);
        if node21 {
            // NODE21's own images hold 12 bits in 16.
            let pixels: Vec<u16> = unit.iter().map(|v| (v * 4095.0 + 0.5) as u16).collect();
            mha::write_u16(&args.out.join("images").join(name(i)), w, h, &pixels)?;
        } else {
            let pixels: Vec<u8> = unit.iter().map(|v| (v * 255.0 + 0.5) as u8).collect();
            image::write_png(&args.out.join(name(i)), w, h, &pixels)?;
        }
        Ok(())
    })?;
    // The table comes last: a folder with a table is complete.
    let mut text = String::from(match node21 {
        true => "height,img_name,label,width,x,y\n",
        false => "image,label,patient,x,y,width,height\n",
    });
    for (i, sample) in source.samples().iter().enumerate() {
        let boxes = if let Truth::Boxes(boxes) = &sample.truth { boxes.as_slice() } else { &[] };
        let (name, label, patient) = (name(i), sample.stratum(), &sample.patient);
        let mut line = |x: String, y: String, w: String, h: String| {
            let _ = match node21 {
                true => writeln!(text, "{h},{name},{label},{w},{x},{y}"),
                false => writeln!(text, "{name},{label},{patient},{x},{y},{w},{h}"),
            };
        };
        for b in boxes {
            line(b.x.to_string(), b.y.to_string(), b.width.to_string(), b.height.to_string());
        }
        if boxes.is_empty() {
            let none = if node21 { "0" } else { "" };
            line(none.into(), none.into(), none.into(), none.into());
        }
    }
    let table = args.out.join(if node21 { "metadata.csv" } else { "table.csv" });
    files::write_text(&table, &text)?;
    Ok(format!("{n} images, {}\n", table.display()))
}

fn quantiles(mut values: Vec<f64>) -> Option<[f64; 3]> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    Some([values[0], values[last / 2], values[last]])
}

/// A class as `inspect` shows it: images, and those with a box or mask of it.
#[derive(serde::Serialize)]
struct ClassCount {
    output: usize,
    name: String,
    images: usize,
    marked: usize,
    boxes: usize,
    train: usize,
    test: usize,
    test_marked: usize,
}

fn class_counts(task: &Task, samples: &[data::Sample], split: &Split) -> Vec<ClassCount> {
    let boxes = |s: &data::Sample, class: usize| match &s.truth {
        Truth::Boxes(boxes) => boxes.iter().filter(|b| b.class == class).count(),
        _ => 0,
    };
    let marked =
        |s: &data::Sample, class: usize| s.has(class) && (matches!(s.truth, Truth::MaskFile(_)) || boxes(s, class) > 0);
    let one = |(class, name): (usize, &String)| {
        let count =
            |part: &[usize], f: &dyn Fn(&data::Sample) -> bool| part.iter().filter(|&&i| f(&samples[i])).count();
        let all: Vec<usize> = (0..samples.len()).collect();
        // Every image that is not tested trains or validates in fold 0.
        let rest: Vec<usize> =
            split.folds.iter().take(1).flat_map(|f| [&f.train[..], &f.validation].concat()).collect();
        ClassCount {
            output: class,
            name: name.clone(),
            images: count(&all, &|s| s.has(class)),
            marked: count(&all, &|s| marked(s, class)),
            boxes: samples.iter().map(|s| boxes(s, class)).sum(),
            train: count(&rest, &|s| s.has(class)),
            test: count(&split.test, &|s| s.has(class)),
            test_marked: count(&split.test, &|s| marked(s, class)),
        }
    };
    task.classes.iter().enumerate().map(one).collect()
}

fn inspect(spec: &RunSpec, json: bool) -> Result<String> {
    let mut spec = spec.clone();
    let source = data::open(&spec.data, &spec.task)?;
    let given = spec.task.classes.len();
    // Of the models only exported programs are opened: their files may name the classes.
    let programs = Registry::default().with_programs(spec.models.iter().map(|m| m.name.as_str()))?;
    let unnamed = class_names::take_from_weights(&mut spec, source.as_ref(), &programs).err();
    let source = if spec.task.classes.len() == given { source } else { data::open(&spec.data, &spec.task)? };
    let task = spec.task.resolve(source.classes())?;
    let samples = source.samples();
    let count = |f: &dyn Fn(&data::Sample) -> bool| samples.iter().filter(|s| f(s)).count();
    let found = |s: &data::Sample| if task.kind == Kind::Binary { s.has(1) } else { !s.classes.is_empty() };
    let positive = count(&found);
    let unknown = count(&|s| s.truth == Truth::Unknown);
    let patients: std::collections::HashSet<&str> = samples.iter().map(|s| s.patient.as_str()).collect();
    let boxes: Vec<_> = samples
        .iter()
        .flat_map(|s| if let Truth::Boxes(b) = &s.truth { b.clone() } else { vec![] })
        .map(|b| (b.width * b.height).sqrt())
        .collect();
    // A few images, spread over the set, are read to see that it can be done.
    let some: Vec<usize> = (0..8.min(samples.len())).map(|k| k * samples.len() / 8.min(samples.len())).collect();
    let read = some.par_iter().map(|&i| source.image(i)).collect::<Result<Vec<_>, _>>()?;
    let sizes: std::collections::BTreeSet<String> = read.iter().map(|g| format!("{}x{}", g.width, g.height)).collect();
    let split = spec.split.split(&to_split(source.as_ref())?)?;
    // A box off its image would end a run when its images are prepared.
    let boxed = |i: &usize| matches!(&samples[*i].truth, Truth::Boxes(b) if !b.is_empty());
    let off = |i: usize| -> Result<Vec<String>> {
        let [width, height] = source.dimensions(i)?;
        let Truth::Boxes(boxes) = &samples[i].truth else { return Ok(vec![]) };
        Ok(boxes
            .iter()
            .filter_map(|b| b.fault(width, height))
            .map(|f| format!("image {}: {f}", samples[i].id))
            .collect())
    };
    let boxed: Vec<usize> = (0..samples.len()).filter(boxed).collect();
    let off: Vec<String> = boxed.into_par_iter().map(off).collect::<Result<Vec<_>>>()?.concat();
    let classes = class_counts(&task, samples, &split);
    let duplicates = Duplicates::find(source.as_ref(), &split, &files::sha256)?;
    let share = |p: &[usize]| (p.len(), p.iter().filter(|&&i| found(&samples[i])).count());
    if json {
        let folds: Vec<_> = split.folds.iter().map(|f| [share(&f.train), share(&f.validation)]).collect();
        let value = serde_json::json!({
            "images": samples.len(), "positive": positive, "patients": patients.len(), "unknown_masks": unknown,
            "boxes": boxes.len(), "box_side": quantiles(boxes), "sizes": sizes, "test": share(&split.test),
            "folds": folds, "classes": classes, "duplicates": duplicates, "boxes_off": off, "patients_known": source.knows_patients(), "notes": notes(source.as_ref()),
        });
        return Ok(serde_json::to_string_pretty(&value).map_err(|e| Error::input(e.to_string()))? + "\n");
    }
    let of = match source.knows_patients() {
        true => format!("of {} patients", patients.len()),
        false => "of unknown patients".into(),
    };
    let what = if task.kind == Kind::Binary { "the finding" } else { "a class" };
    let mut text = format!(
        "images    {} ({positive} with {what}) {of}\nsizes     {} (of {} read)\n",
        samples.len(),
        sizes.into_iter().collect::<Vec<_>>().join(", "),
        read.len()
    );
    match quantiles(boxes.clone()) {
        Some([least, median, most]) => {
            let n = boxes.len();
            let _ = writeln!(text, "boxes     {n}, side {least:.1} to {most:.1} px, median {median:.1}");
        }
        None => text.push_str("boxes     none\n"),
    }
    if unknown > 0 {
        let _ = writeln!(text, "masks     {unknown} images with {what} have none");
    }
    let part = |p: &[usize]| format!("{} ({} with {what})", p.len(), share(p).1);
    let _ = writeln!(text, "test      {}", part(&split.test));
    for (k, fold) in split.folds.iter().enumerate() {
        let _ = writeln!(text, "fold {k}    train {}, validation {}", part(&fold.train), part(&fold.validation));
    }
    let width = classes.iter().map(|c| c.name.len()).max().unwrap_or(0).max(5);
    let _ = writeln!(text, "\noutput  {:width$}  images  marked  boxes  train  test  marked", "class");
    for c in &classes {
        let _ = writeln!(
            text,
            "{:>6}  {:width$}  {:>6}  {:>6}  {:>5}  {:>5}  {:>4}  {:>6}",
            c.output, c.name, c.images, c.marked, c.boxes, c.train, c.test, c.test_marked
        );
    }
    let _ = writeln!(text, "\nMarked: with a box or mask. Output: the model's, in which the class is looked for.");
    for c in classes.iter().skip(usize::from(task.kind == Kind::Binary)).filter(|c| c.test_marked == 0) {
        let _ = writeln!(text, "warning   no test image has a box or mask of {}: its maps cannot be scored", c.name);
    }
    if let Some(first) = off.first() {
        let what = if source.skips_boxes_off_the_image() {
            "are left out"
        } else {
            "end a run (outside = \"leave-out\" leaves them out)"
        };
        let _ = writeln!(text, "warning   {} boxes lie outside their image and {what}: {first}", off.len());
    }
    if let Some(e) = unnamed {
        let _ = writeln!(text, "warning   {e}");
    }
    for note in notes(source.as_ref()).into_iter().chain(duplicates.note()) {
        let _ = writeln!(text, "note      {note}");
    }
    Ok(text)
}
