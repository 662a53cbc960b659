//! Uniform noise in [0, 1) at image resolution: what chance looks like.

use lightbox_sdk::ndarray::Array3;
use lightbox_sdk::prelude::*;
use lightbox_sdk::rand::Rng;

register_explainer!(Noise);

struct Noise;

impl Explainer for Noise {
    type Params = ();

    fn spec(&self) -> ExplainerSpec {
        crate::control("noise", "Uniform noise", "Control: independent uniform values", "uniform in [0, 1)")
    }

    fn bind(&self, _: &ModelSpec, _: ()) -> Result<Bound> {
        Ok(Bound::new(Needs::default(), |context| {
            let [b, h, w] = context.size()?;
            let mut map = Array3::zeros((b, h, w));
            for (i, mut image) in map.outer_iter_mut().enumerate() {
                let mut rng = context.rng(i);
                image.iter_mut().for_each(|v| *v = rng.random::<f32>());
            }
            Ok(Array::from_ndarray(map)?.into())
        }))
    }
}
