//! Runs what a request needs of a program, in order; a value is dropped when it has been read for the last time.

use super::{Exported, Held, Prepared, at, flat};
use crate::program::{Call, Id, Input, Node};
use crate::sites::From;
use lightbox_sdk::dispatch::{Arg, Operator, Value};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tape::Tape;
use lightbox_sdk::tch::{self, Tensor};
use std::collections::{BTreeSet, HashMap};

/// What a request looks at.
#[derive(Default)]
pub(super) struct Asked {
    /// Sites of values that someone looks at.
    pub(super) seen: HashMap<Id, Vec<usize>>,
    /// Attention nodes that are spelled out.
    pub(super) spelled: BTreeSet<usize>,
    /// Values that the run has to make.
    pub(super) wanted: Vec<Id>,
}

/// One run.
pub(super) struct Run<'r> {
    pub(super) net: &'r Exported,
    pub(super) train: bool,
    pub(super) values: Vec<Option<Held>>,
    /// Values that are there before the first node.
    pub(super) given: BTreeSet<Id>,
    /// Nodes that are needed.
    pub(super) nodes: Vec<bool>,
    /// The last node that reads a value; `usize::MAX` where none does.
    pub(super) last: Vec<usize>,
    /// Values that outlive their last reader.
    pub(super) kept: Vec<bool>,
    pub(super) asked: Asked,
    /// What was computed once of the weights; none in training and where every operation is recorded.
    pub(super) prepared: Option<&'r Prepared>,
}

impl<'r> Run<'r> {
    pub(super) fn new(
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
    pub(super) fn begin(
        &mut self,
        images: Tensor,
        start: Option<(Id, Tensor)>,
        tape: &mut Option<&mut Tape<'_>>,
    ) -> Result<()> {
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
    pub(super) fn fold(&self, n: usize) -> Option<(&'r (Tensor, Tensor), usize)> {
        let weights = self.prepared?.folded.get(&n)?;
        let norm = *self.net.plan.folds.get(&n)?;
        let between = self.net.plan.program.nodes[norm].value(0)?;
        let looked = self.asked.seen.contains_key(&between) || self.kept[between];
        (self.nodes[norm] && !looked).then_some((weights, norm))
    }

    /// Runs the nodes.
    pub(super) fn all(&mut self, tape: &mut Option<&mut Tape<'_>>) -> Result<()> {
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
    pub(super) fn folded(&self, node: &Node, (weight, bias): &(Tensor, Tensor)) -> Result<Vec<Value>> {
        let mut args = self.net.arguments(node, &self.values, false)?;
        let Call::Operator(op) = &node.call else { return Err(Error::invalid("a convolution that is none")) };
        args[1] = Arg::Tensor(weight);
        args[2] = Arg::Tensor(bias);
        op.call(&args)
    }

    /// Keeps a node's results that someone reads, passed through their sites. What was given stays as it was given.
    pub(super) fn keep(
        &mut self,
        outputs: &[Option<Id>],
        results: Vec<Value>,
        tape: &mut Option<&mut Tape<'_>>,
    ) -> Result<()> {
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

    pub(super) fn tensor(&self, id: Id) -> Result<&Tensor> {
        match &self.values[id] {
            Some(Held::Tensor(t)) => Ok(t),
            _ => Err(Error::invalid(format!("{} has no value", self.net.plan.program.values[id].name))),
        }
    }

    /// A value at its sites.
    pub(super) fn at_sites(&self, id: Id, value: Tensor, tape: &mut Option<&mut Tape<'_>>) -> Result<Tensor> {
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
    pub(super) fn call(&self, n: usize, tape: &mut Option<&mut Tape<'_>>) -> Result<Vec<Value>> {
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

    pub(super) fn in_place(&self, op: &Operator, node: &Node) -> Result<Vec<Value>> {
        op.call(&self.net.arguments(node, &self.values, false)?)
    }
}

/// [B, grid..., C] as [B, C, grid...].
fn to_first(value: &Tensor) -> Result<Tensor> {
    let rank = value.dim() as i64;
    Ok(value.f_permute([vec![0, rank - 1], (1..rank - 1).collect()].concat())?)
}

/// [B, C, grid...] as [B, grid..., C].
pub(super) fn to_last(value: &Tensor) -> Result<Tensor> {
    let rank = value.dim() as i64;
    Ok(value.f_permute([vec![0], (2..rank).collect(), vec![1]].concat())?)
}
