//! A Gaussian in the image's centre: what photographs' and radiographs' framing alone predicts.
//! `exp(-((x - cx)^2 + (y - cy)^2) / (2 s^2))` with `s = sigma * min(h, w)`.

use lightbox_sdk::ndarray::Array3;
use lightbox_sdk::prelude::*;

register_explainer!(Centre);

struct Centre;

#[derive(Params)]
struct Settings {
    /// standard deviation
    #[param(default = 0.25, range = (0.001, 10.0), unit = "fraction of the shorter side")]
    sigma: f64,
}

impl Explainer for Centre {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let formula = "exp(-((x - cx)^2 + (y - cy)^2) / (2 s^2)), s = sigma min(h, w)";
        crate::control("centre", "Centred Gaussian", "Control: the framing of the image", formula)
    }

    fn bind(&self, _: &ModelSpec, params: Settings) -> Result<Bound> {
        Ok(Bound::new(Needs::default(), move |context| {
            let [b, h, w] = context.size()?;
            let sigma = params.sigma * h.min(w) as f64;
            let (cy, cx) = ((h as f64 - 1.0) / 2.0, (w as f64 - 1.0) / 2.0);
            let map = Array3::from_shape_fn((b, h, w), |(_, y, x)| {
                let square = (y as f64 - cy).powi(2) + (x as f64 - cx).powi(2);
                (-square / (2.0 * sigma * sigma)).exp() as f32
            });
            Ok(Array::from_ndarray(map)?.into())
        }))
    }
}
