//! What attributions of pixels share: channels as one map, baselines.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::fill::{KINDS, fill};
use lightbox_sdk::tools::maps::sum;

/// The site of the image itself.
pub const INPUT: &str = "input";

/// Captum and its like keep channels; a map has one number a pixel.
pub fn channels(default: &str) -> ParamSpec {
    let text = "how the colour channels become one number: the sum, the sum of magnitudes, the largest magnitude";
    ParamSpec::choice("channels", default, &["sum", "sum-abs", "max-abs"], text)
}

/// [B, C, H, W] as the map that the parameter `channels` asks for.
pub fn map_of(attribution: &Tensor, params: &Params) -> Result<Maps> {
    if attribution.dim() != 4 {
        return Err(Error::invalid(format!("an attribution of shape {:?}, expected [B, C, H, W]", attribution.size())));
    }
    let map = match params.text("channels")? {
        "sum-abs" => sum(&attribution.f_abs()?, &[1], false)?,
        "max-abs" => attribution.f_abs()?.f_amax([1i64].as_slice(), false)?,
        _ => sum(attribution, &[1], false)?,
    };
    Ok(Array::from_tensor(&map.f_to_kind(Kind::Float)?)?.into())
}

/// The parameter of methods that compare with a baseline.
pub fn baseline_parameter(more: &[&str]) -> ParamSpec {
    let choices = [&KINDS[..], more].concat();
    let text =
        "what the image is compared with: 0 after normalisation (the mean colour), black, white, the image blurred";
    ParamSpec::choice("baseline", "zero", &choices, text)
}

/// Baselines [B, C, H, W] of the batch.
pub fn baseline(context: &Context<'_>, kind: &str) -> Result<Tensor> {
    fill(context, kind)?.ok_or_else(|| Error::invalid(format!("there is no baseline {kind}")))
}

/// Standard normal noise for the images of `pairs`, each drawn from its image's own generator.
pub fn noise(generators: &mut [impl lightbox_sdk::rand::Rng], pairs: Pairs<'_>, like: &Tensor) -> Result<Tensor> {
    let per_image = like.size()[1..].iter().product::<i64>() as usize;
    let mut values = Vec::with_capacity(pairs.len() * per_image);
    pairs.iter().for_each(|(b, _)| values.extend(lightbox_sdk::tools::draw::normals(&mut generators[*b], per_image)));
    Ok(Tensor::f_from_slice(&values)?.f_to_device(like.device())?.f_reshape(like.size())?)
}

/// The requirement of a gradient at the image.
pub fn needs_input(model: &ModelSpec) -> Option<Plan> {
    let missing = || Plan::not_applicable(format!("{} has no site {INPUT}", model.name));
    model.site(INPUT).is_err().then(missing)
}

#[cfg(test)]
pub mod tests {
    //! Models that are small enough to follow by hand.

    use super::*;
    use lightbox_sdk::tape::{Tape, site};

    /// The logits as a function of the images.
    pub type Function = fn(&Tensor) -> Tensor;

    struct Toy(Function);

    impl Model for Toy {
        fn spec(&self) -> ModelSpec {
            let input = Site { kind: SiteKind::Input, ..Site::feature("input", 3, [4, 4]) };
            ModelSpec { sites: vec![input], ..ModelSpec::new("toy", InputSpec::imagenet(4), 2) }
        }

        fn run(&self, request: &Request) -> Result<Response> {
            Tape::run(request, |tape, images| Ok(self.0(&site(&mut Some(tape), "input", images)?)))
        }

        fn parameters(&self) -> Result<Named> {
            Ok(vec![])
        }

        fn load(&mut self, _: Named) -> Result<LoadReport> {
            Ok(LoadReport::default())
        }

        fn fork_with(&self, _: Named) -> Result<Box<dyn Model>> {
            Ok(Box::new(Toy(self.0)))
        }
    }

    /// Numbers without a pattern in [-1, 1].
    pub fn numbers(shape: &[i64], salt: f64) -> Tensor {
        let n = shape.iter().product::<i64>();
        let angles = (Tensor::arange(n, (Kind::Double, lightbox_sdk::tch::Device::Cpu)) + salt) * 12.9898;
        (angles.sin() * 43758.5453).frac().to_kind(Kind::Float).reshape(shape)
    }

    /// The weights of [`linear`].
    pub fn weights() -> Tensor {
        numbers(&[1, 3, 4, 4], 5.0)
    }

    fn both(score: Tensor) -> Tensor {
        Tensor::stack(&[&score, &(-&score)], 1)
    }

    fn total(x: &Tensor) -> Tensor {
        x.sum_dim_intlist([1i64, 2, 3].as_slice(), false, Kind::Float)
    }

    /// `sum w x`.
    pub fn linear(x: &Tensor) -> Tensor {
        both(total(&(x * weights())))
    }

    /// The same function by other steps.
    pub fn linear_otherwise(x: &Tensor) -> Tensor {
        both(total(&(x * weights() * 3.0)) - total(&(x * weights())) * 2.0)
    }

    /// `sum w x^2 / 2`, whose gradient is `w x`.
    pub fn square(x: &Tensor) -> Tensor {
        both(total(&(x * x * weights())) / 2.0)
    }

    /// 0, and with a gradient of 0.
    pub fn constant(x: &Tensor) -> Tensor {
        both(total(&(x * 0.0)))
    }

    /// Two images.
    pub fn images() -> Tensor {
        numbers(&[2, 3, 4, 4], 1.0)
    }

    /// A method's maps of [`images`] for class 0.
    pub fn maps(explainer: &dyn Explainer, function: Function, params: &[(&str, serde_json::Value)]) -> Tensor {
        at_once(explainer, function, params, 3)
    }

    /// The same with so many runs at a time.
    pub fn at_once(
        explainer: &dyn Explainer,
        function: Function,
        params: &[(&str, serde_json::Value)],
        runs: usize,
    ) -> Tensor {
        let (model, images) = (Toy(function), Array::from_tensor(&images()).unwrap());
        let targets = Array::from_vec(&[2], vec![0i64, 0]).unwrap();
        let request = Request::explain(images.clone(), targets, &[], &[INPUT.into()]);
        let response = model.run(&request).unwrap();
        let mut builder = ContextBuilder::new(model.spec(), images)
            .logits(response.logits.clone())
            .gradient(INPUT, response.grads[0][INPUT].clone())
            .at_once(runs)
            .runner(ModelHandle::of("toy", Box::new(model)));
        for (name, value) in params {
            builder = builder.param(name, value.clone());
        }
        builder.explain(explainer).unwrap().array.share_tensor().unwrap()
    }

    /// The largest difference relative to the largest value.
    pub fn error(found: &Tensor, wanted: &Tensor) -> f64 {
        assert_eq!(found.size(), wanted.size());
        (found - wanted).abs().max().double_value(&[]) / wanted.abs().max().double_value(&[]).max(1e-9)
    }

    /// Maps equal `wanted` [2, 4, 4].
    pub fn check(explainer: &dyn Explainer, function: Function, params: &[(&str, serde_json::Value)], wanted: &Tensor) {
        let error = error(&maps(explainer, function, params), wanted);
        assert!(error < 1e-5, "{error}");
    }

    /// Sum over channels.
    pub fn flat(x: &Tensor) -> Tensor {
        x.sum_dim_intlist([1i64].as_slice(), false, Kind::Float)
    }

    use lightbox_sdk::serde_json;
}
