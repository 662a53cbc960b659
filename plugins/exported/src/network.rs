//! Runs a program: what a request needs of it, in order; a value is dropped when it has been read for the last time.

use crate::program::{Call, Id, Input, Node, Num, Program};
use crate::sites::{From, Sites};
use lightbox_sdk::dispatch::{Arg, Operator, Value};
use lightbox_sdk::nn::{Base, Network};
use lightbox_sdk::prelude::*;
use lightbox_sdk::rand::{Rng, SeedableRng};
use lightbox_sdk::rules;
use lightbox_sdk::tape::Tape;
use lightbox_sdk::tch::{self, Device, Kind, Tensor};
use lightbox_sdk::{Named, hash};
use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

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

fn is_convolution(node: &Node) -> bool {
    ["aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution"].contains(&node.operator())
}

fn is_activation(node: &Node) -> bool {
    ["aten.gelu", "aten.silu", "aten.hardswish", "aten.mish"].contains(&node.operator())
}

/// A layer norm over the last axis with weight and bias: its eps.
fn last_norm(node: &Node) -> Option<f64> {
    let over = matches!(node.inputs.get(1), Some(Input::Ints(all)) if all.len() == 1);
    let eps = match node.inputs.get(4) {
        Some(Input::Float(eps)) => *eps,
        _ => 1e-5,
    };
    let whole = node.value(2).is_some() && node.value(3).is_some();
    (node.operator() == "aten.layer_norm" && over && whole).then_some(eps)
}

/// A max pool of square windows without dilation: kernel, stride and padding.
fn max_pool(node: &Node) -> Option<(i64, i64, i64)> {
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

/// What is computed once of the weights of an inference.
#[derive(Default)]
struct Prepared {
    /// Values that hang on weights alone and that others read.
    constants: Vec<(Id, Held)>,
    /// Convolutions with the batch norm behind them in their weight and bias.
    folded: HashMap<usize, (Tensor, Tensor)>,
}

/// A value of a run.
#[derive(Debug)]
enum Held {
    Tensor(Tensor),
    Int(i64),
    Float(f64),
    Bool(bool),
}

impl Held {
    fn share(&self) -> Held {
        match self {
            Held::Tensor(t) => Held::Tensor(t.shallow_clone()),
            Held::Int(n) => Held::Int(*n),
            Held::Float(n) => Held::Float(*n),
            Held::Bool(b) => Held::Bool(*b),
        }
    }
}

/// A program with weights.
pub struct Exported {
    pub plan: Arc<Plan>,
    pub base: Base,
    /// Tensors that are no part of the state dict: lifted constants, buffers that are not kept.
    pub fixed: Vec<(Id, Tensor)>,
    /// Fast ways that change rounding only.
    pub fast: bool,
    pub seed: u64,
    step: i64,
    prepared: OnceCell<Prepared>,
}

/// What a request looks at.
#[derive(Default)]
struct Asked {
    /// Sites of values that someone looks at.
    seen: HashMap<Id, Vec<usize>>,
    /// Attention nodes that are spelled out.
    spelled: BTreeSet<usize>,
    /// Values that the run has to make.
    wanted: Vec<Id>,
}

/// One run.
struct Run<'r> {
    net: &'r Exported,
    train: bool,
    values: Vec<Option<Held>>,
    /// Values that are there before the first node.
    given: BTreeSet<Id>,
    /// Nodes that are needed.
    nodes: Vec<bool>,
    /// The last node that reads a value; `usize::MAX` where none does.
    last: Vec<usize>,
    /// Values that outlive their last reader.
    kept: Vec<bool>,
    asked: Asked,
    /// What was computed once of the weights; none in training and where every operation is recorded.
    prepared: Option<&'r Prepared>,
}

impl Exported {
    pub fn new(plan: Arc<Plan>, base: Base, fixed: Vec<(Id, Tensor)>, fast: bool, seed: u64) -> Self {
        Exported { plan, base, fixed, fast, seed, step: 0, prepared: OnceCell::new() }
    }

    fn device(&self) -> Device {
        self.base.params.device()
    }

    /// What the request looks at, and what has to be made for it.
    fn asked(&self, tape: &Option<&mut Tape<'_>>) -> Asked {
        let (program, sites) = (&self.plan.program, &self.plan.sites);
        let mut asked = Asked { wanted: program.outputs.clone(), ..Asked::default() };
        let Some(tape) = tape else { return asked };
        // Rules go by the parts of an attention, and second derivatives of the fused operator do not exist.
        if tape.is_recorded() {
            asked.spelled.extend(&sites.attentions.fused);
        }
        for (place, from) in sites.from.iter().enumerate().filter(|(place, _)| tape.wants(&sites.sites[*place].name)) {
            match from {
                From::Value(id, _) => {
                    asked.seen.entry(*id).or_default().push(place);
                    asked.wanted.push(*id);
                }
                From::Part(node, _) => {
                    asked.spelled.insert(*node);
                    asked.wanted.extend(program.nodes[*node].outputs.iter().flatten());
                }
            }
        }
        asked
    }

    /// Where the run begins, if not with the images, and the value there.
    fn start(&self, tape: &mut Option<&mut Tape<'_>>) -> Result<Option<(Id, Tensor)>> {
        let Some(tape) = tape else { return Ok(None) };
        let Some(name) = tape.start().map(str::to_string) else { return Ok(None) };
        let sites = &self.plan.sites;
        let place = sites.sites.iter().position(|s| s.name == name && s.start);
        let Some(From::Value(id, is_last)) = place.map(|p| &sites.from[p]) else {
            return Err(Error::unsupported(format!("a run cannot begin at {name}")));
        };
        let value = tape.begin()?.ok_or_else(|| Error::invalid("the run has begun"))?;
        Ok(Some((*id, if *is_last { to_last(&value)? } else { value })))
    }

    /// An error where images are not of the shape that the network was exported for.
    fn check_images(&self, images: &Tensor) -> Result<()> {
        let (channels, size) = self.plan.program.input()?;
        let expected: Vec<i64> = [vec![channels], size].concat().into_iter().map(|n| n as i64).collect();
        if images.size().get(1..) == Some(&expected) {
            return Ok(());
        }
        let expected: Vec<String> = expected.iter().map(i64::to_string).collect();
        Err(Error::invalid(format!(
            "images of shape {:?}; the network was exported for [B, {}]",
            images.size(),
            expected.join(", ")
        )))
    }

    /// The weights in their places.
    fn weights(&self, values: &mut [Option<Held>]) -> Result<()> {
        for weight in self.plan.program.weights.iter().filter(|w| w.is_kept) {
            values[weight.id] = Some(Held::Tensor(self.base.params.get(&weight.key)?.shallow_clone()));
        }
        for (id, tensor) in &self.fixed {
            values[*id] = Some(Held::Tensor(tensor.shallow_clone()));
        }
        for (id, number) in &self.plan.program.numbers {
            values[*id] = Some(Held::Int(*number));
        }
        Ok(())
    }

    fn empty(&self) -> Vec<Option<Held>> {
        self.plan.program.values.iter().map(|_| None).collect()
    }

    fn prepared(&self) -> Result<&Prepared> {
        if let Some(done) = self.prepared.get() {
            return Ok(done);
        }
        let _off = tch::no_grad_guard();
        let program = &self.plan.program;
        let (mut values, mut prepared) = (self.empty(), Prepared::default());
        self.weights(&mut values)?;
        let constant = |n: &usize| self.plan.constant[*n];
        let read: BTreeSet<Id> = program
            .nodes
            .iter()
            .enumerate()
            .filter(|(n, _)| !constant(n))
            .flat_map(|(_, node)| node.reads().collect::<Vec<_>>())
            .collect();
        for (n, node) in program.nodes.iter().enumerate() {
            if constant(&n) {
                let results = self.plain(node, &values, false).map_err(|e| at(node, e))?;
                for (id, part) in node.outputs.iter().zip(flat(results)) {
                    if let Some(id) = id {
                        values[*id] = part;
                    }
                }
            }
        }
        for (_, node) in program.nodes.iter().enumerate().filter(|(n, _)| constant(n)) {
            for id in node.outputs.iter().flatten().filter(|id| read.contains(id)) {
                prepared.constants.extend(values[*id].as_ref().map(|v| (*id, v.share())));
            }
        }
        if self.fast {
            for (convolution, norm) in &self.plan.folds {
                prepared.folded.insert(*convolution, self.fold(*convolution, *norm)?);
            }
        }
        Ok(self.prepared.get_or_init(|| prepared))
    }

    /// `(conv(x) - mean) / sqrt(var + eps) * weight + bias` as one convolution.
    fn fold(&self, convolution: usize, norm: usize) -> Result<(Tensor, Tensor)> {
        let (conv, norm) = (&self.plan.program.nodes[convolution], &self.plan.program.nodes[norm]);
        let weight_of = |node: &Node, at: usize| -> Result<Option<Tensor>> {
            let Some(id) = node.value(at) else { return Ok(None) };
            let weight = self.plan.program.weights.iter().find(|w| w.id == id);
            let weight = weight.ok_or_else(|| Error::invalid("a folded norm has values that are no weights"))?;
            let fixed = self.fixed.iter().find(|(other, _)| *other == id).map(|(_, t)| t.shallow_clone());
            Ok(Some(match fixed {
                Some(tensor) => tensor,
                None => self.base.params.get(&weight.key)?.shallow_clone(),
            }))
        };
        let need = |at: usize| weight_of(norm, at)?.ok_or_else(|| Error::invalid("a norm without statistics"));
        let eps = match norm.inputs.get(7) {
            Some(Input::Float(eps)) => *eps,
            _ => 1e-5,
        };
        let (gamma, beta, mean, variance) = (need(1)?, need(2)?, need(3)?, need(4)?);
        let scale = gamma.f_div(&variance.f_add_scalar(eps)?.f_sqrt()?)?;
        let weight = weight_of(conv, 1)?.ok_or_else(|| Error::invalid("a convolution without a weight"))?;
        let shape = [vec![-1], vec![1; weight.dim() - 1]].concat();
        let bias = match weight_of(conv, 2)? {
            Some(bias) => bias.f_sub(&mean)?.f_mul(&scale)?.f_add(&beta)?,
            None => beta.f_sub(&mean.f_mul(&scale)?)?,
        };
        Ok((weight.f_mul(&scale.f_reshape(shape)?)?, bias))
    }

    /// The arguments of a node's operator.
    fn arguments<'v>(&self, node: &'v Node, values: &'v [Option<Held>], train: bool) -> Result<Vec<Arg<'v>>> {
        let program = &self.plan.program;
        let missing = |id: Id| Error::invalid(format!("{} has no value", program.values[id].name));
        let number = |n: &Num| match n {
            Num::Is(n) => Ok(*n),
            Num::Of(id) => match &values[*id] {
                Some(Held::Int(n)) => Ok(*n),
                _ => Err(missing(*id)),
            },
        };
        let tensor = |id: &Id| match &values[*id] {
            Some(Held::Tensor(t)) => Ok(t),
            _ => Err(missing(*id)),
        };
        let mut args = Vec::with_capacity(node.inputs.len());
        for (place, input) in node.inputs.iter().enumerate() {
            args.push(match input {
                Input::Bool(_) if train && (node.target.as_str(), place) == ("aten.batch_norm.default", 5) => {
                    Arg::Bool(true)
                }
                Input::Default => Arg::Default,
                Input::None => Arg::None,
                Input::Value(id) => match values[*id].as_ref().ok_or_else(|| missing(*id))? {
                    Held::Tensor(t) => Arg::Tensor(t),
                    Held::Int(n) => Arg::Int(*n),
                    Held::Float(n) => Arg::Float(*n),
                    Held::Bool(b) => Arg::Bool(*b),
                },
                Input::Int(n) => Arg::Int(*n),
                Input::Float(n) => Arg::Float(*n),
                Input::Bool(b) => Arg::Bool(*b),
                Input::Text(text) => Arg::Text(text),
                Input::Ints(all) => Arg::Ints(all.iter().map(number).collect::<Result<_>>()?),
                Input::Floats(all) => Arg::Floats(all),
                Input::Bools(all) => Arg::Bools(all.clone()),
                Input::Tensors(all) => {
                    let one = |id: &Option<Id>| id.as_ref().map(tensor).transpose();
                    Arg::Tensors(all.iter().map(one).collect::<Result<_>>()?)
                }
                Input::Device => Arg::Device(self.device()),
            });
        }
        Ok(args)
    }

    /// A node's results, as the file has it.
    fn plain(&self, node: &Node, values: &[Option<Held>], train: bool) -> Result<Vec<Value>> {
        match &node.call {
            Call::Operator(op) => op.call(&self.arguments(node, values, train)?),
            Call::Sizes(name) => Ok(vec![sizes(name, &node.inputs, values)?]),
        }
    }

    /// Values of dropout: kept with probability `1 - p`, drawn from the seed, the step and the node alone.
    fn dropout(&self, x: &Tensor, p: f64, place: usize) -> Result<Tensor> {
        if !(0.0..1.0).contains(&p) {
            return Ok(if p == 0.0 { x.shallow_clone() } else { x.f_mul_scalar(0.0)? });
        }
        let key = [self.seed, self.step as u64, place as u64].into_iter().flat_map(u64::to_le_bytes);
        let mut rng = lightbox_sdk::rand::rngs::StdRng::seed_from_u64(hash::fnv1a(key));
        let keep = 1.0 - p;
        let mask: Vec<f32> =
            (0..x.numel()).map(|_| if rng.random::<f64>() < keep { (1.0 / keep) as f32 } else { 0.0 }).collect();
        let mask = Tensor::f_from_slice(&mask)?.f_reshape(x.size())?.f_to_device(x.device())?.f_to_kind(x.f_kind()?)?;
        Ok(x.f_mul(&mask)?)
    }
}

/// An error at a node.
fn at(node: &Node, e: Error) -> Error {
    Error { message: format!("{}: {}", node.place(), e.message), ..e }
}

/// Results one after the other, those of a list each for itself.
fn flat(results: Vec<Value>) -> Vec<Option<Held>> {
    let mut all = Vec::with_capacity(results.len());
    for result in results {
        match result {
            Value::Tensors(list) => all.extend(list.into_iter().map(|t| Some(Held::Tensor(t)))),
            Value::Tensor(t) => all.push(Some(Held::Tensor(t))),
            Value::Int(n) => all.push(Some(Held::Int(n))),
            Value::Float(n) => all.push(Some(Held::Float(n))),
            Value::Bool(b) => all.push(Some(Held::Bool(b))),
            Value::None => all.push(None),
        }
    }
    all
}

/// Arithmetic of sizes.
fn sizes(name: &str, inputs: &[Input], values: &[Option<Held>]) -> Result<Value> {
    let int = |i: usize| -> Result<i64> {
        match inputs.get(i) {
            Some(Input::Int(n)) => Ok(*n),
            Some(Input::Value(id)) => match &values[*id] {
                Some(Held::Int(n)) => Ok(*n),
                _ => Err(Error::invalid(format!("operand {i} has no whole number as its value"))),
            },
            _ => Err(Error::invalid(format!("operand {i} is no whole number"))),
        }
    };
    let checked = |n: Option<i64>| n.ok_or_else(|| Error::invalid("a size is out of all bounds"));
    // Python's division rounds down.
    let divided = || -> Result<(i64, i64)> {
        let (a, b) = (int(0)?, int(1)?);
        let (quotient, rest) = (checked(a.checked_div(b))?, checked(a.checked_rem(b))?);
        let down = rest != 0 && (rest < 0) != (b < 0);
        Ok(if down { (quotient - 1, rest + b) } else { (quotient, rest) })
    };
    Ok(match name {
        "_operator.add" => Value::Int(checked(int(0)?.checked_add(int(1)?))?),
        "_operator.sub" => Value::Int(checked(int(0)?.checked_sub(int(1)?))?),
        "_operator.mul" => Value::Int(checked(int(0)?.checked_mul(int(1)?))?),
        "_operator.floordiv" => Value::Int(divided()?.0),
        "_operator.mod" => Value::Int(divided()?.1),
        "_operator.neg" => Value::Int(checked(int(0)?.checked_neg())?),
        "_operator.eq" => Value::Bool(int(0)? == int(1)?),
        "_operator.ne" => Value::Bool(int(0)? != int(1)?),
        "_operator.lt" => Value::Bool(int(0)? < int(1)?),
        "_operator.le" => Value::Bool(int(0)? <= int(1)?),
        "_operator.gt" => Value::Bool(int(0)? > int(1)?),
        "_operator.ge" => Value::Bool(int(0)? >= int(1)?),
        "torch.sym_max" => Value::Int(int(0)?.max(int(1)?)),
        "torch.sym_min" => Value::Int(int(0)?.min(int(1)?)),
        _ => return Err(Error::unsupported("no such arithmetic of sizes is known")),
    })
}

fn one(mut results: Vec<Value>) -> Result<Tensor> {
    match results.pop() {
        Some(Value::Tensor(t)) if results.is_empty() => Ok(t),
        _ => Err(Error::invalid("the operator has no one tensor as a result")),
    }
}

impl<'r> Run<'r> {
    fn new(
        net: &'r Exported,
        train: bool,
        values: Vec<Option<Held>>,
        given: BTreeSet<Id>,
        asked: Asked,
        prepared: Option<&'r Prepared>,
    ) -> Self {
        let program = &net.plan.program;
        let nodes = program.needed(&asked.wanted, &given);
        let mut last = vec![usize::MAX; program.values.len()];
        for (n, node) in program.nodes.iter().enumerate().filter(|(n, _)| nodes[*n]) {
            node.reads().for_each(|id| last[id] = n);
        }
        let mut kept = vec![false; program.values.len()];
        // What the run begins with is the caller's, and written to by no operator in place.
        asked.wanted.iter().chain(&given).for_each(|id| kept[*id] = true);
        Run { net, train, values, given, nodes, last, kept, asked, prepared }
    }

    /// Puts the images, or the value where the run begins, in its place.
    fn begin(&mut self, images: Tensor, start: Option<(Id, Tensor)>, tape: &mut Option<&mut Tape<'_>>) -> Result<()> {
        let program = &self.net.plan.program;
        let (id, value) = match start {
            Some(start) => start,
            None => {
                self.net.check_images(&images)?;
                (program.images, images)
            }
        };
        let batch = value.size().first().copied().unwrap_or(0);
        self.values[id] = Some(Held::Tensor(self.at_sites(id, value, tape)?));
        for id in &program.batch {
            self.values[*id] = Some(Held::Int(batch));
        }
        Ok(())
    }

    /// The weight and bias that a convolution has with the norm behind it, and that norm, where nobody looks in between.
    fn fold(&self, n: usize) -> Option<(&'r (Tensor, Tensor), usize)> {
        let weights = self.prepared?.folded.get(&n)?;
        let norm = *self.net.plan.folds.get(&n)?;
        let between = self.net.plan.program.nodes[norm].value(0)?;
        let looked = self.asked.seen.contains_key(&between) || self.kept[between];
        (self.nodes[norm] && !looked).then_some((weights, norm))
    }

    /// Runs the nodes.
    fn all(&mut self, tape: &mut Option<&mut Tape<'_>>) -> Result<()> {
        let program = &self.net.plan.program;
        let mut done: BTreeSet<usize> = BTreeSet::new();
        for (n, node) in program.nodes.iter().enumerate() {
            if !self.nodes[n] || done.contains(&n) {
                continue;
            }
            let _off = (!node.grad).then(tch::no_grad_guard);
            let (results, outputs) = match self.fold(n) {
                Some((weights, norm)) => {
                    done.insert(norm);
                    (self.folded(node, weights), &program.nodes[norm].outputs)
                }
                None => (self.call(n, tape), &node.outputs),
            };
            self.keep(outputs, results.map_err(|e| at(node, e))?, tape)?;
            for id in node.reads() {
                if self.last[id] == n && !self.kept[id] {
                    self.values[id] = None;
                }
            }
        }
        Ok(())
    }

    /// A convolution with another weight and bias.
    fn folded(&self, node: &Node, (weight, bias): &(Tensor, Tensor)) -> Result<Vec<Value>> {
        let mut args = self.net.arguments(node, &self.values, false)?;
        let Call::Operator(op) = &node.call else { return Err(Error::invalid("a convolution that is none")) };
        args[1] = Arg::Tensor(weight);
        args[2] = Arg::Tensor(bias);
        op.call(&args)
    }

    /// Keeps a node's results that someone reads, passed through their sites. What was given stays as it was given.
    fn keep(&mut self, outputs: &[Option<Id>], results: Vec<Value>, tape: &mut Option<&mut Tape<'_>>) -> Result<()> {
        for (id, part) in outputs.iter().zip(flat(results)) {
            let (Some(id), Some(part)) = (id, part) else { continue };
            if self.given.contains(id) || self.last[*id] == usize::MAX && !self.kept[*id] {
                continue;
            }
            self.values[*id] = Some(match part {
                Held::Tensor(t) => Held::Tensor(self.at_sites(*id, t, tape)?),
                other => other,
            });
        }
        Ok(())
    }

    fn tensor(&self, id: Id) -> Result<&Tensor> {
        match &self.values[id] {
            Some(Held::Tensor(t)) => Ok(t),
            _ => Err(Error::invalid(format!("{} has no value", self.net.plan.program.values[id].name))),
        }
    }

    /// A value at its sites.
    fn at_sites(&self, id: Id, value: Tensor, tape: &mut Option<&mut Tape<'_>>) -> Result<Tensor> {
        let (Some(tape), Some(places)) = (tape, self.asked.seen.get(&id)) else { return Ok(value) };
        let sites = &self.net.plan.sites;
        let is_last = places.iter().any(|p| matches!(sites.from[*p], From::Value(_, true)));
        let mut value = if is_last { to_first(&value)? } else { value };
        for place in places {
            value = tape.site(&sites.sites[*place].name, value)?;
        }
        if is_last { to_last(&value) } else { Ok(value) }
    }

    /// A node's results.
    fn call(&self, n: usize, tape: &mut Option<&mut Tape<'_>>) -> Result<Vec<Value>> {
        let (net, node) = (self.net, &self.net.plan.program.nodes[n]);
        if self.train && node.target == "aten.dropout.default" {
            let (Some(x), Some(Input::Float(p))) = (node.value(0), node.inputs.get(1)) else {
                return net.plain(node, &self.values, self.train);
            };
            return Ok(vec![Value::Tensor(net.dropout(self.tensor(x)?, *p, n)?)]);
        }
        if self.asked.spelled.contains(&n) {
            return Ok(vec![Value::Tensor(self.spell_out(n, tape)?)]);
        }
        if tape.as_ref().is_some_and(|t| t.has_rules())
            && let Some(value) = self.by_rule(n, node, tape)?
        {
            return Ok(vec![Value::Tensor(value)]);
        }
        // In place where nobody looks at the old value and autograd has not kept it.
        if let (Some((old, op)), false) = (&node.in_place, self.train)
            && self.last[*old] == n
            && self.net.plan.sites.depends[*old]
            && !self.kept[*old]
            && !self.asked.seen.contains_key(old)
            && let Some(Held::Tensor(t)) = &self.values[*old]
            && !t.requires_grad()
        {
            return self.in_place(op, node);
        }
        net.plain(node, &self.values, self.train)
    }

    fn in_place(&self, op: &Operator, node: &Node) -> Result<Vec<Value>> {
        op.call(&self.net.arguments(node, &self.values, false)?)
    }

    /// The value of a node under the request's rules; `None` where no rule is of its kind.
    fn by_rule(&self, n: usize, node: &Node, tape: &mut Option<&mut Tape<'_>>) -> Result<Option<Tensor>> {
        let (net, plan) = (self.net, &self.net.plan);
        let at = tape;
        let x = || self.tensor(node.value(0).ok_or_else(|| Error::invalid("an operator without a value"))?);
        let Call::Operator(op) = &node.call else { return Ok(None) };
        let plain = || one(net.plain(node, &self.values, false)?);
        // The operator with another input, weight and bias.
        let linear = |x: &Tensor, w: &Tensor, b: Option<&Tensor>| -> Result<Tensor> {
            let mut args = net.arguments(node, &self.values, false)?;
            args[0] = Arg::Tensor(x);
            args[1] = Arg::Tensor(w);
            if args.len() > 2 {
                args[2] = b.map_or(Arg::None, Arg::Tensor);
            }
            one(op.call(&args)?)
        };
        let weights = || -> Result<(&Tensor, Option<&Tensor>)> {
            let weight = self.tensor(node.value(1).ok_or_else(|| Error::invalid("a linear map without a weight"))?)?;
            Ok((weight, node.value(2).map(|id| self.tensor(id)).transpose()?))
        };
        Ok(match node.operator() {
            "aten.relu" => Some(rules::relu(at, x()?)?),
            "aten.gelu"
                if matches!(node.inputs.get(1), Some(Input::Default))
                    || matches!(node.inputs.get(1), Some(Input::Text(t)) if t == "none") =>
            {
                Some(rules::gelu(at, x()?)?)
            }
            _ if is_activation(node) => Some(rules::activation(at, x()?, plain()?)?),
            "aten.max_pool2d" => match max_pool(node) {
                Some(sizes) => Some(rules::max_pool2d(at, x()?, sizes)?),
                None => None,
            },
            _ if Some(n) == plan.stem => {
                let (weight, bias) = weights()?;
                let [low, high] = net.base.spec.input.range();
                Some(rules::first_map(at, x()?, weight, bias, (&low, &high), linear)?)
            }
            _ if is_convolution(node) || node.operator() == "aten.linear" => {
                let (weight, bias) = weights()?;
                let x = match plan.sites.attentions.projections.contains(&n) {
                    true => rules::attention_input(at, x()?)?,
                    false => x()?.shallow_clone(),
                };
                Some(rules::linear_map(at, is_convolution(node), &x, weight, bias, linear)?)
            }
            "aten.batch_norm" => Some(rules::affine(at, plain()?)?),
            "aten.layer_norm" => match last_norm(node) {
                Some(eps) => {
                    let parameter = |at: usize| self.tensor(node.value(at).unwrap_or(0));
                    Some(rules::layer_norm(at, x()?, parameter(2)?, parameter(3)?, eps)?)
                }
                None => None,
            },
            "aten.softmax" if plan.sites.attentions.softmaxes.contains(&n) => Some(rules::softmax(at, x()?)?),
            "aten.matmul" if plan.sites.attentions.products.contains(&n) => {
                Some(rules::matmul(at, x()?, weights()?.0)?)
            }
            "aten.mul" => match plan.gates.get(&n) {
                Some(0) => Some(rules::gate(at, weights()?.0, x()?)?),
                Some(_) => Some(rules::gate(at, x()?, weights()?.0)?),
                None => None,
            },
            _ => None,
        })
    }

    /// `scaled_dot_product_attention` by its definition (PyTorch's documentation): softmax(scale q k^T + mask) v.
    fn spell_out(&self, n: usize, tape: &mut Option<&mut Tape<'_>>) -> Result<Tensor> {
        let plan = &self.net.plan;
        let node = &plan.program.nodes[n];
        let need =
            |at: usize| self.tensor(node.value(at).ok_or_else(|| Error::invalid("an attention without its inputs"))?);
        let (q, k, v) = (need(0)?, need(1)?, need(2)?);
        let scale = match node.argument("scale") {
            Some(Input::Float(scale)) => *scale,
            _ => 1.0 / (q.size().last().copied().unwrap_or(1) as f64).sqrt(),
        };
        if matches!(node.argument("enable_gqa"), Some(Input::Bool(true))) {
            return Err(Error::unsupported("an attention of grouped queries cannot be spelled out"));
        }
        let mut logits = rules::matmul(tape, &q.f_mul_scalar(scale)?, &k.f_transpose(-2, -1)?)?;
        if matches!(node.argument("is_causal"), Some(Input::Bool(true))) {
            let shape = [q.size()[q.dim() - 2], k.size()[k.dim() - 2]];
            let below = Tensor::f_ones(shape, (Kind::Bool, q.device()))?.f_tril(0)?;
            logits = logits.f_masked_fill(&below.f_logical_not()?, f64::NEG_INFINITY)?;
        }
        if let Some(id) = node.value(3) {
            let mask = self.tensor(id)?;
            logits = match mask.f_kind()? {
                Kind::Bool => logits.f_masked_fill(&mask.f_logical_not()?, f64::NEG_INFINITY)?,
                _ => logits.f_add(mask)?,
            };
        }
        let logits = self.part(n, AttentionPart::Logits, logits, tape)?;
        let weights = rules::softmax(tape, &logits)?;
        let weights = self.part(n, AttentionPart::Weights, weights, tape)?;
        rules::matmul(tape, &weights, v)
    }

    /// A part of a spelled-out attention at its site.
    fn part(&self, n: usize, part: AttentionPart, value: Tensor, tape: &mut Option<&mut Tape<'_>>) -> Result<Tensor> {
        let sites = &self.net.plan.sites;
        let Some(tape) = tape else { return Ok(value) };
        let mut value = value;
        for place in sites.of_part.get(&n).into_iter().flatten() {
            if sites.from[*place] == From::Part(n, part) {
                value = tape.site(&sites.sites[*place].name, value)?;
            }
        }
        Ok(value)
    }
}

/// [B, grid..., C] as [B, C, grid...].
fn to_first(value: &Tensor) -> Result<Tensor> {
    let rank = value.dim() as i64;
    Ok(value.f_permute([vec![0, rank - 1], (1..rank - 1).collect()].concat())?)
}

/// [B, C, grid...] as [B, grid..., C].
fn to_last(value: &Tensor) -> Result<Tensor> {
    let rank = value.dim() as i64;
    Ok(value.f_permute([vec![0], (2..rank).collect(), vec![1]].concat())?)
}

impl Network for Exported {
    fn base(&self) -> &Base {
        &self.base
    }

    fn base_mut(&mut self) -> &mut Base {
        self.prepared = OnceCell::new();
        &mut self.base
    }

    fn with(&self, base: Base) -> Self {
        let fixed = self.fixed.iter().map(|(id, t)| (*id, t.shallow_clone())).collect();
        Exported::new(self.plan.clone(), base, fixed, self.fast, self.seed)
    }

    fn forward(&self, images: Tensor, train: bool, tape: Option<&mut Tape<'_>>) -> Result<Tensor> {
        let mut tape = tape;
        let asked = self.asked(&tape);
        let prepared = if train { None } else { Some(self.prepared()?) };
        let (mut values, mut given) = (self.empty(), BTreeSet::new());
        self.weights(&mut values)?;
        for (id, value) in prepared.iter().flat_map(|p| &p.constants) {
            values[*id] = Some(value.share());
            given.insert(*id);
        }
        let start = self.start(&mut tape)?;
        given.extend(start.iter().map(|(id, _)| *id));
        let recorded = tape.as_ref().is_some_and(|t| t.is_recorded());
        let mut run = Run::new(self, train, values, given, asked, prepared.filter(|_| !recorded));
        run.begin(images, start, &mut tape)?;
        run.all(&mut tape)?;
        let outputs = &self.plan.program.outputs;
        if let Some(tape) = &mut tape {
            for (id, output) in outputs.iter().zip(&self.base.spec.outputs).skip(1) {
                tape.output(&output.name, run.tensor(*id)?.shallow_clone());
            }
        }
        Ok(run.tensor(outputs[0])?.shallow_clone())
    }

    fn load(&mut self, named: Named) -> Result<LoadReport> {
        self.prepared = OnceCell::new();
        self.base.params.load(named, |key| key.to_string(), &[])
    }

    fn is_buffer(&self, name: &str) -> bool {
        self.plan.program.weights.iter().any(|w| w.key == name && !w.is_parameter)
    }

    fn begin_step(&mut self, step: i64) {
        self.step = step;
    }
}
