//! The attentions of a program: `scaled_dot_product_attention`, or spelled out as a product, a softmax and a product.

use crate::layout::Layout;
use crate::program::{Dim, Id, Node, Program};
use std::collections::{BTreeSet, HashMap};

/// An attention over tokens, [B, heads, tokens, channels of a head].
#[derive(Debug, Clone)]
pub struct Attention {
    /// The module that it is computed in.
    pub module: String,
    pub heads: usize,
    pub grid: Vec<usize>,
    pub prefix: usize,
    /// Channels of a head.
    pub channels: usize,
    pub query: Id,
    /// [B, heads, tokens, channels], before it is transposed.
    pub key: Option<Id>,
    pub value: Id,
    /// Spelled out: what the softmax reads and gives.
    pub spelled: Option<(Id, Id)>,
    /// The node whose last result is the attention's: the operator, or the second product.
    pub node: usize,
    /// The first node of it.
    pub first: usize,
}

/// A windowed attention: its module, and how many windows of how many tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Windows {
    pub module: String,
    pub tokens: usize,
}

/// All of a program.
#[derive(Debug, Default)]
pub struct Attentions {
    pub global: Vec<Attention>,
    pub windowed: Vec<Windows>,
    /// The softmax nodes and the products of spelled-out attentions, windowed ones too.
    pub softmaxes: Vec<usize>,
    pub products: Vec<usize>,
    /// `scaled_dot_product_attention` nodes, windowed ones too.
    pub fused: Vec<usize>,
    /// Linear maps that queries, keys and values are made by.
    pub projections: Vec<usize>,
}

/// Operators that move or scale values and change nothing else of what they are.
const MOVES: [&str; 20] = [
    "aten.view",
    "aten.reshape",
    "aten.permute",
    "aten.transpose",
    "aten.unbind",
    "aten.chunk",
    "aten.split",
    "aten.split_with_sizes",
    "aten.select",
    "aten.slice",
    "aten.squeeze",
    "aten.unsqueeze",
    "aten.unflatten",
    "aten.flatten",
    "aten.contiguous",
    "aten.clone",
    "aten.mul",
    "aten.div",
    "aten.dropout",
    "aten.expand",
];

/// Goes back from a value over operators that pass it on, to the node that makes it.
fn back<'p>(program: &'p Program, mut id: Id, over: &[&str]) -> Option<(usize, &'p Node)> {
    loop {
        let at = program.maker(id)?;
        let node = &program.nodes[at];
        if !over.contains(&node.operator()) {
            return Some((at, node));
        }
        id = node.value(0)?;
    }
}

/// Sizes of a value after its batch, where they are numbers; none where its first axis is not the batch.
fn sizes(program: &Program, id: Id) -> Option<Vec<usize>> {
    let (first, rest) = program.values[id].shape.as_ref()?.split_first()?;
    let rest = rest.iter().map(|d| if let Dim::Is(n) = d { Some(*n as usize) } else { None });
    if *first == Dim::Batch { rest.collect() } else { None }
}

/// Finds them.
pub fn attentions(program: &Program, layouts: &[Option<Layout>], depends: &[bool]) -> Attentions {
    let mut all = Attentions::default();
    for (at, node) in program.nodes.iter().enumerate() {
        let found = match node.operator() {
            "aten.scaled_dot_product_attention" => {
                all.fused.push(at);
                let (Some(query), Some(key), Some(value)) = (node.value(0), node.value(1), node.value(2)) else {
                    continue;
                };
                Some((at, query, Some(key), value, None))
            }
            "aten.matmul" | "aten.bmm" => spelled(program, depends, at, &mut all),
            _ => None,
        };
        let Some((first, query, key, value, spelled)) = found else { continue };
        let makers = [Some(query), key, Some(value)].into_iter().flatten().filter_map(|id| back(program, id, &MOVES));
        for (maker, node) in makers {
            if node.operator() == "aten.linear" && !all.projections.contains(&maker) {
                all.projections.push(maker);
            }
        }
        let module = node.modules.last().cloned().unwrap_or_default();
        let Some([heads, tokens, channels]) = sizes(program, query).and_then(|s| <[usize; 3]>::try_from(s).ok()) else {
            // [B x windows, heads, tokens, channels]: the tokens of a window.
            let tokens = program.values[query].shape.as_ref().and_then(|s| s.iter().rev().nth(1).copied());
            if let Some(Dim::Is(n)) = tokens {
                all.windowed.push(Windows { module, tokens: n as usize });
            }
            continue;
        };
        // The grid of the last tokens of this number.
        let before = program.nodes[..first].iter().rev().flat_map(|n| n.outputs.iter().flatten());
        let grid = before.filter_map(|id| layouts[*id].as_ref()).find_map(|layout| match layout {
            Layout::Tokens { grid, prefix } if grid.iter().product::<usize>() + prefix == tokens => {
                Some((grid.clone(), *prefix))
            }
            _ => None,
        });
        let Some((grid, prefix)) = grid else { continue };
        let node = at;
        all.global.push(Attention { module, heads, grid, prefix, channels, query, key, value, spelled, node, first });
    }
    all
}

/// What attentions add to the tokens: values that come from one over operators that move
/// axes, and a projection, [B, tokens, channels].
pub fn results(program: &Program, all: &Attentions) -> HashMap<Id, Layout> {
    let mut told = HashMap::new();
    for attention in &all.global {
        let tokens = attention.grid.iter().product::<usize>() + attention.prefix;
        let mut descends: BTreeSet<Id> = program.nodes[attention.node].outputs.iter().flatten().copied().collect();
        for node in &program.nodes[attention.node + 1..] {
            let keeps = MOVES.contains(&node.operator()) || node.operator() == "aten.linear";
            let moves = keeps && node.value(0).is_some_and(|id| descends.contains(&id));
            let Some(out) = node.outputs.first().copied().flatten().filter(|_| moves) else { continue };
            descends.insert(out);
            if sizes(program, out).is_some_and(|s| s.len() == 2 && s[0] == tokens) {
                told.insert(out, Layout::Tokens { grid: attention.grid.clone(), prefix: attention.prefix });
            }
        }
    }
    told
}

/// The second product of a spelled-out attention: the softmax of the first, times the values.
#[allow(clippy::type_complexity)]
fn spelled(
    program: &Program,
    depends: &[bool],
    at: usize,
    all: &mut Attentions,
) -> Option<(usize, Id, Option<Id>, Id, Option<(Id, Id)>)> {
    let node = &program.nodes[at];
    let (weights, value) = (node.value(0)?, node.value(1)?);
    let (softmax, softmax_node) =
        back(program, weights, &["aten.dropout", "aten.to", "aten.view", "aten.reshape", "aten.expand"])?;
    if softmax_node.operator() != "aten.softmax" || !depends[value] {
        return None;
    }
    let logits = softmax_node.value(0)?;
    // Between the product and the softmax: a scale, a bias, a mask.
    let passes =
        ["aten.mul", "aten.div", "aten.add", "aten.view", "aten.reshape", "aten.masked_fill", "aten.to", "aten.sub"];
    let (product, product_node) = back(program, logits, &passes)?;
    if !["aten.matmul", "aten.bmm"].contains(&product_node.operator()) {
        return None;
    }
    let (query, turned) = (product_node.value(0)?, product_node.value(1)?);
    if !depends[query] || !depends[turned] {
        return None;
    }
    all.softmaxes.push(softmax);
    all.products.extend([product, at]);
    let turning = program.maker(turned).map(|n| &program.nodes[n]).filter(|n| n.operator() == "aten.transpose");
    let key = turning.and_then(|n| n.value(0));
    let weights = softmax_node.outputs.first().copied().flatten()?;
    Some((product, query, key, value, Some((logits, weights))))
}
