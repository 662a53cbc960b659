//! What is known of a program once it is loaded, whatever its weights: what is constant, what can be folded, which rules it has.

use crate::program::{Id, Input, Node, Num, Program};
use crate::sites::Sites;
use lightbox_sdk::rules;
use std::collections::{BTreeSet, HashMap};

/// Operators that draw numbers: what hangs on weights alone is computed once, but not with these.
const DRAWS: [&str; 6] = ["rand", "bernoulli", "multinomial", "normal", "dropout", "exponential"];

/// What is known of a program once it is loaded, whatever its weights.
#[derive(Debug)]
pub struct Plan {
    pub program: Program,
    pub sites: Sites,
    /// Nodes that hang on weights alone.
    pub constant: Vec<bool>,
    /// The batch norm that follows a convolution and is its only reader: both nodes.
    pub folds: HashMap<usize, usize>,
    /// Products of a value with a gate: node, and which argument is the gate.
    pub gates: HashMap<usize, usize>,
    /// The convolution that reads the images.
    pub stem: Option<usize>,
}

impl Plan {
    /// Looks through a program.
    pub fn new(program: Program, sites: Sites) -> Self {
        let depends = &sites.depends;
        let draws = |n: &Node| DRAWS.iter().any(|word| n.target.contains(word));
        let mut random = vec![false; program.values.len()];
        let mut constant = Vec::with_capacity(program.nodes.len());
        for node in &program.nodes {
            let made = node.outputs.iter().flatten().chain(&node.writes);
            let is = made.clone().all(|id| !depends[*id])
                && !draws(node)
                && node.reads().all(|id| !random[id] && !depends[id]);
            if !is {
                made.for_each(|id| random[*id] = true);
            }
            constant.push(is);
        }
        let mut readers: HashMap<Id, usize> = HashMap::new();
        for node in &program.nodes {
            node.reads().for_each(|id| *readers.entry(id).or_default() += 1);
        }
        program.outputs.iter().for_each(|id| *readers.entry(*id).or_default() += 1);
        let weights: BTreeSet<Id> = program.weights.iter().map(|w| w.id).collect();
        let mut folds = HashMap::new();
        for (at, node) in program.nodes.iter().enumerate().filter(|(_, n)| n.target == "aten.batch_norm.default") {
            let Some(x) = node.value(0).filter(|id| readers.get(id) == Some(&1)) else { continue };
            let of_weights = (1..5).all(|i| node.value(i).is_some_and(|id| weights.contains(&id)));
            let maker =
                program.maker(x).filter(|n| is_convolution(&program.nodes[*n]) && program.nodes[*n].grad == node.grad);
            if let Some(maker) =
                maker.filter(|n| of_weights && program.nodes[*n].value(1).is_some_and(|id| weights.contains(&id)))
            {
                folds.insert(maker, at);
            }
        }
        let reads_images = |n: &Node| is_convolution(n) && n.value(0) == Some(program.images);
        let stem = program.nodes.iter().position(reads_images);
        let gates = gates(&program, depends);
        Plan { constant, folds, gates, stem, program, sites }
    }

    /// The rules whose operators the program has.
    pub fn rules(&self) -> Vec<String> {
        let has = |names: &[&str]| self.program.nodes.iter().any(|n| names.contains(&n.operator()));
        let mut found: Vec<&str> = Vec::new();
        if has(&["aten.relu"]) {
            found.extend(rules::RELU);
        }
        if self.program.nodes.iter().any(|n| max_pool(n).is_some()) {
            found.extend(rules::POOL);
        }
        let convolutions = self.program.nodes.iter().any(is_convolution);
        if convolutions || has(&["aten.linear"]) {
            found.extend(rules::LINEAR);
        }
        if convolutions {
            found.extend(rules::CONV);
        }
        if self.stem.is_some() {
            found.extend(rules::INPUT);
        }
        if self.program.nodes.iter().any(is_activation) {
            found.push("activation:identity");
        }
        if self.program.nodes.iter().any(|n| last_norm(n).is_some()) {
            found.push("norm:detach");
        }
        let attentions = &self.sites.attentions;
        if !attentions.softmaxes.is_empty() || !attentions.fused.is_empty() {
            found.extend(["softmax:detach", "product:uniform"]);
        }
        if !attentions.projections.is_empty() {
            found.push("attention:detach");
        }
        if !self.gates.is_empty() {
            found.push("gate:detach");
        }
        found.iter().map(|r| r.to_string()).collect()
    }

    /// What training cannot bring back, as sentences.
    pub fn lost(&self) -> Vec<String> {
        let fused = self.sites.attentions.fused.len();
        let mut lost = vec![
            "when it is trained, stochastic depth stays out, if the network had any: the export left it out"
                .to_string(),
        ];
        if fused > 0 {
            lost.push(format!(
                "when it is trained, dropout inside its {fused} fused attentions stays as the export wrote it, off"
            ));
        }
        lost
    }
}

pub fn is_convolution(node: &Node) -> bool {
    // Not `aten.convolution` of decomposed programs: it may be a transposed one, whose weight lies the other way round.
    ["aten.conv1d", "aten.conv2d", "aten.conv3d"].contains(&node.operator())
}

pub fn is_activation(node: &Node) -> bool {
    ["aten.gelu", "aten.silu", "aten.hardswish", "aten.mish"].contains(&node.operator())
}

/// A layer norm over the last axis with weight and bias: its eps.
pub fn last_norm(node: &Node) -> Option<f64> {
    let over = matches!(node.inputs.get(1), Some(Input::Ints(all)) if all.len() == 1);
    let eps = match node.inputs.get(4) {
        Some(Input::Float(eps)) => *eps,
        _ => 1e-5,
    };
    let whole = node.value(2).is_some() && node.value(3).is_some();
    (node.operator() == "aten.layer_norm" && over && whole).then_some(eps)
}

/// A max pool of square windows without dilation: kernel, stride and padding.
pub fn max_pool(node: &Node) -> Option<(i64, i64, i64)> {
    let square = |at: usize, default: i64| match node.inputs.get(at) {
        Some(Input::Ints(all)) => {
            let numbers: Vec<i64> =
                all.iter().filter_map(|n| if let Num::Is(n) = n { Some(*n) } else { None }).collect();
            match numbers[..] {
                [] => Some(default),
                [n] => Some(n),
                [a, b] if a == b => Some(a),
                _ => None,
            }
        }
        Some(Input::Int(n)) => Some(*n),
        _ => Some(default),
    };
    if node.operator() != "aten.max_pool2d" || matches!(node.inputs.get(5), Some(Input::Bool(true))) {
        return None;
    }
    let kernel = square(1, 0)?;
    let (stride, padding) = (square(2, kernel)?, square(3, 0)?);
    (square(4, 1)? == 1 && kernel > 0).then_some((kernel, stride, padding))
}

/// Products of a value with what a sigmoid makes of another: the gate is the sigmoid's.
fn gates(program: &Program, depends: &[bool]) -> HashMap<usize, usize> {
    let gate = |id: Id| {
        program.maker(id).is_some_and(|n| ["aten.sigmoid", "aten.hardsigmoid"].contains(&program.nodes[n].operator()))
    };
    let mut found = HashMap::new();
    for (at, node) in program.nodes.iter().enumerate().filter(|(_, n)| n.target == "aten.mul.Tensor") {
        let (Some(a), Some(b)) = (node.value(0), node.value(1)) else { continue };
        if depends[a] && depends[b] {
            if gate(a) {
                found.insert(at, 0);
            } else if gate(b) {
                found.insert(at, 1);
            }
        }
    }
    found
}
