//! The last attention's gradient along the path from a black-out to the image, which transition attention maps and Beyond
//! Intuition multiply their maps by.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::maps::per_row;

/// `mean_h relu(mean_a dS/dA(a x))`, [B, N, N], of an attention site, a = 0 .. 1 in even steps; x is the normalised image.
pub fn gradient(context: &Context<'_>, site: &Site, steps: usize) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    let images = |pairs: Pairs<'_>| {
        let at: Vec<f32> = pairs.iter().map(|(_, step)| *step as f32 / (steps - 1) as f32).collect();
        let rows = context.rows(&context.images, pairs)?;
        let at = Tensor::f_from_slice(&at)?.f_to_device(rows.device())?;
        Ok(rows.f_mul(&per_row(&at, rows.dim())?)?)
    };
    context.gradients(steps, std::slice::from_ref(&site.name), images, |pairs, found| {
        if sum.is_none() {
            let mut size = found[0].size();
            size[0] = context.ids.len() as i64;
            sum = Some(found[0].f_new_zeros(size, (found[0].f_kind()?, found[0].device()))?);
        }
        let sum = sum.as_mut().ok_or_else(|| Error::invalid("there is no gradient"))?;
        add_rows(sum, &found[0], pairs, |_| 1.0 / steps as f64)
    })?;
    let sum = sum.ok_or_else(|| Error::invalid("a batch without images"))?;
    crate::stack::heads(&sum.f_relu()?)
}
