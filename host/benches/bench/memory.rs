//! How much memory a run takes that is not the model's: the maps of many explainers at a large size, and the intervals of many
//! images. There is no peer; the limits are those that the project set itself. Each measurement is a process of its own, whose
//! greatest memory is that of its largest process.

use crate::scaling::{PLAIN, run_spec};
use crate::summary::peak;
use crate::table::Table;
use crate::{Bench, Result};
use lightbox_core::stats::interval::Patients;
use std::fmt::Write as _;

/// Explainers without a parameter that have a map for a convolutional network, cheap enough for large images.
const METHODS: [&str; 12] = [
    "gradcam",
    "hirescam",
    "xgradcam",
    "layercam",
    "fem",
    "gradcampp",
    "gradcam-elementwise",
    "noise",
    "edges",
    "centre",
    "brightness",
    "saliency",
];

/// Seconds and MiB of a run with so many explainers on images of `side` x `side` pixels.
fn many_explainers(bench: &Bench, folder: &std::path::Path, explainers: usize, side: usize) -> Result<(f64, f64)> {
    let weights = folder.join("weights.safetensors");
    if !weights.is_file() {
        bench.write_weights("densenet-small", 0, &weights)?;
    }
    // 16 test images are enough for two full batches; one explanation each.
    let mut spec = format!(
        "name = \"memory\"\npictures = 0\nchunk = 64\nbatch_size = 8\n[data]\nsource = \"phantom\"\ncount = 48\npixels = {side}\n\
         [split]\ntest = 32\n[[models]]\nname = \"densenet-small\"\nweights = {:?}\nparams = {{ size = {side} }}\n\
         [[metrics]]\nname = \"pixel-auprc\"\n",
        weights.display().to_string()
    );
    for i in 0..explainers {
        let name = METHODS[i % METHODS.len()];
        let _ = write!(spec, "[[explainers]]\nname = \"{name}\"\nlabel = \"{name}-{i}\"\n");
    }
    run_spec(bench, folder, &spec, PLAIN)
}

/// Intervals of 40 columns over so many images.
pub fn part(images: usize) -> Result<()> {
    let value = |c: usize, i: usize| ((i * 7919 + c) % images) as f64 / images as f64;
    let columns: Vec<Vec<f64>> = (0..40).map(|c| (0..images).map(|i| value(c, i)).collect()).collect();
    let columns: Vec<&[f64]> = columns.iter().map(Vec::as_slice).collect();
    let patients: Vec<u32> = (0..images as u32).collect();
    let started = std::time::Instant::now();
    let of = Patients::new(&patients, &[]);
    let intervals: Vec<_> = columns.iter().filter_map(|c| of.mean(c, [0.0, 1.0])).collect();
    println!("{} {:.1} {}", intervals.len(), started.elapsed().as_secs_f64(), peak());
    Ok(())
}

pub fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    let side = if bench.quick { 256 } else { 1024 };
    let folder = tempfile::tempdir()?;
    let mut text = format!(
        "A run of densenet-small on 32 phantoms of {side} x {side}, half of them explained in batches of 8. With one explainer \
         the memory is the model's.\n\n| explainers | seconds | MiB at most |\n|---:|---:|---:|\n"
    );
    for explainers in [1, 12, 60] {
        let (seconds, most) = many_explainers(bench, folder.path(), explainers, side)?;
        let _ = writeln!(text, "| {explainers} | {seconds:.1} | {most:.0} |");
    }
    table.text(text);
    let images = if bench.quick { 2500 } else { 25_000 };
    let found = crate::part("memory", images)?;
    table.text(format!(
        "95 % intervals of {images} images.\n\n| columns | seconds | MiB at most |\n|---:|---:|---:|\n| {found} |\n"
    ));
    Ok(())
}
