//! What attributions of pixels share: channels as one map, baselines.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::maps::sum;

choice! {
    /// how the colour channels become one number: the sum, the sum of magnitudes, the largest magnitude
    pub enum Channels { Sum = "sum", SumAbs = "sum-abs", MaxAbs = "max-abs" }
}

impl Channels {
    /// [B, C, size...] as maps.
    pub fn map_of(self, attribution: &Tensor) -> Result<Maps> {
        if attribution.dim() < 3 {
            let shape = attribution.size();
            return Err(Error::invalid(format!("an attribution of shape {shape:?}, expected [B, C, size...]")));
        }
        let map = match self {
            Channels::SumAbs => sum(&attribution.f_abs()?, &[1], false)?,
            Channels::MaxAbs => attribution.f_abs()?.f_amax([1i64].as_slice(), false)?,
            Channels::Sum => sum(attribution, &[1], false)?,
        };
        Ok(Array::from_tensor(&map.f_to_kind(Kind::Float)?)?.into())
    }
}

/// Standard normal noise for the images of `pairs`, each drawn from its image's own generator.
pub fn noise(generators: &mut [impl lightbox_sdk::rand::Rng], pairs: Pairs<'_>, like: &Tensor) -> Result<Tensor> {
    let per_image = like.size()[1..].iter().product::<i64>() as usize;
    let mut values = Vec::with_capacity(pairs.len() * per_image);
    pairs.iter().for_each(|(b, _)| values.extend(lightbox_sdk::tools::draw::normals(&mut generators[*b], per_image)));
    Ok(Tensor::f_from_slice(&values)?.f_to_device(like.device())?.f_reshape(like.size())?)
}

/// Binds a method that needs the site of the images.
pub fn bound(model: &ModelSpec, make: impl FnOnce(String) -> Bound) -> Result<Bound> {
    Ok(match model.site_of(Role::Input) {
        Some(site) => make(site.name.clone()),
        None => Bound::not_applicable(format!("{} has no site for its images", model.name)),
    })
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
            ModelSpec { sites: vec![Site::input(3, [4, 4])], ..ModelSpec::new("toy", InputSpec::imagenet(4), 2) }
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
    pub fn maps(explainer: &impl Explainer, function: Function, params: &[(&str, serde_json::Value)]) -> Tensor {
        at_once(explainer, function, params, 3)
    }

    /// The same with so many runs at a time.
    pub fn at_once(
        explainer: &impl Explainer,
        function: Function,
        params: &[(&str, serde_json::Value)],
        runs: usize,
    ) -> Tensor {
        let (model, images) = (Toy(function), Array::from_tensor(&images()).unwrap());
        let targets = Array::from_vec(&[2], vec![0i64, 0]).unwrap();
        let request = Request::explain(images.clone(), Objective::Class(targets), &[], &["input".into()]);
        let response = model.run(&request).unwrap();
        let mut builder = ContextBuilder::new(model.spec(), images)
            .logits(response.logits.clone())
            .gradient("input", response.grads[0]["input"].clone())
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
    pub fn check(
        explainer: &impl Explainer,
        function: Function,
        params: &[(&str, serde_json::Value)],
        wanted: &Tensor,
    ) {
        let error = error(&maps(explainer, function, params), wanted);
        assert!(error < 1e-5, "{error}");
    }

    /// Sum over channels.
    pub fn flat(x: &Tensor) -> Tensor {
        x.sum_dim_intlist([1i64].as_slice(), false, Kind::Float)
    }

    use lightbox_sdk::serde_json;
}
