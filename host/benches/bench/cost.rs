//! What the models cost: operations and bytes of an image, counted from the shapes of their weights, and the share of this
//! machine's greatest rate that a forward pass reaches. The greatest rate is that of a product of two matrices of 2048 x 2048,
//! by MKL or oneDNN, whichever is faster here.
//!
//! Operations are two a multiplication and addition; norms and activations are left out. Bytes are those of activations read and
//! written, each by the operation that needs it, as if no cache held them, and the weights once a batch.

use crate::table::{Spread, Table};
use crate::{Bench, Result, images, timed};
use lightbox_core::checkpoint::State;
use std::fmt::Write as _;
use tch::{Device, Kind, Tensor};

/// GFLOP and MB of one image.
fn cost(model: &str, state: &State) -> (f64, f64) {
    let (mut operations, mut values) = (0.0, 0.0);
    for (name, weight) in state {
        let name = name.trim_start_matches("weights.");
        let shape = weight.size();
        if shape.len() < 2 || !name.ends_with(".weight") {
            continue;
        }
        let count = shape.iter().product::<i64>() as f64;
        let (out, inp) = (shape[0] as f64, shape[1] as f64);
        let number = |after: &str| name.split(after).nth(1).and_then(|r| r.split('.').next()?.parse::<u32>().ok());
        let side: f64 = match model {
            "densenet121" if name == "features.conv0.weight" => 112.0,
            "densenet121" if name.starts_with("classifier") => 1.0,
            // Pooled before its 1x1 convolution.
            "densenet121" if name.contains("transition") => 56.0 / f64::from(1 << number("transition").unwrap_or(1)),
            "densenet121" => 56.0 / f64::from(1 << (number("denseblock").unwrap_or(1) - 1)),
            _ if name.starts_with("head") => 1.0,
            "patchconvnet_s60" if name.starts_with("patch_embed.proj.") => {
                112.0 / f64::from(1 << (number("patch_embed.proj.").unwrap_or(0) / 2))
            }
            // One token's.
            "patchconvnet_s60"
                if name.contains("token_only") && !name.contains("attn.k") && !name.contains("attn.v") =>
            {
                1.0
            }
            "patchconvnet_s60" if name.contains("qkv_pos.4") => 1.0,
            "deit_small_patch16_224" if !name.starts_with("patch_embed") => 197f64.sqrt(),
            _ => 14.0,
        };
        let places = side * side;
        operations += 2.0 * count * places;
        values += match model {
            // Clamp, product, ReLU, 3x3, copy; the reader reads what the writer wrote.
            "densenet121" if name.contains("conv1") => places * (3.0 * inp + 3.0 * out),
            "densenet121" => places * (inp + 3.0 * out),
            _ => places * (inp + out),
        };
    }
    match model {
        "deit_small_patch16_224" => {
            let (tokens, dim, depth) = (197.0, 384.0, 12.0);
            operations += depth * 4.0 * tokens * tokens * dim;
            // Two norms, two sums, GELU, attention fused.
            values += depth * tokens * dim * (4.0 + 6.0 + 8.0 + 4.0);
        }
        "patchconvnet_s60" => values += 60.0 * 196.0 * 384.0 * (2.0 + 3.0 + 4.0 + 3.0),
        _ => {}
    }
    (operations / 1e9, values * 4.0 / 1e6)
}

/// GFLOP/s of a product of two matrices of 2048 x 2048, by MKL (cuBLAS) and as a 1x1 convolution by oneDNN (cuDNN).
fn peaks(device: Device) -> Result<[f64; 2]> {
    let n = 2048i64;
    let a = Tensor::f_randn([n, n], (Kind::Float, device))?;
    let b = Tensor::f_randn([n, n], (Kind::Float, device))?;
    let image = a.f_reshape([1, n, 1, n])?.f_permute([0, 3, 1, 2])?;
    let kernel = b.f_reshape([n, n, 1, 1])?;
    let mut best = [f64::INFINITY; 2];
    for _ in 0..5 {
        best[0] = best[0].min(timed(device, || Ok(a.f_matmul(&b)?))?.1);
        let convolved = || Ok(image.f_conv2d(&kernel, None::<&Tensor>, [1], [0], [1], 1)?);
        best[1] = best[1].min(timed(device, convolved)?.1);
    }
    Ok(best.map(|seconds| 2.0 * (n as f64).powi(3) / seconds / 1e9))
}

pub fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    let _off = tch::no_grad_guard();
    let batch = if bench.device == Device::Cpu { 8 } else { 128 };
    let x = images(batch, 224)?.to_device(bench.device);
    let mut text = format!(
        "| model, float32, {batch} images | GFLOP an image | MB an image | MB of weights | images a second | GFLOP/s | of a product, MKL | of a product, oneDNN | share of the greater |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    );
    for model in ["densenet121", "deit_small_patch16_224", "patchconvnet_s60"] {
        let (engine, state) = bench.engine(model, 0, &[])?;
        let (gflop, megabytes) = cost(model, &state);
        let weights = state.iter().map(|(_, t)| t.numel() as f64 * 4.0).sum::<f64>() / 1e6;
        let (mut times, mut mkl, mut onednn) = (vec![], vec![], vec![]);
        for round in 0..bench.rounds(7) + 1 {
            let (_, time) = timed(bench.device, || Ok(engine.classify(&x)?))?;
            if round > 0 {
                times.push(time / batch as f64);
                // In between: a machine's rate is not the same all the time.
                let rates = peaks(bench.device)?;
                mkl.push(rates[0]);
                onednn.push(rates[1]);
            }
        }
        let [time, mkl, onednn] = [&times, &mkl, &onednn].map(|v| Spread::of(v).median);
        let _ = writeln!(
            text,
            "| {model} | {gflop:.2} | {megabytes:.0} | {weights:.0} | {:.1} | {:.0} | {mkl:.0} | {onednn:.0} | {:.0} % |",
            1.0 / time,
            gflop / time,
            gflop / time / mkl.max(onednn) * 100.0
        );
    }
    table.text(text);
    Ok(())
}
