//! RefineCAM: Domeniconi et al., "How to Evaluate and Refine your CAM", 2026, arXiv:2605.14641.
//!
//! The product of several layers' GradCAM++ maps, each in [0, 1] and scaled to the image: what deep layers locate, drawn with
//! the resolution of shallow ones. By default the layers are the ends of the network's stages (its blocks' last feature maps,
//! one a resolution) where it has feature maps of several resolutions, and four token layers spread over the depth where it
//! has not. pytorch-grad-cam makes one whole pass a layer; here all layers share one.

use crate::gradcampp::GradCamPlusPlus;
use crate::layer::{Cam, Evidence, Fusion, Layer, Method};
use lightbox_sdk::prelude::*;

register_explainer!(Method(RefineCam));

#[derive(Clone, Copy)]
struct RefineCam;

impl Cam for RefineCam {
    type Params = ();
    const GRADIENT: bool = true;
    const FUSION: Fusion = Fusion::Product;

    fn spec(&self) -> ExplainerSpec {
        let reference =
            Reference::new("Domeniconi et al.", "How to Evaluate and Refine your CAM", "", 2026, "arXiv:2605.14641");
        ExplainerSpec::new("refinecam", "RefineCAM", Family::Cam, reference)
            .formula("prod_layers up(min-max(GradCAM++ of the layer))")
            .cost("1 F, 1 B")
    }

    fn layers(&self, model: &ModelSpec) -> Vec<String> {
        let Some(last) = model.cam_site.as_ref().and_then(|name| model.site(name).ok()) else { return vec![] };
        let of_blocks = |s: &&Site| s.block.is_some() && s.axes == last.axes && s.has_grid() && s.start;
        let blocks: Vec<&Site> = model.sites.iter().filter(of_blocks).collect();
        let mut layers: Vec<String> = if last.is_map() {
            // The last of each resolution but the final layer's own.
            let ends = blocks.iter().enumerate().filter(|(i, s)| blocks.get(i + 1).is_none_or(|n| n.grid != s.grid));
            ends.map(|(_, s)| *s).filter(|s| s.grid != last.grid).map(|s| s.name.clone()).collect()
        } else {
            let n = blocks.len();
            (1..4).filter_map(|i| blocks.get((i * n / 4).max(1) - 1)).map(|s| s.name.clone()).collect()
        };
        layers.push(last.name.clone());
        layers.dedup();
        layers
    }

    fn evidence(&self, layer: &Layer<'_>, _: &()) -> Result<Evidence> {
        GradCamPlusPlus.evidence(layer, &())
    }
}
