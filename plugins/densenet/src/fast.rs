//! The trunk for inference on a CPU, rewritten so that the batch norms before convolutions cost nothing. The same function
//! up to rounding (a test compares); used when nothing between the images and `features.norm5` is asked for.
//!
//! - `relu(a x + b) = a clamp(x, lo, hi) + b` with `[lo, hi] = [-b/a, inf]` for `a > 0` and `[-inf, -b/a]` for `a < 0`; `a`
//!   and `b` then fold into the 1x1 convolution that follows, which has no padding. For `a = 0` the value is `relu(b)`.
//! - `norm2` folds into `conv1` and `norm0` into `conv0`, which come before them.
//! - A dense block writes into one buffer, channels last, instead of concatenating; 1x1 convolutions are matrix products,
//!   which MKL or oneDNN computes ([`Product`]).
//! - A transition averages before its 1x1 convolution, which commutes and costs a quarter.
//! - The stem and each block take so many images at a time that their values stay in the CPU's cache ([`CACHED`]): the first
//!   blocks few, the last many.
//!
//! The gradient at the images goes back through the same buffers ([`Trunk::backward`]): a layer adds its own to the part of the
//! block's buffer that it read, and only the transposes of the folded weights are multiplied by.

use super::{Config, EPS};
use lightbox_sdk::nn::Parameters;
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Device, Kind, Tensor};

/// By which library a 1x1 convolution of channels-last values is computed.
#[derive(Clone, Copy, PartialEq)]
pub enum Product {
    /// libtorch's matrix product: MKL.
    Matrix,
    /// libtorch's convolution: oneDNN, which multiplied faster on the AMD EPYC with AVX-512 that was measured (the benchmark's row
    /// `cost`).
    Convolution,
}

impl Product {
    /// That of this CPU.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx512f") {
            #[allow(unused_unsafe)] // it is safe in newer releases of Rust
            // SAFETY: every x86-64 CPU has leaf 0, its maker's name.
            let maker = unsafe { std::arch::x86_64::__cpuid(0) };
            if [maker.ebx, maker.edx, maker.ecx]
                != [u32::from_le_bytes(*b"Genu"), u32::from_le_bytes(*b"ineI"), u32::from_le_bytes(*b"ntel")]
            {
                return Product::Convolution;
            }
        }
        Product::Matrix
    }
}

/// A norm, ReLU and 1x1 convolution as clamp and product.
struct Folded {
    low: Tensor,
    high: Tensor,
    /// The ReLU is open where `side x + edge > 0`: -1, 0 or 1 a channel, and the knee times -`side`.
    side: Tensor,
    edge: Tensor,
    /// [in, out], or as a convolution's, [out, in, 1, 1].
    weight: Tensor,
    bias: Tensor,
}

impl Folded {
    fn prepare(mut self, by: Product) -> Result<Self> {
        if by == Product::Convolution {
            self.weight = self.weight.f_transpose(0, 1)?.f_contiguous()?.f_unsqueeze(2)?.f_unsqueeze(3)?;
        }
        Ok(self)
    }

    /// Of values [n, h, w, in], clamped: [n, out, h, w], channels last in memory.
    fn product(&self, z: &Tensor, by: Product) -> Result<Tensor> {
        let [n, h, w, channels]: [i64; 4] =
            z.size().try_into().map_err(|s| Error::invalid(format!("features of shape {s:?}")))?;
        match by {
            Product::Convolution => {
                let z = z.f_permute([0, 3, 1, 2])?;
                Ok(z.f_conv2d(&self.weight, Some(&self.bias), [1], [0], [1], 1)?)
            }
            Product::Matrix => {
                let z = self.bias.f_addmm(&z.f_reshape([-1, channels])?, &self.weight)?;
                Ok(z.f_reshape([n, h, w, -1])?.f_permute([0, 3, 1, 2])?)
            }
        }
    }

    /// The backward pass of [`Folded::product`]: of a gradient [n, out, h, w], channels last, that of the clamped values
    /// [n, h, w, in].
    fn product_backward(&self, grad: &Tensor, by: Product) -> Result<Tensor> {
        match by {
            Product::Convolution => {
                let weight = self.weight.f_transpose(0, 1)?.f_contiguous()?;
                let grad = grad.f_conv2d(&weight, None::<&Tensor>, [1], [0], [1], 1)?;
                Ok(grad.f_permute([0, 2, 3, 1])?)
            }
            Product::Matrix => {
                let [n, out, h, w]: [i64; 4] =
                    grad.size().try_into().map_err(|s| Error::invalid(format!("a gradient of shape {s:?}")))?;
                let rows = grad.f_permute([0, 2, 3, 1])?.f_reshape([-1, out])?;
                Ok(rows.f_mm(&self.weight.f_transpose(0, 1)?)?.f_reshape([n, h, w, -1])?)
            }
        }
    }

    /// A gradient [n, h, w, in] where the ReLU of these values is open, elsewhere 0.
    fn relu_backward(&self, values: &Tensor, grad: &Tensor) -> Result<Tensor> {
        Ok(self.edge.f_addcmul(values, &self.side)?.f_threshold_backward(grad, 0.0)?)
    }
}

/// What a run saves for the backward pass; of the stem and of each block, for some images after the other.
#[derive(Default)]
pub struct Saved {
    /// Of the images' [h, w].
    size: [i64; 2],
    /// After the first ReLU, and where its maxima were.
    stem: Vec<(Tensor, Tensor)>,
    /// A block's buffer [n, h, w, width], and of each layer the values between its convolutions.
    blocks: Vec<Vec<(Tensor, Vec<Tensor>)>>,
}

/// Bytes of values that a stage works on at a time. Measured with DenseNet121 of 224 px on a CPU with 1 MiB of second-level
/// cache a core and 32 MiB of third: 6 to 8 MiB were best; all of 16 images at once took 1.1 times as long, of 32 1.3 times.
const CACHED: usize = 13 << 19;

/// One behind the other along the first dimension.
fn joined(mut parts: Vec<Tensor>) -> Result<Tensor> {
    match (parts.len(), parts.pop()) {
        (1, Some(only)) => Ok(only),
        (_, last) => Ok(Tensor::f_cat(&parts.into_iter().chain(last).collect::<Vec<_>>(), 0)?),
    }
}

struct Layer {
    reduce: Folded,
    /// The 3x3 convolution, channels last.
    conv: Tensor,
}

/// The folded trunk of one set of parameters.
pub struct Trunk {
    conv0: Tensor,
    bias0: Tensor,
    blocks: Vec<(Vec<Layer>, Option<Folded>)>,
    scale5: Tensor,
    shift5: Tensor,
    growth: i64,
    by: Product,
    /// [`CACHED`].
    pub cached: usize,
}

fn channels_last(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?)
}

/// A batch norm in inference as `scale * x + shift`.
fn norm(p: &Parameters, name: &str) -> Result<(Tensor, Tensor)> {
    let get = |leaf: &str| p.get(&format!("{name}.{leaf}"));
    let scale = get("weight")?.f_div(&get("running_var")?.f_add_scalar(EPS)?.f_sqrt()?)?;
    let shift = get("bias")?.f_sub(&get("running_mean")?.f_mul(&scale)?)?;
    Ok((scale, shift))
}

/// Folds `conv(relu(norm(x)))` for a 1x1 convolution.
fn fold(p: &Parameters, norm_name: &str, conv_name: &str) -> Result<Folded> {
    let (scale, shift) = norm(p, norm_name)?;
    let weight = p.get(&format!("{conv_name}.weight"))?.f_flatten(1, -1)?;
    let zero = scale.f_eq(0.0)?;
    let safe = scale.f_masked_fill(&zero, 1.0)?;
    let knee = shift.f_div(&safe)?.f_neg()?;
    let nothing = shift.f_zeros_like()?;
    let low = knee.f_where_self(&scale.f_gt(0.0)?, &nothing.f_sub_scalar(f64::INFINITY)?)?;
    let high = nothing.f_add_scalar(f64::INFINITY)?.f_where_self(&scale.f_gt(0.0)?, &knee)?;
    // Where the scale is 0 the input does not matter: clamp to 0 and keep relu(shift).
    let low = low.f_masked_fill(&zero, 0.0)?;
    let high = high.f_masked_fill(&zero, 0.0)?;
    let shift = shift.f_relu()?.f_where_self(&zero, &shift)?;
    let side = scale.f_sign()?;
    let edge = knee.f_mul(&side)?.f_neg()?;
    let bias = weight.f_mv(&shift)?;
    let weight = weight.f_mul(&scale)?.f_transpose(0, 1)?.f_contiguous()?;
    Ok(Folded { low, high, side, edge, weight, bias })
}

impl Trunk {
    pub fn new(config: &Config, p: &Parameters, by: Product) -> Result<Self> {
        let _off = lightbox_sdk::tch::no_grad_guard();
        let (scale0, bias0) = norm(p, "features.norm0")?;
        let conv0 = p.get("features.conv0.weight")?.f_mul(&scale0.f_reshape([-1, 1, 1, 1])?)?;
        let mut blocks = Vec::new();
        for (i, &layers) in config.blocks.iter().enumerate() {
            let block = i + 1;
            let mut list = Vec::new();
            for layer in 1..=layers {
                let name = format!("features.denseblock{block}.denselayer{layer}");
                let mut reduce = fold(p, &format!("{name}.norm1"), &format!("{name}.conv1"))?;
                let (scale, shift) = norm(p, &format!("{name}.norm2"))?;
                reduce.weight = reduce.weight.f_mul(&scale)?;
                reduce.bias = reduce.bias.f_mul(&scale)?.f_add(&shift)?;
                let conv = channels_last(p.get(&format!("{name}.conv2.weight"))?)?;
                list.push(Layer { reduce: reduce.prepare(by)?, conv });
            }
            let transition = (block < config.blocks.len())
                .then(|| {
                    let name = format!("features.transition{block}");
                    fold(p, &format!("{name}.norm"), &format!("{name}.conv"))?.prepare(by)
                })
                .transpose()?;
            blocks.push((list, transition));
        }
        let (scale5, shift5) = norm(p, "features.norm5")?;
        Ok(Trunk {
            conv0: channels_last(&conv0)?,
            bias0,
            blocks,
            scale5,
            shift5,
            growth: config.growth,
            by,
            cached: CACHED,
        })
    }

    /// The same in another type, but for the last norm: what explainers read is float32.
    pub fn cast(&self, kind: Kind) -> Result<Self> {
        let fold = |f: &Folded| -> Result<Folded> {
            let cast = |t: &Tensor| t.f_to_kind(kind);
            Ok(Folded {
                low: cast(&f.low)?,
                high: cast(&f.high)?,
                side: cast(&f.side)?,
                edge: cast(&f.edge)?,
                weight: cast(&f.weight)?,
                bias: cast(&f.bias)?,
            })
        };
        let mut blocks = Vec::new();
        for (layers, transition) in &self.blocks {
            let layer = |l: &Layer| Ok(Layer { reduce: fold(&l.reduce)?, conv: l.conv.f_to_kind(kind)? });
            let layers = layers.iter().map(layer).collect::<Result<_>>()?;
            blocks.push((layers, transition.as_ref().map(fold).transpose()?));
        }
        let (scale5, shift5) = (self.scale5.shallow_clone(), self.shift5.shallow_clone());
        let (conv0, bias0) = (self.conv0.f_to_kind(kind)?, self.bias0.f_to_kind(kind)?);
        Ok(Trunk { conv0, bias0, blocks, scale5, shift5, growth: self.growth, by: self.by, cached: self.cached })
    }

    /// `features.norm5` of images [B, 3, H, W]: [B, C, h, w], channels last in memory. With `saved`, [`Trunk::backward`] can follow.
    pub fn run(&self, images: &Tensor, mut saved: Option<&mut Saved>) -> Result<Tensor> {
        let size = images.size();
        if let Some(saved) = &mut saved {
            saved.size = [size[2], size[3]];
        }
        let values = self.conv0.size()[0] * ((size[2] + 1) / 2) * ((size[3] + 1) / 2);
        let mut x = self.staged(images, values, |x| self.stem(x, saved.as_deref_mut()))?;
        for (layers, transition) in &self.blocks {
            if let Some(saved) = &mut saved {
                saved.blocks.push(vec![]);
            }
            let size = x.size();
            let values = (size[1] + layers.len() as i64 * self.growth) * size[2] * size[3];
            x = self.staged(&x, values, |x| self.block(x, layers, transition.as_ref(), saved.as_deref_mut()))?;
        }
        Ok(x)
    }

    /// Calls `stage` on some images of `x` [n, c, h, w] after the other, of each of which it works on so many values, and puts
    /// what it gives, channels last, together.
    fn staged(&self, x: &Tensor, values: i64, mut stage: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let (n, bytes) = (x.size()[0], values as usize * x.f_kind()?.elt_size_in_bytes());
        let most = (self.cached / bytes.max(1)).max(1) as i64;
        // Parts of about one size.
        let (parts, mut done) = (((n + most - 1) / most).max(1), Vec::new());
        for part in 0..parts {
            let (start, end) = (part * n / parts, (part + 1) * n / parts);
            done.push(stage(&x.f_narrow(0, start, end - start)?)?.f_permute([0, 2, 3, 1])?);
        }
        Ok(joined(done)?.f_permute([0, 3, 1, 2])?)
    }

    /// To the first pooling.
    fn stem(&self, images: &Tensor, saved: Option<&mut Saved>) -> Result<Tensor> {
        let x = channels_last(images)?.f_conv2d(&self.conv0, Some(&self.bias0), [2], [3], [1], 1)?.f_relu_()?;
        let Some(saved) = saved else { return Ok(x.f_max_pool2d([3], [2], [1], [1], false)?) };
        let (most, places) = x.f_max_pool2d_with_indices([3], [2], [1], [1], false)?;
        saved.stem.push((x, places));
        Ok(most)
    }

    /// A dense block and its transition, or the last norm.
    fn block(
        &self,
        x: &Tensor,
        layers: &[Layer],
        transition: Option<&Folded>,
        saved: Option<&mut Saved>,
    ) -> Result<Tensor> {
        let [n, mut channels, h, w]: [i64; 4] =
            x.size().try_into().map_err(|s| Error::invalid(format!("features of shape {s:?}")))?;
        let width = channels + layers.len() as i64 * self.growth;
        let buffer = Tensor::f_empty([n, h, w, width], (x.f_kind()?, Device::Cpu))?;
        buffer.f_narrow(3, 0, channels)?.f_copy_(&x.f_permute([0, 2, 3, 1])?)?;
        let mut between = Vec::new();
        for layer in layers {
            let fold = &layer.reduce;
            let z = buffer.f_narrow(3, 0, channels)?.f_clamp_tensor(Some(&fold.low), Some(&fold.high))?;
            let z = fold.product(&z, self.by)?.f_relu_()?;
            let y = z.f_conv2d(&layer.conv, None::<&Tensor>, [1], [1], [1], 1)?;
            buffer.f_narrow(3, channels, self.growth)?.f_copy_(&y.f_permute([0, 2, 3, 1])?)?;
            channels += self.growth;
            if saved.is_some() {
                between.push(z);
            }
        }
        if let Some(parts) = saved.and_then(|saved| saved.blocks.last_mut()) {
            parts.push((buffer.shallow_clone(), between));
        }
        match transition {
            Some(fold) => {
                let z = buffer.f_clamp_tensor(Some(&fold.low), Some(&fold.high))?;
                let z = z.f_permute([0, 3, 1, 2])?.f_avg_pool2d([2], [2], [0], false, true, None::<i64>)?;
                fold.product(&z.f_permute([0, 2, 3, 1])?, self.by)
            }
            None => {
                let z = self.shift5.f_addcmul(&buffer.f_to_kind(Kind::Float)?, &self.scale5)?;
                Ok(z.f_permute([0, 3, 1, 2])?)
            }
        }
    }

    /// The gradient at the images [B, 3, H, W] of what has the gradient `grad` at `features.norm5`, [B, C, h, w].
    pub fn backward(&self, saved: &Saved, grad: &Tensor) -> Result<Tensor> {
        let first = saved.stem.first().ok_or_else(|| Error::invalid("the trunk was run without saving its values"))?;
        // Of the value that a block begins with or the next one does, [n, h, w, c].
        let mut grad = grad.f_permute([0, 2, 3, 1])?.f_mul(&self.scale5)?.f_to_kind(first.0.f_kind()?)?;
        for ((layers, transition), parts) in self.blocks.iter().zip(&saved.blocks).rev() {
            let (mut done, mut start) = (Vec::new(), 0);
            for (buffer, between) in parts {
                let n = buffer.size()[0];
                let part = grad.f_narrow(0, start, n)?;
                done.push(self.block_backward(layers, transition.as_ref(), buffer, between, &part)?);
                start += n;
            }
            grad = joined(done)?;
        }
        let (mut done, mut start) = (Vec::new(), 0);
        for (first, places) in &saved.stem {
            let n = first.size()[0];
            let part = channels_last(&grad.f_narrow(0, start, n)?.f_permute([0, 3, 1, 2])?)?;
            start += n;
            let part = first.f_max_pool2d_with_indices_backward(&part, [3], [2], [1], [1], false, places)?;
            let part = first.f_threshold_backward(&part, 0.0)?;
            // What a convolution of stride 2 leaves over at the end of each side.
            let rest = |size: i64, out: i64| size - ((out - 1) * 2 - 6 + 7);
            let (size, out) = (saved.size, first.size());
            let rest = [rest(size[0], out[2]), rest(size[1], out[3])];
            done.push(part.f_conv_transpose2d(&self.conv0, None::<&Tensor>, [2], [3], rest, 1, [1])?);
        }
        joined(done)
    }

    /// Of a block's part: from the gradient at what comes after it that at what it begins with, [n, h, w, c].
    fn block_backward(
        &self,
        layers: &[Layer],
        transition: Option<&Folded>,
        buffer: &Tensor,
        between: &[Tensor],
        grad: &Tensor,
    ) -> Result<Tensor> {
        let all = match transition {
            Some(fold) => {
                let pooled = fold.product_backward(&grad.f_permute([0, 3, 1, 2])?, self.by)?.f_permute([0, 3, 1, 2])?;
                let shaped = buffer.f_permute([0, 3, 1, 2])?;
                let spread = shaped.f_avg_pool2d_backward(&pooled, [2], [2], [0], false, true, None::<i64>)?;
                fold.relu_backward(buffer, &spread.f_permute([0, 2, 3, 1])?)?
            }
            None => grad.f_contiguous()?,
        };
        let mut channels = buffer.size()[3];
        for (layer, z) in layers.iter().zip(between).rev() {
            channels -= self.growth;
            let y = all.f_narrow(3, channels, self.growth)?.f_contiguous()?.f_permute([0, 3, 1, 2])?;
            let weight = layer.conv.f_flip([2, 3])?.f_transpose(0, 1)?;
            let back = y.f_conv2d(&channels_last(&weight)?, None::<&Tensor>, [1], [1], [1], 1)?;
            let back = layer.reduce.product_backward(&z.f_threshold_backward(&back, 0.0)?, self.by)?;
            let back = layer.reduce.relu_backward(&buffer.f_narrow(3, 0, channels)?, &back)?;
            let _ = all.f_narrow(3, 0, channels)?.f_add_(&back)?;
        }
        Ok(all.f_narrow(3, 0, channels)?)
    }
}
