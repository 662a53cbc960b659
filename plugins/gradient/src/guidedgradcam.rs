//! Guided GradCAM: Selvaraju et al., "Grad-CAM", ICCV 2017, arXiv:1610.02391, section 3.3.
//!
//! Guided backpropagation times GradCAM, scaled to the image. The two follow different rules backwards, so the guided gradient is
//! a run of its own. Captum scales up by nearest neighbours unless told otherwise.

use crate::input::{Channels, bound};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tools::maps::{mean, resize, sum};

register_explainer!(GuidedGradCam);

struct GuidedGradCam;

/// The layer of GradCAM.
fn layer(model: &ModelSpec) -> Option<&Site> {
    model.cam_site.as_ref().and_then(|name| model.site(name).ok()).filter(|s| s.is_map())
}

choice! {
    /// of GradCAM to the image; Captum: nearest
    enum Scaling { Bilinear = "bilinear", Nearest = "nearest" }
}

#[derive(Params)]
struct Settings {
    #[param(default = Scaling::Bilinear)]
    scaling: Scaling,
    #[param(default = Channels::Sum)]
    channels: Channels,
}

impl Explainer for GuidedGradCam {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Selvaraju et al.",
            "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
            "ICCV",
            2017,
            "arXiv:1610.02391",
        );
        ExplainerSpec::new("guidedgradcam", "Guided GradCAM", Family::Gradient, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("sum_c g_c * up(GradCAM), g the guided gradient")
            .cost("1 F, 1 B, then 1 F, 1 B")
            .signed()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        if !model.has_rule("relu:guided") {
            return Ok(Bound::not_applicable(format!("{} has no rule relu:guided", model.name)));
        }
        let Some(site) = layer(model).map(|s| s.name.clone()) else {
            return Ok(Bound::not_applicable(format!("{} has no feature map for GradCAM", model.name)));
        };
        let names = vec![site.clone()];
        let extra = Passes::both(1);
        let needs = Needs { values: names.clone(), gradients: names, model: true, extra, ..Needs::default() };
        bound(model, |input| Bound::new(needs, move |context| explain(context, &input, &site, &params)))
    }
}

fn explain(context: &Context<'_>, input: &str, site: &str, params: &Settings) -> Result<Maps> {
    let (value, gradient) = (context.grid(site)?, context.gradient_grid(site)?);
    let weights = mean(&gradient, &[2, 3], true)?;
    let map = sum(&value.f_mul(&weights)?, &[1], false)?.f_relu()?;
    let images = context.image_tensor()?;
    let size = images.size()[2..].to_vec();
    let map = match params.scaling {
        Scaling::Nearest => map.f_unsqueeze(1)?.f_upsample_nearest2d(size, None::<f64>, None::<f64>)?,
        Scaling::Bilinear => resize(&map, &size)?.f_unsqueeze(1)?,
    };
    let request = Request::explain(context.images.clone(), context.objective()?, &[], &[input.to_string()]);
    let rules = vec!["relu:guided".to_string()];
    let response = context.run_model()?.run(&Request { rules, ..request })?;
    params.channels.map_of(&response.gradient(0, input)?.share_tensor()?.f_mul(&map)?)
}
