//! The names that Hugging Face's transformers gives the same network (`ViTForImageClassification`,
//! `DeiTForImageClassification`, `DeiTForImageClassificationWithTeacher`): query, key and value are three layers there, of which
//! timm has one, in this order.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use std::collections::BTreeMap;

/// What comes before the number of a block.
const LAYERS: &str = "encoder.layer.";

/// Names in a block: theirs, timm's.
const BLOCK: [(&str, &str); 5] = [
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("attention.output.dense.", "attn.proj."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
];

/// Names outside of blocks, behind the prefix: theirs, timm's.
const OTHERS: [(&str, &str); 8] = [
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.distillation_token", "dist_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("layernorm.", "norm."),
    ("classifier.", "head."),
    ("cls_classifier.", "head."),
    ("distillation_classifier.", "head_dist."),
];

/// Parameters under timm's names, if they are under Hugging Face's; otherwise as they are.
pub fn renamed(parameters: Named) -> Result<Named> {
    let query = "0.attention.attention.query.weight";
    let prefix = parameters.iter().find_map(|(name, _)| name.strip_suffix(&format!("{LAYERS}{query}")));
    let Some(prefix) = prefix.map(str::to_string) else { return Ok(parameters) };
    let mut all = Named::new();
    // By name of the one layer: query, key and value.
    let mut parts: BTreeMap<String, [Option<Array>; 3]> = BTreeMap::new();
    for (name, array) in parameters {
        // A head stands beside the network that has the prefix.
        let own = name.strip_prefix(&prefix).unwrap_or(&name);
        let Some((number, rest)) = own.strip_prefix(LAYERS).and_then(|rest| rest.split_once('.')) else {
            let found = OTHERS.iter().find_map(|(from, to)| Some(format!("{to}{}", own.strip_prefix(from)?)));
            all.push((found.unwrap_or(name), array));
            continue;
        };
        let part = |(i, part): (usize, &str)| Some((i, rest.strip_prefix(&format!("attention.attention.{part}."))?));
        if let Some((i, last)) = ["query", "key", "value"].into_iter().enumerate().find_map(part) {
            parts.entry(format!("blocks.{number}.attn.qkv.{last}")).or_default()[i] = Some(array);
            continue;
        }
        let found = BLOCK.iter().find_map(|(from, to)| Some(format!("{to}{}", rest.strip_prefix(from)?)));
        let found = found.map(|rest| format!("blocks.{number}.{rest}"));
        all.push((found.unwrap_or(name), array));
    }
    for (name, arrays) in parts {
        let tensors: Vec<Tensor> = arrays.iter().flatten().map(Array::share_tensor).collect::<Result<_>>()?;
        if tensors.len() < 3 {
            return Err(Error::invalid(format!("{name}: query, key or value is missing")));
        }
        all.push((name, Array::from_tensor(&Tensor::f_cat(&tensors, 0)?)?));
    }
    Ok(all)
}
