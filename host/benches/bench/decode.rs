//! Decoding and resizing radiographs of 1024 x 1024 pixels to 224 x 224 on one core, against Pillow.

use crate::table::{Comparison, Table};
use crate::{Bench, Result};
use lightbox_core::data::image::{self, Intensity};
use lightbox_core::data::phantom::Phantom;
use lightbox_core::data::{self, DataSpec};
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
        let (mut ours, mut theirs, mut found) = (vec![], vec![], vec![]);
        for round in 0..bench.rounds(7) + 1 {
            let start = Instant::now();
            found = pool.install(|| -> std::result::Result<Vec<f32>, lightbox_core::Error> {
                let mut all = Vec::with_capacity(count * 224 * 224);
                for path in &paths {
                    let image = image::read(path, false)?;
                    let small = image.resized((224, 224), Intensity::Auto)?;
                    all.extend(small.iter().map(|v| ((v * 255.0).round() / 255.0 - 0.5) / 0.25));
                }
                Ok(all)
            })?;
            let time = start.elapsed().as_secs_f64() / count as f64;
            let answer = peer.as_mut().map(|p| p.ask("pillow")).transpose()?;
            if round > 0 {
                ours.push(time);
                theirs.extend(answer.map(|s| s / count as f64));
            }
        }
        let mut difference = None;
        if let Some(peer) = &mut peer {
            let wanted = peer.outputs()?.remove("pillow").ok_or("no images")?;
            let worst = (Tensor::from_slice(&found).f_reshape(wanted.size())? - wanted).abs().max().double_value(&[]);
            // Grey levels: Pillow rounds after each axis; decoders of JPEG differ by one or two.
            let levels = (worst * 0.25 * 255.0).round();
            difference = Some((levels, if ending == "png" { 1.0 } else { 3.0 }));
        }
        let version = Table::version(&peer, "pillow").to_string();
        table.add(Comparison {
            work: format!("decode and resize, {title} of 1024 x 1024, an image, one core (difference in grey levels)"),
            ours: &ours,
            peer: (!theirs.is_empty()).then_some(("pillow", &version, &theirs)),
            difference,
            target: Some(3.0),
        });
    }
    Ok(())
}
