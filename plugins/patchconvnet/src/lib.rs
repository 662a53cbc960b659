//! PatchConvNet (Touvron et al., "Augmenting Convolutional networks with attention-based aggregation", 2021,
//! arXiv:2112.13692), with the names and the arithmetic of facebookresearch/deit's `patchconvnet_models.py`.
//!
//! A convolutional stem, a column of residual blocks without any change of resolution, and one attention layer in which a
//! class token gathers the patches. In the `_multi` form there is one token and one head a class; the reference fixes their
//! number at 1000 inside the attention, here it is the model's number of classes.
//!
//! A block's 1x1 convolutions run as matrix products on tokens, which are the same numbers in the same memory.

use lightbox_sdk::nn::{self, Base, Init, NetModel, Network, Parameters, Preset};
use lightbox_sdk::prelude::*;
use lightbox_sdk::rules::{self, At};
use lightbox_sdk::tape::{Tape, site, step};
use lightbox_sdk::tch::{Kind, Tensor};

lightbox_sdk::export!();

/// A member of the family.
struct Config {
    name: &'static str,
    title: &'static str,
    dim: i64,
    depth: usize,
    size: i64,
    classes: usize,
    /// One token and head a class.
    multi: bool,
    /// Initial value of the residual branches' scales.
    gamma: f64,
}

const S60: Config = Config {
    name: "patchconvnet_s60",
    title: "PatchConvNet-S60",
    dim: 384,
    depth: 60,
    size: 224,
    classes: 1000,
    multi: false,
    gamma: 1e-4,
};
const S120: Config = Config { name: "patchconvnet_s120", title: "PatchConvNet-S120", depth: 120, gamma: 1e-6, ..S60 };
const B60: Config = Config { name: "patchconvnet_b60", title: "PatchConvNet-B60", dim: 768, gamma: 1e-6, ..S60 };
const B120: Config = Config { name: "patchconvnet_b120", title: "PatchConvNet-B120", dim: 768, ..S120 };
const L60: Config = Config { name: "patchconvnet_l60", title: "PatchConvNet-L60", dim: 1024, ..B60 };
const L120: Config = Config { name: "patchconvnet_l120", title: "PatchConvNet-L120", dim: 1024, ..S120 };
/// Not in the paper: for demonstrations on a CPU.
const MINI: Config = Config {
    name: "patchconvnet-mini",
    title: "PatchConvNet, mini (for demonstrations)",
    dim: 64,
    depth: 6,
    size: 128,
    classes: 2,
    multi: false,
    gamma: 0.1,
};

macro_rules! register {
    ($($config:ident, $multi:ident, $name:literal, $title:literal);*) => { $(
        const $multi: Config = Config { name: $name, title: $title, multi: true, ..$config };
        register_model!($config.name, |o| spec(&$config, o), |o| make(&$config, o));
        register_model!($multi.name, |o| spec(&$multi, o), |o| make(&$multi, o));
    )* };
}
register!(
    S60, S60_MULTI, "patchconvnet_s60_multi", "PatchConvNet-S60, a token a class";
    S120, S120_MULTI, "patchconvnet_s120_multi", "PatchConvNet-S120, a token a class";
    B60, B60_MULTI, "patchconvnet_b60_multi", "PatchConvNet-B60, a token a class";
    B120, B120_MULTI, "patchconvnet_b120_multi", "PatchConvNet-B120, a token a class";
    L60, L60_MULTI, "patchconvnet_l60_multi", "PatchConvNet-L60, a token a class";
    L120, L120_MULTI, "patchconvnet_l120_multi", "PatchConvNet-L120, a token a class";
    MINI, MINI_MULTI, "patchconvnet-mini-multi", "PatchConvNet, mini, a token a class (for demonstrations)"
);

const EPS: f64 = 1e-6;
/// The stem halves four times.
const PATCH: i64 = 16;
const POOL: &str = "blocks_token_only.0";

fn spec(config: &Config, options: &ModelOptions) -> Result<ModelSpec> {
    let size = Preset::resolve(&options.params)?.size_or(config.size);
    if size % PATCH != 0 {
        return Err(Error::invalid(format!("parameter size: {size} px is no multiple of {PATCH} px")));
    }
    let (size, side, dim) = (size as usize, (size / PATCH) as usize, config.dim as usize);
    let grid = [side, side];
    let classes = if options.classes == 0 { config.classes } else { options.classes };
    let mut sites = vec![Site::input(3, [size, size])];
    sites.push(Site::tokens("patch_embed", dim, grid, &[]).role(Role::Embedding).start());
    for i in 0..config.depth {
        sites.push(Site::tokens(format!("blocks.{i}"), dim, grid, &[]).block(i).start());
    }
    let (prefix, query): (&[&str], _) = if config.multi { (&[], "per-class") } else { (&["cls"], "cls") };
    let attention = Site::attention(format!("{POOL}.attn"), 1, grid, prefix, query).block(config.depth);
    let heads = |leaf: &str, part, axis| Site {
        role: Role::Attention(part),
        axes: vec![Axis::Batch, Axis::Head, axis, Axis::Channel],
        name: format!("{POOL}.attn.{leaf}"),
        ..attention.clone()
    };
    sites.push(heads("q", AttentionPart::Query, Axis::Query));
    sites.push(heads("k", AttentionPart::Key, Axis::Key));
    sites.push(heads("v", AttentionPart::Value, Axis::Key));
    let logits = Site { name: format!("{POOL}.attn.logits"), ..attention.clone() };
    sites.push(logits.role(Role::Attention(AttentionPart::Logits)).text("scaled, before the softmax"));
    sites.push(attention.text("softmaxed weights of the one attention layer"));
    sites.push(Site::vector("logits", Role::Logits, classes));
    Ok(ModelSpec {
        name: config.name.into(),
        title: config.title.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        reference: Reference::new(
            "Touvron et al.",
            "Augmenting Convolutional networks with attention-based aggregation",
            "",
            2021,
            "arXiv:2112.13692",
        ),
        input: InputSpec::imagenet(size),
        outputs: vec![Output::classes("logits", classes, Activation::Softmax)],
        sites,
        cam_site: Some(format!("blocks.{}", config.depth - 1)),
        attention_site: Some(format!("{POOL}.attn")),
        rules: [&rules::LINEAR[..], &rules::CONV, &rules::INPUT, &rules::TRANSFORMER, &rules::GATE]
            .concat()
            .into_iter()
            .map(String::from)
            .collect(),
        parameters: Preset::specs(),
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
    let kind = Preset::resolve(&options.params)?.precision.kind();
    Ok(Box::new(NetModel::new(PatchConvNet { config, base: Base { spec, params } }).computing_in(kind)))
}

fn initial(config: &Config, classes: i64, options: &ModelOptions) -> Result<Parameters> {
    let mut p = Parameters::new(nn::device(&options.device)?, options.seed);
    let dim = config.dim;
    let conv = |p: &mut Parameters, name: &str, shape: [i64; 4]| -> Result<()> {
        let bound = 1.0 / ((shape[1] * shape[2] * shape[3]) as f64).sqrt();
        p.add(&format!("{name}.weight"), &shape, Init::Uniform(bound))
    };
    let biased = |p: &mut Parameters, name: &str, shape: [i64; 4]| -> Result<()> {
        conv(p, name, shape)?;
        p.add(&format!("{name}.bias"), &[shape[0]], Init::Constant(0.0))
    };
    let linear = |p: &mut Parameters, name: &str, out: i64, inp: i64| -> Result<()> {
        p.add(&format!("{name}.weight"), &[out, inp], Init::Normal(0.02))?;
        p.add(&format!("{name}.bias"), &[out], Init::Constant(0.0))
    };
    let norm = |p: &mut Parameters, name: &str| -> Result<()> {
        p.add(&format!("{name}.weight"), &[dim], Init::Constant(1.0))?;
        p.add(&format!("{name}.bias"), &[dim], Init::Constant(0.0))
    };
    p.add("cls_token", &[1, if config.multi { classes } else { 1 }, dim], Init::Normal(0.02))?;
    for (i, (out, inp)) in
        [(dim / 8, 3), (dim / 4, dim / 8), (dim / 2, dim / 4), (dim, dim / 2)].into_iter().enumerate()
    {
        conv(&mut p, &format!("patch_embed.proj.{}.0", 2 * i), [out, inp, 3, 3])?;
    }
    for i in 0..config.depth {
        let name = |leaf: &str| format!("blocks.{i}.{leaf}");
        p.add(&name("gamma_1"), &[dim], Init::Constant(config.gamma))?;
        norm(&mut p, &name("norm1"))?;
        biased(&mut p, &name("attn.qkv_pos.0"), [dim, dim, 1, 1])?;
        biased(&mut p, &name("attn.qkv_pos.2"), [dim, 1, 3, 3])?;
        biased(&mut p, &name("attn.qkv_pos.4.conv_reduce"), [dim / 4, dim, 1, 1])?;
        biased(&mut p, &name("attn.qkv_pos.4.conv_expand"), [dim, dim / 4, 1, 1])?;
        biased(&mut p, &name("attn.qkv_pos.5"), [dim, dim, 1, 1])?;
    }
    let name = |leaf: &str| format!("{POOL}.{leaf}");
    p.add(&name("gamma_1"), &[dim], Init::Constant(config.gamma))?;
    p.add(&name("gamma_2"), &[dim], Init::Constant(config.gamma))?;
    norm(&mut p, &name("norm1"))?;
    for leaf in ["attn.q", "attn.k", "attn.v", "attn.proj"] {
        linear(&mut p, &name(leaf), dim, dim)?;
    }
    norm(&mut p, &name("norm2"))?;
    linear(&mut p, &name("mlp.fc1"), 3 * dim, dim)?;
    linear(&mut p, &name("mlp.fc2"), dim, 3 * dim)?;
    norm(&mut p, "norm")?;
    match config.multi {
        true => (0..classes).try_for_each(|j| linear(&mut p, &format!("head.{j}"), 1, dim))?,
        false => linear(&mut p, "head", classes, dim)?,
    }
    Ok(p)
}

struct PatchConvNet {
    config: &'static Config,
    base: Base,
}

impl PatchConvNet {
    fn linear(&self, at: &At<'_, '_>, x: &Tensor, name: &str) -> Result<Tensor> {
        self.base.linear(at, x, name)
    }

    fn norm(&self, at: &At<'_, '_>, x: &Tensor, name: &str) -> Result<Tensor> {
        self.base.layer_norm(at, x, name, EPS)
    }

    fn stem(&self, at: &At<'_, '_>, mut x: Tensor) -> Result<Tensor> {
        for i in 0..4 {
            let weight = self.params().get(&format!("patch_embed.proj.{}.0.weight", 2 * i))?;
            let [low, high] = self.base.spec.input.range();
            x = match i {
                0 => rules::first_conv2d(at, &x, weight, None, (2, 1, 1), (&low, &high))?,
                _ => rules::conv2d(at, &x, weight, None, (2, 1, 1))?,
            };
            if i < 3 {
                x = rules::gelu(at, &x)?;
            }
        }
        Ok(x.f_flatten(2, -1)?.f_transpose(1, 2)?.f_contiguous()?)
    }

    fn params(&self) -> &Parameters {
        &self.base.params
    }

    /// The residual branch of a trunk block on tokens [B, N, C].
    fn branch(&self, at: &At<'_, '_>, x: &Tensor, block: usize) -> Result<Tensor> {
        let name = |leaf: &str| format!("blocks.{block}.attn.qkv_pos.{leaf}");
        let [b, n, c]: [i64; 3] = x.size().try_into().map_err(|s| Error::invalid(format!("tokens of shape {s:?}")))?;
        let side = (n as f64).sqrt().round() as i64;
        let y = rules::gelu(at, &self.linear(at, &self.norm(at, x, &format!("blocks.{block}.norm1"))?, &name("0"))?)?;
        let y = y.f_reshape([b, side, side, c])?.f_permute([0, 3, 1, 2])?;
        let (weight, bias) = (self.base.params.get(&name("2.weight"))?, self.base.params.get(&name("2.bias"))?);
        let y = rules::gelu(at, &rules::conv2d(at, &y, weight, Some(bias), (1, 1, c))?)?;
        let y = y.f_permute([0, 2, 3, 1])?.f_reshape([b, n, c])?;
        let kind = if y.f_kind()? == Kind::BFloat16 { Kind::BFloat16 } else { Kind::Float };
        let gate = y.f_mean_dim([1i64].as_slice(), true, kind)?;
        let gate = self.linear(at, &gate, &name("4.conv_reduce"))?.f_relu()?;
        let gate = self.linear(at, &gate, &name("4.conv_expand"))?.f_sigmoid()?;
        self.linear(at, &rules::gate(at, &y, &gate)?, &name("5"))
    }

    /// What another number of classes changes.
    fn heads(&self) -> Vec<String> {
        let own = |n: &&String| n.starts_with("head.") || (self.config.multi && *n == "cls_token");
        self.base.params.names().iter().filter(own).cloned().collect()
    }
}

impl PatchConvNet {
    /// The attention layer and what follows it, on the trunk's tokens.
    fn pool(&self, x: Tensor, tape: &mut Option<&mut Tape<'_>>) -> Result<Tensor> {
        let (b, dim) = (x.size()[0], self.config.dim);
        let name = |leaf: &str| format!("{POOL}.{leaf}");
        let token = self.base.params.get("cls_token")?;
        let tokens = token.size()[1];
        let token = token.f_expand([b, tokens, dim], false)?;
        let all = self.norm(tape, &Tensor::f_cat(&[&token, &x], 1)?, &name("norm1"))?;
        let all = rules::attention_input(tape, &all)?;
        let keys = if self.config.multi { all.f_narrow(1, tokens, x.size()[1])? } else { all.shallow_clone() };
        let head = |t: Tensor| t.f_unsqueeze(1);
        let q = head(self.linear(tape, &all.f_narrow(1, 0, tokens)?, &name("attn.q"))?)?;
        let q = site(tape, &name("attn.q"), q)?;
        let k = site(tape, &name("attn.k"), head(self.linear(tape, &keys, &name("attn.k"))?)?)?;
        let v = site(tape, &name("attn.v"), head(self.linear(tape, &keys, &name("attn.v"))?)?)?;
        let logits = rules::matmul(tape, &q.f_mul_scalar((dim as f64).powf(-0.5))?, &k.f_transpose(-2, -1)?)?;
        let logits = site(tape, &name("attn.logits"), logits)?;
        let weights = rules::softmax(tape, &logits)?;
        let weights = site(tape, &name("attn"), weights)?;
        let gathered = rules::matmul(tape, &weights, &v)?.f_squeeze_dim(1)?;
        let gathered = self.linear(tape, &gathered, &name("attn.proj"))?;
        let token = token.f_addcmul(self.base.params.get(&name("gamma_1"))?, &gathered)?;
        let y = self.linear(tape, &self.norm(tape, &token, &name("norm2"))?, &name("mlp.fc1"))?;
        let y = self.linear(tape, &rules::gelu(tape, &y)?, &name("mlp.fc2"))?;
        let token = token.f_addcmul(self.base.params.get(&name("gamma_2"))?, &y)?;
        let token = self.norm(tape, &token, "norm")?;
        match self.config.multi {
            false => self.linear(tape, &token.f_select(1, 0)?, "head"),
            true if lightbox_sdk::is_plain() || tape.as_ref().is_some_and(|t| t.has_rules()) => {
                let logit = |j: i64| self.linear(tape, &token.f_select(1, j)?, &format!("head.{j}"));
                Ok(Tensor::f_cat(&(0..tokens).map(logit).collect::<Result<Vec<_>>>()?, 1)?)
            }
            true => {
                // One head a class, on its own token: a product row by row.
                let stack = |leaf: &str| -> Result<Tensor> {
                    let get = |j| self.base.params.get(&format!("head.{j}.{leaf}"));
                    Ok(Tensor::f_cat(&(0..tokens).map(get).collect::<Result<Vec<_>>>()?, 0)?)
                };
                let sums = token.f_mul(&stack("weight")?)?.f_sum_dim_intlist([2i64].as_slice(), false, Kind::Float)?;
                Ok(sums.f_add(&stack("bias")?)?)
            }
        }
    }
}

impl Network for PatchConvNet {
    fn base(&self) -> &Base {
        &self.base
    }

    fn base_mut(&mut self) -> &mut Base {
        &mut self.base
    }

    fn with(&self, base: Base) -> Self {
        PatchConvNet { config: self.config, base }
    }

    fn forward(&self, images: Tensor, _: bool, mut tape: Option<&mut Tape<'_>>) -> Result<Tensor> {
        let tape = &mut tape;
        let x = step(tape, "input", images, |x, _| Ok(x))?;
        let mut x = step(tape, "patch_embed", x, |x, tape| self.stem(tape, x))?;
        for i in 0..self.config.depth {
            x = step(tape, &format!("blocks.{i}"), x, |x, tape| {
                Ok(x.f_addcmul(self.params().get(&format!("blocks.{i}.gamma_1"))?, &self.branch(tape, &x, i)?)?)
            })?;
        }
        step(tape, "logits", x, |x, tape| self.pool(x, tape))
    }

    /// As the reference's `no_weight_decay`.
    fn decays(name: &str, dimensions: usize) -> bool {
        dimensions >= 2 && name != "cls_token"
    }

    fn load(&mut self, mut parameters: Named) -> Result<LoadReport> {
        let heads = self.heads();
        let given = parameters.iter().find(|(n, _)| n == "cls_token").map(|(_, a)| a.shape().to_vec());
        let other = given.filter(|shape| self.config.multi && shape.len() == 3 && shape[1] != self.base.spec.classes());
        if other.is_some() {
            // Heads of another number of classes have the same shapes; none of them is this model's then.
            parameters.retain(|(n, _)| !n.starts_with("head."));
        }
        let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
        let mut report = self.base.params.load(parameters, str::to_string, &heads)?;
        if let Some(shape) = other {
            let (theirs, ours) = (shape[1], self.base.spec.classes());
            report.notes = vec![format!(
                "the class tokens and heads are new: the checkpoint has {theirs} classes, the model {ours}"
            )];
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbox_sdk::tch::Device;

    /// Values from -1.5 to 1.5 without a pattern, the same every time.
    fn noise(shape: &[i64]) -> Tensor {
        let n = shape.iter().product::<i64>();
        let angles = Tensor::arange(n, (Kind::Double, Device::Cpu)) * 12.9898;
        ((angles.sin() * 43758.5453).frac() * 1.5).to_kind(Kind::Float).reshape(shape)
    }

    #[test]
    fn a_branch_is_the_papers_convolutions() {
        let options = ModelOptions::default();
        let model = PatchConvNet {
            config: &MINI,
            base: Base { spec: spec(&MINI, &options).unwrap(), params: initial(&MINI, 2, &options).unwrap() },
        };
        let x = noise(&[2, 16, 64]);
        let get = |leaf: &str| model.params().get(&format!("blocks.0.attn.qkv_pos.{leaf}")).unwrap();
        let conv = |x: &Tensor, leaf: &str, padding: i64, groups: i64| {
            x.conv2d(get(&format!("{leaf}.weight")), Some(get(&format!("{leaf}.bias"))), [1], [padding], [1], groups)
        };
        // The reference's own way: an image of channels throughout.
        let y = model.norm(&None, &x, "blocks.0.norm1").unwrap().transpose(1, 2).reshape([2, 64, 4, 4]);
        let y = conv(&conv(&y, "0", 0, 1).gelu("none"), "2", 1, 64).gelu("none");
        let gate = y.mean_dim([2i64, 3].as_slice(), true, Kind::Float);
        let gate = conv(&conv(&gate, "4.conv_reduce", 0, 1).relu(), "4.conv_expand", 0, 1).sigmoid();
        let slow = conv(&(y * gate), "5", 0, 1).flatten(2, -1).transpose(1, 2);
        let fast = model.branch(&None, &x, 0).unwrap();
        assert!((fast - slow).abs().max().double_value(&[]) < 1e-5);
    }

    #[test]
    fn a_token_a_class_takes_any_number_of_classes() {
        let options = ModelOptions { classes: 14, ..ModelOptions::default() };
        let model = make(&MINI_MULTI, &options).unwrap();
        let images = Array::from_tensor(&noise(&[2, 3, 128, 128])).unwrap();
        let site = format!("{POOL}.attn");
        let response = model.run(&Request { values: vec![site.clone()], ..Request::forward(images) }).unwrap();
        assert_eq!(response.logits.shape(), [2, 14]);
        assert_eq!(response.values[&site].shape(), [2, 1, 14, 64]);
    }
}
