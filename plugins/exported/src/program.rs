//! The program of an archive: nodes in the order in which they run, each an ATen operator of libtorch's dispatcher.
//!
//! Values are numbered; a name of the file that an operator in place gives a new meaning gets a new number, so that a site
//! keeps the value that its module gave. An operator in place becomes the plain one where that is possible; one that writes to a
//! view, or to what has views, runs as it is, and all values of that memory count as written to.
//!
//! Schema: torch/_export/serde/schema.py of PyTorch 2.11, major version 8.

mod build;

use lightbox_sdk::dispatch::Operator;
use lightbox_sdk::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// A value, by its place in [`Program::values`].
pub type Id = usize;

/// A size of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dim {
    /// A number.
    Is(i64),
    /// The batch's.
    Batch,
    /// One that hangs on the batch; what it was when the program was exported.
    Other(i64),
}

/// What is known of a value.
#[derive(Debug, Clone, Default)]
pub struct ValueInfo {
    /// Of the file.
    pub name: String,
    /// Sizes; none for what is no tensor.
    pub shape: Option<Vec<Dim>>,
    /// True for values of floating point.
    pub floats: bool,
}

/// A whole number of an argument.
#[derive(Debug, Clone, Copy)]
pub enum Num {
    Is(i64),
    Of(Id),
}

/// An argument of a node.
#[derive(Debug, Clone)]
pub enum Input {
    Default,
    None,
    Value(Id),
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Ints(Vec<Num>),
    Floats(Vec<f64>),
    Bools(Vec<i64>),
    Tensors(Vec<Option<Id>>),
    /// The model's device, whatever device the file names.
    Device,
}

/// What a node does.
#[derive(Debug)]
pub enum Call {
    Operator(Operator),
    /// Arithmetic of sizes, as `_operator.mul`.
    Sizes(String),
}

/// A step of the program.
#[derive(Debug)]
pub struct Node {
    /// `aten.conv2d.default`.
    pub target: String,
    pub call: Call,
    /// One an argument of the operator's schema.
    pub inputs: Vec<Input>,
    /// Results; of a list one an element.
    pub outputs: Vec<Option<Id>>,
    /// Paths of the modules that it is in, outermost first. A second call of a module has `@1` at its path's end.
    pub modules: Vec<String>,
    /// False inside `torch.no_grad()`.
    pub grad: bool,
    /// What writes to its argument instead, where the file says so and nobody reads that value any more.
    pub in_place: Option<(Id, Operator)>,
    /// Values whose memory it writes to.
    pub writes: Vec<Id>,
    /// The line of source that it comes from, for errors.
    pub line: String,
}

impl Node {
    /// The values that it reads.
    pub fn reads(&self) -> impl Iterator<Item = Id> + '_ {
        self.inputs.iter().flat_map(|input| -> Vec<Id> {
            match input {
                Input::Value(id) => vec![*id],
                Input::Ints(v) => v.iter().filter_map(|n| if let Num::Of(id) = n { Some(*id) } else { None }).collect(),
                Input::Tensors(v) => v.iter().flatten().copied().collect(),
                _ => vec![],
            }
        })
    }

    /// The operator without its overload: `aten.conv2d`.
    pub fn operator(&self) -> &str {
        self.target.rsplit_once('.').map_or(self.target.as_str(), |(name, _)| name)
    }

    /// The value that an argument is.
    pub fn value(&self, at: usize) -> Option<Id> {
        match self.inputs.get(at) {
            Some(Input::Value(id)) => Some(*id),
            _ => None,
        }
    }

    /// The argument of a name.
    pub fn argument(&self, name: &str) -> Option<&Input> {
        let Call::Operator(op) = &self.call else { return None };
        self.inputs.get(op.arguments.iter().position(|(n, _)| n == name)?)
    }

    /// Where it is, for errors.
    pub fn place(&self) -> String {
        let module = self.modules.last().filter(|m| !m.is_empty()).map_or("the network itself", String::as_str);
        let line = if self.line.is_empty() { String::new() } else { format!(" ({})", self.line) };
        format!("{} in {module}{line}", self.target)
    }
}

/// A parameter or buffer of the network.
#[derive(Debug, Clone)]
pub struct Weight {
    pub id: Id,
    /// The state dict's key.
    pub key: String,
    pub is_parameter: bool,
    /// In the state dict: a parameter, or a buffer that is kept.
    pub is_kept: bool,
}

/// A program, its weights apart.
#[derive(Debug)]
pub struct Program {
    pub values: Vec<ValueInfo>,
    pub nodes: Vec<Node>,
    pub weights: Vec<Weight>,
    /// Numbers that were inputs at the export.
    pub numbers: Vec<(Id, i64)>,
    pub images: Id,
    /// Results that are tensors; the first is explained.
    pub outputs: Vec<Id>,
    /// Values that are the batch's size, whatever they are computed from.
    pub batch: BTreeSet<Id>,
}

impl Program {
    /// The images' channels and the sizes of their spatial axes.
    pub fn input(&self) -> Result<(usize, Vec<usize>)> {
        let shape = self.values[self.images].shape.as_deref().unwrap_or_default();
        let sizes: Vec<usize> =
            shape.iter().filter_map(|d| if let Dim::Is(n) = d { Some(*n as usize) } else { None }).collect();
        match sizes.split_first() {
            Some((channels, size)) if !size.is_empty() => Ok((*channels, size.to_vec())),
            _ => Err(Error::unsupported("its input is no batch of images [B, C, H, W] or of volumes")),
        }
    }

    /// The node that makes a value.
    pub fn maker(&self, id: Id) -> Option<usize> {
        self.nodes.iter().position(|n| n.outputs.contains(&Some(id)))
    }

    /// Which values hang on the images.
    pub fn depends_on_images(&self) -> Vec<bool> {
        let mut depends = vec![false; self.values.len()];
        depends[self.images] = true;
        for id in &self.batch {
            depends[*id] = true;
        }
        for node in &self.nodes {
            if node.reads().any(|id| depends[id]) {
                node.outputs.iter().flatten().chain(&node.writes).for_each(|id| depends[*id] = true);
            }
        }
        depends
    }

    /// Which nodes are needed for `wanted`, where `given` are values that are there.
    pub fn needed(&self, wanted: &[Id], given: &BTreeSet<Id>) -> Vec<bool> {
        let mut values: BTreeSet<Id> = wanted.iter().copied().filter(|id| !given.contains(id)).collect();
        let mut nodes = vec![false; self.nodes.len()];
        for (n, node) in self.nodes.iter().enumerate().rev() {
            let mut made = node.outputs.iter().flatten().chain(&node.writes);
            if made.any(|id| values.contains(id)) {
                nodes[n] = true;
                values.extend(node.reads().filter(|id| !given.contains(id)));
            }
        }
        nodes
    }

    /// Why a run cannot begin at a value: the first operator that still reads the images.
    pub fn cannot_start(&self, site: Id) -> Option<&Node> {
        let given = BTreeSet::from([site]);
        let nodes = self.needed(&self.outputs, &given);
        let needs = |(n, node): &(usize, &Node)| nodes[*n] && node.reads().any(|id| id == self.images);
        self.nodes.iter().enumerate().find(needs).map(|(_, node)| node)
    }

    /// Names of the file's values, for those that ask for a node's output.
    pub fn named(&self) -> BTreeMap<&str, Id> {
        self.values.iter().enumerate().map(|(id, v)| (v.name.as_str(), id)).collect()
    }
}
