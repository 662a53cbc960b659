//! LIME: Ribeiro, Singh and Guestrin, "Why Should I Trust You? Explaining the Predictions of Any Classifier", KDD 2016,
//! arXiv:1602.04938.
//!
//! Superpixels are on or off at random; a linear model is fitted to the scores, each sample weighted by how near it is to the
//! image, and a superpixel's value is its coefficient. As in the authors' package the first sample is the image itself, the
//! distance is the cosine's, `1 - sqrt(k / d)` with k of d superpixels on, the kernel `sqrt(exp(-D^2 / width^2))`, and the
//! regression is ridge with alpha 1; what is off shows its mean colour. `regression = lasso`, with 0.01, is Captum's choice.

use crate::cover::{SegmentFill, Segments, bound, paint, scores, segments};
use crate::regress::{lasso, ridge};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tools::draw::coins;
use lightbox_sdk::tools::segment;

register_explainer!(Lime);

struct Lime;

choice! {
    /// what is fitted
    enum Regression { Ridge = "ridge", Lasso = "lasso" }
}

#[derive(Params)]
struct Settings {
    /// images with superpixels on or off
    #[param(default = 1000, range = (2, 1_000_000))]
    samples: usize,
    /// of the kernel; the larger, the more far samples count
    #[param(default = 0.25, range = (1e-6, 1e6))]
    width: f64,
    #[param(default = Regression::Ridge)]
    regression: Regression,
    /// how much the ridge shrinks
    #[param(default = 1.0, range = (0.0, 1e9))]
    alpha: f64,
    /// how much the lasso shrinks
    #[param(default = 0.01, range = (0.0, 1e9))]
    lasso_alpha: f64,
    #[param(default = SegmentFill::Mean)]
    fill: SegmentFill,
    #[param(default = Score::Probability)]
    score: Score,
    #[param(flatten)]
    segments: Segments,
}

impl Explainer for Lime {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Ribeiro, Singh, Guestrin",
            "\"Why Should I Trust You?\": Explaining the Predictions of Any Classifier",
            "KDD",
            2016,
            "arXiv:1602.04938",
        );
        ExplainerSpec::new("lime", "LIME", Family::Perturbation, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("beta of min sum_i w_i (S(z_i) - b - z_i beta)^2 + alpha |beta|^2, z_i superpixels on or off")
            .cost("1 F, then samples F")
            .signed()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let extra = Passes::forward(params.samples as u64);
        Ok(bound(model, extra, move |context| explain(context, &params)))
    }
}

fn explain(context: &Context<'_>, params: &Settings) -> Result<Maps> {
    let (samples, width) = (params.samples, params.width);
    let labels = segments(context, &params.segments)?;
    let choices: Vec<Vec<Vec<bool>>> = labels
        .iter()
        .enumerate()
        .map(|(b, labels)| {
            let (mut rng, n) = (context.rng(b), segment::count(labels));
            let drawn = |i: usize, rng: &mut _| if i == 0 { vec![true; n] } else { coins(rng, n, 0.5) };
            (0..samples).map(|i| drawn(i, &mut rng)).collect()
        })
        .collect();
    let found = scores(context, &labels, &choices, (params.fill, params.score))?;
    let mut values = Vec::new();
    for (rows, y) in choices.iter().zip(&found) {
        let weight = |row: &Vec<bool>| {
            let share = row.iter().filter(|on| **on).count() as f64 / row.len().max(1) as f64;
            let distance = if share > 0.0 { 1.0 - share.sqrt() } else { 1.0 };
            (-(distance / width).powi(2)).exp().sqrt()
        };
        let weights: Vec<f64> = rows.iter().map(weight).collect();
        let x: Vec<f64> = rows.iter().flatten().map(|on| f64::from(u8::from(*on))).collect();
        values.push(match params.regression {
            Regression::Lasso => lasso(&x, y, &weights, params.lasso_alpha)?,
            Regression::Ridge => ridge(&x, y, &weights, params.alpha)?,
        });
    }
    paint(&labels, &values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cover::tests::{close, linear, maps, quarters};

    #[test]
    fn finds_the_terms_of_a_linear_score() {
        let params = [
            ("grid", 2.into()),
            ("samples", 60.into()),
            ("alpha", 0.0.into()),
            ("fill", "zero".into()),
            ("score", "logit".into()),
            ("width", 1.0.into()),
        ];
        let terms = [[1.0, -1.0, -0.25, 0.375], [0.5, 4.0, 1.0, 0.0625]];
        close(&quarters(&maps(&Lime, linear, &params, 7)), |b| terms[b], 1e-4);
        let lasso =
            [&params[..2], &params[3..], &[("regression", "lasso".into()), ("lasso_alpha", 1e-6.into())]].concat();
        close(&quarters(&maps(&Lime, linear, &lasso, 7)), |b| terms[b], 1e-3);
        // What is off has its own mean colour: it is not missed.
        let mean = [&params[..3], &params[4..], &[("fill", "mean".into())]].concat();
        close(&quarters(&maps(&Lime, linear, &mean, 7)), |_| [0.0; 4], 1e-4);
    }
}
