//! Serves a [`Request`] from a model written in plain tch: the model calls [`Tape::site`] where a site is.
//!
//! Parameters of an inference model do not require gradients, so libtorch records nothing until the first site
//! whose gradient is wanted becomes a leaf. A gradient at the last layer therefore costs no tape over the trunk.

use crate::model::{Objective, Request, Response};
use crate::{Array, Error, Place, Result};
use std::collections::{BTreeMap, BTreeSet};
use tch::{Kind, Tensor};

/// Of the gradient at a value, that at an earlier site.
type Backward<'a> = Box<dyn Fn(&Tensor) -> Result<Tensor> + 'a>;

/// One run's bookkeeping.
pub struct Tape<'a> {
    request: &'a Request,
    values: BTreeMap<String, Array>,
    /// Outputs beyond the first, on the tape.
    outputs: BTreeMap<String, Tensor>,
    /// Values of the sites that are differentiated, or part of an objective, on the tape.
    kept: BTreeMap<String, Tensor>,
    /// Sites that were patched.
    passed: BTreeSet<String>,
    /// False until the site is reached at which the request begins.
    begun: bool,
    /// The site whose gradient a model computes itself, and how.
    backward: Option<(String, Backward<'a>)>,
    /// What the model computes in. What comes from the request is float32, and what is answered.
    kind: Kind,
    /// Sites from which on it computes in float32 all the same.
    full: &'a [&'a str],
}

/// One step of a model that is a column of steps, whose result is the site `name`. A run that begins at a later site does
/// not call `f`; one that begins here goes on with the given value.
pub fn step(
    tape: &mut Option<&mut Tape<'_>>,
    name: &str,
    x: Tensor,
    f: impl FnOnce(Tensor, &mut Option<&mut Tape<'_>>) -> Result<Tensor>,
) -> Result<Tensor> {
    if let Some(tape) = tape
        && !tape.begun
    {
        let Some(start) = tape.request.start.as_ref().filter(|s| s.site == name) else { return Ok(x) };
        tape.begun = true;
        let kind = if tape.full.contains(&name) { Kind::Float } else { tape.kind };
        let value = tape.taken(&start.value, kind)?;
        return tape.site(name, value);
    }
    let value = f(x, tape)?;
    site(tape, name, value)
}

/// [`Tape::site`] where there may be no tape, as in training.
pub fn site(tape: &mut Option<&mut Tape<'_>>, name: &str, value: Tensor) -> Result<Tensor> {
    match tape {
        Some(tape) => tape.site(name, value),
        None => Ok(value),
    }
}

/// [`Tape::wants`] where there may be no tape.
pub fn wants(tape: &Option<&mut Tape<'_>>, name: &str) -> bool {
    tape.as_ref().is_some_and(|t| t.wants(name))
}

impl<'a> Tape<'a> {
    /// Runs `forward(tape, images)`, which returns the logits, and answers the request.
    pub fn run(
        request: &'a Request,
        forward: impl FnOnce(&mut Tape<'a>, Tensor) -> Result<Tensor>,
    ) -> Result<Response> {
        Tape::run_in((Kind::Float, &[]), request, forward)
    }

    /// The same for a model that computes in another type, but for what follows some sites: images, patches and where the run
    /// begins come to it in that type, and the answer is float32.
    pub fn run_in(
        (kind, full): (Kind, &'a [&'a str]),
        request: &'a Request,
        forward: impl FnOnce(&mut Tape<'a>, Tensor) -> Result<Tensor>,
    ) -> Result<Response> {
        let begun = request.start.is_none();
        let (values, outputs, kept, passed, backward) = Default::default();
        let mut tape = Tape { request, values, outputs, kept, passed, begun, backward, kind, full };
        let images = tape.taken(&request.images, kind)?;
        if request.grads.is_empty() {
            let _off = tch::no_grad_guard();
            let logits = forward(&mut tape, images)?;
            tape.finish(logits)
        } else {
            tch::with_grad(|| {
                let logits = forward(&mut tape, images)?;
                tape.finish(logits)
            })
        }
    }

    /// An array of the request in the type of a value of the model.
    fn taken(&self, array: &Array, kind: Kind) -> Result<Tensor> {
        let tensor = array.share_tensor()?;
        Ok(if self.kind == Kind::Float { tensor } else { tensor.f_to_kind(kind)? })
    }

    /// A value of the model as it is answered.
    fn given(&self, value: &Tensor) -> Result<Tensor> {
        Ok(if self.kind == Kind::Float { value.shallow_clone() } else { value.f_to_kind(Kind::Float)? })
    }

    /// True when the request reads, patches, derives from or differentiates this site, so that it must exist.
    pub fn wants(&self, name: &str) -> bool {
        self.request.values.iter().chain(&self.request.grads).any(|s| s == name)
            || self.request.patches.iter().any(|p| p.site == name)
            || self.is_objective(name)
    }

    /// False until the run has reached the site at which it begins.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Where the run begins, if not with the images.
    pub fn start(&self) -> Option<&str> {
        self.request.start.as_ref().map(|s| s.site.as_str())
    }

    /// For a model that is no column of steps: the value where the run begins, and from here on the run has begun; `None` where
    /// it begins with the images. The model passes it through [`Tape::site`].
    pub fn begin(&mut self) -> Result<Option<Tensor>> {
        let Some(start) = self.request.start.as_ref().filter(|_| !self.begun) else { return Ok(None) };
        self.begun = true;
        Ok(Some(self.taken(&start.value, self.kind)?))
    }

    /// The modified rules that gradients follow; see [`crate::rules`].
    pub fn rules(&self) -> &[String] {
        &self.request.rules
    }

    /// True when gradients follow modified rules.
    pub fn has_rules(&self) -> bool {
        !self.request.rules.is_empty()
    }

    /// True when every operation must be recorded as it is written down: under modified rules, and for second derivatives, which
    /// fused operations and parts that a model differentiates itself do not have.
    pub fn is_recorded(&self) -> bool {
        self.has_rules() || !self.request.products.is_empty()
    }

    /// True when the request wants gradients at this site.
    pub fn differentiates(&self, name: &str) -> bool {
        self.request.grads.iter().any(|s| s == name)
    }

    /// True when an objective is one of this site's value.
    pub fn is_objective(&self, name: &str) -> bool {
        self.request.objectives.iter().flatten().any(|s| matches!(s, Objective::Site(site, _) if site == name))
    }

    /// Passes a site's value through its patches; what is returned is what the model goes on with.
    /// The model must not write to it in place.
    pub fn site(&mut self, name: &str, value: Tensor) -> Result<Tensor> {
        if !self.begun || !self.wants(name) {
            return Ok(value);
        }
        let mut value = value;
        let shape = value.size();
        self.passed.insert(name.into());
        for patch in self.request.patches.iter().filter(|p| p.site == name) {
            if let Some(scale) = &patch.scale {
                value = value.f_mul(&self.taken(scale, value.f_kind()?)?)?;
            }
            if let Some(shift) = &patch.shift {
                value = value.f_add(&self.taken(shift, value.f_kind()?)?)?;
            }
            if value.size() != shape {
                return Err(Error::invalid(format!(
                    "a patch makes the value of {name}, of shape {shape:?}, one of shape {:?}",
                    value.size()
                )));
            }
        }
        if self.differentiates(name) {
            if !value.requires_grad() {
                value = value.f_detach()?.f_set_requires_grad(true)?;
            }
            self.kept.insert(name.into(), value.shallow_clone());
        } else if self.is_objective(name) {
            self.kept.insert(name.into(), value.shallow_clone());
        }
        if self.request.values.iter().any(|s| s == name) {
            self.values.insert(name.into(), Array::from_tensor(&self.given(&value)?)?);
        }
        Ok(value)
    }

    /// One of the model's outputs beyond the first, which `forward` returns.
    pub fn output(&mut self, name: &str, value: Tensor) {
        self.outputs.insert(name.into(), value);
    }

    /// For a model that computes a part of itself without recording it: gradients at `site`, where that part begins, are those
    /// at `value`, where it ends, taken through `backward`. What is returned is what the model goes on with.
    pub fn custom_backward(
        &mut self,
        site: &str,
        value: Tensor,
        backward: impl Fn(&Tensor) -> Result<Tensor> + 'a,
    ) -> Result<Tensor> {
        let value = value.f_detach()?.f_set_requires_grad(true)?;
        self.kept.insert(site.into(), value.shallow_clone());
        self.backward = Some((site.into(), Box::new(backward)));
        Ok(value)
    }

    fn sum_of(&self, set: &[Objective], logits: &Tensor) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        let rows = |t: &Tensor| -> Result<Tensor> { Ok(t.f_to_device(logits.device())?.f_unsqueeze(1)?) };
        for objective in set {
            let part = match objective {
                Objective::Class(targets) => {
                    let classes = logits.size().get(1).copied().unwrap_or(0);
                    if logits.dim() != 2 {
                        return Err(Error::invalid(
                            "an objective of a class, and the first output is no logit a class",
                        ));
                    }
                    if targets.place() == Place::Cpu
                        && let Some(bad) = targets.to_vec::<i64>()?.into_iter().find(|t| *t >= classes || *t < -classes)
                    {
                        return Err(Error::invalid(format!("target class {bad} of {classes} classes")));
                    }
                    let targets = rows(&targets.share_tensor()?)?;
                    let ranked = logits.f_detach()?.f_argsort_stable(true, 1, true)?;
                    let place = targets.f_add_scalar(1)?.f_neg()?.f_clamp_min(0)?;
                    let ranked = ranked.f_gather(1, &place, false)?;
                    let index = ranked.f_where_self(&targets.f_lt(0)?, &targets)?;
                    logits.f_gather(1, &index, false)?.f_sum(Kind::Float)?
                }
                Objective::RunnerUp(targets) => {
                    if logits.dim() != 2 || logits.size()[1] < 2 {
                        return Err(Error::invalid(
                            "a runner-up needs a first output with a logit for each of two classes",
                        ));
                    }
                    let without =
                        logits.f_detach()?.f_scatter_value(1, &rows(&targets.share_tensor()?)?, f64::NEG_INFINITY)?;
                    let index = without.f_argmax(1, true)?;
                    logits.f_gather(1, &index, false)?.f_sum(Kind::Float)?
                }
                Objective::Output(name, tensor) => {
                    // Whatever is no further output is the first.
                    let value = self.outputs.get(name).unwrap_or(logits);
                    let tensor = tensor.share_tensor()?.f_to_device(value.device())?;
                    if tensor.size() != value.size() {
                        let (a, b) = (tensor.size(), value.size());
                        return Err(Error::invalid(format!(
                            "an objective of shape {a:?} for output {name} of shape {b:?}"
                        )));
                    }
                    self.given(value)?.f_mul(&tensor)?.f_sum(Kind::Float)?
                }
                Objective::Site(site, tensor) => {
                    let value = self.kept.get(site);
                    let value = value.ok_or_else(|| Error::invalid(format!("the model did not pass site {site}")))?;
                    let tensor = tensor.share_tensor()?;
                    if tensor.size() != value.size() {
                        return Err(Error::invalid(format!(
                            "an objective of shape {:?} for site {site} of shape {:?}",
                            tensor.size(),
                            value.size()
                        )));
                    }
                    self.given(value)?.f_mul(&tensor)?.f_sum(Kind::Float)?
                }
            };
            sum = Some(match sum {
                Some(sum) => sum.f_add(&part)?,
                None => part,
            });
        }
        sum.ok_or_else(|| Error::invalid("an empty set of objectives"))
    }

    /// The products that the request asks for, from gradients that are on the tape themselves: the gradient of `<G, v>`. Where
    /// G does not depend on the site, as behind a piecewise linear part, that is 0. `more`: the tape is read again.
    fn products(&self, grads: &[Tensor], leaves: &[&Tensor], more: bool) -> Result<BTreeMap<String, Array>> {
        let mut found = BTreeMap::new();
        let wanted = &self.request.products;
        for (i, product) in wanted.iter().enumerate() {
            let at = self.request.grads.iter().position(|s| *s == product.site);
            let at = at.ok_or_else(|| Error::invalid(format!("site {} is not differentiated", product.site)))?;
            let (grad, leaf) = (&grads[at], leaves[at]);
            let direction = self.taken(&product.direction, leaf.f_kind()?)?;
            if direction.size() != leaf.size() {
                return Err(Error::invalid(format!(
                    "a direction of shape {:?} for site {} of shape {:?}",
                    direction.size(),
                    product.site,
                    leaf.size()
                )));
            }
            let value = match grad.defined() && grad.requires_grad() {
                true => {
                    let inner = grad.f_mul(&direction)?.f_sum(Kind::Float)?;
                    let mut second = Tensor::f_run_backward(&[&inner], &[leaf], more || i + 1 < wanted.len(), false)?;
                    Some(second.remove(0)).filter(Tensor::defined)
                }
                false => None,
            };
            let value = value.map_or_else(|| leaf.f_zeros_like(), Ok)?;
            found.insert(product.site.clone(), Array::from_tensor(&self.given(&value)?.f_detach()?)?);
        }
        Ok(found)
    }

    fn finish(self, logits: Tensor) -> Result<Response> {
        let passed = self.begun || self.request.start.is_none();
        if let Some(site) = self.request.start.as_ref().filter(|_| !passed) {
            return Err(Error::unsupported(format!("the model cannot begin at {}", site.site)));
        }
        let mut patched = self.request.patches.iter().map(|p| &p.site);
        if let Some(site) = patched.find(|s| !self.passed.contains(*s)) {
            return Err(Error::invalid(match self.start() {
                Some(start) => format!("a patch of {site} in a run that begins after it, at {start}"),
                None => format!("a patch of {site}, which the model did not pass"),
            }));
        }
        if let Some(site) = self.request.values.iter().find(|s| !self.values.contains_key(*s)) {
            return Err(Error::invalid(format!("the model did not pass site {site}")));
        }
        let mut leaves = Vec::new();
        for site in &self.request.grads {
            let leaf = self.kept.get(site);
            leaves.push(leaf.ok_or_else(|| Error::invalid(format!("the model did not pass site {site}")))?);
        }
        let logits = self.given(&logits)?;
        let (mut grads, mut products) = (Vec::new(), Vec::new());
        for (i, set) in self.request.objectives.iter().enumerate() {
            let sum = self.sum_of(set, &logits)?;
            if leaves.is_empty() || !sum.requires_grad() {
                return Err(Error::invalid("a set of objectives depends on none of the sites to differentiate at"));
            }
            let logits_only = set.iter().all(|o| !matches!(o, Objective::Site(..)));
            let more = i + 1 < self.request.objectives.len();
            let second = !self.request.products.is_empty();
            let found = Tensor::f_run_backward(&[&sum], &leaves, more || second, second)?;
            if second {
                products.push(self.products(&found, &leaves, more)?);
            }
            let mut set = BTreeMap::new();
            for (site, grad) in self.request.grads.iter().zip(found) {
                let grad = if grad.defined() {
                    grad
                } else if logits_only {
                    return Err(Error::invalid(format!("the objective does not depend on site {site}")));
                } else {
                    // A site behind the objective's own: nothing is lost on the way, there is none.
                    self.kept[site].f_zeros_like()?
                };
                let grad = match &self.backward {
                    Some((name, backward)) if name == site => {
                        let _off = tch::no_grad_guard();
                        backward(&grad)?
                    }
                    _ => grad,
                };
                set.insert(site.clone(), Array::from_tensor(&self.given(&grad)?.f_detach()?)?);
            }
            grads.push(set);
        }
        let mut outputs = BTreeMap::new();
        for (name, value) in &self.outputs {
            outputs.insert(name.clone(), Array::from_tensor(&self.given(value)?.f_detach()?)?);
        }
        Ok(Response { logits: Array::from_tensor(&logits)?, outputs, values: self.values, grads, products })
    }
}
