//! RISE: Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018,
//! arXiv:1806.07421.
//!
//! `map = sum_i p(x * M_i) M_i / (N q)` (equation 6): random masks on a coarse grid, each cell on with probability q, scaled up
//! bilinearly to one cell more than the image and shifted at random. An image's masks are its own, the same for every batch
//! size. Masks are made as they are run and never stored together.

use crate::cover::{blend, bound};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::fill::{Fill, fill};
use lightbox_sdk::tools::maps::per_row;
use lightbox_sdk::tools::masks;
use std::cell::RefCell;

register_explainer!(Rise);

struct Rise;

#[derive(Params)]
struct Settings {
    /// random masks
    #[param(default = 6000, range = (1, 1_000_000))]
    masks: usize,
    /// of the grid that masks are drawn on
    #[param(default = 8, range = (1, 256), unit = "a side")]
    cells: usize,
    /// probability q that a cell is on
    #[param(default = 0.1, range = (0.001, 1.0))]
    keep: f64,
    #[param(default = Fill::Zero)]
    fill: Fill,
    #[param(default = Score::Probability)]
    score: Score,
}

impl Explainer for Rise {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Petsiuk, Das, Saenko",
            "RISE: Randomized Input Sampling for Explanation of Black-box Models",
            "BMVC",
            2018,
            "arXiv:1806.07421",
        );
        ExplainerSpec::new("rise", "RISE", Family::Perturbation, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("sum_i p(x * M_i) M_i / (N q)")
            .cost("1 F, then masks F")
            .any_dimensions()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let extra = Passes::forward(params.masks as u64);
        Ok(bound(model, extra, move |context| explain(context, &params)))
    }
}

fn explain(context: &Context<'_>, params: &Settings) -> Result<Maps> {
    let (b, size) = (context.ids.len(), context.model.input.size.clone());
    let (count, q) = (params.masks, params.keep);
    let fill = fill(context, params.fill)?;
    let generators: RefCell<Vec<_>> = RefCell::new((0..b).map(|i| context.rng(i)).collect());
    let shape: Vec<i64> = std::iter::once(&b).chain(&size).map(|n| *n as i64).collect();
    let (now, mut sum) = (RefCell::new(None), Tensor::f_zeros(shape, (Kind::Float, fill.device()))?);
    let make = |pairs: Pairs<'_>| {
        let mut generators = generators.borrow_mut();
        let rows = pairs.iter().map(|(i, _)| masks::smooth(&mut generators[*i], params.cells, q, &size));
        let all = Tensor::f_stack(&rows.collect::<Result<Vec<_>>>()?, 0)?.f_to_device(fill.device())?;
        let images = blend(context, &fill, pairs, &all)?;
        now.replace(Some(all.f_squeeze_dim(1)?));
        Ok(Request::forward(Array::from_tensor(&images.f_contiguous()?)?))
    };
    context.sweep(count, context.at_once(), make, |pairs, response| {
        let rows = now.take().ok_or_else(|| Error::invalid("there is no mask"))?;
        let scores: Vec<f32> =
            context.score_of(&response, pairs, params.score)?.into_iter().map(|s| s as f32).collect();
        let scores = per_row(&Tensor::f_from_slice(&scores)?.f_to_device(rows.device())?, rows.dim())?;
        add_rows(&mut sum, &rows.f_mul(&scores)?, pairs, |_| 1.0 / (count as f64 * q))
    })?;
    Ok(Array::from_tensor(&sum)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cover::tests::{linear, maps};

    /// Of a linear score the map is, in expectation, a constant plus what the pixel's cell adds; the same draws in any batch.
    #[test]
    fn the_map_tells_quarters_apart_and_is_the_same_in_any_batch() {
        let params = [("masks", 3000.into()), ("cells", 2.into()), ("keep", 0.5.into()), ("score", "logit".into())];
        let map = maps(&Rise, linear, &params, 7);
        let corner = |q: usize| map[[0, q / 2 * 3, q % 2 * 3]];
        // The quarters' terms are 1, -1, -0.25 and 0.375; the two in the middle lie beside both ends.
        let found = [0, 1, 2, 3].map(corner);
        let middle = [found[2], found[3]];
        assert!(middle.iter().all(|v| found[0] > v + 0.1 && *v > found[1] + 0.1), "{found:?}");
        // With every cell on the map is the score.
        let on = maps(&Rise, linear, &[("masks", 5.into()), ("keep", 1.0.into()), ("score", "logit".into())], 2);
        let scores = [1.0 - 1.0 - 0.25 + 0.375, 0.5 + 4.0 + 1.0 + 0.0625];
        assert!(on.indexed_iter().all(|((b, ..), v)| (v - scores[b]).abs() < 1e-4));
        let few = [("masks", 9.into()), ("cells", 2.into())];
        let (a, b) = (maps(&Rise, linear, &few, 1), maps(&Rise, linear, &few, 4));
        assert!((a - b).iter().all(|d| d.abs() < 1e-6));
    }
}
