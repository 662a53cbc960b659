//! Serves a [`Request`] from a model written in plain tch: the model calls [`Tape::site`] where a site is.
//!
//! Parameters of an inference model do not require gradients, so libtorch records nothing until the first site
//! whose gradient is wanted becomes a leaf. A gradient at the last layer therefore costs no tape over the trunk.

use crate::model::{Request, Response, Seed};
use crate::{Array, Error, Place, Result};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// One run's bookkeeping.
pub struct Tape<'a> {
    request: &'a Request,
    values: BTreeMap<String, Array>,
    /// Values of the sites that are differentiated or seeded, on the tape.
    kept: BTreeMap<String, Tensor>,
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
        let mut tape = Tape { request, values: BTreeMap::new(), kept: BTreeMap::new() };
        let images = request.images.to_tensor()?;
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

    /// True when the request reads, patches, seeds or differentiates this site, so that it must exist.
    pub fn wants(&self, name: &str) -> bool {
        self.request.values.iter().chain(&self.request.grads).any(|s| s == name)
            || self.request.patches.iter().any(|p| p.site == name)
            || self.is_seeded(name)
    }

    fn is_seeded(&self, name: &str) -> bool {
        self.request.seeds.iter().flatten().any(|s| matches!(s, Seed::Site(site, _) if site == name))
    }

    /// Passes a site's value through its patches; what is returned is what the model goes on with.
    /// The model must not write to it in place.
    pub fn site(&mut self, name: &str, value: Tensor) -> Result<Tensor> {
        if !self.wants(name) {
            return Ok(value);
        }
        let mut value = value;
        for patch in self.request.patches.iter().filter(|p| p.site == name) {
            if let Some(scale) = &patch.scale {
                value = value.f_mul(&scale.to_tensor()?)?;
            }
            if let Some(shift) = &patch.shift {
                value = value.f_add(&shift.to_tensor()?)?;
            }
        }
        if self.request.grads.iter().any(|s| s == name) {
            if !value.requires_grad() {
                value = value.f_detach()?.f_set_requires_grad(true)?;
            }
            self.kept.insert(name.into(), value.shallow_clone());
        } else if self.is_seeded(name) {
            self.kept.insert(name.into(), value.shallow_clone());
        }
        if self.request.values.iter().any(|s| s == name) {
            self.values.insert(name.into(), Array::from_tensor(&value)?);
        }
        Ok(value)
    }

    fn seed_sum(&self, set: &[Seed], logits: &Tensor) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for seed in set {
            let part = match seed {
                Seed::Class(targets) => {
                    if targets.place() == Place::Cpu {
                        let classes = logits.size()[1];
                        if let Some(bad) = targets.to_vec::<i64>()?.into_iter().find(|t| *t >= classes) {
                            return Err(Error::invalid(format!("target class {bad} of {classes} classes")));
                        }
                    }
                    let targets = targets.to_tensor()?.f_to_device(logits.device())?;
                    let first = logits.f_argmax(1, false)?;
                    let index = first.f_where_self(&targets.f_lt(0)?, &targets)?.f_unsqueeze(1)?;
                    logits.f_gather(1, &index, false)?.f_sum(Kind::Float)?
                }
                Seed::Site(site, tensor) => {
                    let value = self.kept.get(site);
                    let value = value.ok_or_else(|| Error::invalid(format!("the model did not pass site {site}")))?;
                    let tensor = tensor.to_tensor()?;
                    if tensor.size() != value.size() {
                        return Err(Error::invalid(format!(
                            "seed of shape {:?} for site {site} of shape {:?}",
                            tensor.size(),
                            value.size()
                        )));
                    }
                    value.f_mul(&tensor)?.f_sum(Kind::Float)?
                }
            };
            sum = Some(match sum {
                Some(sum) => sum.f_add(&part)?,
                None => part,
            });
        }
        sum.ok_or_else(|| Error::invalid("an empty seed set"))
    }

    fn finish(self, logits: Tensor) -> Result<Response> {
        if let Some(site) = self.request.values.iter().find(|s| !self.values.contains_key(*s)) {
            return Err(Error::invalid(format!("the model did not pass site {site}")));
        }
        let mut leaves = Vec::new();
        for site in &self.request.grads {
            let leaf = self.kept.get(site);
            leaves.push(leaf.ok_or_else(|| Error::invalid(format!("the model did not pass site {site}")))?);
        }
        let mut grads = Vec::new();
        for (i, set) in self.request.seeds.iter().enumerate() {
            let sum = self.seed_sum(set, &logits)?;
            if leaves.is_empty() || !sum.requires_grad() {
                return Err(Error::invalid("a seed set depends on none of the sites to differentiate at"));
            }
            let more = i + 1 < self.request.seeds.len();
            let found = Tensor::f_run_backward(&[&sum], &leaves, more, false)?;
            let mut set = BTreeMap::new();
            for (site, grad) in self.request.grads.iter().zip(found) {
                if !grad.defined() {
                    return Err(Error::invalid(format!("the seed does not depend on site {site}")));
                }
                set.insert(site.clone(), Array::from_tensor(&grad)?);
            }
            grads.push(set);
        }
        Ok(Response { logits: Array::from_tensor(&logits)?, values: self.values, grads })
    }
}
