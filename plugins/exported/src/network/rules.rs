//! Operators under a request's backward rules, and the attention operator spelled out, which its rules and parts go by.

use super::run::Run;
use crate::plan::{is_activation, is_convolution, last_norm, max_pool};
use crate::program::{Call, Input, Node};
use crate::sites::From;
use lightbox_sdk::dispatch::{Arg, Value};
use lightbox_sdk::prelude::*;
use lightbox_sdk::rules;
use lightbox_sdk::tape::Tape;
use lightbox_sdk::tch::{Kind, Tensor};

fn one(mut results: Vec<Value>) -> Result<Tensor> {
    match results.pop() {
        Some(Value::Tensor(t)) if results.is_empty() => Ok(t),
        _ => Err(Error::invalid("the operator has no one tensor as a result")),
    }
}

impl Run<'_> {
    /// The value of a node under the request's rules; `None` where no rule is of its kind.
    pub(super) fn by_rule(&self, n: usize, node: &Node, tape: &mut Option<&mut Tape<'_>>) -> Result<Option<Tensor>> {
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
    pub(super) fn spell_out(&self, n: usize, tape: &mut Option<&mut Tape<'_>>) -> Result<Tensor> {
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
    pub(super) fn part(
        &self,
        n: usize,
        part: AttentionPart,
        value: Tensor,
        tape: &mut Option<&mut Tape<'_>>,
    ) -> Result<Tensor> {
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
