//! Image files as a model takes them.

use crate::error::Result;
use lightbox_core::data::preparation::Preparation;
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

/// Reads images as a run stores them.
pub fn read_images(paths: &[PathBuf], input: &InputSpec, preparation: &Preparation) -> Result<Input> {
    let [h, w] = preparation.size;
    let read = |path: &PathBuf| -> Result<Vec<f32>> {
        let image = preparation.read(path)?;
        let mut pixels = preparation.prepared(&image).map_err(|e| e.with_path(path))?;
        // A grey image, in a colour set too, has three equal channels.
        while pixels.len() < input.channels * h * w {
            pixels.extend_from_within(..h * w);
        }
        Ok(pixels)
    };
    let pixels: Vec<Vec<f32>> = paths.par_iter().map(read).collect::<Result<_>>()?;
    let mut values = Vec::with_capacity(pixels.len() * input.channels * h * w);
    for image in &pixels {
        for (channel, (mean, std)) in image.chunks(h * w).zip(input.mean.iter().zip(&input.std)) {
            values.extend(channel.iter().map(|&v| ((f64::from(v) - mean) / std) as f32));
        }
    }
    let shape = [pixels.len() as i64, input.channels as i64, h as i64, w as i64];
    let batch = Tensor::f_from_slice(&values)?.f_reshape(shape)?;
    let mean = |p: &[f32], i: usize| p.iter().skip(i).step_by(h * w).sum::<f32>() / input.channels as f32;
    let bytes = |p: Vec<f32>| (0..h * w).map(|i| (mean(&p, i) * 255.0 + 0.5) as u8).collect();
    Ok(Input { batch, pictures: paths.iter().cloned().zip(pixels.into_iter().map(bytes)).collect() })
}
