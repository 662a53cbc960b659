//! The gallery's pictures: images, masks and maps of fold 0 and its first training, small enough for one file. All maps of an
//! image and model are tiles of one picture, grey, each by its own range; the page colours them.

use super::Run;
use crate::error::{Error, Result};
use base64::Engine as _;
use image::{ExtendedColorType, ImageEncoder};
use lightbox_core::data::resize::resize;
use lightbox_core::data::store::Store;
use lightbox_core::files;
use lightbox_core::maps::{self, Fault};
use lightbox_core::maps_file::MapsFile;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tch::{Device, Tensor};

/// Bytes that all maps may take together, as base64: with Plotly.js and the numbers less than 30 MB.
const BUDGET: usize = 16 << 20;
/// What a pixel of a tile takes, about, as base64.
const PER_PIXEL: f64 = 0.4;
const SIDES: [usize; 5] = [96, 64, 48, 40, 32];
/// The side of an image in the page, at most.
const IMAGE: usize = 256;
/// Columns of tiles.
const ACROSS: usize = 8;

fn uri(kind: &str, bytes: &[u8]) -> String {
    format!("data:image/{kind};base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes))
}

fn fault(e: impl std::fmt::Display) -> Error {
    Error::new(crate::error::Exit::Other, format!("a picture cannot be encoded: {e}"))
}

fn jpeg(grey: &[u8], width: usize, height: usize, quality: u8) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, quality);
    encoder.write_image(grey, width as u32, height as u32, ExtendedColorType::L8).map_err(fault)?;
    Ok(bytes)
}

/// A grey PNG.
pub(super) fn png(grey: &[u8], width: usize, height: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
    encoder.write_image(grey, width as u32, height as u32, ExtendedColorType::L8).map_err(fault)?;
    Ok(bytes)
}

/// Grey values of height and width `size` as a square of side `to`.
fn sized(grey: &[u8], size: [usize; 2], to: usize) -> Vec<u8> {
    if size == [to, to] {
        return grey.to_vec();
    }
    let values: Vec<f32> = grey.iter().map(|v| f32::from(*v)).collect();
    resize(&values, (size[1], size[0]), (to, to)).into_iter().map(|v| (v + 0.5).clamp(0.0, 255.0) as u8).collect()
}

/// A map [h, w] as grey values of `side` x `side`, by its own range.
pub(super) fn tile(map: &Tensor, side: usize) -> Result<Vec<u8>> {
    let size = map.size();
    let n = side as i64;
    let one = map.f_unsqueeze(0)?;
    let small = match size[0] > n || size[1] > n {
        true => one.f_unsqueeze(1)?.f_adaptive_avg_pool2d([n, n])?.f_squeeze_dim(1)?,
        false => maps::upsample(&one.f_contiguous()?, (side, side))?,
    };
    let scaled = maps::values(&maps::min_max(&small.f_contiguous()?)?)?;
    Ok(scaled.iter().map(|v| (v * 255.0 + 0.5) as u8).collect())
}

impl Run {
    /// The prepared images of a model.
    pub(super) fn store(&self, size: [usize; 2]) -> Result<Store> {
        // Only masks and grey values are wanted, which do not depend on a model's normalisation.
        Ok(Store::open(&self.folder.prepared(size), &[0.0], &[1.0], Device::Cpu, 0)?)
    }

    /// Height and width of a model's images.
    pub(super) fn size(&self, model: usize) -> Option<[usize; 2]> {
        let label = &self.summary.models[model];
        self.stored.iter().find(|s| s.model == *label).map(|s| s.size)
    }

    /// The maps of a model and column in fold 0: place of the image in the prepared file, and map [h, w].
    pub(super) fn each_map(
        &self,
        model: usize,
        wanted: &dyn Fn(usize) -> bool,
        see: &mut dyn FnMut(usize, usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let label = &self.summary.models[model];
        for s in self.stored.iter().filter(|s| s.model == *label && s.fold == 0 && s.training == 0) {
            let columns: Vec<(usize, usize)> = s
                .outputs
                .iter()
                .enumerate()
                .filter_map(|(k, output)| self.column(&s.explainer, output).map(|c| (k, c as usize)))
                .filter(|(_, c)| wanted(*c))
                .collect();
            if columns.is_empty() {
                continue;
            }
            let path = self.folder.inside(&s.file)?;
            let damaged = |e| Error::input(format!("{}: {e}", path.display())).hint("run the spec again");
            let file = MapsFile::open(&path).map_err(damaged)?;
            for (row, image) in file.images.iter().enumerate() {
                // An image with several targets is shown by its first.
                if file.images[..row].contains(image) {
                    continue;
                }
                let all = file.rows(row, 1)?;
                for (k, column) in &columns {
                    see(*image as usize, *column, &all.f_get(0)?.f_get(*k as i64)?)?;
                }
            }
        }
        Ok(())
    }

    /// What the page's gallery shows. Where it is served, maps and images come by themselves.
    pub(super) fn gallery(&self, served: bool) -> Result<Value> {
        let columns = self.summary.columns.len();
        let models = self.summary.models.len();
        let colours: BTreeMap<&str, Vec<u8>> =
            [("viridis", colorous::VIRIDIS), ("inferno", colorous::INFERNO), ("cividis", colorous::CIVIDIS)]
                .into_iter()
                .map(|(name, gradient)| {
                    let colour = |v: u32| {
                        let c = gradient.eval_rational(v as usize, 256);
                        [c.r, c.g, c.b]
                    };
                    (name, (0..256).flat_map(colour).collect())
                })
                .collect();
        let mut shown: Vec<usize> = (0..self.images.len()).filter(|i| self.images[*i].explained).collect();
        let explained = shown.len();
        // As large as the budget lets tiles be; fewer images where the smallest are too many.
        let tiles = |n: usize| n * columns.max(1) * models.max(1);
        let cost = |side: usize, n: usize| (tiles(n) * side * side) as f64 * PER_PIXEL;
        let side = SIDES.iter().copied().find(|s| cost(*s, shown.len()) <= BUDGET as f64).unwrap_or(32);
        let most = (BUDGET as f64 / (cost(side, 1)).max(1.0)) as usize;
        if !served && shown.len() > most.max(1) {
            let n = most.max(1);
            shown = (0..n).map(|k| shown[k * shown.len() / n]).collect();
        }
        let place: BTreeMap<usize, usize> =
            shown.iter().enumerate().map(|(g, i)| (self.images[*i].index as usize, g)).collect();
        let Some(first) = (0..models).find_map(|m| self.size(m)).filter(|_| !shown.is_empty()) else {
            return Ok(json!({
                "images": [], "grey": [], "mask": [], "maps": vec![Vec::<Value>::new(); models], "tile": side,
                "across": ACROSS, "colours": colours, "explained": explained
            }));
        };
        let store = self.store(first)?;
        let to = first[0].max(first[1]).min(IMAGE);
        let (mut grey, mut mask) = (Vec::new(), Vec::new());
        for &i in &shown {
            let index = self.images[i].index as usize;
            grey.push(uri("jpeg", &jpeg(&sized(&store.grey(index), first, to), to, to, 80)?));
            // Findings of any class are white, a shortcut is grey.
            let classes = self.images[i].class.split('|').count();
            let findings: Vec<Vec<u8>> = (0..classes).filter_map(|bit| store.mask(index, Some(bit))).collect();
            let planted = store.shortcut(index);
            let has_planted = self.images[i].shortcut.is_some_and(|s| s > 0.0);
            let value = |p: usize| match findings.iter().any(|m| m[p] == 1) {
                true => 255,
                false if has_planted && planted[p] == 1 => 150,
                false => 0,
            };
            let [h, w] = first;
            mask.push(uri("png", &png(&(0..h * w).map(value).collect::<Vec<u8>>(), w, h)?));
        }
        let down = columns.div_ceil(ACROSS).max(1);
        let (width, height) = (ACROSS * side, down * side);
        let mut all = Vec::new();
        for model in 0..models {
            let mut sheets: Vec<Option<(Vec<u8>, Vec<u8>)>> = vec![None; shown.len()];
            self.each_map(model, &|_| true, &mut |image, column, map| {
                let Some(&g) = place.get(&image) else { return Ok(()) };
                if maps::faults(&map.f_unsqueeze(0)?)? == [Fault::NotFinite] {
                    return Ok(());
                }
                let size = if served { 0 } else { width * height };
                let (pixels, has) = sheets[g].get_or_insert_with(|| (vec![0; size], vec![b'0'; columns]));
                has[column] = b'1';
                if !served {
                    let values = tile(map, side)?;
                    let (x, y) = (column % ACROSS * side, column / ACROSS * side);
                    for (row, line) in values.chunks(side).enumerate() {
                        pixels[(y + row) * width + x..][..side].copy_from_slice(line);
                    }
                }
                Ok(())
            })?;
            let encode = |sheet: Option<(Vec<u8>, Vec<u8>)>| -> Result<Value> {
                let Some((pixels, has)) = sheet else { return Ok(Value::Null) };
                let has = String::from_utf8_lossy(&has).into_owned();
                Ok(match served {
                    true => json!({ "has": has }),
                    false => json!({ "has": has, "uri": uri("jpeg", &jpeg(&pixels, width, height, 70)?) }),
                })
            };
            all.push(sheets.into_par_iter().map(encode).collect::<Result<Vec<Value>>>()?);
        }
        // The estimate may have been too low: then fewer images, spread as before.
        let bytes = |g: usize| all.iter().map(|m| m[g]["uri"].as_str().map_or(0, str::len)).sum::<usize>();
        let total: usize = (0..shown.len()).map(bytes).sum();
        if total > BUDGET {
            let n = (shown.len() * (BUDGET >> 10) / (total >> 10)).max(1);
            let kept: Vec<usize> = (0..n).map(|k| k * shown.len() / n).collect();
            fn pick<T: Clone>(from: &[T], kept: &[usize]) -> Vec<T> {
                kept.iter().map(|g| from[*g].clone()).collect()
            }
            all = all.iter().map(|m| pick(m, &kept)).collect();
            (shown, grey, mask) = (pick(&shown, &kept), pick(&grey, &kept), pick(&mask, &kept));
        }
        Ok(json!({
            "images": shown, "grey": grey, "mask": mask, "maps": all, "tile": side, "across": ACROSS,
            "colours": colours, "explained": explained
        }))
    }
}

/// Reads a file of the run, for the pages that are served.
pub(super) fn file(run: &Run, name: &str) -> Result<Vec<u8>> {
    Ok(files::read(&run.folder.inside(name)?)?)
}
