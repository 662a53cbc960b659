//! FEM, Feature Explanation Method: Fuad et al., "Features Understanding in 3D CNNs for Actions Recognition in Video", IPTA
//! 2020, doi:10.1109/IPTA50016.2020.9286629.
//!
//! `map = sum_c mean(A_c) [A_c >= mean(A_c) + k std(A_c)]`: where channels are unusually strong, each weighted by its mean; no
//! class takes part. pytorch-grad-cam's FEM is another method: it sums the channels themselves, each weighted by the share of
//! such places; `form = channels` repeats it.

use crate::layer::{Cam, Evidence, Layer, Method};
use lightbox_sdk::prelude::*;

register_explainer!(Method(Fem));

#[derive(Clone, Copy)]
struct Fem;

choice! {
    /// the paper's, or pytorch-grad-cam's
    enum Form { Places = "places", Channels = "channels" }
}

#[derive(Params)]
struct Settings {
    /// how far above the mean counts
    #[param(default = 2.0, range = (0.0, 100.0), unit = "deviations")]
    k: f64,
    #[param(default = Form::Places)]
    form: Form,
}

impl Cam for Fem {
    type Params = Settings;
    const GRADIENT: bool = false;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Fuad et al.",
            "Features Understanding in 3D CNNs for Actions Recognition in Video",
            "IPTA",
            2020,
            "10.1109/IPTA50016.2020.9286629",
        );
        ExplainerSpec::new("fem", "FEM", Family::Cam, reference)
            .formula("relu(sum_c mean(A_c) [A_c >= mean A_c + k std A_c])")
            .notes(
                "The same for every class. pytorch-grad-cam's FEM is sum_c w_c A_c with w_c the share of such places: form = \
                 channels.",
            )
    }

    fn evidence(&self, layer: &Layer<'_>, params: &Settings) -> Result<Evidence> {
        let value = &layer.value;
        let centre = layer.mean_places(value, true)?;
        let off = value.f_sub(&centre)?;
        let deviation = layer.mean_places(&off.f_mul(&off)?, true)?.f_sqrt()?;
        let limit = centre.f_add(&deviation.f_mul_scalar(params.k)?)?;
        if params.form == Form::Channels {
            let above = value.f_gt_tensor(&limit)?.f_to_kind(value.f_kind()?)?;
            return Ok(Evidence::Weights(layer.mean_places(&above, false)?));
        }
        let above = value.f_ge_tensor(&limit)?.f_to_kind(value.f_kind()?)?;
        Ok(Evidence::Product(above.f_mul(&centre)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::tests::check;

    #[test]
    fn equals_the_equation() {
        check(&Method(Fem), &[("k", 0.8.into())], |l, y, x| {
            let part = |c: i64| {
                let mean = l.places(|v, u| l.a(c, v, u)) / 8.0;
                let std = (l.places(|v, u| (l.a(c, v, u) - mean).powi(2)) / 8.0).sqrt();
                if l.a(c, y, x) >= mean + 0.8 * std { mean } else { 0.0 }
            };
            l.channels(part).max(0.0)
        });
        check(&Method(Fem), &[("k", 0.8.into()), ("form", "channels".into())], |l, y, x| {
            let weight = |c: i64| {
                let mean = l.places(|v, u| l.a(c, v, u)) / 8.0;
                let std = (l.places(|v, u| (l.a(c, v, u) - mean).powi(2)) / 8.0).sqrt();
                l.places(|v, u| f64::from(u8::from(l.a(c, v, u) > mean + 0.8 * std))) / 8.0
            };
            l.channels(|c| weight(c) * l.a(c, y, x)).max(0.0)
        });
    }
}
