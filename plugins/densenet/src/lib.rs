//! DenseNet (Huang, Liu, van der Maaten and Weinberger, "Densely Connected Convolutional Networks", CVPR 2017,
//! arXiv:1608.06993), with the names and the arithmetic of torchvision's `densenet.py`.
//!
//! torchvision applies the final ReLU in place after `features.norm5`. Here the two are separate sites:
//! `features.norm5` before it and `features.relu5` after it; the latter is what is pooled, and the default of
//! class activation maps.

mod fast;

use lightbox_sdk::nn::{self, Base, Init, NetModel, Network, Parameters, Preset};
use lightbox_sdk::prelude::*;
use lightbox_sdk::rules::{self, At, relu};
use lightbox_sdk::tape::{Tape, site, step, wants};
use lightbox_sdk::tch::{Device, Kind, Tensor};
use std::cell::OnceCell;

lightbox_sdk::export!();
register_model!("densenet121", |o| spec(&DENSENET121, o), |o| make(&DENSENET121, o));
register_model!("densenet169", |o| spec(&DENSENET169, o), |o| make(&DENSENET169, o));
register_model!("densenet201", |o| spec(&DENSENET201, o), |o| make(&DENSENET201, o));
register_model!("densenet-small", |o| spec(&SMALL, o), |o| make(&SMALL, o));

/// A member of the family.
struct Config {
    name: &'static str,
    title: &'static str,
    growth: i64,
    blocks: &'static [usize],
    init_features: i64,
    size: i64,
    classes: usize,
}

const DENSENET121: Config = Config {
    name: "densenet121",
    title: "DenseNet-121",
    growth: 32,
    blocks: &[6, 12, 24, 16],
    init_features: 64,
    size: 224,
    classes: 1000,
};
const DENSENET169: Config =
    Config { name: "densenet169", title: "DenseNet-169", blocks: &[6, 12, 32, 32], ..DENSENET121 };
const DENSENET201: Config =
    Config { name: "densenet201", title: "DenseNet-201", blocks: &[6, 12, 48, 32], ..DENSENET121 };
/// Not in the paper: small enough to be trained on a CPU in a minute or two.
const SMALL: Config = Config {
    name: "densenet-small",
    title: "DenseNet, small (for demonstrations)",
    growth: 12,
    blocks: &[3, 4, 4],
    init_features: 24,
    size: 128,
    classes: 2,
};

/// Bottleneck width in multiples of the growth rate.
const BN_SIZE: i64 = 4;
const MOMENTUM: f64 = 0.1;
const EPS: f64 = 1e-5;
const STEM: &str = "features.conv0";
const HEAD: [&str; 2] = ["classifier.weight", "classifier.bias"];

impl Config {
    /// Channels after each dense block.
    fn widths(&self) -> Vec<i64> {
        let mut width = self.init_features;
        let mut widths = Vec::new();
        for (i, &layers) in self.blocks.iter().enumerate() {
            width = if i == 0 { width } else { width / 2 } + layers as i64 * self.growth;
            widths.push(width);
        }
        widths
    }
}

choice! {
    /// how a CPU computes what comes before features.norm5 where nobody looks inside: with norms folded into convolutions, or layer by layer; the same up to rounding
    enum Trunk { Folded = "folded", Plain = "plain" }
}

#[derive(Params)]
struct Settings {
    #[param(flatten)]
    preset: Preset,
    #[param(default = Trunk::Folded)]
    trunk: Trunk,
    /// of the image: 3, or 1 as TorchXRayVision's
    #[param(default = 3, range = (1, 3))]
    channels: usize,
    /// what is subtracted from values of [0, 1] where channels = 1; ImageNet's mean over channels, 0.5 for TorchXRayVision
    #[param(default = 0.449, range = (-1e6, 1e6))]
    mean: f64,
    /// what they are then divided by where channels = 1; ImageNet's, 1/2048 for TorchXRayVision, whose range is [-1024, 1024]
    #[param(default = 0.226, range = (1e-9, 1e6))]
    std: f64,
}

impl Settings {
    fn input(&self, size: usize) -> Result<InputSpec> {
        match self.channels {
            1 => Ok(InputSpec { channels: 1, size: vec![size; 2], mean: vec![self.mean], std: vec![self.std] }),
            3 => Ok(InputSpec::imagenet(size)),
            n => Err(Error::invalid(format!("parameter channels: {n}; 1 or 3 expected"))),
        }
    }
}

/// The input size that the options ask for.
fn input_size(config: &Config, options: &ModelOptions) -> Result<usize> {
    let size = Settings::resolve(&options.params)?.preset.size_or(config.size);
    let least = 1 << (config.blocks.len() + 1);
    if size < least {
        return Err(Error::invalid(format!("parameter size: {size} px is under {least}, the least that leaves a map")));
    }
    Ok(size as usize)
}

fn spec(config: &Config, options: &ModelOptions) -> Result<ModelSpec> {
    let size = input_size(config, options)?;
    let classes = if options.classes == 0 { config.classes } else { options.classes };
    // Each of conv0, pool0 (both padded) and the transitions (not padded) halves.
    let mut side = size.div_ceil(2).div_ceil(2);
    let input = Settings::resolve(&options.params)?.input(size)?;
    let mut sites = vec![Site::input(input.channels, [size, size])];
    let shift = |norm: String, channels: i64, side: usize| {
        let site = Site::feature(format!("{norm}.shift"), channels as usize, [side, side]);
        site.role(Role::Bias)
    };
    sites.push(shift("features.norm0".into(), config.init_features, size.div_ceil(2)));
    sites.push(
        Site::feature("features.pool0", config.init_features as usize, [side, side]).start().text("after the stem"),
    );
    let widths = config.widths();
    for (i, &width) in widths.iter().enumerate() {
        let block = i + 1;
        let layers = config.blocks[i] as i64;
        for layer in 1..=layers {
            let name = |norm: u8| format!("features.denseblock{block}.denselayer{layer}.norm{norm}");
            sites.push(shift(name(1), width - (layers - layer + 1) * config.growth, side));
            sites.push(shift(name(2), BN_SIZE * config.growth, side));
        }
        let site = Site::feature(format!("features.denseblock{block}"), width as usize, [side, side]).start();
        sites.push(site.block(block));
        if block < widths.len() {
            sites.push(shift(format!("features.transition{block}.norm"), width, side));
            side /= 2;
            let site = Site::feature(format!("features.transition{block}"), width as usize / 2, [side, side]);
            let site = site.start();
            sites.push(site.block(block));
        }
    }
    let last = *widths.last().unwrap_or(&config.init_features) as usize;
    sites.push(shift("features.norm5".into(), last as i64, side));
    sites.push(Site::feature("features.norm5", last, [side, side]).start().text("before the final ReLU"));
    sites
        .push(Site::feature("features.relu5", last, [side, side]).start().text("after the final ReLU: what is pooled"));
    sites.push(Site::vector("embedding", Role::Pooled, last).start().text("the pooled features"));
    sites.push(Site::vector("logits", Role::Logits, classes));
    Ok(ModelSpec {
        name: config.name.into(),
        title: config.title.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        reference: Reference::new(
            "Huang, Liu, van der Maaten, Weinberger",
            "Densely Connected Convolutional Networks",
            "CVPR",
            2017,
            "arXiv:1608.06993",
        ),
        input,
        outputs: vec![Output::classes("logits", classes, Activation::Softmax)],
        sites,
        cam_site: Some("features.relu5".into()),
        attention_site: None,
        rules: [&rules::RELU[..], &rules::POOL, &rules::LINEAR, &rules::CONV, &rules::INPUT]
            .concat()
            .iter()
            .map(|r| r.to_string())
            .collect(),
        parameters: Settings::specs(),
        trainable: true,
        mixed_precision: true,
        own_weights: false,
        interpreter: None,
        class_names: vec![],
        notes: vec![],
    })
}

fn make(config: &'static Config, options: &ModelOptions) -> Result<Box<dyn Model>> {
    let spec = spec(config, options)?;
    let params = initial(config, spec.classes() as i64, options)?;
    let settings = Settings::resolve(&options.params)?;
    let folded = settings.trunk == Trunk::Folded && !lightbox_sdk::is_plain();
    let net = DenseNet::new(config, Base { spec, params }, folded);
    Ok(Box::new(NetModel::new(net).computing_in(settings.preset.precision.kind())))
}

/// torchvision's initial values: Kaiming normal convolutions, unit norms, default linear weight, zero bias.
fn initial(config: &Config, classes: i64, options: &ModelOptions) -> Result<Parameters> {
    let mut p = Parameters::new(nn::device(&options.device)?, options.seed);
    let conv = |p: &mut Parameters, name: &str, out: i64, inp: i64, k: i64| {
        let std = (2.0 / (inp * k * k) as f64).sqrt();
        p.add(&format!("{name}.weight"), &[out, inp, k, k], Init::Normal(std))
    };
    let norm = |p: &mut Parameters, name: &str, n: i64| -> Result<()> {
        p.add(&format!("{name}.weight"), &[n], Init::Constant(1.0))?;
        p.add(&format!("{name}.bias"), &[n], Init::Constant(0.0))?;
        p.add(&format!("{name}.running_mean"), &[n], Init::Constant(0.0))?;
        p.add(&format!("{name}.running_var"), &[n], Init::Constant(1.0))?;
        let count = Tensor::f_zeros([], (lightbox_sdk::tch::Kind::Int64, p.device()))?;
        p.insert(&format!("{name}.num_batches_tracked"), count);
        Ok(())
    };
    let channels = Settings::resolve(&options.params)?.channels as i64;
    conv(&mut p, STEM, config.init_features, channels, 7)?;
    norm(&mut p, "features.norm0", config.init_features)?;
    let mut width = config.init_features;
    for (i, &layers) in config.blocks.iter().enumerate() {
        let block = i + 1;
        for layer in 1..=layers {
            let name = format!("features.denseblock{block}.denselayer{layer}");
            norm(&mut p, &format!("{name}.norm1"), width)?;
            conv(&mut p, &format!("{name}.conv1"), BN_SIZE * config.growth, width, 1)?;
            norm(&mut p, &format!("{name}.norm2"), BN_SIZE * config.growth)?;
            conv(&mut p, &format!("{name}.conv2"), config.growth, BN_SIZE * config.growth, 3)?;
            width += config.growth;
        }
        if block < config.blocks.len() {
            norm(&mut p, &format!("features.transition{block}.norm"), width)?;
            conv(&mut p, &format!("features.transition{block}.conv"), width / 2, width, 1)?;
            width /= 2;
        }
    }
    norm(&mut p, "features.norm5", width)?;
    p.add(HEAD[0], &[classes, width], Init::Uniform(1.0 / (width as f64).sqrt()))?;
    p.add(HEAD[1], &[classes], Init::Constant(0.0))?;
    Ok(p)
}

/// torchvision's checkpoints of before 2017 name `denselayer1.norm.1` what is `denselayer1.norm1` now.
fn modern_key(key: &str) -> String {
    let parts: Vec<&str> = key.split('.').collect();
    if let Some(i) = parts.iter().position(|p| p.starts_with("denselayer"))
        && let [.., kind @ ("norm" | "conv"), number @ ("1" | "2"), leaf] = &parts[..]
        && parts.len() == i + 4
    {
        return format!("{}.{kind}{number}.{leaf}", parts[..=i].join("."));
    }
    key.to_string()
}

struct DenseNet {
    config: &'static Config,
    base: Base,
    /// Whether the fast trunk is used where it can be.
    folded: bool,
    /// Made of the parameters when it is first used.
    trunk: OnceCell<fast::Trunk>,
}

/// The sites from which on the fast trunk is out of the way.
const TAIL: [&str; 4] = ["features.norm5", "features.relu5", "embedding", "logits"];

impl DenseNet {
    fn new(config: &'static Config, base: Base, folded: bool) -> Self {
        DenseNet { config, base, folded, trunk: OnceCell::new() }
    }

    fn trunk(&self) -> Result<&fast::Trunk> {
        if let Some(trunk) = self.trunk.get() {
            return Ok(trunk);
        }
        let trunk = fast::Trunk::new(self.config, &self.base.params, fast::Product::best())?;
        Ok(self.trunk.get_or_init(|| trunk))
    }

    /// A norm stands before its ReLU, not after a convolution, so it cannot be merged: under rules it is a map of its own.
    /// Where its shift is read it is written as `a x + b`, `b = beta - mean a`.
    fn norm(&self, at: &mut At<'_, '_>, x: &Tensor, name: &str, train: bool) -> Result<Tensor> {
        let get = |leaf: &str| self.base.params.get(&format!("{name}.{leaf}"));
        let (weight, bias) = (Some(get("weight")?), Some(get("bias")?));
        let (mean, var) = (Some(get("running_mean")?), Some(get("running_var")?));
        // The last norm is the head's.
        let high = x.f_kind()? == Kind::BFloat16 && mean.is_some_and(|t| t.kind() == Kind::Float);
        let x = &if high { x.f_to_kind(Kind::Float)? } else { x.shallow_clone() };
        let shift = format!("{name}.shift");
        if let (false, true, Some(weight), Some(bias), Some(mean), Some(var)) =
            (train, wants(at, &shift), weight, bias, mean, var)
        {
            let scale = weight.f_div(&var.f_add_scalar(EPS)?.f_sqrt()?)?;
            let constant = bias.f_sub(&mean.f_mul(&scale)?)?.f_reshape([1, -1, 1, 1])?;
            let constant = site(at, &shift, constant.f_expand(x.size(), false)?.f_contiguous()?)?;
            return rules::affine(at, x.f_mul(&scale.f_reshape([1, -1, 1, 1])?)?.f_add(&constant)?);
        }
        rules::affine(at, x.f_batch_norm(weight, bias, mean, var, train, MOMENTUM, EPS, true)?)
    }

    fn conv(&self, at: &At<'_, '_>, x: &Tensor, name: &str, stride: i64, padding: i64) -> Result<Tensor> {
        let weight = self.base.params.get(&format!("{name}.weight"))?;
        rules::conv2d(at, x, weight, None, (stride, padding, 1))
    }

    /// From the value of the last norm on.
    fn tail(&self, norm5: Tensor, tape: &mut Option<&mut Tape<'_>>) -> Result<Tensor> {
        let x = step(tape, "features.norm5", norm5, |x, _| Ok(x))?;
        let x = step(tape, "features.relu5", x, |x, tape| relu(tape, &x))?;
        let x = step(tape, "embedding", x, |x, _| Ok(x.f_mean_dim([2i64, 3].as_slice(), false, x.f_kind()?)?))?;
        let (weight, bias) = (self.base.params.get(HEAD[0])?, self.base.params.get(HEAD[1])?);
        step(tape, "logits", x, |x, tape| rules::linear(tape, &x, weight, Some(bias)))
    }

    fn dense_block(&self, x: Tensor, block: usize, train: bool, tape: &mut At<'_, '_>) -> Result<Tensor> {
        let mut features = vec![x];
        for layer in 1..=self.config.blocks[block - 1] {
            let name = format!("features.denseblock{block}.denselayer{layer}");
            let y = Tensor::f_cat(&features, 1)?;
            let y = self.norm(tape, &y, &format!("{name}.norm1"), train)?;
            let y = relu(tape, &y)?;
            let y = self.conv(tape, &y, &format!("{name}.conv1"), 1, 0)?;
            let y = self.norm(tape, &y, &format!("{name}.norm2"), train)?;
            let y = relu(tape, &y)?;
            features.push(self.conv(tape, &y, &format!("{name}.conv2"), 1, 1)?);
        }
        Ok(Tensor::f_cat(&features, 1)?)
    }
}

impl Network for DenseNet {
    fn base(&self) -> &Base {
        &self.base
    }

    fn base_mut(&mut self) -> &mut Base {
        &mut self.base
    }

    fn with(&self, base: Base) -> Self {
        DenseNet::new(self.config, base, self.folded)
    }

    fn forward(&self, images: Tensor, train: bool, mut tape: Option<&mut Tape<'_>>) -> Result<Tensor> {
        let tape = &mut tape;
        let x = step(tape, "input", images, |x, _| Ok(x))?;
        let mut x = step(tape, "features.pool0", x, |x, tape| {
            let weight = self.base.params.get("features.conv0.weight")?;
            let [low, high] = self.base.spec.input.range();
            let x = rules::first_conv2d(tape, &x, weight, None, (2, 3, 1), (&low, &high))?;
            let x = self.norm(tape, &x, "features.norm0", train)?;
            rules::max_pool2d(tape, &relu(tape, &x)?, (3, 2, 1))
        })?;
        for block in 1..=self.config.blocks.len() {
            x = step(tape, &format!("features.denseblock{block}"), x, |x, tape| {
                self.dense_block(x, block, train, tape)
            })?;
            if block < self.config.blocks.len() {
                let name = format!("features.transition{block}");
                x = step(tape, &name, x, |x, tape| {
                    let y = self.norm(tape, &x, &format!("{name}.norm"), train)?;
                    let y = relu(tape, &y)?;
                    let y = self.conv(tape, &y, &format!("{name}.conv"), 1, 0)?;
                    Ok(y.f_avg_pool2d([2], [2], [0], false, true, None::<i64>)?)
                })?;
            }
        }
        // The step of norm5 is the tail's; a run that begins later has nothing to normalise.
        let begun = tape.as_ref().is_none_or(|t| t.begun());
        let norm5 = if begun { self.norm(tape, &x, "features.norm5", train)? } else { x };
        self.tail(norm5, tape)
    }

    fn load(&mut self, parameters: Named) -> Result<LoadReport> {
        self.trunk = OnceCell::new();
        let own = self.base.spec.input.channels;
        let stem =
            parameters.iter().find(|(name, _)| *name == format!("{STEM}.weight")).map(|(_, w)| w.shape().to_vec());
        if let Some([_, channels, ..]) = stem.as_deref()
            && *channels != own
        {
            return Err(Error::invalid(format!(
                "the checkpoint's network takes images of {channels} channels, this one {own}: its parameter channels = {channels} \
                 makes it the same (with mean and std, as the checkpoint was trained)"
            )));
        }
        self.base.params.load(parameters, modern_key, &HEAD)
    }

    fn infer<'n>(&'n self, images: Tensor, tape: &mut Tape<'n>) -> Result<Tensor> {
        let before = |s: &Site| !TAIL.contains(&s.name.as_str()) && s.name != "input";
        let inside =
            self.base.spec.sites.iter().any(|s| tape.wants(&s.name) && before(s)) || tape.is_objective("input");
        let cpu = self.base.params.device() == Device::Cpu;
        if !self.folded || !cpu || inside || tape.is_recorded() || tape.start().is_some() {
            return self.forward(images, false, Some(tape));
        }
        let images = tape.site("input", images)?;
        let (trunk, mut saved) = (self.trunk()?, fast::Saved::default());
        let back = tape.differentiates("input");
        let norm5 = {
            let _off = lightbox_sdk::tch::no_grad_guard();
            trunk.run(&images, back.then_some(&mut saved))?
        };
        let norm5 = match back {
            true => tape.custom_backward("input", norm5, move |grad| trunk.backward(&saved, grad))?,
            false => norm5,
        };
        self.tail(norm5, &mut Some(tape))
    }

    fn is_head(name: &str) -> bool {
        HEAD.contains(&name) || name.starts_with("features.norm5.")
    }

    const HEAD_SITES: &'static [&'static str] = &TAIL;

    /// The trunk is folded in float32, and cast then.
    fn cast(&self, kind: Kind) -> Result<Self> {
        let low = self.with(self.base.with(self.base.params.cast(kind, Self::is_head)?));
        if self.folded && self.base.params.device() == Device::Cpu {
            let _ = low.trunk.set(fast::Trunk::new(self.config, &self.base.params, fast::Product::best())?.cast(kind)?);
        }
        Ok(low)
    }

    fn is_buffer(&self, name: &str) -> bool {
        ["running_mean", "running_var", "num_batches_tracked"].iter().any(|leaf| name.ends_with(leaf))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from -1.5 to 1.5 without a pattern, the same every time.
    fn noise(shape: &[i64]) -> Tensor {
        let n = shape.iter().product::<i64>();
        let angles = Tensor::arange(n, (lightbox_sdk::tch::Kind::Double, Device::Cpu)) * 12.9898;
        ((angles.sin() * 43758.5453).frac() * 1.5).to_kind(lightbox_sdk::tch::Kind::Float).reshape(shape)
    }

    /// A stem of one channel whose weights are the sum of another's over its channels gives the same logits of an image whose
    /// three normalised channels are equal (TorchXRayVision's layout).
    #[test]
    fn one_channel_is_the_sum_of_three_equal_ones() {
        let options = || ModelOptions { seed: 3, classes: 2, ..ModelOptions::default() };
        for trunk in ["folded", "plain"] {
            let mut given = options();
            given.params.insert("trunk".into(), trunk.into());
            let three = make(&SMALL, &given).unwrap();
            given.params.insert("channels".into(), 1i64.into());
            given.params.insert("mean".into(), 0.5.into());
            given.params.insert("std".into(), 0.000_488_281_25.into());
            let mut one = make(&SMALL, &given).unwrap();
            assert_eq!((one.spec().input.channels, one.spec().input.mean.clone()), (1, vec![0.5]));
            let named = three.parameters().unwrap();
            let error = one.load(named.clone()).unwrap_err().to_string();
            assert!(
                error.contains("takes images of 3 channels, this one 1") && error.contains("channels = 3"),
                "{error}"
            );
            let summed = named.into_iter().map(|(name, array)| {
                let tensor = array.share_tensor().unwrap();
                let stem = name == "features.conv0.weight";
                let tensor = if stem { tensor.sum_dim_intlist([1i64].as_slice(), true, Kind::Float) } else { tensor };
                (name, Array::from_tensor(&tensor).unwrap())
            });
            one.load(summed.collect()).unwrap();
            let size = one.spec().input.size[0] as i64;
            let grey = Tensor::rand([2, 1, size, size], (Kind::Float, lightbox_sdk::tch::Device::Cpu));
            let run = |model: &dyn Model, x: &Tensor| {
                let request = Request::forward(Array::from_tensor(x).unwrap());
                model.run(&request).unwrap().logits.share_tensor().unwrap()
            };
            let wanted = run(three.as_ref(), &grey.expand([2, 3, size, size], false).contiguous());
            let off = (run(one.as_ref(), &grey) - &wanted).abs().max().double_value(&[]);
            assert!(off < 1e-5 * wanted.abs().max().double_value(&[]).max(1.0), "{trunk}: {off}");
        }
    }

    #[test]
    fn old_keys_are_renamed() {
        let check = |old: &str, new: &str| assert_eq!(modern_key(old), new);
        check("features.denseblock1.denselayer2.norm.1.weight", "features.denseblock1.denselayer2.norm1.weight");
        check("features.denseblock4.denselayer16.conv.2.weight", "features.denseblock4.denselayer16.conv2.weight");
        check("features.denseblock1.denselayer2.norm1.weight", "features.denseblock1.denselayer2.norm1.weight");
        check("features.transition1.norm.weight", "features.transition1.norm.weight");
    }

    #[test]
    fn grids_of_the_specification_are_those_of_the_values() {
        let mut options = ModelOptions::default();
        options.params.insert("size".into(), 70.into());
        let model = make(&SMALL, &options).unwrap();
        let spec = model.spec();
        let images = Array::from_vec(&[1, 3, 70, 70], vec![0.5f32; 3 * 70 * 70]).unwrap();
        let names: Vec<String> = spec.sites.iter().map(|s| s.name.clone()).collect();
        let response = model.run(&Request { values: names, ..Request::forward(images) }).unwrap();
        for site in &spec.sites {
            let mut shape = vec![1, site.channels];
            shape.extend(site.grid.iter());
            assert_eq!(response.values[&site.name].shape(), shape, "{}", site.name);
        }
    }

    /// A network of 70 px, which leaves rows over at the stem and at a transition, with norms of every sign, zeros among them.
    fn uneven(folded: bool) -> DenseNet {
        let mut options = ModelOptions::default();
        options.params.insert("size".into(), 70.into());
        let spec = spec(&SMALL, &options).unwrap();
        let mut params = initial(&SMALL, 2, &options).unwrap();
        for name in params.names().to_vec() {
            let shape = params.get(&name).unwrap().size();
            let random = noise(&shape);
            match name.rsplit('.').next().unwrap() {
                "running_var" => params.insert(&name, random.abs() + 0.2),
                "running_mean" | "bias" => params.insert(&name, random * 0.3),
                "weight" if shape.len() == 1 => {
                    let _ = random.narrow(0, 0, 2).zero_();
                    params.insert(&name, random);
                }
                _ => {}
            }
        }
        DenseNet::new(&SMALL, Base { spec, params }, folded)
    }

    #[test]
    fn the_fast_trunk_is_the_plain_one() {
        let model = uneven(true);
        let images = noise(&[2, 3, 70, 70]);
        let plain = model.forward(images.shallow_clone(), false, None).unwrap();
        for by in [fast::Product::Matrix, fast::Product::Convolution] {
            let mut trunk = fast::Trunk::new(&SMALL, &model.base.params, by).unwrap();
            for cached in [trunk.cached, 0] {
                trunk.cached = cached;
                let fast = model.tail(trunk.run(&images, None).unwrap(), &mut None).unwrap();
                let error = (&fast - &plain).abs().max().double_value(&[]) / plain.abs().max().double_value(&[]);
                assert!(error < 1e-5 && fast != plain, "{error}");
            }
        }
    }

    #[test]
    fn the_fast_trunks_gradient_is_the_plain_ones() {
        let images = Array::from_tensor(&noise(&[3, 3, 70, 70])).unwrap();
        let targets = Array::from_vec(&[3], vec![1i64, 0, 1]).unwrap();
        let sites = ["input", "features.norm5", "embedding"].map(String::from);
        let mut request = Request::explain(images, Objective::Class(targets), &sites, &sites);
        request.objectives.push(vec![Objective::Class(Array::from_vec(&[3], vec![0i64, 1, 0]).unwrap())]);
        // All images at a time, one, and in the later blocks two.
        let run = |folded: bool, by: fast::Product, cached: Option<usize>| {
            let net = uneven(folded);
            let mut trunk = fast::Trunk::new(&SMALL, &net.base.params, by).unwrap();
            trunk.cached = cached.unwrap_or(trunk.cached);
            let _ = net.trunk.set(trunk);
            let response = NetModel::new(net).run(&request).unwrap();
            let all = response.grads.iter().flat_map(|set| sites.iter().map(|s| set[s].share_tensor().unwrap().copy()));
            all.chain(sites.iter().map(|s| response.values[s].share_tensor().unwrap().copy())).collect::<Vec<_>>()
        };
        let plain = run(false, fast::Product::Matrix, None);
        let ways = [fast::Product::Matrix, fast::Product::Convolution];
        for (by, cached) in ways.into_iter().flat_map(|by| [(by, None), (by, Some(0)), (by, Some(30_000))]) {
            for (fast, plain) in run(true, by, cached).iter().zip(&plain) {
                let error = ((fast - plain).norm() / plain.norm()).double_value(&[]);
                assert!(fast.size() == plain.size() && error < 1e-5, "{error}");
            }
        }
    }

    #[test]
    fn the_parameter_chooses_the_trunk() {
        let run = |trunk: &str| {
            let mut options = ModelOptions::default();
            options.params.insert("trunk".into(), trunk.into());
            let images = Array::from_tensor(&noise(&[1, 3, 128, 128])).unwrap();
            let response = make(&SMALL, &options).unwrap().run(&Request::forward(images)).unwrap();
            response.logits.share_tensor().unwrap()
        };
        let (folded, plain) = (run("folded"), run("plain"));
        assert_eq!(folded == plain, lightbox_sdk::is_plain());
        assert!((folded - &plain).abs().max().double_value(&[]) < 1e-4);
    }

    #[test]
    fn a_size_that_leaves_no_map_is_an_error() {
        let mut options = ModelOptions::default();
        options.params.insert("size".into(), 8.into());
        assert!(spec(&DENSENET121, &options).unwrap_err().to_string().contains("8 px is under 32"));
    }
}
