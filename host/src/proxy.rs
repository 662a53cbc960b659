//! What an explainer holds when it asks for the model: a model that stands before the real one. It shows the host that the
//! explainer is alive, ends it when the user wants to stop, counts the runs, and brings arrays to the model's device and
//! back for an explainer that reads CPU memory only.

use crate::process_state::ProcessState;
use crate::transfer::{Transfer, own};
use crate::watch::Watch;
use lightbox_sdk::spec::{LoadReport, ModelSpec, Passes};
use lightbox_sdk::{
    Array, Error, ErrorKind, HessianProduct, Model, ModelHandle, Named, Objective, Patch, Request, Response, Result,
    Start,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A model that is shared by the engine and its explainers' proxies, on one thread at a time.
pub type Shared = Arc<Mutex<ModelHandle>>;

/// Passes that an explainer has made beyond the shared run, all images together.
#[derive(Default)]
pub struct Counter {
    forward: AtomicU64,
    partial: AtomicU64,
    backward: AtomicU64,
}

impl Counter {
    fn add(&self, request: &Request) {
        let n = request.batch() as u64;
        let forward = if request.start.is_some() { &self.partial } else { &self.forward };
        forward.fetch_add(n, Ordering::Relaxed);
        self.backward
            .fetch_add(n * (request.objectives.len() * (1 + request.products.len())) as u64, Ordering::Relaxed);
    }

    pub fn passes(&self) -> Passes {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Passes { forward: read(&self.forward), partial: read(&self.partial), backward: read(&self.backward) }
    }
}

struct Proxy {
    model: Shared,
    spec: ModelSpec,
    watch: Arc<dyn Watch>,
    /// The way to the model's memory, if the caller's arrays are not there.
    foreign: Option<Arc<dyn Transfer>>,
    runs: Arc<Counter>,
}

/// A handle for an explainer. `foreign`: the way to the model's memory, for an explainer that reads CPU memory only; `runs`
/// counts.
pub fn handle(
    model: &Shared,
    spec: &ModelSpec,
    watch: &Arc<dyn Watch>,
    foreign: Option<Arc<dyn Transfer>>,
    runs: &Arc<Counter>,
) -> ModelHandle {
    let (model, watch, runs) = (model.clone(), watch.clone(), runs.clone());
    let proxy = Proxy { model, spec: spec.clone(), watch, foreign, runs };
    ModelHandle::of(&spec.name, Box::new(proxy))
}

impl Proxy {
    fn check(&self) -> Result<()> {
        self.watch.alive();
        if self.watch.cancelled() { Err(Error::new(ErrorKind::Cancelled, "cancelled")) } else { Ok(()) }
    }

    fn outwards(&self, request: &Request, transfer: &dyn Transfer) -> Result<Request> {
        let to = |a: &Array| transfer.to_model(a);
        let optional = |a: &Option<Array>| a.as_ref().map(to).transpose();
        let patch =
            |p: &Patch| Ok(Patch { site: p.site.clone(), scale: optional(&p.scale)?, shift: optional(&p.shift)? });
        let objective = |o: &Objective| {
            Ok(match o {
                Objective::Class(classes) => Objective::Class(classes.clone()),
                Objective::RunnerUp(classes) => Objective::RunnerUp(classes.clone()),
                Objective::Output(name, tensor) => Objective::Output(name.clone(), to(tensor)?),
                Objective::Site(site, tensor) => Objective::Site(site.clone(), to(tensor)?),
            })
        };
        let start = |s: &Start| Ok::<_, Error>(Start { site: s.site.clone(), value: to(&s.value)? });
        Ok(Request {
            images: to(&request.images)?,
            start: request.start.as_ref().map(start).transpose()?,
            patches: request.patches.iter().map(patch).collect::<Result<_>>()?,
            products: request
                .products
                .iter()
                .map(|p| Ok(HessianProduct { site: p.site.clone(), direction: to(&p.direction)? }))
                .collect::<Result<_>>()?,
            objectives: request
                .objectives
                .iter()
                .map(|set| set.iter().map(objective).collect::<Result<Vec<_>>>())
                .collect::<Result<_>>()?,
            ..request.clone()
        })
    }
}

impl Model for Proxy {
    fn spec(&self) -> ModelSpec {
        self.spec.clone()
    }

    fn run(&self, request: &Request) -> Result<Response> {
        self.check()?;
        self.runs.add(request);
        let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("model {}", self.spec.name);
        let Some(transfer) = &self.foreign else { return ProcessState::keep(&name, || model.run(request)) };
        let request = self.outwards(request, transfer.as_ref())?;
        let response = ProcessState::keep(&name, || model.run(&request))?;
        let back = |(name, array): (String, Array)| Ok((name, transfer.to_cpu(&array)?));
        let sets = |all: Vec<BTreeMap<String, Array>>| {
            let one = |set: BTreeMap<String, Array>| set.into_iter().map(back).collect::<Result<_>>();
            all.into_iter().map(one).collect::<Result<Vec<_>>>()
        };
        Ok(Response {
            logits: transfer.to_cpu(&response.logits)?,
            outputs: response.outputs.into_iter().map(back).collect::<Result<_>>()?,
            values: response.values.into_iter().map(back).collect::<Result<_>>()?,
            grads: sets(response.grads)?,
            products: sets(response.products)?,
        })
    }

    fn parameters(&self) -> Result<Named> {
        self.check()?;
        let named = self.model.lock().unwrap_or_else(PoisonError::into_inner).parameters()?;
        // Copies: an explainer that writes to them does not change the model.
        let copy = |a: Array| match &self.foreign {
            None => own(&a),
            Some(transfer) => transfer.to_cpu(&a),
        };
        named.into_iter().map(|(name, a)| Ok((name, copy(a)?))).collect()
    }

    fn module(&self) -> String {
        self.model.lock().unwrap_or_else(PoisonError::into_inner).as_ref().module()
    }

    fn load(&mut self, _: Named) -> Result<LoadReport> {
        Err(Error::unsupported("an explainer cannot load weights into the model; fork_with makes a copy"))
    }

    fn fork_with(&self, edits: Named) -> Result<Box<dyn Model>> {
        self.check()?;
        let edits = match &self.foreign {
            None => edits,
            Some(transfer) => {
                let moved = edits.into_iter().map(|(name, a)| Ok((name, transfer.to_model(&a)?)));
                moved.collect::<Result<_>>()?
            }
        };
        let fork = self.model.lock().unwrap_or_else(PoisonError::into_inner).fork_with(&edits)?;
        Ok(Box::new(Proxy {
            model: Arc::new(Mutex::new(fork)),
            spec: self.spec.clone(),
            watch: self.watch.clone(),
            foreign: self.foreign.clone(),
            runs: self.runs.clone(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbox_sdk::spec::InputSpec;
    use std::sync::atomic::AtomicBool;

    struct Plain;

    impl Model for Plain {
        fn spec(&self) -> ModelSpec {
            ModelSpec::new("plain", InputSpec::imagenet(2), 2)
        }
        fn run(&self, request: &Request) -> Result<Response> {
            Ok(Response::of(Array::from_vec(&[request.batch(), 2], vec![0f32; request.batch() * 2])?))
        }
        fn parameters(&self) -> Result<Named> {
            Ok(vec![])
        }
        fn load(&mut self, _: Named) -> Result<LoadReport> {
            Ok(LoadReport::default())
        }
        fn fork_with(&self, _: Named) -> Result<Box<dyn Model>> {
            Ok(Box::new(Plain))
        }
    }

    #[derive(Default)]
    struct Signs {
        alive: AtomicU64,
        cancelled: AtomicBool,
    }

    impl Watch for Signs {
        fn alive(&self) {
            self.alive.fetch_add(1, Ordering::Relaxed);
        }
        fn log(&self, _: &str) {}
        fn progress(&self, _: u64, _: u64) {}
        fn cancelled(&self) -> bool {
            self.cancelled.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn a_run_is_a_sign_of_life_is_counted_and_ends_when_cancelled() {
        let model: Shared = Arc::new(Mutex::new(ModelHandle::of("plain", Box::new(Plain))));
        let watch = Arc::new(Signs::default());
        let (runs, dyn_watch) = (Arc::new(Counter::default()), watch.clone() as Arc<dyn Watch>);
        let proxy = handle(&model, &Plain.spec(), &dyn_watch, None, &runs);
        let request = Request::forward(Array::from_vec(&[3, 3, 2, 2], vec![0f32; 36]).unwrap());
        assert_eq!(proxy.run(&request).unwrap().logits.shape(), [3, 2]);
        assert_eq!((runs.passes(), watch.alive.load(Ordering::Relaxed)), (Passes::forward(3), 1));
        let fork = proxy.fork_with(&vec![]).unwrap();
        watch.cancelled.store(true, Ordering::Relaxed);
        assert_eq!(fork.run(&request).unwrap_err().kind, ErrorKind::Cancelled);
    }
}
