//! Extremal perturbation: Fong, Patrick and Vedaldi, "Understanding Deep Networks via Extremal Perturbations and Smooth Masks",
//! ICCV 2019, arXiv:1910.08485, with the constants of TorchRay (those in pixels at 224 px, in proportion elsewhere).
//!
//! Of all smooth masks that show a share `area` of the image and blur the rest, the one with the largest score:
//! `max_m S(x shown by m) - l_t mean (sort(m) - r)^2` (equations 5 and 6), r being 0 for the share 1 - area of the smallest
//! values and 1 for the others, `l_t = 300 * 1.0035^t`. The mask is a smooth maximum of a coarse one:
//! `m(u) = sum_i v_i softmax_i(20 v_i)`, `v_i = k(u - u_i) m_i`, `k(d) = exp(-2 max(d / s - 1/2, 0)^2)`. Blur is by a pyramid of
//! eight levels, the strongest with sigma 20 px at 224 px. Gradient ascent with momentum from m = 1; every second step sees the
//! image mirrored. The score is the target's logit.

use crate::cover::bound;
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor, with_grad};
use lightbox_sdk::tools::maps::{blur, sum};

register_explainer!(Extremal);

struct Extremal;

/// Of the mask's cells and of its kernel, px at 224 px; in proportion elsewhere.
const STEP: f64 = 7.0;
const SIGMA: f64 = 21.0;
/// Levels of the pyramid.
const LEVELS: i64 = 8;
/// The strongest blur, of the image's width.
const BLUR: f64 = 20.0 / 224.0;
/// Sharpness of the smooth maximum.
const SHARP: f64 = 20.0;
const WEIGHT: f64 = 300.0;
const GROWTH: f64 = 1.0035;
/// Steps after which the penalty grows no more.
const MOST: usize = 3000;
const RATE: f64 = 0.01;
const MOMENTUM: f64 = 0.9;

/// The smooth mask [H, W] of a coarse one [g, g'], on the tape.
struct Smooth {
    size: [i64; 2],
    cells: [i64; 2],
    /// Of a cell, px.
    step: i64,
    /// Cells on each side that count.
    reach: i64,
    /// [neighbours, H, W].
    kernel: Tensor,
}

impl Smooth {
    fn new(size: [i64; 2], device: lightbox_sdk::tch::Device) -> Result<Self> {
        let scale = size[1] as f64 / 224.0;
        let (step, sigma) = ((STEP * scale).round().max(1.0) as i64, SIGMA * scale);
        let cells = size.map(|n| (n + step - 1) / step);
        let reach = 1 + (sigma / step as f64).ceil() as i64;
        let side = 2 * reach + 1;
        let mut values = Vec::with_capacity((side * side * size[0] * size[1]) as usize);
        for (dy, dx) in (0..side * side).map(|i| (i / side - reach, i % side - reach)) {
            for (y, x) in (0..size[0] * size[1]).map(|i| (i / size[1], i % size[1])) {
                // From the pixel to the centre of the neighbour of its cell.
                let centre = |at: i64, d: i64| ((at / step + d) * step) as f64 + (step - 1) as f64 / 2.0;
                let far = (centre(y, dy) - y as f64).hypot(centre(x, dx) - x as f64);
                values.push((-2.0 * (far / sigma - 0.5).max(0.0).powi(2)).exp() as f32);
            }
        }
        let kernel = Tensor::f_from_slice(&values)?.f_reshape([side * side, size[0], size[1]])?.f_to_device(device)?;
        Ok(Smooth { size, cells, step, reach, kernel })
    }

    fn mask(&self, coarse: &Tensor) -> Result<Tensor> {
        let (side, [gh, gw], [h, w]) = (2 * self.reach + 1, self.cells, self.size);
        let padded = coarse.f_reshape([1, 1, gh, gw])?.f_replication_pad2d([self.reach; 4])?;
        let around = padded.f_im2col([side, side], [1, 1], [0, 0], [1, 1])?.f_reshape([1, side * side, gh, gw])?;
        let large = around.f_upsample_nearest2d([gh * self.step, gw * self.step], None::<f64>, None::<f64>)?;
        let v = large.f_squeeze_dim(0)?.f_narrow(1, 0, h)?.f_narrow(2, 0, w)?.f_mul(&self.kernel)?;
        sum(&v.f_mul(&v.f_mul_scalar(SHARP)?.f_softmax(0, Kind::Float)?)?, &[0], false)
    }
}

/// The image at each level of blur, the last the image itself: [levels, C, H, W].
fn pyramid(image: &Tensor) -> Result<Tensor> {
    let strongest = BLUR * image.size()[2] as f64;
    let mut levels = Vec::new();
    for l in 0..LEVELS - 1 {
        levels.push(blur(&image.f_unsqueeze(0)?, strongest * (1.0 - l as f64 / (LEVELS - 1) as f64), 4.0)?);
    }
    levels.push(image.f_unsqueeze(0)?);
    Ok(Tensor::f_cat(&levels, 0)?)
}

/// The image as a mask [H, W] shows it, [C, H, W], and its derivative in the mask.
fn shown(pyramid: &Tensor, mask: &Tensor) -> Result<(Tensor, Tensor)> {
    let at = mask.f_mul_scalar((LEVELS - 1) as f64)?;
    let low = at.f_floor()?.f_clamp(0.0, (LEVELS - 2) as f64)?;
    let level = |index: &Tensor| -> Result<Tensor> {
        let size = pyramid.size();
        let index = index.f_to_kind(Kind::Int64)?.f_unsqueeze(0)?.f_unsqueeze(0)?;
        Ok(pyramid.f_gather(0, &index.f_expand([1, size[1], size[2], size[3]], false)?, false)?.f_squeeze_dim(0)?)
    };
    let (a, b) = (level(&low)?, level(&low.f_add_scalar(1.0)?)?);
    let way = b.f_sub(&a)?;
    Ok((a.f_add(&way.f_mul(&at.f_sub(&low)?)?)?, way.f_mul_scalar((LEVELS - 1) as f64)?))
}

#[derive(Params)]
struct Settings {
    /// of the image that is shown
    #[param(default = 0.1, range = (0.001, 0.999), unit = "share")]
    area: f64,
    /// steps of the ascent
    #[param(default = 800, range = (1, 100_000))]
    iterations: usize,
}

impl Explainer for Extremal {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Fong, Patrick, Vedaldi",
            "Understanding Deep Networks via Extremal Perturbations and Smooth Masks",
            "ICCV",
            2019,
            "arXiv:1910.08485",
        );
        ExplainerSpec::new("extremal", "Extremal perturbation", Family::Perturbation, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula(
                "argmax_m S(x shown by m, else blurred) - l_t mean (sort(m) - r)^2, m smooth, r the share area of ones",
            )
            .cost("1 F, then iterations x (1 F, 1 B)")
            .notes(
                "Blur and mask repeat the image's edge, where TorchRay's meet zeros; its area counts a margin, and its cells lie \
                 half a cell earlier.",
            )
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let extra = Passes::both(params.iterations as u64);
        Ok(bound(model, extra, move |context| explain(context, &params)))
    }
}

fn explain(context: &Context<'_>, params: &Settings) -> Result<Maps> {
    let (area, iterations) = (params.area, params.iterations);
    let [b, h, w] = context.size()?;
    let (images, model) = (context.image_tensor()?, context.run_model()?);
    let site =
        context.model.site_of(Role::Input).ok_or_else(|| Error::invalid("the model has no site for its images"))?;
    let site = &site.name;
    let size = [h as i64, w as i64];
    let smooth = Smooth::new(size, images.device())?;
    let count = (h * w) as i64;
    let zeros = ((h * w) as f64 * (1.0 - area)) as i64;
    let wanted = Tensor::f_arange(count, (Kind::Int64, images.device()))?.f_ge(zeros)?.f_to_kind(Kind::Float)?;
    let mut maps = Vec::new();
    // An image at a time, so that no batch size changes the way of the ascent.
    for i in 0..b {
        let levels = pyramid(&images.f_get(i as i64)?)?;
        let mut coarse = Tensor::f_ones(smooth.cells, (Kind::Float, images.device()))?;
        let mut speed = coarse.f_zeros_like()?;
        for step in 0..iterations {
            context.check_cancelled()?;
            context.progress((i * iterations + step) as u64, (b * iterations) as u64);
            let leaf = coarse.f_detach()?.f_set_requires_grad(true)?;
            let mask = with_grad(|| smooth.mask(&leaf))?;
            let (seen, slope) = shown(&levels, &mask.f_detach()?)?;
            let mirrored = step % 2 == 0;
            let turn = |t: &Tensor| if mirrored { t.f_flip([2]) } else { Ok(t.shallow_clone()) };
            let input = Array::from_tensor(&turn(&seen)?.f_unsqueeze(0)?.f_contiguous()?)?;
            let request = Request::explain(input, context.objective_of(&[(i, 0)])?, &[], std::slice::from_ref(site));
            let response = model.run(&request)?;
            let found = response.gradient(0, site)?;
            let found = turn(&found.share_tensor()?.f_squeeze_dim(0)?)?;
            let reward = sum(&found.f_mul(&slope)?, &[0], false)?;
            let weight = WEIGHT * GROWTH.powi(step.min(MOST) as i32);
            let gradient = with_grad(|| -> Result<Tensor> {
                let (sorted, _) = mask.f_flatten(0, -1)?.f_sort(0, false)?;
                let penalty = sorted.f_sub(&wanted)?.f_square()?.f_mean(Kind::Float)?.f_mul_scalar(weight)?;
                let objective = mask.f_mul(&reward)?.f_sum(Kind::Float)?.f_sub(&penalty)?;
                let mut grads = Tensor::f_run_backward(&[objective], &[&leaf], false, false)?;
                grads.pop().ok_or_else(|| Error::output("no gradient of the mask"))
            })?;
            // Momentum with as much dampening, as TorchRay has it.
            speed = speed.f_mul_scalar(MOMENTUM)?.f_add(&gradient.f_mul_scalar(1.0 - MOMENTUM)?)?;
            coarse = coarse.f_add(&speed.f_mul_scalar(RATE)?)?.f_clamp(0.0, 1.0)?;
        }
        maps.push(smooth.mask(&coarse)?);
    }
    Ok(Array::from_tensor(&Tensor::f_stack(&maps, 0)?.f_detach()?)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbox_sdk::tape::{Tape, site};
    use lightbox_sdk::tch::Device;

    /// The logit is the detail in the upper left corner: the sum of squares there.
    struct Corner;

    impl Model for Corner {
        fn spec(&self) -> ModelSpec {
            ModelSpec { sites: vec![Site::input(3, [56, 56])], ..ModelSpec::new("corner", InputSpec::imagenet(56), 2) }
        }

        fn run(&self, request: &Request) -> Result<Response> {
            Tape::run(request, |tape, images| {
                let x = site(&mut Some(tape), "input", images)?;
                let part = x.f_narrow(2, 0, 21)?.f_narrow(3, 0, 21)?;
                let score = part.f_square()?.f_sum_dim_intlist([1i64, 2, 3].as_slice(), false, Kind::Float)?;
                // The mirrored image is seen half of the time, and says the same.
                let other = x.f_flip([3])?.f_narrow(2, 0, 21)?.f_narrow(3, 0, 21)?;
                let other = other.f_square()?.f_sum_dim_intlist([1i64, 2, 3].as_slice(), false, Kind::Float)?;
                let score = score.f_maximum(&other)?;
                Ok(Tensor::f_stack(&[&score, &score.f_neg()?], 1)?)
            })
        }

        fn parameters(&self) -> Result<Named> {
            Ok(vec![])
        }

        fn load(&mut self, _: Named) -> Result<LoadReport> {
            Ok(LoadReport::default())
        }

        fn fork_with(&self, _: Named) -> Result<Box<dyn Model>> {
            Ok(Box::new(Corner))
        }
    }

    #[test]
    fn shows_what_the_score_needs_on_about_the_area() {
        // Detail in the left corner only; elsewhere weaker.
        let noise = (Tensor::arange(3 * 56 * 56, (Kind::Float, Device::Cpu)) * 12.9898).sin().reshape([1, 3, 56, 56]);
        let scale = Tensor::ones([1, 1, 56, 56], (Kind::Float, Device::Cpu)) * 0.2;
        let _ = scale.narrow(2, 0, 21).narrow(3, 0, 21).fill_(1.0);
        let images = Array::from_tensor(&(noise * scale)).unwrap();
        let logits = Corner.run(&Request::forward(images.clone())).unwrap().logits;
        let builder =
            ContextBuilder::new(Corner.spec(), images).logits(logits).param("iterations", 300).param("area", 0.15);
        let maps = builder.runner(ModelHandle::of("corner", Box::new(Corner))).explain(&Extremal).unwrap();
        let map = maps.array.share_tensor().unwrap();
        let mean = |t: Tensor| t.mean(Kind::Double).double_value(&[]);
        let (inside, all) = (mean(map.narrow(1, 0, 18).narrow(2, 0, 18)), mean(map.shallow_clone()));
        assert!((all - 0.15).abs() < 0.1, "{all}");
        assert!(inside > all + 0.3, "{inside} {all}");
    }

    #[test]
    fn a_mask_of_ones_shows_the_image_and_its_slope_is_a_difference() {
        let image = (Tensor::arange(3 * 14 * 14, (Kind::Float, Device::Cpu)) * 0.7).sin().reshape([3, 14, 14]);
        let levels = pyramid(&image).unwrap();
        let one = Tensor::ones([14, 14], (Kind::Float, Device::Cpu));
        assert!((shown(&levels, &one).unwrap().0 - &image).abs().max().double_value(&[]) < 1e-5);
        let mask = &one * 0.4;
        let (at, slope) = shown(&levels, &mask).unwrap();
        let (near, _) = shown(&levels, &(&mask + 1e-3)).unwrap();
        assert!(((near - at) / 1e-3 - slope).abs().max().double_value(&[]) < 1e-2);
        let smooth = Smooth::new([14, 14], Device::Cpu).unwrap();
        let full = smooth.mask(&Tensor::ones(smooth.cells, (Kind::Float, Device::Cpu))).unwrap();
        // A smooth maximum of ones under the kernel: a little below 1.
        assert!(full.min().double_value(&[]) > 0.9 && full.max().double_value(&[]) <= 1.0);
    }
}
