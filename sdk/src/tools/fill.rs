//! What an image is compared with, or stands where it is covered.

use super::maps::blur;
use crate::{Context, Result};
use tch::Tensor;

/// The kinds that [`fill`] knows.
pub const KINDS: [&str; 4] = ["zero", "black", "white", "blur"];

/// Of the blur, as a share of the image's width.
const BLUR: f64 = 0.05;

/// [B, C, H, W] of the batch's size: 0 after normalisation (the mean colour), black, white, or the images blurred; `None` for
/// another kind, which is the caller's own.
pub fn fill(context: &Context<'_>, kind: &str) -> Result<Option<Tensor>> {
    let images = context.image_tensor()?;
    let constant = |values: &[f64]| -> Result<Tensor> {
        let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        let values = Tensor::f_from_slice(&values)?.f_to_device(images.device())?.f_reshape([1, -1, 1, 1])?;
        Ok(values.f_expand_as(&images)?.f_contiguous()?)
    };
    let [black, white] = context.model.input.range();
    Ok(match kind {
        "zero" => Some(images.f_zeros_like()?),
        "black" => Some(constant(&black)?),
        "white" => Some(constant(&white)?),
        "blur" => Some(blur(&images, BLUR * images.size()[3] as f64, 4.0)?),
        _ => None,
    })
}
