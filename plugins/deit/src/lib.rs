//! DeiT (Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021,
//! arXiv:2012.12877): the plain ViT of Dosovitskiy et al. (arXiv:2010.11929) and its distilled form, with the names and
//! the arithmetic of timm's `vision_transformer.py` and `deit.py`. Evaluation of the distilled form averages both heads.
//!
//! Another input size resizes the position embeddings as facebookresearch/deit does: the grid's part, bicubic,
//! `align_corners = false`, without antialiasing (timm antialiases; the two differ even upwards).

mod hugging_face;

use lightbox_sdk::nn::{self, Base, Init, NetModel, Network, Parameters, Preset};
use lightbox_sdk::prelude::*;
use lightbox_sdk::rules::{self, At};
use lightbox_sdk::tape::{Tape, site, step, wants};
use lightbox_sdk::tch::Tensor;

lightbox_sdk::export!();
register_model!("deit_tiny_patch16_224", |o| spec(&TINY, o), |o| make(&TINY, o));
register_model!("deit_small_patch16_224", |o| spec(&SMALL, o), |o| make(&SMALL, o));
register_model!("deit_base_patch16_224", |o| spec(&BASE, o), |o| make(&BASE, o));
register_model!("deit_tiny_distilled_patch16_224", |o| spec(&TINY_DISTILLED, o), |o| make(&TINY_DISTILLED, o));
register_model!("deit_small_distilled_patch16_224", |o| spec(&SMALL_DISTILLED, o), |o| make(&SMALL_DISTILLED, o));
register_model!("deit_base_distilled_patch16_224", |o| spec(&BASE_DISTILLED, o), |o| make(&BASE_DISTILLED, o));
register_model!("vit_tiny_patch16_224", |o| spec(&VIT_TINY, o), |o| make(&VIT_TINY, o));
register_model!("vit_small_patch16_224", |o| spec(&VIT_SMALL, o), |o| make(&VIT_SMALL, o));
register_model!("vit_base_patch16_224", |o| spec(&VIT_BASE, o), |o| make(&VIT_BASE, o));
register_model!("deit-mini", |o| spec(&MINI, o), |o| make(&MINI, o));

/// A member of the family.
struct Config {
    name: &'static str,
    title: &'static str,
    dim: i64,
    depth: usize,
    heads: i64,
    patch: i64,
    size: i64,
    classes: usize,
    distilled: bool,
    /// Input values in [-1, 1], as the plain ViTs of Google and timm were trained; otherwise ImageNet's mean and deviation.
    half: bool,
    /// Standard deviation of matrices at the start.
    std: f64,
}

const TINY: Config = Config {
    name: "deit_tiny_patch16_224",
    title: "DeiT-Tiny",
    dim: 192,
    depth: 12,
    heads: 3,
    patch: 16,
    size: 224,
    classes: 1000,
    distilled: false,
    half: false,
    std: 0.02,
};
const SMALL: Config = Config { name: "deit_small_patch16_224", title: "DeiT-Small", dim: 384, heads: 6, ..TINY };
const BASE: Config = Config { name: "deit_base_patch16_224", title: "DeiT-Base", dim: 768, heads: 12, ..TINY };
const TINY_DISTILLED: Config =
    Config { name: "deit_tiny_distilled_patch16_224", title: "DeiT-Tiny, distilled", distilled: true, ..TINY };
const SMALL_DISTILLED: Config =
    Config { name: "deit_small_distilled_patch16_224", title: "DeiT-Small, distilled", distilled: true, ..SMALL };
const BASE_DISTILLED: Config =
    Config { name: "deit_base_distilled_patch16_224", title: "DeiT-Base, distilled", distilled: true, ..BASE };
const VIT_TINY: Config = Config { name: "vit_tiny_patch16_224", title: "ViT-Tiny", half: true, ..TINY };
const VIT_SMALL: Config = Config { name: "vit_small_patch16_224", title: "ViT-Small", half: true, ..SMALL };
const VIT_BASE: Config = Config { name: "vit_base_patch16_224", title: "ViT-Base", half: true, ..BASE };
/// Not in the paper: for demonstrations on a CPU.
const MINI: Config = Config {
    name: "deit-mini",
    title: "DeiT, mini (for demonstrations)",
    dim: 64,
    depth: 4,
    heads: 4,
    patch: 16,
    size: 128,
    classes: 2,
    distilled: false,
    half: false,
    std: 0.1,
};

const EPS: f64 = 1e-6;
const HEADS: [&str; 4] = ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"];

impl Config {
    fn prefix(&self) -> &'static [&'static str] {
        if self.distilled { &["cls", "dist"] } else { &["cls"] }
    }
}

fn input_size(config: &Config, options: &ModelOptions) -> Result<i64> {
    let size = Preset::resolve(&options.params)?.size_or(config.size);
    if size % config.patch != 0 {
        return Err(Error::invalid(format!(
            "parameter size: {size} px is no multiple of the patch, {} px",
            config.patch
        )));
    }
    Ok(size)
}

fn spec(config: &Config, options: &ModelOptions) -> Result<ModelSpec> {
    let size = input_size(config, options)? as usize;
    let side = size / config.patch as usize;
    let (grid, prefix) = ([side, side], config.prefix());
    let (dim, heads) = (config.dim as usize, config.heads as usize);
    let classes = if options.classes == 0 { config.classes } else { options.classes };
    let tokens = |name: String| Site::tokens(name, dim, grid, prefix);
    let mut sites = vec![Site::input(3, [size, size])];
    let embedded = tokens("embed".into()).role(Role::Embedding).start();
    sites.push(embedded.text("patch, class and position embeddings together"));
    for i in 0..config.depth {
        let name = |leaf: &str| format!("blocks.{i}.{leaf}");
        sites.push(tokens(name("norm1")).block(i));
        let (query, key, value) = (AttentionPart::Query, AttentionPart::Key, AttentionPart::Value);
        for (leaf, part, axis) in [("q", query, Axis::Query), ("k", key, Axis::Key), ("v", value, Axis::Key)] {
            let axes = vec![Axis::Batch, Axis::Head, axis, Axis::Channel];
            let site = Site { axes, channels: heads, ..tokens(name(&format!("attn.{leaf}"))) };
            sites.push(site.role(Role::Attention(part)).block(i).text("channels are those of a head"));
        }
        let attention = Site::attention(name("attn"), heads, grid, prefix, "tokens").block(i);
        let logits = Site { name: name("attn.logits"), ..attention.clone() };
        sites.push(logits.role(Role::Attention(AttentionPart::Logits)).text("scaled, before the softmax"));
        sites.push(attention.text("softmaxed weights"));
        let output = tokens(name("attn.proj")).role(Role::Attention(AttentionPart::Output)).block(i);
        sites.push(output.weight(&name("attn.proj.weight")).text("what the attention adds to the tokens"));
        sites.push(tokens(format!("blocks.{i}")).block(i).start());
    }
    sites.push(tokens("norm".into()).start());
    sites.push(Site::vector("logits", Role::Logits, classes));
    Ok(ModelSpec {
        name: config.name.into(),
        title: config.title.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        reference: match config.half {
            false => Reference::new(
                "Touvron et al.",
                "Training data-efficient image transformers & distillation through attention",
                "ICML",
                2021,
                "arXiv:2012.12877",
            ),
            true => {
                Reference::new("Dosovitskiy et al.", "An Image is Worth 16x16 Words", "ICLR", 2021, "arXiv:2010.11929")
            }
        },
        input: match config.half {
            false => InputSpec::imagenet(size),
            true => InputSpec { mean: vec![0.5; 3], std: vec![0.5; 3], ..InputSpec::imagenet(size) },
        },
        outputs: vec![Output::classes("logits", classes, Activation::Softmax)],
        sites,
        cam_site: Some(format!("blocks.{}.norm1", config.depth - 1)),
        attention_site: Some(format!("blocks.{}.attn", config.depth - 1)),
        rules: [&rules::LINEAR[..], &rules::CONV, &rules::INPUT, &rules::TRANSFORMER]
            .concat()
            .iter()
            .map(|r| r.to_string())
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
    let params = initial(config, &spec, options)?;
    let kind = Preset::resolve(&options.params)?.precision.kind();
    Ok(Box::new(NetModel::new(Deit { config, base: Base { spec, params } }).computing_in(kind)))
}

/// Normal with deviation 0.02 for matrices and embeddings, zero biases, as the reference begins (there truncated at two
/// units, which is a hundred deviations). The mini preset's matrices begin larger, in proportion to its width.
fn initial(config: &Config, spec: &ModelSpec, options: &ModelOptions) -> Result<Parameters> {
    let mut p = Parameters::new(nn::device(&options.device)?, options.seed);
    let (dim, patch, classes) = (config.dim, config.patch, spec.classes() as i64);
    let side = spec.input.size[0] as i64 / patch;
    let linear = |p: &mut Parameters, name: &str, out: i64, inp: i64| -> Result<()> {
        p.add(&format!("{name}.weight"), &[out, inp], Init::Normal(config.std))?;
        p.add(&format!("{name}.bias"), &[out], Init::Constant(0.0))
    };
    let norm = |p: &mut Parameters, name: &str| -> Result<()> {
        p.add(&format!("{name}.weight"), &[dim], Init::Constant(1.0))?;
        p.add(&format!("{name}.bias"), &[dim], Init::Constant(0.0))
    };
    p.add("cls_token", &[1, 1, dim], Init::Normal(0.02))?;
    if config.distilled {
        p.add("dist_token", &[1, 1, dim], Init::Normal(0.02))?;
    }
    p.add("pos_embed", &[1, side * side + config.prefix().len() as i64, dim], Init::Normal(0.02))?;
    let bound = 1.0 / ((3 * patch * patch) as f64).sqrt();
    p.add("patch_embed.proj.weight", &[dim, 3, patch, patch], Init::Uniform(bound))?;
    p.add("patch_embed.proj.bias", &[dim], Init::Constant(0.0))?;
    for i in 0..config.depth {
        let name = |leaf: &str| format!("blocks.{i}.{leaf}");
        norm(&mut p, &name("norm1"))?;
        linear(&mut p, &name("attn.qkv"), 3 * dim, dim)?;
        linear(&mut p, &name("attn.proj"), dim, dim)?;
        norm(&mut p, &name("norm2"))?;
        linear(&mut p, &name("mlp.fc1"), 4 * dim, dim)?;
        linear(&mut p, &name("mlp.fc2"), dim, 4 * dim)?;
    }
    norm(&mut p, "norm")?;
    linear(&mut p, "head", classes, dim)?;
    if config.distilled {
        linear(&mut p, "head_dist", classes, dim)?;
    }
    Ok(p)
}

/// Resizes the grid's part of position embeddings [1, prefix + n, dim] to `side` x `side`.
fn resize_positions(old: &Tensor, prefix: i64, side: i64) -> Result<Tensor> {
    let [_, n, dim]: [i64; 3] =
        old.size().try_into().map_err(|s| Error::invalid(format!("pos_embed has shape {s:?}, expected [1, N, D]")))?;
    let from = ((n - prefix) as f64).sqrt().round() as i64;
    if from < 1 || from * from != n - prefix {
        return Err(Error::invalid(format!(
            "pos_embed holds {n} tokens, which are no square grid and {prefix} before it"
        )));
    }
    let grid = old.f_narrow(1, prefix, n - prefix)?.f_reshape([1, from, from, dim])?.f_permute([0, 3, 1, 2])?;
    let grid = grid.f_contiguous()?.f_upsample_bicubic2d([side, side], false, None::<f64>, None::<f64>)?;
    let grid = grid.f_permute([0, 2, 3, 1])?.f_reshape([1, side * side, dim])?;
    Ok(Tensor::f_cat(&[old.f_narrow(1, 0, prefix)?, grid], 1)?)
}

struct Deit {
    config: &'static Config,
    base: Base,
}

impl Deit {
    fn linear(&self, at: &At<'_, '_>, x: &Tensor, name: &str) -> Result<Tensor> {
        self.base.linear(at, x, name)
    }

    fn norm(&self, at: &At<'_, '_>, x: &Tensor, name: &str) -> Result<Tensor> {
        self.base.layer_norm(at, x, name, EPS)
    }

    /// Patches, prefix tokens and positions.
    fn embed(&self, at: &At<'_, '_>, images: &Tensor) -> Result<Tensor> {
        let (b, patch, dim) = (images.size()[0], self.config.patch, self.config.dim);
        let get = |name: &str| self.base.params.get(name);
        let (weight, bias) = (get("patch_embed.proj.weight")?, get("patch_embed.proj.bias")?);
        let [low, high] = self.base.spec.input.range();
        let x = rules::first_conv2d(at, images, weight, Some(bias), (patch, 0, 1), (&low, &high))?;
        let x = x.f_flatten(2, -1)?.f_transpose(1, 2)?;
        let mut tokens = vec![get("cls_token")?.f_expand([b, 1, dim], false)?];
        if self.config.distilled {
            tokens.push(get("dist_token")?.f_expand([b, 1, dim], false)?);
        }
        tokens.push(x);
        Ok(Tensor::f_cat(&tokens, 1)?.f_add(get("pos_embed")?)?)
    }

    /// One block. The heads read the prefix tokens alone: where nobody looks at the others, the last block's queries and
    /// all that follows them are computed for those; where somebody looks at its attention alone, what follows that.
    fn block(&self, mut x: Tensor, i: usize, tape: &mut Option<&mut Tape<'_>>) -> Result<Tensor> {
        let (dim, heads) = (self.config.dim, self.config.heads);
        let (b, mut n) = (x.size()[0], x.size()[1]);
        let name = |leaf: &str| format!("blocks.{i}.{leaf}");
        let y = site(tape, &name("norm1"), self.norm(tape, &x, &name("norm1"))?)?;
        let y = rules::attention_input(tape, &y)?;
        let any = |sites: &[String]| tape.is_none() || sites.iter().any(|site| wants(tape, site));
        let last = i + 1 == self.config.depth && !lightbox_sdk::is_plain();
        let short = last && !any(&[name("attn.proj"), format!("blocks.{i}"), "norm".into()]);
        let prefix = self.config.prefix().len() as i64;
        if short && !any(&["attn.q", "attn.logits", "attn"].map(name)) {
            n = prefix;
        }
        let all = y.size()[1];
        let split = |t: Tensor, parts: i64| -> Result<Tensor> {
            let tokens = t.size()[1];
            Ok(t.f_reshape([b, tokens, parts, heads, dim / heads])?.f_permute([2, 0, 3, 1, 4])?)
        };
        let (q, k, v) = if n == all {
            let qkv = split(self.linear(tape, &y, &name("attn.qkv"))?, 3)?;
            (qkv.f_select(0, 0)?, qkv.f_select(0, 1)?, qkv.f_select(0, 2)?)
        } else {
            let part = |y: &Tensor, start: i64, count: i64| -> Result<Tensor> {
                let get = |leaf: &str| self.base.params.get(&name(&format!("attn.qkv.{leaf}")));
                let (weight, bias) = (get("weight")?, get("bias")?);
                let (weight, bias) = (weight.f_narrow(0, start, count)?, bias.f_narrow(0, start, count)?);
                rules::linear(tape, y, &weight, Some(&bias))
            };
            let q = split(part(&y.f_narrow(1, 0, n)?, 0, dim)?, 1)?.f_select(0, 0)?;
            let kv = split(part(&y, dim, 2 * dim)?, 2)?;
            (q, kv.f_select(0, 0)?, kv.f_select(0, 1)?)
        };
        let q = site(tape, &name("attn.q"), q)?;
        let k = site(tape, &name("attn.k"), k)?;
        let v = site(tape, &name("attn.v"), v)?;
        // The weights exist only where somebody asks for them, under rules, for second derivatives, and where a gradient on CUDA is wanted: libtorch's
        // fused attention adds that up in an order that varies.
        let varies = q.device().is_cuda() && [&q, &k, &v].iter().any(|t| t.requires_grad());
        let ruled = tape.as_ref().is_some_and(|t| t.is_recorded());
        let plain = lightbox_sdk::is_plain();
        let y = if plain || varies || ruled || wants(tape, &name("attn")) || wants(tape, &name("attn.logits")) {
            let scale = ((dim / heads) as f64).powf(-0.5);
            let logits = rules::matmul(tape, &q.f_mul_scalar(scale)?, &k.f_transpose(-2, -1)?)?;
            let logits = site(tape, &name("attn.logits"), logits)?;
            let weights = rules::softmax(tape, &logits)?;
            let mut weights = site(tape, &name("attn"), weights)?;
            if short {
                n = prefix;
                weights = weights.f_narrow(2, 0, n)?;
            }
            rules::matmul(tape, &weights, &v)?
        } else {
            Tensor::f_scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None::<f64>, false)?
        };
        let y = self.linear(tape, &y.f_transpose(1, 2)?.f_reshape([b, n, dim])?, &name("attn.proj"))?;
        let y = site(tape, &name("attn.proj"), y)?;
        if n < x.size()[1] {
            x = x.f_narrow(1, 0, n)?;
        }
        x = x.f_add(&y)?;
        let y = self.linear(tape, &self.norm(tape, &x, &name("norm2"))?, &name("mlp.fc1"))?;
        Ok(x.f_add(&self.linear(tape, &rules::gelu(tape, &y)?, &name("mlp.fc2"))?)?)
    }
}

impl Network for Deit {
    fn base(&self) -> &Base {
        &self.base
    }

    fn base_mut(&mut self) -> &mut Base {
        &mut self.base
    }

    fn with(&self, base: Base) -> Self {
        Deit { config: self.config, base }
    }

    fn forward(&self, images: Tensor, _: bool, mut tape: Option<&mut Tape<'_>>) -> Result<Tensor> {
        let tape = &mut tape;
        let x = step(tape, "input", images, |x, _| Ok(x))?;
        let mut x = step(tape, "embed", x, |x, tape| self.embed(tape, &x))?;
        for i in 0..self.config.depth {
            x = step(tape, &format!("blocks.{i}"), x, |x, tape| self.block(x, i, tape))?;
        }
        let x = step(tape, "norm", x, |x, tape| self.norm(tape, &x, "norm"))?;
        step(tape, "logits", x, |x, tape| {
            let logits = self.linear(tape, &x.f_select(1, 0)?, "head")?;
            match self.config.distilled {
                true => Ok(logits.f_add(&self.linear(tape, &x.f_select(1, 1)?, "head_dist")?)?.f_div_scalar(2.0)?),
                false => Ok(logits),
            }
        })
    }

    /// As the reference's `no_weight_decay`.
    fn decays(name: &str, dimensions: usize) -> bool {
        dimensions >= 2 && !["cls_token", "dist_token", "pos_embed"].contains(&name)
    }

    fn load(&mut self, parameters: Named) -> Result<LoadReport> {
        let mut parameters = hugging_face::renamed(parameters)?;
        let own = self.base.params.get("pos_embed")?.size();
        let mut resized = None;
        if let Some((_, given)) = parameters.iter_mut().find(|(name, _)| name == "pos_embed") {
            let shape = given.shape();
            if shape.len() == 3 && shape[1] as i64 != own[1] && shape[2] as i64 == own[2] {
                let side = (self.base.spec.input.size[0] as i64) / self.config.patch;
                let new = resize_positions(&given.share_tensor()?, self.config.prefix().len() as i64, side)?;
                *given = Array::from_tensor(&new)?;
                resized = Some(format!("position embeddings were resized from {} to {} tokens", shape[1], own[1]));
            }
        }
        let mut report = self.base.params.load(parameters, str::to_string, &HEADS)?;
        report.notes.extend(resized);
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbox_sdk::tch::{Device, Kind};

    /// Values from -1.5 to 1.5 without a pattern, the same every time.
    fn noise(shape: &[i64]) -> Tensor {
        let n = shape.iter().product::<i64>();
        let angles = Tensor::arange(n, (Kind::Double, Device::Cpu)) * 12.9898;
        ((angles.sin() * 43758.5453).frac() * 1.5).to_kind(Kind::Float).reshape(shape)
    }

    const DISTILLED: Config = Config { distilled: true, ..MINI };

    fn run(model: &dyn Model, values: &[&str]) -> Response {
        let size = model.spec().input.size[0];
        let images = noise(&[2, 3, size as i64, size as i64]);
        let values = values.iter().map(|v| v.to_string()).collect();
        let images = Array::from_tensor(&images).unwrap();
        model.run(&Request { values, ..Request::forward(images) }).unwrap()
    }

    #[test]
    fn attention_rows_sum_to_one_and_asking_for_them_changes_nothing() {
        let model = make(&MINI, &ModelOptions::default()).unwrap();
        let attention = run(model.as_ref(), &["blocks.3.attn"]).values["blocks.3.attn"].to_tensor().unwrap();
        assert_eq!(attention.size(), [2, 4, 65, 65]);
        let sums = attention.sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
        assert!((sums - 1.0).abs().max().double_value(&[]) < 1e-5);
        let images = Array::from_tensor(&noise(&[1, 3, 128, 128])).unwrap();
        let logits = |values: Vec<String>| {
            let request = Request { values, ..Request::forward(images.clone()) };
            model.run(&request).unwrap().logits.share_tensor().unwrap()
        };
        let difference = (logits(vec![]) - logits(vec!["blocks.0.attn".into()])).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "{difference}");
    }

    #[test]
    fn the_last_block_for_the_prefix_alone_is_the_whole_one() {
        for config in [&MINI, &DISTILLED] {
            let model = make(config, &ModelOptions::default()).unwrap();
            let images = noise(&[2, 3, 128, 128]);
            let norm1 = format!("blocks.{}.norm1", config.depth - 1);
            let run = |values: Vec<String>| {
                let targets = Array::from_vec(&[2], vec![0i64, 1]).unwrap();
                let images = Array::from_tensor(&images).unwrap();
                let response = model
                    .run(&Request::explain(images, Objective::Class(targets), &values, std::slice::from_ref(&norm1)))
                    .unwrap();
                let grad = response.grads[0][&norm1].to_tensor().unwrap();
                (response.logits.to_tensor().unwrap(), grad)
            };
            let whole = run(vec!["norm".into()]);
            let relative = |a: &Tensor, b: &Tensor| ((a - b).abs().max() / b.abs().max()).double_value(&[]);
            for values in [vec![], vec![format!("blocks.{}.attn", config.depth - 1)]] {
                let short = run(values);
                assert!(relative(&short.0, &whole.0) < 1e-5 && relative(&short.1, &whole.1) < 1e-5);
            }
        }
    }

    #[test]
    fn position_embeddings_keep_their_prefix_and_their_corners_order() {
        let old = Tensor::arange(2 * (1 + 9), (Kind::Float, Device::Cpu)).reshape([1, 10, 2]);
        let new = resize_positions(&old, 1, 6).unwrap();
        assert_eq!(new.size(), [1, 37, 2]);
        assert_eq!(new.narrow(1, 0, 1), old.narrow(1, 0, 1));
        assert_eq!(resize_positions(&old, 1, 3).unwrap(), old);
        // The distilled form's second token stays too, and the grid is resized alike.
        let two = Tensor::cat(&[&(old.narrow(1, 0, 1) + 7.0), &old], 1);
        let resized = resize_positions(&two, 2, 6).unwrap();
        assert_eq!((resized.narrow(1, 0, 2), resized.narrow(1, 2, 36)), (two.narrow(1, 0, 2), new.narrow(1, 1, 36)));
        assert!(resize_positions(&old, 2, 3).unwrap_err().to_string().contains("no square grid"));
        let size = ModelOptions { params: [("size".to_string(), 100.into())].into(), ..ModelOptions::default() };
        assert!(spec(&TINY, &size).unwrap_err().to_string().contains("no multiple of the patch"));
    }
}
