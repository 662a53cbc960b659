//! What an image is compared with, or stands where it is covered.

use super::maps::blur;
use crate::{Context, Result};
use tch::Tensor;

crate::choice! {
    /// what stands in covered places: 0 after normalisation (the mean colour), black, white, the image blurred
    pub enum Fill { Zero = "zero", Black = "black", White = "white", Blur = "blur" }
}

/// Of the blur, as a share of the image's last axis.
const BLUR: f64 = 0.05;

/// [B, C, size...] of the batch's size: 0 after normalisation (the mean colour), black, white, or the images blurred.
pub fn fill(context: &Context<'_>, kind: Fill) -> Result<Tensor> {
    let images = context.image_tensor()?;
    let constant = |values: &[f64]| -> Result<Tensor> {
        let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        let mut shape = vec![1i64; images.dim()];
        shape[1] = -1;
        let values = Tensor::f_from_slice(&values)?.f_to_device(images.device())?.f_reshape(shape)?;
        Ok(values.f_expand_as(&images)?.f_contiguous()?)
    };
    let [black, white] = context.model.input.range();
    Ok(match kind {
        Fill::Zero => images.f_zeros_like()?,
        Fill::Black => constant(&black)?,
        Fill::White => constant(&white)?,
        Fill::Blur => {
            let last = images.size().last().copied().unwrap_or(1);
            blur(&images, BLUR * last as f64, 4.0)?
        }
    })
}
