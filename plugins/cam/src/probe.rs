//! Linear probe of the mask: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016,
//! arXiv:1610.01644, place by place.
//!
//! `map = w A + b`, the ridge regression of the finding's mask, brought to the layer's grid, on the layer's channels, over the
//! training set's images whose mask is known. It looks at masks, not at the class's logit: what the layer knows of where the
//! finding is, and so what a weighted sum of its channels can reach at best. No explanation of the decision; a ceiling beside
//! the controls, which are the floor.

use crate::layer::{chosen, weighted};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Device, Kind, Tensor};
use lightbox_sdk::tools::maps::float;

register_explainer!(Probe);

struct Probe;

/// Sums of a regression with an intercept, the last coefficient.
#[derive(Default)]
struct Sums {
    gram: Option<Tensor>,
    right: Option<Tensor>,
    rows: i64,
    marked: f64,
}

impl Sums {
    /// Places of `value` [C, h, w] and how much of each the mask [H, W] covers.
    fn add(&mut self, value: &Tensor, mask: &Tensor) -> Result<()> {
        let [c, h, w]: [i64; 3] = value
            .size()
            .try_into()
            .map_err(|s| Error::invalid(format!("a layer of shape {s:?}, expected [C, h, w]")))?;
        let x = value.f_to_kind(Kind::Double)?.f_reshape([c, h * w])?;
        let x = Tensor::f_cat(&[&x, &x.f_new_ones([1, h * w], (Kind::Double, x.device()))?], 0)?;
        let y = mask.f_to_kind(Kind::Double)?.f_unsqueeze(0)?.f_unsqueeze(0)?.f_adaptive_avg_pool2d([h, w])?;
        let y = y.f_reshape([h * w, 1])?;
        let join = |sum: &mut Option<Tensor>, part: Tensor| -> Result<()> {
            *sum = Some(match sum.take() {
                None => part,
                Some(sum) => sum.f_add(&part)?,
            });
            Ok(())
        };
        join(&mut self.gram, x.f_matmul(&x.f_transpose(0, 1)?)?)?;
        join(&mut self.right, x.f_matmul(&y)?)?;
        self.rows += h * w;
        self.marked += y.f_sum(Kind::Double)?.f_double_value(&[])?;
        Ok(())
    }

    /// Weights [C] and intercept `[1]`; the ridge spares the intercept.
    fn solve(&self, ridge: f64) -> Result<(Tensor, Tensor)> {
        let (Some(gram), Some(right)) = (&self.gram, &self.right) else {
            return Err(Error::invalid("the training set has no image whose mask is known"));
        };
        if self.marked <= 0.0 {
            return Err(Error::invalid("no mask of the training set marks a place"));
        }
        let c = gram.size()[0] - 1;
        let diagonal = gram.f_diagonal(0, 0, 1)?.f_narrow(0, 0, c)?;
        let scale = diagonal.f_mean(Kind::Double)?.f_double_value(&[])? * ridge;
        let spared = diagonal.f_new_zeros([1], (Kind::Double, Device::Cpu))?;
        let all = Tensor::f_cat(&[diagonal.f_full_like(scale)?, spared], 0)?;
        let solution = gram.f_add(&all.f_diag(0)?)?.f_linalg_pinv(1e-12, true)?.f_matmul(right)?.f_flatten(0, -1)?;
        Ok((solution.f_narrow(0, 0, c)?, solution.f_narrow(0, c, 1)?))
    }
}

#[derive(Params)]
struct Settings {
    /// site to read; empty for the model's default, the tensor that is pooled
    #[param(default = "")]
    layer: String,
    /// training images to learn from at most
    #[param(default = 512, range = (1, 1_000_000))]
    images: usize,
    /// how much the ridge shrinks
    #[param(default = 1e-3, range = (1e-12, 1e9), unit = "of the mean square")]
    ridge: f64,
}

impl Explainer for Probe {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Alain, Bengio",
            "Understanding intermediate layers using linear classifier probes",
            "",
            2016,
            "arXiv:1610.01644",
        );
        ExplainerSpec::new("probe", "Linear probe of the mask", Family::Other, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("w A_yx + b, the ridge regression of the training masks on the layer's channels")
            .cost("1 F; the fit 1 F an image")
            .notes(
                "It has seen masks and does not look at the class's logit: what a weighted sum of the layer's channels can reach \
                 at best, not an explanation.",
            )
            .signed()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let Some(site) = chosen(model, &params.layer).cloned() else {
            return Ok(Bound::not_applicable(format!("{} has no such layer to probe", model.name)));
        };
        let values = vec![site.name.clone()];
        let fit = Some(FitNeeds { values: values.clone(), images: params.images });
        let needs = Needs { values, fit, ..Needs::default() };
        let name = site.name.clone();
        let explain = move |context: &Context<'_>| {
            let value = context.grid(&name)?;
            let fitted =
                |name: &str| Ok::<_, Error>(context.fitted(name)?.share_tensor()?.f_to_device(value.device())?);
            let weights = fitted("weights")?.f_unsqueeze(0)?.f_expand([value.size()[0], value.size()[1]], false)?;
            let map = weighted(&value, &weights)?.f_add(&fitted("intercept")?)?;
            Ok(Array::from_tensor(&float(&map)?)?.into())
        };
        Ok(Bound::new(needs, explain).with_fit(move |context| fit_probe(context, &site, params.ridge)))
    }
}

/// The regression over the batches of the training set.
fn fit_probe(context: &FitContext<'_>, site: &Site, ridge: f64) -> Result<Named> {
    let (mut sums, mut next) = (Sums::default(), context.first_batch()?);
    while let Some(batch) = next {
        context.check_cancelled()?;
        let (_, value) = batch.values.first().ok_or_else(|| Error::invalid("there is no value to learn from"))?;
        let value = site.to_grid(&value.share_tensor()?)?.f_to_device(Device::Cpu)?;
        let masks = batch.masks.share_tensor()?;
        for (i, known) in batch.known.to_vec::<bool>()?.into_iter().enumerate() {
            if known {
                sums.add(&value.f_get(i as i64)?, &masks.f_get(i as i64)?)?;
            }
        }
        next = context.next_batch()?;
    }
    let (weights, intercept) = sums.solve(ridge)?;
    Ok(vec![
        ("weights".into(), Array::from_tensor(&float(&weights)?)?),
        ("intercept".into(), Array::from_tensor(&float(&intercept)?)?),
        ("places".into(), Array::from_vec(&[1], vec![sums.rows])?),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Masks that are a linear function of the channels are found; the ridge shrinks the weights and not the intercept.
    #[test]
    fn a_linear_mask_is_found() {
        let noise = |salt: f64| {
            (((Tensor::arange(3 * 4 * 4, (Kind::Double, Device::Cpu)) + salt) * 12.9898).sin() * 43758.5453).frac()
        };
        let (mut plain, wanted) = (Sums::default(), [0.4, -0.2, 0.1]);
        for salt in [0.0, 100.0, 200.0] {
            let value = noise(salt).reshape([3, 4, 4]);
            let mask = value.get(0) * wanted[0] + value.get(1) * wanted[1] + value.get(2) * wanted[2] + 0.5;
            // At twice the grid's size: every place has its four pixels' mean.
            let mask = mask.repeat_interleave_self_int(2, 0, None).repeat_interleave_self_int(2, 1, None);
            plain.add(&value, &mask).unwrap();
        }
        let (weights, intercept) = plain.solve(1e-12).unwrap();
        for (c, wanted) in wanted.iter().enumerate() {
            assert!((weights.double_value(&[c as i64]) - wanted).abs() < 1e-6);
        }
        assert!((intercept.double_value(&[0]) - 0.5).abs() < 1e-6);
        let (small, intercept) = plain.solve(100.0).unwrap();
        assert!(small.abs().max().double_value(&[]) < 0.02 && (intercept.double_value(&[0]) - 0.5).abs() < 0.05);
        assert!(Sums::default().solve(1.0).is_err());
    }
}
