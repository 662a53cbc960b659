//! Equivariance: whether the map of a mirrored or shifted image is the mirrored or shifted map. Crabbé and van der Schaar, "Evaluating the
//! Robustness of Interpretability Methods through Explanation Invariance and Equivariance", NeurIPS 2023, arXiv:2304.06715.
//! Shifted images repeat their border; only pixels that both maps have are compared. A model that is not itself equivariant
//! bounds the value.

use super::map_metric::{Ask, Asking, Found, share};
use super::{Bench, Form, MetricSpec, Needs, Reference, Score, Size};
use crate::stats::correlation::pearson;
use crate::{Error, Result, maps};
use lightbox_sdk::params::Params;
use tch::{Device, Tensor};

/// See the file's head.
pub static EQUIVARIANCE: Asking =
    Asking { spec, needs: Needs { explainer: true, ..Needs::of_maps(Size::Mask, Form::Raw) }, axes: None, score };

#[derive(Params)]
struct Settings {
    /// of the image's width
    #[param(default = 0.1, range = (0.0, 0.5))]
    shift: f64,
}

fn spec() -> MetricSpec {
    MetricSpec {
        short: "equivariance",
        title: "Equivariance: correlation of the map of a mirrored or shifted image with the mirrored or shifted map",
        formula: "mean over the mirror image and shifts down and to the right of Pearson(a(T x), T a(x)) over the pixels that both have",
        range: [-1.0, 1.0],
        unit: "",
        chance: "0; 1 for a map that only looks at the image",
        cost: "3 explanations",
        edge_cases: "a map that is not finite is a failure and counts as -1; a constant map correlates by 0 and is counted",
        reference: Reference::new(
            "Crabbé, van der Schaar",
            "Evaluating the Robustness of Interpretability Methods through Explanation Invariance and Equivariance",
            "NeurIPS",
            2023,
            "arXiv:2304.06715",
        ),
        parameters: Settings::specs(),
        version: 2,
        ..share("equivariance", "robustness")
    }
}

/// Images [n, C, H, W] moved down and to the right by these pixels, their first rows and columns repeated.
fn shifted(images: &Tensor, down: i64, right: i64) -> Result<Tensor> {
    let size = images.size();
    let padded = images.f_replication_pad2d([right, 0, down, 0])?;
    Ok(padded.f_narrow(2, 0, size[2])?.f_narrow(3, 0, size[3])?)
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    let batch = ask.batch;
    let size = batch.images.size();
    let (height, width) = (size[2] as usize, size[3] as usize);
    let far = (ask.settings::<Settings>()?.shift * width as f64).round() as i64;
    let own = ask.maps()?.f_to_device(Device::Cpu)?;
    let mut pairs = Vec::new();
    for (mirrored, down, right) in [(true, 0, 0), (false, far, 0), (false, 0, far)] {
        bench.check()?;
        let images = match mirrored {
            true => batch.images.f_flip([3])?,
            false => shifted(batch.images, down, right)?,
        };
        let found = maps::upsample(&bench.explain(&images, batch.targets, batch.ids)?, (height, width))?;
        let found = found.f_to_device(Device::Cpu)?;
        let (height, width) = (height as i64, width as i64);
        let (back, kept) = match mirrored {
            true => (found.f_flip([2])?, own.shallow_clone()),
            false => (
                found.f_narrow(1, down, height - down)?.f_narrow(2, right, width - right)?,
                own.f_narrow(1, 0, height - down)?.f_narrow(2, 0, width - right)?,
            ),
        };
        pairs.push((maps::values(&back)?, maps::values(&kept)?));
    }
    let n = batch.targets.len().max(1);
    if pairs.iter().any(|(a, b)| a.len() != b.len()) {
        return Err(Error::new("maps of transformed images have another size"));
    }
    Ok(ask.each(|i| {
        let mut sum = 0.0;
        for (back, kept) in &pairs {
            let size = back.len() / n;
            let list = |v: &[f32]| v[i * size..][..size].iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
            let (back, kept) = (list(back), list(kept));
            if back.iter().any(|v| !v.is_finite()) {
                return Score::failed("the map of a transformed image is not finite");
            }
            sum += pearson(&back, &kept).unwrap_or(0.0);
        }
        Score::ok(sum / pairs.len() as f64)
    }))
}

#[cfg(test)]
mod tests {
    use super::super::removal::tests::{Linear, check};
    use super::*;
    use serde_json::Value;

    #[test]
    fn a_map_of_the_image_moves_with_it_and_one_of_places_does_not() {
        let image: Vec<f32> = (0..100).map(|i| ((i * 29) % 17) as f32 - 8.0).collect();
        let shift = [("shift", Value::from(0.2))];
        // Weights that are the same everywhere: the map is the image.
        let found = check(
            &EQUIVARIANCE,
            &shift,
            &[&image[..]; 2],
            &[&image[..], &[1.0; 100]],
            10,
            &mut Linear::new(&[1.0; 100]),
        );
        assert!((found[0].value.unwrap() - 1.0).abs() < 1e-6);
        assert_eq!((found[1].value, found[1].reason), (Some(0.0), Score::CONSTANT));
        // Weights of one corner alone: what was there is elsewhere now.
        let mut weights = [0f32; 100];
        weights[0] = 1.0;
        let map: Vec<f32> = image.iter().zip(weights).map(|(x, w)| x * w).collect();
        let other = check(&EQUIVARIANCE, &shift, &[&image], &[&map], 10, &mut Linear::new(&weights))[0].value.unwrap();
        assert!(other.abs() < 0.05, "{other}");
    }
}
