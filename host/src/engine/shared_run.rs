//! The run that explainers of a batch share: what all of them need is merged into one request a set of modified rules.

use super::{Engine, predicted};
use crate::error::{Error, Result};
use lightbox_sdk::spec::{Contrast, Meaning, ModelSpec, Needs, TargetKind};
use lightbox_sdk::{Array, Objective, Request, Response, Target};
use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Instant;
use tch::Tensor;

/// What names a set of rules.
pub(super) fn rules_key(rules: &[String]) -> Vec<String> {
    let mut rules = rules.to_vec();
    rules.sort();
    rules.dedup();
    rules
}

/// A response under a set of rules, and the classes beside the target whose gradients are in it, in their order.
type Ruled = (lightbox_sdk::Result<Response>, Vec<Contrast>);

/// The responses of a batch, by set of rules; the plain one is there in any case.
pub(super) struct SharedRuns {
    responses: BTreeMap<Vec<String>, Ruled>,
    /// Boxes with the candidates that were found for them.
    resolved: Vec<Option<Target>>,
    /// Seconds that they took.
    pub(super) seconds: f64,
}

impl SharedRuns {
    /// Runs the model for explainers of `active`.
    pub(super) fn new(engine: &Engine, images: &Array, wanted: &[Option<Target>], active: &[usize]) -> Result<Self> {
        let mut groups: BTreeMap<Vec<String>, Needs> = BTreeMap::from([Default::default()]);
        for needs in active.iter().filter_map(|&i| engine.explainers[i].needs()) {
            let group = groups.entry(rules_key(&needs.rules)).or_default();
            merge(&mut group.values, &needs.values);
            merge(&mut group.gradients, &needs.gradients);
            merge(&mut group.others, &needs.others);
        }
        let started = Instant::now();
        let resolved = resolve(engine, images, wanted)?;
        let mut responses = BTreeMap::new();
        for (rules, needs) in groups {
            let needs = Needs { rules: rules.clone(), ..needs };
            engine.watch.alive();
            let run = |request: &Request| engine.model.lock().unwrap_or_else(PoisonError::into_inner).run(request);
            let response = shared_request(&engine.spec, images, &resolved, &needs).and_then(|request| run(&request));
            // Without rules it is the model's own run; what goes wrong under rules is the matter of those who asked for them.
            let response = if rules.is_empty() { Ok(response?) } else { response };
            responses.insert(rules, (response, needs.others));
        }
        Ok(SharedRuns { responses, resolved, seconds: started.elapsed().as_secs_f64() })
    }

    /// The run without rules.
    pub(super) fn plain(&self) -> Result<&Response> {
        match self.responses.get(&Vec::new()) {
            Some((Ok(plain), _)) => Ok(plain),
            _ => Err(Error::plugin("the model was not run")),
        }
    }

    /// The run under a set of rules.
    pub(super) fn of(&self, rules: &[String]) -> lightbox_sdk::Result<(&Response, &[Contrast])> {
        match self.responses.get(&rules_key(rules)) {
            Some((Ok(response), others)) => Ok((response, others)),
            Some((Err(error), _)) => Err(error.clone()),
            None => Err(lightbox_sdk::Error::output("the model was not run under these rules")),
        }
    }

    /// What each row explains: the predicted class where none was named.
    pub(super) fn targets(&self, wanted: &[Option<Target>], logits: &Tensor) -> Result<Vec<Target>> {
        let first = if wanted.iter().any(Option::is_none) { predicted(logits)? } else { vec![] };
        let of = |(row, target): (usize, &Option<Target>)| match target {
            Some(target) => target.clone(),
            None => Target::Class(first[row]),
        };
        Ok(self.resolved.iter().enumerate().map(of).collect())
    }
}

/// Finds the candidates of boxes, which takes a run of its own.
fn resolve(engine: &Engine, images: &Array, wanted: &[Option<Target>]) -> Result<Vec<Option<Target>>> {
    let open = |t: &Option<Target>| matches!(t, Some(Target::Box { candidate: None, .. }));
    if !wanted.iter().any(open) {
        return Ok(wanted.to_vec());
    }
    let mut targets: Vec<Target> = wanted.iter().flatten().cloned().collect();
    if targets.len() != wanted.len() {
        return Err(Error::input("boxes and predicted classes cannot be explained in one batch"));
    }
    let response = engine.request(&Request::forward(images.clone()))?;
    lightbox_sdk::resolve(&engine.spec, &mut targets, &response)?;
    Ok(targets.into_iter().map(Some).collect())
}

/// The request that serves an explainer, or several, for rows with these targets; `None` for the predicted class.
pub(crate) fn shared_request(
    model: &ModelSpec,
    images: &Array,
    wanted: &[Option<Target>],
    needs: &Needs,
) -> lightbox_sdk::Result<Request> {
    let n = wanted.len();
    if needs.gradients.is_empty() {
        let values = needs.values.clone();
        return Ok(Request { values, rules: needs.rules.clone(), ..Request::forward(images.clone()) });
    }
    let named: Vec<&Target> = wanted.iter().flatten().collect();
    let objective = match named.len() == n {
        true => lightbox_sdk::objective(model, &named)?,
        false => Objective::Class(classes(model, wanted, |t| t.map_or(-1, |c| c as i64))?),
    };
    let mut request = Request::explain(images.clone(), objective, &needs.values, &needs.gradients);
    for contrast in &needs.others {
        if named.iter().any(|t| t.kind() != TargetKind::Class) {
            return Err(lightbox_sdk::Error::unsupported("classes beside the target are those of an image's class"));
        }
        let all = |class: i64| Array::from_vec(&[n], vec![class; n]);
        request.objectives.push(vec![match *contrast {
            Contrast::Class(class) => Objective::Class(all(class as i64)?),
            Contrast::Rank(rank) => Objective::Class(all(-(rank as i64) - 1)?),
            // Beside the predicted class it is the second in rank.
            Contrast::RunnerUp if named.len() == n => {
                Objective::RunnerUp(classes(model, wanted, |t| t.unwrap_or(0) as i64)?)
            }
            Contrast::RunnerUp if named.is_empty() => Objective::Class(all(-2)?),
            Contrast::RunnerUp => {
                return Err(lightbox_sdk::Error::unsupported(
                    "a batch of named and predicted classes has no runner-up",
                ));
            }
        }]);
    }
    Ok(Request { rules: needs.rules.clone(), ..request })
}

/// The classes of the rows, `[B]` i64.
fn classes(
    model: &ModelSpec,
    wanted: &[Option<Target>],
    number: impl Fn(Option<usize>) -> i64,
) -> lightbox_sdk::Result<Array> {
    if !matches!(model.outputs.first().map(|o| &o.meaning), Some(Meaning::Classes { .. })) {
        return Err(lightbox_sdk::Error::unsupported(format!("model {} has no classes to explain", model.name)));
    }
    let all: Vec<i64> = wanted.iter().map(|t| number(t.as_ref().and_then(Target::class))).collect();
    Array::from_vec(&[wanted.len()], all)
}

fn merge<T: Clone + PartialEq>(all: &mut Vec<T>, more: &[T]) {
    for site in more {
        if !all.contains(site) {
            all.push(site.clone());
        }
    }
}
