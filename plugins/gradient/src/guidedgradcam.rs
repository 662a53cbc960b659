//! Guided GradCAM: Selvaraju et al., "Grad-CAM", ICCV 2017, arXiv:1610.02391, section 3.3.
//!
//! Guided backpropagation times GradCAM, scaled to the image. The two follow different rules backwards, so the guided gradient is
//! a run of its own. Captum scales up by nearest neighbours unless told otherwise.

use crate::input::{INPUT, channels, map_of, needs_input};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tools::maps::{mean, resize, sum};

register_explainer!(GuidedGradCam);

struct GuidedGradCam;

/// The layer of GradCAM.
fn layer(model: &ModelSpec) -> Option<&Site> {
    model.cam_site.as_ref().and_then(|name| model.site(name).ok()).filter(|s| s.layout == Layout::BCHW)
}

impl Explainer for GuidedGradCam {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Selvaraju et al.: Grad-CAM: Visual Explanations from Deep Networks via Gradient-based \
                        Localization, ICCV 2017";
        ExplainerSpec::new("guidedgradcam", "Guided GradCAM", Family::Gradient, citation, "arXiv:1610.02391")
            .version(env!("CARGO_PKG_VERSION"))
            .formula("sum_c g_c * up(GradCAM), g the guided gradient")
            .cost("1 F, 1 B, then 1 F, 1 B")
            .signed()
            .parameters([
                ParamSpec::choice(
                    "scaling",
                    "bilinear",
                    &["bilinear", "nearest"],
                    "of GradCAM to the image; Captum: nearest",
                ),
                channels("sum"),
            ])
    }

    fn plan(&self, model: &ModelSpec, _: &Params) -> Result<Plan> {
        if !model.has_rule("relu:guided") {
            return Ok(Plan::not_applicable(format!("{} has no rule relu:guided", model.name)));
        }
        let Some(site) = layer(model) else {
            return Ok(Plan::not_applicable(format!("{} has no feature map for GradCAM", model.name)));
        };
        let names = vec![site.name.clone()];
        let extra = Passes::both(1);
        let needs = Needs { values: names.clone(), gradients: names, model: true, extra, ..Needs::default() };
        Ok(needs_input(model).unwrap_or_else(|| needs.into()))
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let site = layer(&context.model).ok_or_else(|| Error::invalid("there is no layer"))?;
        context.value(&site.name)?.dims::<4>(&site.name)?;
        let (value, gradient) = (context.value(&site.name)?.to_tensor()?, context.gradient(&site.name)?.to_tensor()?);
        let weights = mean(&gradient, &[2, 3], true)?;
        let map = sum(&value.f_mul(&weights)?, &[1], false)?.f_relu()?;
        let images = context.image_tensor()?;
        let size = [images.size()[2], images.size()[3]];
        let map = match context.params.text("scaling")? {
            "nearest" => map.f_unsqueeze(1)?.f_upsample_nearest2d(size, None::<f64>, None::<f64>)?,
            _ => resize(&map, size)?.f_unsqueeze(1)?,
        };
        let request = Request::explain(context.images.clone(), context.targets.clone(), &[], &[INPUT.into()]);
        let rules = vec!["relu:guided".to_string()];
        let response = context.run_model()?.run(&Request { rules, ..request })?;
        let guided = response.gradient(0, INPUT)?;
        map_of(&guided.share_tensor()?.f_mul(&map)?, &context.params)
    }
}
