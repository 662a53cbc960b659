//! Finer-CAM: Zhang et al., "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation", CVPR 2025,
//! arXiv:2501.11309.
//!
//! GradCAM of what sets the class apart from those most like it: the `references` classes with the nearest logits. `weights =
//! softmax`, pytorch-grad-cam's, differentiates `sum_j p_j (y_t - alpha y_j) / sum_j p_j` with the references' probabilities,
//! through the probabilities too; `weights = mean`, torch-cam's, `y_t - alpha mean_j y_j`. The objective is one on the logits,
//! and only what follows the layer runs for it.

use crate::layer::{Cam, Evidence, Layer, Method, Reads, reads_entry};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};

register_explainer!(Method(FinerCam));

#[derive(Clone, Copy)]
struct FinerCam;

choice! {
    /// pytorch-grad-cam's, or torch-cam's
    enum Weights { Softmax = "softmax", Mean = "mean" }
}

#[derive(Params)]
struct Settings {
    /// how much the references count; torch-cam's is 0.6
    #[param(default = 1.0, range = (0.0, 100.0))]
    alpha: f64,
    /// classes to compare with, fewer where there are fewer
    #[param(default = 3, range = (1, 1000))]
    references: usize,
    #[param(default = Weights::Softmax)]
    weights: Weights,
}

/// The objective's derivative in the logits of one image.
fn seed(logits: &[f64], target: usize, references: usize, alpha: f64, softmax: bool) -> Vec<f32> {
    let mut others: Vec<usize> = (0..logits.len()).filter(|j| *j != target).collect();
    let far = |j: usize| (logits[j] - logits[target]).abs();
    others.sort_by(|a, b| far(*a).total_cmp(&far(*b)));
    others.truncate(references);
    let mut seed = vec![0f32; logits.len()];
    let largest = others.iter().map(|j| logits[*j]).fold(f64::NEG_INFINITY, f64::max);
    // What the probabilities share cancels.
    let share = |j: usize| if softmax { (logits[j] - largest).exp() } else { 1.0 };
    let all: f64 = others.iter().map(|j| share(*j)).sum();
    let gap = |j: usize| logits[target] - alpha * logits[j];
    let objective: f64 = others.iter().map(|j| share(*j) * gap(*j)).sum::<f64>() / all;
    seed[target] = 1.0;
    for j in others {
        let through = if softmax { gap(j) - objective } else { 0.0 };
        seed[j] = (share(j) / all * (through - alpha)) as f32;
    }
    seed
}

impl Cam for FinerCam {
    type Params = Settings;
    const GRADIENT: bool = false;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Zhang et al.",
            "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation",
            "CVPR",
            2025,
            "arXiv:2501.11309",
        );
        ExplainerSpec::new("finercam", "Finer-CAM", Family::Cam, reference)
            .formula("GradCAM of sum_j p_j (y_t - alpha y_j) / sum_j p_j over the classes j with the nearest logits")
            .cost("1 F, then 1 P, 1 B")
            .targets(&[TargetKind::Class])
    }

    fn reads(&self, model: &ModelSpec, layer: &Site, _: &Settings) -> std::result::Result<Reads, String> {
        if model.classes() < 2 {
            return Err(format!("{} has no other class to compare with", model.name));
        }
        reads_entry(model, layer, Passes { partial: 1, backward: 1, forward: 0 })
    }

    fn evidence(&self, layer: &Layer<'_>, params: &Settings) -> Result<Evidence> {
        let context = layer.context;
        let softmax = params.weights == Weights::Softmax;
        let pairs = context.each();
        let logits = layer.pass.response.logits.share_tensor()?;
        let mut seeds = Vec::new();
        for (b, target) in context.classes()?.into_iter().enumerate() {
            let row = logits.f_get(b as i64)?.f_to_kind(Kind::Double)?;
            if target < 0 || target >= row.numel() as i64 {
                return Err(Error::invalid(format!("target class {target} of {}", row.numel())));
            }
            seeds.extend(seed(&Vec::<f64>::try_from(row)?, target as usize, params.references, params.alpha, softmax));
        }
        let seeds = Tensor::f_from_slice(&seeds)?.f_reshape(logits.size())?;
        let seeds = Array::from_tensor(&seeds.f_to_device(layer.value.device())?)?;
        let output = context.model.outputs.first().ok_or_else(|| Error::invalid("the model has no output"))?;
        let request = Request {
            patches: vec![],
            objectives: vec![vec![Objective::Output(output.name.clone(), seeds)]],
            grads: vec![layer.site.name.clone()],
            ..layer.part(&pairs, vec![])?
        };
        let response = context.run_model()?.run(&request)?;
        let found = response.gradient(0, &layer.site.name)?;
        Ok(Evidence::Weights(layer.mean_places(&layer.site.to_grid(&found.share_tensor()?)?, false)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The derivative of the objective as written, by differences.
    #[test]
    fn the_objective_on_the_logits_is_the_derivative() {
        let logits = [1.0, 0.4, -2.0, 1.3, 0.9];
        for (softmax, alpha) in [(true, 1.0), (true, 0.6), (false, 0.6)] {
            let objective = |y: &[f64]| {
                // The nearest of class 0 are 4, 3 and 1.
                let weight = |j: usize| if softmax { y[j].exp() } else { 1.0 };
                let of = |f: &dyn Fn(usize) -> f64| [4, 3, 1].iter().map(|j| f(*j)).sum::<f64>();
                of(&|j| weight(j) * (y[0] - alpha * y[j])) / of(&weight)
            };
            for (i, found) in seed(&logits, 0, 3, alpha, softmax).into_iter().enumerate() {
                let moved = |step: f64| {
                    let mut y = logits;
                    y[i] += step;
                    objective(&y)
                };
                let wanted = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((f64::from(found) - wanted).abs() < 1e-5, "logit {i}: {found}, by differences {wanted}");
            }
        }
        assert_eq!(seed(&[1.0, 2.0], 1, 3, 1.0, true), [-1.0, 1.0]);
    }
}
