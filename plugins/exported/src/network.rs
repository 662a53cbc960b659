//! A program with weights. `network/run.rs` runs what a request needs of it, `network/rules.rs` has the operators that follow
//! another backward rule.

mod rules;
mod run;

use crate::plan::Plan;
use crate::program::{Call, Id, Input, Node, Num};
use crate::sites::From;
use lightbox_sdk::dispatch::{Arg, Value};
use lightbox_sdk::nn::{Base, Network};
use lightbox_sdk::prelude::*;
use lightbox_sdk::rand::{Rng, SeedableRng};
use lightbox_sdk::tape::Tape;
use lightbox_sdk::tch::{self, Device, Tensor};
use lightbox_sdk::{Named, hash};
use run::{Asked, Run, to_last};
use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

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
