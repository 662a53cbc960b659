//! RandomCAM: pytorch-grad-cam's `RandomCAM`: independent weights from -1 to 1 a channel. A control: what a layer's resolution
//! and activations give without any weighting by the class. The draw is an image's own, equal in every run of a seed.

use crate::layer::{Cam, Evidence, Layer, Method};
use lightbox_sdk::prelude::*;
use lightbox_sdk::rand::Rng;
use lightbox_sdk::tch::Tensor;

register_explainer!(Method(RandomCam));

#[derive(Clone, Copy)]
struct RandomCam;

impl Cam for RandomCam {
    type Params = ();
    const GRADIENT: bool = false;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new("Gildenblat and contributors", "pytorch-grad-cam, RandomCAM", "", 2021, "");
        ExplainerSpec::new("randomcam", "RandomCAM (control)", Family::Cam, reference)
            .formula("relu(sum_c w_c A_c), w_c uniform in [-1, 1)")
    }

    fn evidence(&self, layer: &Layer<'_>, _: &()) -> Result<Evidence> {
        let (images, channels) = (layer.context.ids.len(), layer.value.size()[1]);
        let mut weights = Vec::new();
        for b in 0..images {
            let mut rng = layer.context.rng(b);
            weights.extend((0..channels).map(|_| rng.random::<f32>() * 2.0 - 1.0));
        }
        let weights = Tensor::f_from_slice(&weights)?.f_to_device(layer.value.device())?;
        Ok(Evidence::Weights(weights.f_reshape([images as i64, channels])?))
    }
}
