//! Decoding and resizing radiographs of 1024 x 1024 pixels to 224 x 224 on one core, against Pillow.

use crate::rounds::alternate;
use crate::table::Table;
use crate::{Bench, Result};
use lightbox_core::data::phantom::Phantom;
use lightbox_core::data::{self, DataSpec};
use lightbox_core::data::{image::Intensity, reader};
use lightbox_core::task::Task;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;
use tch::{Kind, Tensor};

/// Phantoms as files; their paths, sorted.
pub fn files(folder: &std::path::Path, count: usize, pixels: usize, ending: &str) -> Result<Vec<PathBuf>> {
    let spec = Phantom { count, pixels, ..Phantom::default() };
    let source = data::open(&DataSpec::Phantom(spec), &Task::default())?;
    let mut paths = Vec::new();
    for i in 0..count {
        let values: Vec<u8> = source.image(i)?.unit()?.iter().map(|v| (v * 255.0).round() as u8).collect();
        let path = folder.join(format!("{i:05}.{ending}"));
        let grey = ::image::GrayImage::from_raw(pixels as u32, pixels as u32, values).ok_or("no image")?;
        grey.save(&path)?;
        paths.push(path);
    }
    Ok(paths)
}

pub fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    let count = if bench.quick { 4 } else { 24 };
    for (ending, title) in [("png", "8-bit PNG"), ("jpg", "JPEG")] {
        let folder = tempfile::tempdir()?;
        let paths = files(folder.path(), count, 1024, ending)?;
        let job = json!({ "images": folder.path().to_string_lossy() });
        let mut peer = bench.peer(
            "decode",
            job,
            &vec![("none".into(), Tensor::f_zeros([1], (Kind::Float, tch::Device::Cpu))?)],
        )?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
        let rounds = alternate(bench.rounds(7), &mut peer, "pillow", || {
            let start = Instant::now();
            let found = pool.install(|| -> std::result::Result<Vec<f32>, lightbox_core::Error> {
                let mut all = Vec::with_capacity(count * 224 * 224);
                for path in &paths {
                    let small = reader::read(path, false)?.resized((224, 224), Intensity::Auto)?;
                    all.extend(small.iter().map(|v| ((v * 255.0).round() / 255.0 - 0.5) / 0.25));
                }
                Ok(all)
            })?;
            Ok((found, start.elapsed().as_secs_f64()))
        })?;
        let work = format!("decode and resize, {title} of 1024 x 1024, an image, one core (difference in grey levels)");
        // Pillow rounds after each axis; decoders of JPEG differ by one or two.
        let allowed = if ending == "png" { 1.0 } else { 3.0 };
        rounds.each(count).add(table, work, Some(3.0), Some(allowed), |found, theirs| {
            let worst = Tensor::f_from_slice(found)?.f_reshape(theirs.size())?.f_sub(theirs)?.f_abs()?.f_max()?;
            Ok((worst.f_double_value(&[])? * 0.25 * 255.0).round())
        })?;
    }
    Ok(())
}
