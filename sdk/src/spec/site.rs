//! Sites: places in a model where a value can be read, replaced or differentiated, with the role that each plays.

use super::ModelSpec;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The part of an attention that a site holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionPart {
    /// Softmaxed weights, [B, heads, queries, keys].
    Weights,
    /// Scaled products of queries and keys before the softmax, [B, heads, queries, keys].
    Logits,
    /// Queries, [B, heads, queries, channels of a head].
    Query,
    /// Keys, [B, heads, keys, channels of a head].
    Key,
    /// Values, [B, heads, keys, channels of a head].
    Value,
    /// What the attention adds to the tokens after its projection, [B, tokens, channels].
    Output,
}

/// What a site holds. Methods look for roles, not for names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The images.
    Input,
    /// A feature map.
    Feature,
    /// Tokens; the last ones of a block are its residual stream.
    Tokens,
    /// Tokens as they enter the first block: patches, positions and prefix tokens together.
    Embedding,
    /// A part of an attention.
    Attention(AttentionPart),
    /// The features of the whole image that the head reads.
    Pooled,
    /// The logits.
    Logits,
    /// What a layer adds whatever its input, at every place: its gradient is that of the bias there.
    Bias,
    /// Of a newer SDK, or none of these.
    #[serde(other)]
    Other,
}

/// The meaning of one dimension of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Axis {
    /// Images.
    Batch,
    /// Channels.
    Channel,
    /// The first spatial axis of a volume.
    Depth,
    /// Rows.
    Height,
    /// Columns.
    Width,
    /// Tokens, those of the prefix first.
    Token,
    /// Heads of an attention.
    Head,
    /// Tokens that ask.
    Query,
    /// Tokens that are asked.
    Key,
    /// Classes.
    Class,
    /// Candidates of a detector.
    Candidate,
    /// Numbers of a candidate: its box, then a logit a class.
    Value,
    /// Of a newer SDK, or none of these.
    #[serde(other)]
    Other,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Axis {
    /// The spatial axes of a grid of so many dimensions: height and width, with depth before them in a volume.
    pub fn spatial(dimensions: usize) -> Vec<Axis> {
        match dimensions {
            1 => vec![Axis::Width],
            2 => vec![Axis::Height, Axis::Width],
            3 => vec![Axis::Depth, Axis::Height, Axis::Width],
            n => vec![Axis::Other; n],
        }
    }

    /// The letter that docs and lists use: `B C D H W` of a volume's feature map.
    pub fn letter(self) -> &'static str {
        match self {
            Axis::Batch => "B",
            Axis::Channel => "C",
            Axis::Depth => "D",
            Axis::Height => "H",
            Axis::Width => "W",
            Axis::Token => "N",
            Axis::Head => "heads",
            Axis::Query => "Q",
            Axis::Key => "K",
            Axis::Class => "classes",
            Axis::Candidate => "candidates",
            Axis::Value => "V",
            Axis::Other => "?",
        }
    }
}

/// Axes as docs and lists write them: `B C H W`.
pub fn axes_text(axes: &[Axis]) -> String {
    axes.iter().map(|a| a.letter()).collect::<Vec<_>>().join(" ")
}

/// A named place in a model where a value can be read, replaced or differentiated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Site {
    /// The checkpoint's own name of the module whose output this is, where it has one.
    pub name: String,
    /// What it holds.
    pub role: Role,
    /// The meaning of its dimensions.
    pub axes: Vec<Axis>,
    /// Channels, or heads of an attention's weights.
    pub channels: usize,
    /// Sizes of the feature map or token grid at the default input size, one a spatial axis; empty where there is none.
    #[serde(default)]
    pub grid: Vec<usize>,
    /// Roles of the tokens before the grid's: `cls`, `dist`.
    #[serde(default)]
    pub prefix: Vec<String>,
    /// Which of the network's repeated blocks it is in or the end of, counted in their order.
    #[serde(default)]
    pub block: Option<usize>,
    /// Attention only: whose the queries are. `tokens` (every token, prefix first), `cls` (one class token) or
    /// `per-class` (one token a class).
    #[serde(default)]
    pub query: String,
    /// The parameter whose product with its input this is, by the checkpoint's name; empty where there is none.
    #[serde(default)]
    pub weight: String,
    /// Tokens of a window, where this is a module whose attention is among those of one window; 0 elsewhere.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub window: usize,
    /// A run may begin here with given values: [`Request::start`](crate::Request::start).
    #[serde(default)]
    pub start: bool,
    /// For people.
    #[serde(default)]
    pub text: String,
}

impl Site {
    /// A feature map, [B, channels, grid...].
    pub fn feature(name: impl Into<String>, channels: usize, grid: impl AsRef<[usize]>) -> Self {
        let grid = grid.as_ref().to_vec();
        let axes = [vec![Axis::Batch, Axis::Channel], Axis::spatial(grid.len())].concat();
        Site {
            name: name.into(),
            role: Role::Feature,
            axes,
            channels,
            grid,
            prefix: Vec::new(),
            block: None,
            query: String::new(),
            weight: String::new(),
            window: 0,
            start: false,
            text: String::new(),
        }
    }

    /// The images, [B, channels, size...].
    pub fn input(channels: usize, size: impl AsRef<[usize]>) -> Self {
        Site::feature("input", channels, size).role(Role::Input).text("the normalised images")
    }

    /// A vector an image, [B, channels].
    pub fn vector(name: impl Into<String>, role: Role, channels: usize) -> Self {
        let axis = if role == Role::Logits { Axis::Class } else { Axis::Channel };
        Site { role, axes: vec![Axis::Batch, axis], grid: vec![], ..Site::feature(name, channels, []) }
    }

    /// Tokens, [B, prefix + grid, channels].
    pub fn tokens(name: impl Into<String>, channels: usize, grid: impl AsRef<[usize]>, prefix: &[&str]) -> Self {
        let prefix = prefix.iter().map(|p| p.to_string()).collect();
        let axes = vec![Axis::Batch, Axis::Token, Axis::Channel];
        Site { role: Role::Tokens, axes, prefix, ..Site::feature(name, channels, grid) }
    }

    /// Attention weights, [B, heads, queries, prefix + grid]; see [`Site::query`].
    pub fn attention(
        name: impl Into<String>,
        heads: usize,
        grid: impl AsRef<[usize]>,
        prefix: &[&str],
        query: &str,
    ) -> Self {
        let axes = vec![Axis::Batch, Axis::Head, Axis::Query, Axis::Key];
        let role = Role::Attention(AttentionPart::Weights);
        Site { role, axes, query: query.into(), ..Site::tokens(name, heads, grid, prefix) }
    }

    /// The same in another role.
    pub fn role(self, role: Role) -> Self {
        Site { role, ..self }
    }

    /// The same in a block.
    pub fn block(self, block: usize) -> Self {
        Site { block: Some(block), ..self }
    }

    /// The same with the parameter that makes it.
    pub fn weight(self, parameter: &str) -> Self {
        Site { weight: parameter.into(), ..self }
    }

    /// The same with a text for people.
    pub fn text(self, text: &str) -> Self {
        Site { text: text.into(), ..self }
    }

    /// A run may begin here.
    pub fn start(self) -> Self {
        Site { start: true, ..self }
    }

    /// A feature map: batch, channels, and a grid of spatial axes.
    pub fn is_map(&self) -> bool {
        self.axes.starts_with(&[Axis::Batch, Axis::Channel])
            && !self.grid.is_empty()
            && self.axes.len() == 2 + self.grid.len()
    }

    /// Tokens that lie on a grid.
    pub fn is_tokens(&self) -> bool {
        self.axes == [Axis::Batch, Axis::Token, Axis::Channel] && !self.grid.is_empty()
    }

    /// A feature map or tokens on a grid: what a class activation map can be made of.
    pub fn has_grid(&self) -> bool {
        self.is_map() || self.is_tokens()
    }

    /// Softmaxed attention weights over a grid.
    pub fn is_attention(&self) -> bool {
        self.role == Role::Attention(AttentionPart::Weights) && !self.grid.is_empty()
    }

    /// The number of places of the grid.
    pub fn places(&self) -> usize {
        self.grid.iter().product()
    }

    /// The role and what else there is to know, for lists: `attention weights`.
    pub fn role_text(&self) -> String {
        match serde_json::to_value(self.role) {
            Ok(serde_json::Value::String(name)) => name,
            Ok(serde_json::Value::Object(parts)) => {
                let part = |(k, v): (&String, &serde_json::Value)| format!("{k} {}", v.as_str().unwrap_or_default());
                parts.iter().map(part).collect()
            }
            _ => String::new(),
        }
    }
}

/// The attention of one block with what belongs to it, as [`ModelSpec::attention_blocks`] finds it.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionBlock {
    /// The block's number; `None` for an attention that stands in no block.
    pub block: Option<usize>,
    /// Softmaxed weights.
    pub weights: Site,
    /// Before the softmax.
    pub logits: Option<Site>,
    /// Queries.
    pub query: Option<Site>,
    /// Keys.
    pub key: Option<Site>,
    /// Values.
    pub value: Option<Site>,
    /// What the attention adds, after its projection; its `weight` is the projection's parameter.
    pub output: Option<Site>,
    /// The tokens that enter the block: the end of the block before, or the embedding.
    pub input: Option<Site>,
    /// The tokens that leave it.
    pub end: Option<Site>,
}

impl AttentionBlock {
    /// A site of the block; an error that names what the model lacks.
    pub fn require(site: &Option<Site>, what: &str) -> Result<Site> {
        site.clone().ok_or_else(|| Error::unsupported(format!("an attention block has no site for its {what}")))
    }
}

impl ModelSpec {
    /// The attentions over a grid, in their order, each with the sites that belong to it.
    pub fn attention_blocks(&self) -> Vec<AttentionBlock> {
        // The residual stream at each block's end: its last tokens.
        let mut ends: BTreeMap<usize, usize> = BTreeMap::new();
        for (at, site) in self.sites.iter().enumerate().filter(|(_, s)| s.role == Role::Tokens) {
            ends.extend(site.block.map(|block| (block, at)));
        }
        let end_of = |block: Option<usize>| block.and_then(|block| ends.get(&block)).copied();
        let of = |(at, weights): (usize, &Site)| {
            let part = |part| {
                let mine = |s: &&Site| s.role == Role::Attention(part) && s.block == weights.block;
                self.sites.iter().find(mine).cloned()
            };
            // The last stream before this block's own sites.
            let enters = |at: &usize| match self.sites[*at].role {
                Role::Embedding => true,
                Role::Tokens => {
                    let block = self.sites[*at].block;
                    block != weights.block && end_of(block).is_none_or(|end| end == *at)
                }
                _ => false,
            };
            AttentionBlock {
                block: weights.block,
                logits: part(AttentionPart::Logits),
                query: part(AttentionPart::Query),
                key: part(AttentionPart::Key),
                value: part(AttentionPart::Value),
                output: part(AttentionPart::Output),
                input: (0..at).rfind(enters).map(|at| self.sites[at].clone()),
                end: end_of(weights.block).map(|at| self.sites[at].clone()),
                weights: weights.clone(),
            }
        };
        self.sites.iter().enumerate().filter(|(_, s)| s.is_attention()).map(of).collect()
    }

    /// Why a method on attention does not apply to a model without [`ModelSpec::attention_blocks`].
    pub fn without_attention(&self) -> String {
        match self.sites.iter().map(|s| s.window).find(|w| *w > 0) {
            Some(window) => format!(
                "{} has no attention over the whole image: a token asks the {window} of its window alone",
                self.name
            ),
            None => format!("{} has no attention", self.name),
        }
    }

    /// The site of a role that a model has one of: its images, its embedded tokens, its logits.
    pub fn site_of(&self, role: Role) -> Option<&Site> {
        self.sites.iter().find(|s| s.role == role)
    }
}

#[cfg(feature = "tch")]
impl Site {
    /// A value of this site, feature map or tokens, as [B, C, grid...]: tokens lose their prefix.
    ///
    /// Errors: a site without a grid, a value of another shape.
    pub fn to_grid(&self, value: &tch::Tensor) -> Result<tch::Tensor> {
        let size = value.size();
        let wrong = || {
            let (name, axes) = (&self.name, axes_text(&self.axes));
            Error::invalid(format!("site {name} has shape {size:?}, expected {axes} over a grid of {:?}", self.grid))
        };
        if self.is_map() && size.len() == 2 + self.grid.len() {
            return Ok(value.shallow_clone());
        }
        if !self.is_tokens() || size.len() != 3 || size[1] < (self.prefix.len() + self.places()) as i64 {
            return Err(wrong());
        }
        let tokens = value.f_narrow(1, self.prefix.len() as i64, self.places() as i64)?;
        let mut shape = vec![size[0], size[2]];
        shape.extend(self.grid.iter().map(|n| *n as i64));
        Ok(tokens.f_transpose(1, 2)?.f_reshape(shape)?)
    }

    /// A number a token of the grid, [B, prefix + grid], as [B, grid...].
    pub fn tokens_to_grid(&self, values: &tch::Tensor) -> Result<tch::Tensor> {
        if self.grid.is_empty() {
            return Err(Error::invalid(format!("site {} has no grid", self.name)));
        }
        let tokens = values.f_narrow(1, self.prefix.len() as i64, self.places() as i64)?;
        let mut shape = vec![values.size()[0]];
        shape.extend(self.grid.iter().map(|n| *n as i64));
        Ok(tokens.f_reshape(shape)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::InputSpec;

    #[test]
    fn blocks_are_found_by_role_whatever_the_names() {
        let grid = [2, 2];
        let attention =
            |name: &str, part| Site::attention(name, 3, grid, &["cls"], "tokens").role(Role::Attention(part));
        let tokens = |name: &str| Site::tokens(name, 8, grid, &["cls"]);
        let sites = vec![
            Site::input(3, [8, 8]),
            tokens("first").role(Role::Embedding),
            tokens("a.norm").block(0),
            attention("a.scores", AttentionPart::Logits).block(0),
            attention("a.softmax", AttentionPart::Weights).block(0),
            tokens("a.out").block(0),
            tokens("b.norm").block(1),
            attention("b.softmax", AttentionPart::Weights).block(1),
            tokens("b.proj").role(Role::Attention(AttentionPart::Output)).weight("b.proj.weight").block(1),
            tokens("b.out").block(1),
        ];
        let model = ModelSpec { sites, ..ModelSpec::new("m", InputSpec::imagenet(8), 2) };
        let blocks = model.attention_blocks();
        let name = |s: &Option<Site>| s.as_ref().map(|s| s.name.clone()).unwrap_or_default();
        assert_eq!(blocks.len(), 2);
        assert_eq!((name(&blocks[0].input), name(&blocks[0].end)), ("first".into(), "a.out".into()));
        assert_eq!((name(&blocks[1].input), name(&blocks[1].end)), ("a.out".into(), "b.out".into()));
        assert_eq!((name(&blocks[0].logits), name(&blocks[1].logits)), ("a.scores".into(), String::new()));
        assert_eq!(blocks[1].output.as_ref().unwrap().weight, "b.proj.weight");
    }

    #[test]
    fn a_newer_plugins_words_are_read() {
        let text = r#"{"name":"x","role":"codebook","axes":["batch","tone"],"channels":3,"colour":"red"}"#;
        let site: Site = serde_json::from_str(text).unwrap();
        assert_eq!((site.role, site.axes[1]), (Role::Other, Axis::Other));
        assert_eq!(Site::attention("a", 1, [2], &[], "cls").role_text(), "attention weights");
    }

    #[cfg(feature = "tch")]
    #[test]
    fn tokens_and_maps_become_grids_of_any_dimensions() {
        use tch::{Device, IndexOp, Kind, Tensor};
        let site = Site::tokens("t", 3, [2, 2], &["cls"]);
        let tokens = Tensor::arange(30, (Kind::Float, Device::Cpu)).reshape([2, 5, 3]);
        let map = site.to_grid(&tokens).unwrap();
        assert_eq!(map.size(), [2, 3, 2, 2]);
        for (row, column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            assert_eq!(map.i((1, .., row, column)), tokens.i((1, 1 + row * 2 + column)));
        }
        let volume = Site::feature("v", 2, [3, 4, 5]);
        assert_eq!(axes_text(&volume.axes), "B C D H W");
        let value = Tensor::zeros([1, 2, 3, 4, 5], (Kind::Float, Device::Cpu));
        assert_eq!(volume.to_grid(&value).unwrap().size(), [1, 2, 3, 4, 5]);
        assert!(volume.to_grid(&tokens).unwrap_err().message.contains("expected B C D H W over a grid of [3, 4, 5]"));
    }
}
