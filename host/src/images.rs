//! Image files as a model takes them.

use crate::error::Result;
use lightbox_core::data::preparation::{Levels, Preparation};
use lightbox_sdk::spec::InputSpec;
use rayon::prelude::*;
use std::path::PathBuf;
use tch::Tensor;

/// What is explained: a normalised batch and, for image files, their names and grey pixels at the model's size (of a colour
/// image the mean of its channels).
pub struct Input {
    pub batch: Tensor,
    pub pictures: Vec<(PathBuf, Vec<u8>)>,
}

/// Reads images as a run stores them; what a model takes of them has the same bits.
pub fn read_images(paths: &[PathBuf], input: &InputSpec, preparation: &Preparation) -> Result<Input> {
    let [h, w] = preparation.size;
    let read = |path: &PathBuf| -> Result<Levels> {
        let image = preparation.read(path)?;
        Ok(preparation.levels(&image).map_err(|e| e.with_path(path))?)
    };
    let images: Vec<Levels> = paths.par_iter().map(read).collect::<Result<_>>()?;
    let mut pictures = Vec::new();
    for (path, image) in paths.iter().zip(&images) {
        let own = image.values.len() / (h * w);
        let channel = |c: usize| &image.values[c % own * h * w..][..h * w];
        let mean = |i: usize| (0..own).map(|c| f32::from(channel(c)[i])).sum::<f32>() / own as f32;
        let bytes = (0..h * w).map(|i| (mean(i) / image.depth.levels() * 255.0 + 0.5) as u8).collect();
        pictures.push((path.clone(), bytes));
    }
    Ok(Input { batch: normalised(&images, input, [h, w])?, pictures })
}

/// Prepared images of this height and width as a model's input [B, C, H, W], CPU, to the bit as a run's store gives them.
pub fn normalised(images: &[Levels], input: &InputSpec, [h, w]: [usize; 2]) -> Result<Tensor> {
    let mut values = Vec::with_capacity(images.len() * input.channels * h * w);
    for image in images {
        // A grey image, in a colour set too, has equal channels.
        let own = image.values.len() / (h * w);
        let channel = |c: usize| &image.values[c % own * h * w..][..h * w];
        for (c, (scale, shift)) in image.depth.normalisation(&input.mean, &input.std).into_iter().enumerate() {
            values.extend(channel(c).iter().map(|&v| f32::from(v) * scale + shift));
        }
    }
    let shape = [images.len() as i64, input.channels as i64, h as i64, w as i64];
    Ok(Tensor::f_from_slice(&values)?.f_reshape(shape)?)
}
