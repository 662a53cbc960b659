//! What is asked of an explainer.

use super::{
    EXPLAINER_MADE, FITS, FITS_AGAIN, Outcome, PLANS, Status, Test, difference, finite, images, keeps_globals, made,
    pass, refuses, rows, tensor,
};
use crate::binding::{self, default_paths};
use crate::engine::{check_fitted, shared_request};
use crate::host_calls::Calls;
use crate::process_state::ProcessState;
use crate::registry::source::OpenPlugin;
use crate::watch::Watch;
use lightbox_core::data::image::Intensity;
use lightbox_core::data::preparation::Preparation;
use lightbox_sdk::host::Serving;
use lightbox_sdk::spec::{ExplainerSpec, FitNeeds, ImageRecord, ModelSpec, Needs, ParamValues, Plan};
use lightbox_sdk::{
    Array, BoundHandle, ExplainInput, ExplainerHandle, FitBatch, FitInput, Maps, ModelHandle, Named, Request, Target,
};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::Kind;

/// The tests of one explainer on a model. `dead`: the test in which it has ended the process before, after
/// which there is none.
pub(super) fn check(
    plugin: &dyn OpenPlugin,
    spec: &ExplainerSpec,
    file: &Path,
    given: &BTreeMap<String, serde_json::Value>,
    watch: &Arc<dyn Watch>,
    model: &mut dyn FnMut() -> std::result::Result<ModelHandle, String>,
    dead: Option<&str>,
    test: &mut Test<'_>,
) {
    let subject = spec.name.clone();
    let folder = file.parent().unwrap_or(Path::new(".")).to_path_buf();
    let mut cell: Option<(ExplainerHandle, BTreeMap<String, serde_json::Value>)> = None;
    let mut make = || {
        let explainer = plugin.make_explainer(&spec.name).map_err(|e| e.to_string())?;
        let mut given = given.clone();
        default_paths(&mut given, &spec.parameters, file);
        ParamValues::resolve(&spec.parameters, &given).map_err(|e| e.to_string())?;
        Ok((explainer, given))
    };
    test(&subject, EXPLAINER_MADE, &mut || {
        made(&mut cell, &mut make)?;
        if spec.reference.is_empty() || spec.title.is_empty() {
            return Ok((Status::Warn, "title or reference is empty".into()));
        }
        pass()
    });
    if let Some(dead) = dead {
        // They are done; they keep their numbers.
        let done = [EXPLAINER_MADE, PLANS, FITS, FITS_AGAIN];
        let last = done.iter().position(|name| *name == dead).unwrap_or(0);
        done[1..=last].iter().for_each(|name| test(&subject, name, &mut || Err("not tried".into())));
        return;
    }
    if made(&mut cell, &mut make).is_err() {
        return;
    }
    let Some((explainer, given)) = cell else { return };
    let mut ready: Option<(ModelHandle, ModelSpec, BoundHandle, Plan)> = None;
    let mut plan = || {
        let model = model()?;
        let model_spec = model.spec().map_err(|e| e.to_string())?;
        let (bound, plan) = binding::bind(&explainer, &model_spec, &[], &given).map_err(|e| e.to_string())?;
        Ok((model, model_spec, bound, plan))
    };
    test(&subject, PLANS, &mut || match made(&mut ready, &mut plan) {
        Ok(()) => match &ready {
            Some((_, model, _, Plan::NotApplicable { reason })) => {
                Ok((Status::Warn, format!("not applicable to {}: {reason}", model.name)))
            }
            _ => pass(),
        },
        Err(e) if e.starts_with("no model is at hand") => Ok((Status::Warn, e)),
        Err(e) => Err(e),
    });
    if made(&mut ready, &mut plan).is_err() {
        return;
    }
    let Some((model, model_spec, bound, Plan::Run(needs))) = ready else { return };

    let (device, preparation) = (tch::Device::Cpu, preparation(&model_spec));
    let calls =
        Calls { watch: watch.as_ref(), input: &model_spec.input, device, preparation: preparation.as_ref(), fit: None };
    let serving = Serving::new(&calls);
    let owned: crate::proxy::Shared = Arc::new(std::sync::Mutex::new(model));
    let model = crate::proxy::handle(&owned, &model_spec, watch, None, &Arc::default());
    let Some(fitted) = fits(spec, &model_spec, &bound, &model, &needs, watch, test) else { return };
    let size = &model_spec.input.size;
    let mask = Array::from_vec(size, (0..size.iter().product()).map(|i| (i % 97) as f32 / 97.0).collect());
    let tried = Tried {
        spec,
        explainer: &explainer,
        bound: &bound,
        model: &model,
        batch: images(&model_spec, 3),
        model_spec: &model_spec,
        needs: &needs,
        folder,
        mask: mask.ok().filter(|_| needs.mean_mask),
        fitted,
        serving: &serving,
    };
    for (name, question) in QUESTIONS {
        test(&subject, name, &mut || question(&tried));
    }
}

/// What a fit learns of a made training set, tested; none where it fails.
fn fits(
    spec: &ExplainerSpec,
    model_spec: &ModelSpec,
    bound: &BoundHandle,
    model: &ModelHandle,
    needs: &Needs,
    watch: &Arc<dyn Watch>,
    test: &mut Test<'_>,
) -> Option<BTreeMap<String, Array>> {
    let Some(wanted) = &needs.fit else { return Some(BTreeMap::new()) };
    let mut fitted: Option<BTreeMap<String, Array>> = None;
    let mut learn = || {
        let named = fit(bound, model, model_spec, wanted, needs.model, watch)?;
        check_fitted(&named, &spec.name).map_err(|e| e.to_string())?;
        Ok(named.into_iter().collect())
    };
    test(&spec.name, FITS, &mut || {
        made(&mut fitted, &mut learn)?;
        for (name, array) in fitted.iter().flatten() {
            finite(array, name)?;
        }
        pass()
    });
    test(&spec.name, FITS_AGAIN, &mut || {
        let again: BTreeMap<String, Array> = learn()?;
        made(&mut fitted, &mut learn)?;
        for (name, array) in fitted.iter().flatten() {
            let other = again.get(name).ok_or(format!("{name} is not there the second time"))?;
            let d = difference(array, other)?;
            if d > 0.0 {
                return Err(format!("{name} differs by {d:.1e} between two fits"));
            }
        }
        pass()
    });
    made(&mut fitted, &mut learn).ok()?;
    fitted
}

/// What is asked of an explainer that has been bound, in this order.
const QUESTIONS: [(&str, fn(&Tried<'_>) -> Outcome); 7] = [
    ("maps have the right shape and are finite", |t| t.shape()),
    ("is deterministic", |t| t.deterministic()),
    ("gives an image the same map in any batch", |t| t.any_batch()),
    ("does not write to its input", |t| t.input_is_kept()),
    ("leaves grad mode, threads and random generator as they were", |t| keeps_globals(&mut || t.map().map(drop))),
    ("refuses wrong parameters with an error", |t| t.wrong_parameters()),
    ("refuses wrong input with an error", |t| t.wrong_input()),
];

/// An explainer that is bound to a model, and three images.
struct Tried<'a> {
    spec: &'a ExplainerSpec,
    explainer: &'a ExplainerHandle,
    bound: &'a BoundHandle,
    model: &'a ModelHandle,
    model_spec: &'a ModelSpec,
    needs: &'a Needs,
    /// That of the plugin.
    folder: PathBuf,
    /// The mean mask, where the explainer asks for it.
    mask: Option<Array>,
    /// What was learned.
    fitted: BTreeMap<String, Array>,
    batch: Array,
    serving: &'a Serving<'a>,
}

/// Numbers of the images.
const IDS: [u64; 3] = [11, 22, 33];

impl Tried<'_> {
    fn explain(&self, images: &Array, ids: &[u64]) -> std::result::Result<Maps, lightbox_sdk::Error> {
        let targets = vec![Target::Class(0); images.shape()[0]];
        let wanted: Vec<Option<Target>> = targets.iter().cloned().map(Some).collect();
        let response = self.model.run(&shared_request(self.model_spec, images, &wanted, self.needs)?)?;
        let mut sets = response.grads.into_iter();
        let input = ExplainInput {
            images: images.clone(),
            targets,
            logits: response.logits,
            outputs: response.outputs,
            ids: ids.to_vec(),
            seed: 3,
            at_once: 0,
            values: response.values,
            gradients: sets.next().unwrap_or_default(),
            others: sets.collect(),
            records: ids.iter().map(|id| record(*id)).collect(),
            plugin_folder: Some(self.folder.clone()),
            mean_mask: self.mask.clone(),
            fitted: self.fitted.clone(),
            runner: self.needs.model.then(|| self.model.as_ref()),
            host: self.serving,
        };
        ProcessState::keep(&format!("explainer {}", self.spec.name), || self.bound.explain(input))
    }

    fn map(&self) -> std::result::Result<Array, String> {
        self.explain(&self.batch, &IDS).map(|m| m.array).map_err(|e| e.to_string())
    }

    fn shape(&self) -> Outcome {
        let Maps { array: map, names } = self.explain(&self.batch, &IDS).map_err(|e| e.to_string())?;
        let (shape, k, axes) = (map.shape(), names.len(), self.model_spec.input.size.len());
        let fits = match k {
            0 => shape.len() == 1 + axes,
            _ => shape.len() == 2 + axes && shape[1] == k,
        };
        if !fits || shape[0] != 3 || shape.contains(&0) {
            let wanted = if k == 0 { "[3, h, w]".into() } else { format!("[3, {k}, h, w], a map a name") };
            return Err(format!("the map has shape {shape:?}, expected {wanted}"));
        }
        if map.dtype() != lightbox_sdk::DType::F32 {
            return Err(format!("the map is {:?}, expected F32", map.dtype()));
        }
        finite(&map, "the map")?;
        if !self.spec.signed && tensor(&map)?.min().double_value(&[]) < 0.0 {
            return Ok((Status::Warn, "the map has negative values, the specification says unsigned".into()));
        }
        pass()
    }

    fn deterministic(&self) -> Outcome {
        match difference(&self.map()?, &self.map()?)? {
            0.0 => pass(),
            // A NaN differs from itself; that it is there was said before.
            d if d.is_nan() => Ok((Status::Warn, "its maps are not finite, so they cannot be compared".into())),
            d => Err(format!("two calls differ by {d:.1e}; draw random numbers from Context::rng")),
        }
    }

    fn any_batch(&self) -> Outcome {
        let whole = self.map()?;
        for i in 0..3 {
            let image = rows(&self.batch, i, 1).map_err(|e| e.to_string())?;
            let alone = self.explain(&image, &IDS[i..=i]).map_err(|e| e.to_string())?.array;
            let d = difference(&alone, &rows(&whole, i, 1).map_err(|e| e.to_string())?)?;
            if d > 1e-3 {
                return Err(format!("image {i} alone and in a batch differ by {d:.1e}"));
            }
        }
        pass()
    }

    fn input_is_kept(&self) -> Outcome {
        let copy = tensor(&self.batch)?.to_kind(Kind::Float).copy();
        let copy = Array::from_tensor(&copy).map_err(|e| e.to_string())?;
        let _ = self.map()?;
        if difference(&self.batch, &copy)? == 0.0 { pass() } else { Err("the images have changed".into()) }
    }

    fn wrong_parameters(&self) -> Outcome {
        let wrong = BTreeMap::from([("no-such-parameter".to_string(), serde_json::Value::from(1))]);
        match self.explainer.bind(self.model_spec, &[], &wrong) {
            Ok(_) => Err("an unknown parameter is accepted".into()),
            Err(_) => pass(),
        }
    }

    /// Arrays of another shape than planned for: an error or, where they are not read, a map; never a panic.
    fn wrong_input(&self) -> Outcome {
        let odd = Array::from_vec(&[3, 5], vec![0f32; 15]).map_err(|e| e.to_string())?;
        let replace = |names: &[String]| names.iter().map(|n| (n.clone(), odd.clone())).collect::<BTreeMap<_, _>>();
        let outcome = self.bound.explain(ExplainInput {
            values: replace(&self.needs.values),
            gradients: replace(&self.needs.gradients),
            others: self.needs.others.iter().map(|_| replace(&self.needs.gradients)).collect(),
            mean_mask: self.needs.mean_mask.then(|| odd.clone()),
            fitted: self.fitted.keys().map(|name| (name.clone(), odd.clone())).collect(),
            runner: self.needs.model.then(|| self.model.as_ref()),
            ..ExplainInput::new(odd.clone(), vec![], odd.clone(), self.serving)
        });
        refuses(outcome, "a batch of the wrong shape")?;
        pass()
    }
}

/// How images that a plugin reads are prepared in a check.
fn preparation(spec: &ModelSpec) -> Option<Preparation> {
    let size = spec.input.flat().ok()?;
    Some(Preparation { size, colour: false, intensity: Intensity::Auto })
}

/// What is said of a made image.
fn record(id: u64) -> ImageRecord {
    ImageRecord { name: format!("image-{id}.png"), patient: Some(format!("patient-{id}")), ..ImageRecord::default() }
}

/// Runs a fit on eight made images, four a batch, of which every second has class 1 and a mask.
fn fit(
    bound: &BoundHandle,
    model: &ModelHandle,
    spec: &ModelSpec,
    needs: &FitNeeds,
    with_model: bool,
    watch: &Arc<dyn Watch>,
) -> Result<Named, String> {
    let whole = images(spec, 8);
    let ([h, w], classes) = (spec.input.flat().map_err(|e| e.to_string())?, spec.classes());
    let at = Cell::new(0);
    let next = |rewind: bool| -> Result<Option<FitBatch>, lightbox_sdk::Error> {
        if rewind {
            at.set(0);
        }
        let from = at.get();
        if from >= 8 {
            return Ok(None);
        }
        at.set(from + 4);
        let images = rows(&whole, from, 4)?;
        let response = model.run(&Request { values: needs.values.clone(), ..Request::forward(images.clone()) })?;
        let holds = |i: usize, c: usize| f32::from(u8::from(i % 2 == c));
        let marked = |i: usize, p: usize| u8::from(i % 2 == 1 && p % w < w / 2);
        Ok(Some(FitBatch {
            images,
            labels: Array::from_vec(
                &[4, classes],
                (0..4 * classes).map(|k| holds(k / classes, k % classes)).collect(),
            )?,
            masks: Array::from_vec(&[4, h, w], (0..4 * h * w).map(|k| marked(k / (h * w), k % (h * w))).collect())?,
            known: Array::from_vec(&[4], vec![true; 4])?,
            ids: (from as u64..from as u64 + 4).collect(),
            records: (from as u64..from as u64 + 4).map(record).collect(),
            values: response.values.into_iter().collect(),
            logits: response.logits,
        }))
    };
    let (device, preparation) = (tch::Device::Cpu, preparation(spec));
    let calls = Calls {
        watch: watch.as_ref(),
        input: &spec.input,
        device,
        preparation: preparation.as_ref(),
        fit: Some(&next),
    };
    let serving = Serving::new(&calls);
    let input = FitInput {
        class: Some(1.min(classes.saturating_sub(1))),
        seed: 5,
        runner: with_model.then(|| model.as_ref()),
        host: &serving,
    };
    bound.fit(input).map_err(|e| e.to_string())
}
