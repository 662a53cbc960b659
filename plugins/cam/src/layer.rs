//! What class activation maps share: layers as feature maps, several layers as one map, smoothing.
//!
//! A method ([`Cam`]) gives the evidence of one layer; [`Method`] makes an explainer of it. Of one layer the map has the
//! layer's own resolution. Several are brought to [0, 1] each, scaled to the image and fused; so are the maps of
//! augmentation smoothing (pytorch-grad-cam's: mirrored or not, brightness times 0.9, 1, 1.1), which is why those are at
//! image resolution.

use lightbox_sdk::prelude::*;
use lightbox_sdk::spec::ParamValues;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::maps::{float, mean, min_max, places, resize, sum};
use std::collections::BTreeMap;

/// What a layer says.
pub enum Evidence {
    /// [B, C]: a weight a channel.
    Weights(Tensor),
    /// [B, C, grid...], to be summed over channels.
    Product(Tensor),
    /// [B, grid...].
    Map(Tensor),
}

/// A run of the model: the shared one, or one on changed images.
pub struct Pass {
    /// [B, C, size...].
    pub images: Tensor,
    /// The model's outputs.
    pub response: Response,
    values: BTreeMap<String, Tensor>,
    gradients: BTreeMap<String, Tensor>,
}

/// One layer in one run.
pub struct Layer<'a> {
    pub context: &'a Context<'a>,
    pub pass: &'a Pass,
    pub site: &'a Site,
    /// [B, C, grid...]; of tokens those of the grid.
    pub value: Tensor,
    gradient: Option<Tensor>,
}

impl Layer<'_> {
    /// d logit / d value, [B, C, grid...].
    pub fn gradient(&self) -> Result<&Tensor> {
        self.gradient.as_ref().ok_or_else(|| Error::invalid("the plan did not ask for gradients"))
    }

    /// The sum over the places of [B, C, grid...]: [B, C], or [B, C, 1, ...] with `keep`.
    pub fn sum_places(&self, x: &Tensor, keep: bool) -> Result<Tensor> {
        sum(x, &places(x), keep)
    }

    /// The mean over the places.
    pub fn mean_places(&self, x: &Tensor, keep: bool) -> Result<Tensor> {
        mean(x, &places(x), keep)
    }

    /// The value of a site that [`Cam::reads`] names, as the model has it.
    pub fn raw(&self, site: &str) -> Result<&Tensor> {
        self.pass.values.get(site).ok_or_else(|| Error::invalid(format!("the plan did not ask for {site}")))
    }

    /// Rows of a tensor [B, ...] for the images of `pairs`.
    pub fn rows(&self, tensor: &Tensor, pairs: Pairs<'_>) -> Result<Tensor> {
        let index: Vec<i64> = pairs.iter().map(|(b, _)| *b as i64).collect();
        Ok(tensor.f_index_select(0, &Tensor::f_from_slice(&index)?.f_to_device(tensor.device())?)?)
    }

    /// The site at or before the layer at which a run can begin.
    pub fn entry(&self) -> Result<&Site> {
        entry(&self.context.model, &self.site.name)
    }

    /// A run for `pairs` from the last site before the layer at which one can begin, whose value [`Cam::reads`] names.
    pub fn part(&self, pairs: Pairs<'_>, patches: Vec<Patch>) -> Result<Request> {
        let site = self.entry()?;
        let value = self.rows(self.raw(&site.name)?, pairs)?;
        let request = Request::from_site(&site.name, Array::from_tensor(&value)?)?;
        Ok(Request { patches, ..request })
    }

    /// What multiplies the layer's own value, from a number a row and channel [rows, C].
    pub fn channels(&self, scale: &Tensor) -> Result<Tensor> {
        let (rows, channels) = (scale.size()[0], scale.size()[1]);
        let shape = match self.site.is_map() {
            true => [vec![rows, channels], vec![1; self.site.grid.len()]].concat(),
            false => vec![rows, 1, channels],
        };
        Ok(scale.f_reshape(shape)?)
    }
}

/// The one layer that a parameter names, or the model's default where it is empty; `None` where the model has no such layer
/// with places.
pub fn chosen<'a>(model: &'a ModelSpec, named: &str) -> Option<&'a Site> {
    let name = if named.is_empty() { model.cam_site.as_deref() } else { Some(named) };
    name.and_then(|n| model.site(n).ok()).filter(|s| s.has_grid())
}

/// Where runs begin for a layer.
pub fn entry<'a>(model: &'a ModelSpec, layer: &str) -> Result<&'a Site> {
    let missing = || Error::unsupported(format!("no run of {} can begin at or before {layer}", model.name));
    model.entry(layer).ok_or_else(missing)
}

/// What a method needs beyond the value of its layers, for one of them.
#[derive(Default)]
pub struct Reads {
    /// Further sites.
    pub values: Vec<String>,
    /// Passes of its own.
    pub extra: Passes,
}

choice! {
    /// how several layers become one map
    pub enum Fusion { Mean = "mean", Max = "max", Product = "product" }
}

/// A method that reads layers.
pub trait Cam: Send + Copy + 'static {
    /// Its own parameters, behind those that all share.
    type Params: Params;
    /// It reads the layer's gradient too.
    const GRADIENT: bool;
    /// Its evidence is a sum over channels, which can be smoothed by its first principal component.
    const SMOOTHS: bool = true;
    /// How several layers become one map.
    const FUSION: Fusion = Fusion::Mean;

    /// Name, title, reference and formula.
    fn spec(&self) -> ExplainerSpec;

    /// Layers when none is named; empty where the method does not apply.
    fn layers(&self, model: &ModelSpec) -> Vec<String> {
        model.cam_site.iter().cloned().collect()
    }

    /// A reason why it does not apply to this layer, or what it needs there.
    fn reads(&self, model: &ModelSpec, layer: &Site, params: &Self::Params) -> std::result::Result<Reads, String> {
        let _ = (model, layer, params);
        Ok(Reads::default())
    }

    /// What the layer says, before the ReLU.
    fn evidence(&self, layer: &Layer<'_>, params: &Self::Params) -> Result<Evidence>;
}

/// Reads the entry of a layer, for methods that run what follows it.
pub fn reads_entry(model: &ModelSpec, layer: &Site, extra: Passes) -> std::result::Result<Reads, String> {
    let site = entry(model, &layer.name).map_err(|e| e.message)?;
    Ok(Reads { values: vec![site.name.clone()], extra })
}

/// A method as an explainer.
pub struct Method<T>(pub T);

/// The parameters of a method: those that all share, and its own.
pub struct Settings<T: Cam> {
    layer: String,
    fusion: Fusion,
    relu: bool,
    eigen_smooth: bool,
    aug_smooth: bool,
    own: T::Params,
}

impl<T: Cam> Params for Settings<T> {
    fn specs() -> Vec<ParamSpec> {
        let layer = "site to read, or several joined by +; empty for the model's default, the tensor that is pooled";
        let eigen = "the first principal component of the sum's terms in place of the sum";
        let augmented = "mean over six runs: mirrored or not, brightness times 0.9, 1 and 1.1";
        let mut specs = vec![
            ParamSpec::of::<String>("layer", "", None, "", layer),
            ParamSpec::of::<Fusion>("fusion", T::FUSION, None, "", ""),
            ParamSpec::of::<bool>("relu", true, None, "", "keep positive evidence only"),
        ];
        specs.extend(T::SMOOTHS.then(|| ParamSpec::of::<bool>("eigen_smooth", false, None, "", eigen)));
        specs.push(ParamSpec::of::<bool>("aug_smooth", false, None, "", augmented));
        specs.extend(T::Params::specs());
        specs
    }

    fn read(values: &ParamValues) -> Result<Self> {
        Ok(Settings {
            layer: values.field("layer")?,
            fusion: values.field("fusion")?,
            relu: values.field("relu")?,
            eigen_smooth: T::SMOOTHS && values.field("eigen_smooth")?,
            aug_smooth: values.field("aug_smooth")?,
            own: T::Params::read(values)?,
        })
    }
}

/// [B, grid...]: a weight a channel, summed up.
pub fn weighted(value: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let size = value.size();
    if size.len() < 3 {
        return Err(Error::invalid(format!("a layer of shape {size:?}, expected [B, C, grid...]")));
    }
    let (b, c) = (size[0], size[1]);
    let flat = value.f_reshape([b, c, -1])?;
    let map = weights.f_reshape([b, 1, c])?.f_matmul(&flat)?;
    Ok(map.f_reshape([&[b], &size[2..]].concat())?)
}

/// First principal component of the places of [B, C, grid...] over channels: [B, grid...], `X v` with the centred
/// [places, C] matrix X and its first right singular vector v. Its sign is free; here it goes with the sum over channels.
pub fn principal(product: &Tensor) -> Result<Tensor> {
    let size = product.size();
    if size.len() < 3 {
        return Err(Error::invalid(format!("a product of shape {size:?}")));
    }
    let (b, c, n) = (size[0], size[1], size[2..].iter().product::<i64>());
    let x = product.f_to_kind(Kind::Double)?.f_reshape([b, c, n])?.f_transpose(1, 2)?;
    let x = x.f_sub(&mean(&x, &[1], true)?)?;
    // The smaller of the two squares has the same largest eigenvalue.
    let projection = if c < n {
        let (_, vectors) = x.f_transpose(1, 2)?.f_matmul(&x)?.f_linalg_eigh("L")?;
        x.f_matmul(&vectors.f_narrow(2, c - 1, 1)?)?.f_squeeze_dim(2)?
    } else {
        let (values, vectors) = x.f_matmul(&x.f_transpose(1, 2)?)?.f_linalg_eigh("L")?;
        let length = values.f_narrow(1, n - 1, 1)?.f_clamp_min(0.0)?.f_sqrt()?;
        vectors.f_select(2, n - 1)?.f_mul(&length)?
    };
    let along = sum(&projection.f_mul(&sum(&x, &[2], false)?)?, &[1], true)?;
    let sign = along.f_ge(0.0)?.f_to_kind(Kind::Double)?.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?;
    float(&projection.f_mul(&sign)?.f_reshape([&[b], &size[2..]].concat())?)
}

/// Factors of augmentation smoothing's brightness.
const FACTORS: [f64; 3] = [0.9, 1.0, 1.1];

/// A method that is bound to a model: its parameters, its layers, what it asks for.
struct BoundMethod<T: Cam> {
    method: T,
    settings: Settings<T>,
    layers: Vec<Site>,
    needs: Needs,
}

/// The layers that the parameters name, or the method's own.
fn layers<T: Cam>(method: T, model: &ModelSpec, named: &str) -> std::result::Result<Vec<Site>, String> {
    let names: Vec<String> = match named {
        "" => method.layers(model),
        _ => named.split('+').map(|n| n.trim().to_string()).collect(),
    };
    if names.is_empty() {
        return Err(format!("{} has no layer for class activation maps", model.name));
    }
    let mut sites = Vec::new();
    for name in names {
        // A layer that this model lacks and another has is no mistake of the spec.
        let site = model.site(&name).map_err(|_| format!("{} has no layer {name}", model.name))?;
        if !site.has_grid() {
            return Err(format!("{name} is neither a feature map nor a token grid"));
        }
        sites.push(site.clone());
    }
    Ok(sites)
}

impl<T: Cam> BoundMethod<T> {
    /// Finds the layers, and what is to be read and run.
    fn new(method: T, model: &ModelSpec, settings: Settings<T>) -> std::result::Result<Self, String> {
        let layers = layers(method, model, &settings.layer)?;
        let mut needs = Needs::default();
        for site in &layers {
            let reads = method.reads(model, site, &settings.own)?;
            for name in std::iter::once(site.name.clone()).chain(reads.values) {
                if !needs.values.contains(&name) {
                    needs.values.push(name);
                }
            }
            if T::GRADIENT && !needs.gradients.contains(&site.name) {
                needs.gradients.push(site.name.clone());
            }
            needs.extra = needs.extra + reads.extra;
        }
        if settings.aug_smooth {
            let one = if T::GRADIENT { Passes::both(1) } else { Passes::forward(1) };
            needs.extra = (needs.extra + one).times(2 * FACTORS.len() as u64);
        }
        needs.model = needs.extra != Passes::default();
        Ok(BoundMethod { method, settings, layers, needs })
    }

    /// One run's map: the layer's own resolution if there is one layer, and `image` is false.
    fn map(&self, context: &Context<'_>, pass: &Pass, image: bool) -> Result<Tensor> {
        let size: Vec<i64> = context.model.input.size.iter().map(|n| *n as i64).collect();
        let mut maps = Vec::new();
        for site in &self.layers {
            let get = |from: &BTreeMap<String, Tensor>| {
                let found = from.get(&site.name);
                site.to_grid(found.ok_or_else(|| Error::invalid(format!("there is no {}", site.name)))?)
            };
            let gradient = if T::GRADIENT { Some(get(&pass.gradients)?) } else { None };
            let layer = Layer { context, pass, site, value: get(&pass.values)?, gradient };
            let smooth = self.settings.eigen_smooth;
            let map = match self.method.evidence(&layer, &self.settings.own)? {
                Evidence::Map(map) => map,
                Evidence::Weights(weights) if smooth => {
                    let weights = weights.f_reshape([&weights.size()[..], &vec![1; site.grid.len()]].concat())?;
                    principal(&layer.value.f_mul(&weights)?)?
                }
                Evidence::Weights(weights) => weighted(&layer.value, &weights)?,
                Evidence::Product(product) if smooth => principal(&product)?,
                Evidence::Product(product) => sum(&product, &[1], false)?,
            };
            let map = float(&map)?;
            maps.push(if self.settings.relu { map.f_relu()? } else { map });
        }
        if let ([map], false) = (maps.as_slice(), image) {
            return Ok(map.shallow_clone());
        }
        let fusion = self.settings.fusion;
        let scaled = maps.iter().map(|m| {
            let scaled = resize(&min_max(m)?, &size)?;
            // A factor's zeros count, so each spans [0, 1] after scaling, too.
            if fusion == Fusion::Product { min_max(&scaled) } else { Ok(scaled) }
        });
        let all = Tensor::f_stack(&scaled.collect::<Result<Vec<_>>>()?, 0)?;
        match fusion {
            Fusion::Max => Ok(all.f_amax([0i64].as_slice(), false)?),
            Fusion::Product => Ok(all.f_prod_dim_int(0, false, Kind::Float)?),
            Fusion::Mean => mean(&all, &[0], false),
        }
    }

    /// Runs the model on changed images.
    fn run(&self, context: &Context<'_>, images: Tensor) -> Result<Pass> {
        context.check_cancelled()?;
        let array = Array::from_tensor(&images.f_contiguous()?)?;
        let request = Request::explain(array, context.objective()?, &self.needs.values, &self.needs.gradients);
        let mut response = context.run_model()?.run(&request)?;
        let tensors = |named: BTreeMap<String, Array>| {
            named.into_iter().map(|(name, a)| Ok((name, a.share_tensor()?))).collect::<Result<_>>()
        };
        let gradients = tensors(response.grads.pop().unwrap_or_default())?;
        let values = tensors(std::mem::take(&mut response.values))?;
        Ok(Pass { images, response, values, gradients })
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        if self.settings.aug_smooth {
            let images = context.image_tensor()?;
            let mut maps = Vec::new();
            for (mirrored, factor) in [false, true].iter().flat_map(|m| FACTORS.map(|f| (*m, f))) {
                let changed = images.f_mul_scalar(factor)?;
                let changed = if mirrored { changed.f_flip([-1])? } else { changed };
                let map = min_max(&self.map(context, &self.run(context, changed)?, true)?)?;
                maps.push(if mirrored { map.f_flip([-1])? } else { map });
            }
            return Ok(Array::from_tensor(&mean(&Tensor::f_stack(&maps, 0)?, &[0], false)?)?.into());
        }
        let value = |name: &String| Ok((name.clone(), context.value(name)?.share_tensor()?));
        let gradient = |name: &String| Ok((name.clone(), context.gradient(name)?.share_tensor()?));
        let response = Response { outputs: context.outputs.clone(), ..Response::of(context.logits.clone()) };
        let pass = Pass {
            images: context.images.share_tensor()?,
            response,
            values: self.needs.values.iter().map(value).collect::<Result<_>>()?,
            gradients: self.needs.gradients.iter().map(gradient).collect::<Result<_>>()?,
        };
        Ok(Array::from_tensor(&self.map(context, &pass, false)?)?.into())
    }
}

impl<T: Cam> Explainer for Method<T> {
    type Params = Settings<T>;

    fn spec(&self) -> ExplainerSpec {
        let spec = self.0.spec();
        let cost = match (spec.cost.is_empty(), T::GRADIENT) {
            (false, _) => spec.cost,
            (true, true) => "1 F, 1 B".into(),
            (true, false) => "1 F".into(),
        };
        ExplainerSpec { cost, version: env!("CARGO_PKG_VERSION").into(), ..spec }.any_dimensions()
    }

    fn bind(&self, model: &ModelSpec, settings: Settings<T>) -> Result<Bound> {
        Ok(match BoundMethod::new(self.0, model, settings) {
            Ok(bound) => Bound::new(bound.needs.clone(), move |context| bound.explain(context)),
            Err(reason) => Bound::not_applicable(reason),
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use lightbox_sdk::tch::Device;

    /// Channels, rows and columns of the layer that [`check`] explains.
    pub const SHAPE: [i64; 3] = [3, 2, 4];

    /// One image's layer as numbers.
    pub struct Slow {
        a: Tensor,
        g: Tensor,
        b: i64,
    }

    impl Slow {
        pub fn a(&self, c: i64, y: i64, x: i64) -> f64 {
            self.a.double_value(&[self.b, c, y, x])
        }

        pub fn g(&self, c: i64, y: i64, x: i64) -> f64 {
            self.g.double_value(&[self.b, c, y, x])
        }

        /// The sum of `f` over all places.
        pub fn places(&self, f: impl Fn(i64, i64) -> f64) -> f64 {
            (0..SHAPE[1] * SHAPE[2]).map(|i| f(i / SHAPE[2], i % SHAPE[2])).sum()
        }

        /// The sum of `f` over channels.
        pub fn channels(&self, f: impl Fn(i64) -> f64) -> f64 {
            (0..SHAPE[0]).map(f).sum()
        }
    }

    fn noise(seed: f64) -> Tensor {
        let n = 2 * SHAPE.iter().product::<i64>();
        let values = (Tensor::arange(n, (Kind::Double, Device::Cpu)) * seed).sin() * 9.0;
        values.reshape([2, SHAPE[0], SHAPE[1], SHAPE[2]]).to_kind(Kind::Float)
    }

    fn model() -> ModelSpec {
        let site = Site::feature("layer", SHAPE[0] as usize, [SHAPE[1] as usize, SHAPE[2] as usize]);
        let input = InputSpec::imagenet(8);
        ModelSpec { sites: vec![site], cam_site: Some("layer".into()), ..ModelSpec::new("m", input, 2) }
    }

    /// A method's map against `slow(layer, y, x)`, one number at a time, as the paper writes it.
    pub fn check(
        explainer: &impl Explainer,
        params: &[(&str, serde_json::Value)],
        slow: impl Fn(&Slow, i64, i64) -> f64,
    ) {
        let (a, g) = (noise(1.7), noise(2.9));
        let images = Array::from_vec(&[2, 3, 8, 8], vec![0f32; 384]).unwrap();
        let mut builder = ContextBuilder::new(model(), images)
            .value("layer", Array::from_tensor(&a).unwrap())
            .gradient("layer", Array::from_tensor(&g).unwrap());
        for (name, value) in params {
            builder = builder.param(name, value.clone());
        }
        let maps = builder.explain(explainer).unwrap().array.share_tensor().unwrap();
        assert_eq!(maps.size(), [2, SHAPE[1], SHAPE[2]]);
        for b in 0..2 {
            let layer = Slow { a: a.shallow_clone(), g: g.shallow_clone(), b };
            let wanted: Vec<f64> = (0..SHAPE[1] * SHAPE[2]).map(|i| slow(&layer, i / SHAPE[2], i % SHAPE[2])).collect();
            let scale = wanted.iter().fold(1e-9f64, |m, v| m.max(v.abs()));
            for (i, wanted) in wanted.into_iter().enumerate() {
                let found = maps.double_value(&[b, i as i64 / SHAPE[2], i as i64 % SHAPE[2]]);
                assert!((found - wanted).abs() < 1e-4 * scale, "image {b}, place {i}: {found}, by hand {wanted}");
            }
        }
    }

    use lightbox_sdk::serde_json;

    #[test]
    fn both_ways_to_the_first_component_agree_with_the_singular_vector() {
        // Five channels on two places, and two channels on five.
        for shape in [[1, 5, 1, 2], [1, 2, 1, 5]] {
            let x = (Tensor::arange(10, (Kind::Double, Device::Cpu)) * 2.3).cos().reshape(shape);
            let found = principal(&x).unwrap().flatten(0, -1).to_kind(Kind::Double);
            let flat = x.reshape([shape[1], -1]).transpose(0, 1);
            let centred = &flat - flat.mean_dim([0i64].as_slice(), true, Kind::Double);
            let (_, _, v) = centred.svd(true, true);
            let wanted = centred.matmul(&v.select(1, 0));
            let error = |t: &Tensor| (&found - t).abs().max().double_value(&[]);
            assert!(error(&wanted).min(error(&(-&wanted))) < 1e-6);
            let along = (&found * centred.sum_dim_intlist([1i64].as_slice(), false, Kind::Double)).sum(Kind::Double);
            assert!(along.double_value(&[]) >= 0.0);
        }
    }

    #[test]
    fn several_layers_become_one_map_at_image_resolution() {
        let check = |fusion: &str, wanted: f64| {
            let sites = ["one", "two"].map(|name| Site::feature(name, 1, [1, 2]));
            let model = ModelSpec { sites: sites.to_vec(), ..ModelSpec::new("m", InputSpec::imagenet(4), 2) };
            let map = |values: [f32; 2]| Array::from_vec(&[1, 1, 1, 2], values.to_vec()).unwrap();
            let images = Array::from_vec(&[1, 3, 4, 4], vec![0f32; 48]).unwrap();
            let maps = ContextBuilder::new(model, images)
                .param("layer", "one+two")
                .param("fusion", fusion)
                .value("one", map([0.0, 5.0]))
                .value("two", map([3.0, 1.0]))
                .explain(&Method(crate::eigencam::EigenCam))
                .unwrap();
            assert_eq!(maps.array.shape(), [1, 4, 4]);
            let found = maps.array.to_ndarray::<f32>().unwrap()[[0, 0, 0]];
            assert!((f64::from(found) - wanted).abs() < 1e-6, "{fusion}: {found}");
        };
        // At the left end the first layer says 0, the second 1.
        check("mean", 0.5);
        check("max", 1.0);
        check("product", 0.0);
    }
}
