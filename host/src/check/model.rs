//! What is asked of a model.

use super::{
    MODEL_MADE, Outcome, Status, Test, difference, finite, images, keeps_globals, made, make_small, pass, refuses,
    rows, tensor,
};
use crate::registry::source::OpenPlugin;
use lightbox_sdk::spec::{Axis, ModelSpec, PAIR_RULES, Role};
use lightbox_sdk::{Array, ModelHandle, Objective, Patch, Request, Target};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

/// What one test may take, in seconds: a large model is differentiated at fewer sites, so that it keeps to the limit.
const BUDGET: f64 = 20.0;

/// Sites to differentiate at: the two that explainers read first, then at most a hundred or so spread over all.
fn tried_sites(spec: &ModelSpec) -> Vec<String> {
    let all: Vec<&String> = spec.sites.iter().map(|s| &s.name).collect();
    let step = all.len().div_ceil(128).max(1);
    let mut tried: Vec<String> = Vec::new();
    // In several rounds, so that those that there is time for are spread over the model too.
    let rounds = (0..8).flat_map(|round| all.iter().step_by(step).skip(round).step_by(8));
    for site in spec.cam_site.iter().chain(&spec.attention_site).chain(rounds.copied()) {
        if !tried.contains(site) {
            tried.push(site.clone());
        }
    }
    tried
}

/// A seed for the random directions of [`gradient_error`].
const DIRECTIONS: u64 = 1;

/// The gradient of the first class's logits at a site, and the site's value.
fn gradient(model: &ModelHandle, batch: &Array, site: &str, values: &[String]) -> Result<(Tensor, Tensor), String> {
    let n = batch.shape()[0];
    let wanted = vec![&Target::Class(0); n];
    let objective =
        lightbox_sdk::objective(&model.spec().map_err(|e| e.to_string())?, &wanted).map_err(|e| e.to_string())?;
    let request = Request::explain(batch.clone(), objective, values, &[site.to_string()]);
    let response = model.run(&request).map_err(|e| e.to_string())?;
    let gradient = response.grads.first().and_then(|g| g.get(site)).ok_or(format!("no gradient at {site}"))?;
    finite(gradient, &format!("the gradient at {site}"))?;
    let value = response.values.get(site).ok_or(format!("no value at {site}"))?;
    // What follows computes with both, and libtorch's complaint about unlike shapes would be a panic.
    if gradient.shape() != value.shape() {
        let (g, v) = (gradient.shape(), value.shape());
        return Err(format!("the gradient at {site} has shape {g:?}, its value {v:?}"));
    }
    Ok((tensor(gradient)?, tensor(value)?))
}

/// How far the gradient of the first class's logits at a site is from finite differences, relative; `None` when the
/// gradient is too small for float32 to tell. Patches of the site move it along the gradient, where the slope must be the
/// gradient's norm: the error there is the answer. Steps in random directions find what the gradient leaves out; there the
/// error is in units of the slope that a gradient of this size has on average. `rounding` is that of the logits, relative.
fn gradient_error(model: &ModelHandle, batch: &Array, site: &str, rounding: f64) -> Result<Option<f64>, String> {
    let (g, value) = gradient(model, batch, site, &[site.to_string()])?;
    let norm = |t: &Tensor| (t * t).sum(Kind::Double).double_value(&[]).sqrt();
    let (size, reach, count) = (norm(&g), norm(&value), g.numel());
    if !size.is_normal() {
        return Ok(None);
    }
    let logit = |shift: &Tensor| -> Result<f64, String> {
        let shift = Array::from_tensor(&shift.to_kind(Kind::Float)).map_err(|e| e.to_string())?;
        let patch = Patch { site: site.to_string(), scale: None, shift: Some(shift) };
        let request = Request { patches: vec![patch], ..Request::forward(batch.clone()) };
        let logits = tensor(&model.run(&request).map_err(|e| e.to_string())?.logits)?;
        Ok(logits.select(1, 0).sum(Kind::Double).double_value(&[]))
    };
    // Slopes by steps of several lengths: a long step leaves the linear part, a short one drowns in rounding.
    let slopes = |direction: &Tensor, unit: f64| -> Result<Vec<f64>, String> {
        let mut found = Vec::new();
        for length in [2e-2 * reach, 2e-3 * reach, 1e-2] {
            let (up, down) = (logit(&(direction * length))?, logit(&(direction * -length))?);
            // Half a dozen roundings of the logits must be well below the difference.
            if rounding * (up.abs() + down.abs() + 1.0) < 0.02 * 2.0 * length * unit {
                found.push((up - down) / (2.0 * length));
            }
        }
        Ok(found)
    };
    let closest =
        |found: &[f64], slope: f64, unit: f64| found.iter().map(|s| (s - slope).abs() / unit).min_by(f64::total_cmp);
    let along = closest(&slopes(&(&g / size), size)?, size, size);
    let mut rng = ChaCha8Rng::seed_from_u64(DIRECTIONS);
    for _ in 0..3 {
        // Sums of uniform draws are normal enough.
        let draws: Vec<f64> = (0..count).map(|_| (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0).collect();
        // Values that are zero may lie on the kink of a ReLU, where there is no slope to compare.
        let direction = Tensor::from_slice(&draws).reshape(g.size()) * value.ne(0.0);
        let length = norm(&direction);
        if !length.is_normal() {
            break;
        }
        let direction = &direction / length;
        let slope = (&g * &direction).sum(Kind::Double).double_value(&[]);
        // Of a network that bends within the step nothing is said: there the slopes of two lengths differ.
        let unit = size / (count as f64).sqrt();
        let found = slopes(&direction, unit)?;
        let agree = found.windows(2).any(|pair| (pair[0] - pair[1]).abs() < 0.1 * unit);
        if let Some(error) = closest(&found, slope, unit).filter(|e| *e > 0.3 && agree) {
            return Ok(Some(error));
        }
    }
    Ok(along)
}

/// A model that was made, with the images that it is tried on.
struct Tried<'a> {
    model: &'a ModelHandle,
    spec: &'a ModelSpec,
    /// Two images.
    batch: &'a Array,
}

type Trial<'a> = fn(&Tried<'a>) -> Outcome;

impl Tried<'_> {
    fn forward(&self, images: &Array) -> std::result::Result<lightbox_sdk::Response, String> {
        self.model.run(&Request::forward(images.clone())).map_err(|e| e.to_string())
    }

    /// Logits and sites have the shapes it says, and are finite.
    fn shapes(&self) -> Outcome {
        let names: Vec<String> = self.spec.sites.iter().map(|s| s.name.clone()).collect();
        let request = Request { values: names, ..Request::forward(self.batch.clone()) };
        let response = self.model.run(&request).map_err(|e| e.to_string())?;
        for output in &self.spec.outputs {
            let array = response.output(self.spec, &output.name).map_err(|e| e.to_string())?;
            let (shape, wanted) = (array.shape(), [vec![2], output.shape()].concat());
            if shape != wanted {
                return Err(format!("output {} has shape {shape:?}, expected {wanted:?}", output.name));
            }
            finite(array, &format!("output {}", output.name))?;
        }
        finite(&response.logits, "logits")?;
        for site in &self.spec.sites {
            let value = response.values.get(&site.name).ok_or(format!("site {} is not handed back", site.name))?;
            let shape = value.shape();
            let expected = if site.is_map() {
                Some([vec![2, site.channels], site.grid.clone()].concat())
            } else if site.is_tokens() {
                Some(vec![2, site.prefix.len() + site.places(), site.channels])
            } else if site.axes == [Axis::Batch, Axis::Channel] || site.axes == [Axis::Batch, Axis::Class] {
                Some(vec![2, site.channels])
            } else {
                None
            };
            if expected.as_ref().is_some_and(|e| *e != shape) {
                return Err(format!(
                    "site {} has shape {shape:?}, expected {:?}",
                    site.name,
                    expected.unwrap_or_default()
                ));
            }
            finite(value, &format!("site {}", site.name))?;
        }
        pass()
    }

    /// Is deterministic.
    fn deterministic(&self) -> Outcome {
        match difference(&self.forward(self.batch)?.logits, &self.forward(self.batch)?.logits)? {
            0.0 => pass(),
            d => Err(format!("two runs differ by {d:.1e}")),
        }
    }

    /// Gives an image the same logits in any batch.
    fn any_batch(&self) -> Outcome {
        let whole = self.forward(self.batch)?.logits;
        for i in 0..2 {
            let alone = self.forward(&rows(self.batch, i, 1).map_err(|e| e.to_string())?)?.logits;
            let d = difference(&alone, &rows(&whole, i, 1).map_err(|e| e.to_string())?)?;
            if d > 1e-4 {
                return Err(format!("image {i} alone and in a batch differ by {d:.1e}"));
            }
        }
        pass()
    }

    /// Gradients equal finite differences.
    fn gradients(&self) -> Outcome {
        let mut zero = Vec::new();
        let started = std::time::Instant::now();
        // How far the logits of an image move with what it is computed beside: no difference below that says anything.
        let one = self.forward(&rows(self.batch, 0, 1).map_err(|e| e.to_string())?)?.logits;
        let both = rows(&self.forward(self.batch)?.logits, 0, 1).map_err(|e| e.to_string())?;
        let rounding = difference(&one, &both)?.max(1e-6);
        let mut tried = 0;
        for site in tried_sites(self.spec) {
            if started.elapsed().as_secs_f64() > BUDGET {
                break;
            }
            tried += 1;
            match gradient_error(self.model, self.batch, &site, rounding)? {
                None => zero.push(site),
                Some(error) if error > 0.05 => {
                    return Err(format!("at {site} they differ by {:.1} %", error * 100.0));
                }
                Some(_) => {}
            }
        }
        let all = self.spec.sites.len();
        match zero.len() {
            0 if tried < all => Ok((Status::Pass, format!("{tried} of {all} sites"))),
            0 => Ok((Status::Pass, format!("{tried} sites"))),
            n => {
                let status = if n == tried { Status::Warn } else { Status::Pass };
                Ok((status, format!("{tried} sites; too small to compare at {n} of them, first {}", zero[0])))
            }
        }
    }

    /// A gradient is the same whatever else is asked for.
    fn gradients_among_others(&self) -> Outcome {
        let all: Vec<String> = self.spec.sites.iter().map(|s| s.name.clone()).collect();
        for site in self.spec.cam_site.iter().chain(&self.spec.attention_site) {
            let (alone, _) = gradient(self.model, self.batch, site, std::slice::from_ref(site))?;
            let (among, _) = gradient(self.model, self.batch, site, &all)?;
            let largest = among.abs().max().double_value(&[]).max(1e-30);
            let d = (alone - among).abs().max().double_value(&[]) / largest;
            if d > 1e-3 {
                return Err(format!("at {site} alone and among all sites they differ by {:.1} %", d * 100.0));
            }
        }
        pass()
    }

    /// A patch that changes nothing changes nothing, one that blots out does.
    fn patches(&self) -> Outcome {
        let one = Array::from_vec(&[1], vec![1f32]).map_err(|e| e.to_string())?;
        let plain = self.forward(self.batch)?.logits;
        for site in &self.spec.sites {
            let patch = Patch { site: site.name.clone(), scale: Some(one.clone()), shift: None };
            let request = Request { patches: vec![patch], ..Request::forward(self.batch.clone()) };
            let d = difference(&self.model.run(&request).map_err(|e| e.to_string())?.logits, &plain)?;
            // A site that nobody asks for may run by a fused kernel, which rounds in another order.
            if d > 1e-5 {
                return Err(format!("scaling {} by 1 moves the logits by {d:.1e}", site.name));
            }
        }
        let zero = Array::from_vec(&[1], vec![0f32]).map_err(|e| e.to_string())?;
        for site in self.spec.cam_site.iter().chain(&self.spec.attention_site) {
            let patch = Patch { site: site.clone(), scale: Some(zero.clone()), shift: None };
            let request = Request { patches: vec![patch], ..Request::forward(self.batch.clone()) };
            if difference(&self.model.run(&request).map_err(|e| e.to_string())?.logits, &plain)? == 0.0 {
                return Err(format!("scaling {site} by 0 leaves the logits as they were"));
            }
        }
        pass()
    }

    /// A run that begins at a site is the rest of the whole run.
    fn starts(&self) -> Outcome {
        let starts: Vec<&String> = self.spec.sites.iter().filter(|s| s.start).map(|s| &s.name).collect();
        // All of them, or a dozen spread over more.
        for site in starts.iter().step_by(starts.len().div_ceil(12).max(1)) {
            let values = vec![site.to_string()];
            let whole = self
                .model
                .run(&Request { values, ..Request::forward(self.batch.clone()) })
                .map_err(|e| e.to_string())?;
            let value = whole.values.get(*site).ok_or(format!("no value at {site}"))?.clone();
            let from = Request::from_site(site, value.clone()).map_err(|e| e.to_string())?;
            let rest = self.model.run(&from).map_err(|e| e.to_string())?;
            let d = difference(&rest.logits, &whole.logits)?;
            if d > 1e-5 {
                return Err(format!("begun at {site} the logits differ by {d:.1e}"));
            }
            // Another batch size, and a patch there.
            let tenth = Array::from_vec(&[1], vec![0.1f32]).map_err(|e| e.to_string())?;
            let patches = vec![Patch { site: site.to_string(), scale: Some(tenth), shift: None }];
            let patched = self.model.run(&Request { patches: patches.clone(), ..Request::forward(self.batch.clone()) });
            let patched = patched.map_err(|e| e.to_string())?;
            let twice = tensor(&value)?
                .repeat([2].iter().copied().chain((1..value.shape().len()).map(|_| 1)).collect::<Vec<i64>>());
            let twice = Array::from_tensor(&twice.to_kind(Kind::Float)).map_err(|e| e.to_string())?;
            let from = Request::from_site(site, twice).map_err(|e| e.to_string())?;
            let rest = self.model.run(&Request { patches, ..from }).map_err(|e| e.to_string())?;
            for half in [0, 2] {
                let d = difference(&rows(&rest.logits, half, 2).map_err(|e| e.to_string())?, &patched.logits)?;
                if d > 1e-4 {
                    return Err(format!("begun at {site} with a patch there the logits differ by {d:.1e}"));
                }
            }
        }
        Ok((Status::Pass, if starts.is_empty() { "it has none".into() } else { format!("{} sites", starts.len()) }))
    }

    /// Rules change gradients and no value.
    fn rules(&self) -> Outcome {
        let plain = self.forward(self.batch)?.logits;
        let input = self.spec.site_of(Role::Input).map(|s| s.name.clone());
        let Some(input) = input.filter(|_| !self.spec.rules.is_empty()) else {
            return Ok((Status::Pass, "it has none".into()));
        };
        for rule in &self.spec.rules {
            let targets = Array::from_vec(&[2], vec![0i64; 2]).map_err(|e| e.to_string())?;
            let pairs = PAIR_RULES.contains(&rule.as_str());
            let request =
                Request::explain(self.batch.clone(), Objective::Class(targets), &[], std::slice::from_ref(&input));
            let request = Request { pairs, ..request };
            let rules = vec![rule.clone()];
            let ruled = self.model.run(&Request { rules, ..request.clone() }).map_err(|e| e.to_string())?;
            let d = difference(&ruled.logits, &plain)?;
            if d > 1e-5 {
                return Err(format!("rule {rule} moves the logits by {d:.1e}"));
            }
            let usual = self.model.run(&request).map_err(|e| e.to_string())?;
            let at = |r: &lightbox_sdk::Response| r.grads.first().and_then(|g| g.get(&input)).cloned();
            let (a, b) = (at(&ruled).ok_or("no gradient")?, at(&usual).ok_or("no gradient")?);
            finite(&a, "the gradient")?;
            if difference(&a, &b)? == 0.0 {
                return Err(format!("rule {rule} leaves the gradient as it was"));
            }
        }
        Ok((Status::Pass, self.spec.rules.join(", ")))
    }

    /// A fork with other parameters leaves the original as it was.
    fn forks(&self) -> Outcome {
        let before = self.forward(self.batch)?.logits;
        let parameters = self.model.parameters().map_err(|e| e.to_string())?;
        let (name, array) = parameters.first().ok_or("it has no parameters")?;
        let zeros = tensor(array)?.zeros_like().to_kind(Kind::Float);
        let edit = vec![(name.clone(), Array::from_tensor(&zeros).map_err(|e| e.to_string())?)];
        let fork = self.model.fork_with(&edit).map_err(|e| e.to_string())?;
        let forked = fork.run(&Request::forward(self.batch.clone())).map_err(|e| e.to_string())?.logits;
        if difference(&self.forward(self.batch)?.logits, &before)? != 0.0 {
            return Err("the original's logits have changed".into());
        }
        if difference(&forked, &before)? == 0.0 {
            return Err(format!("the fork with {name} set to zero is the original"));
        }
        pass()
    }

    /// Does not write to its input.
    fn input_is_kept(&self) -> Outcome {
        let copy = Array::from_tensor(&tensor(self.batch)?.to_kind(Kind::Float).copy()).map_err(|e| e.to_string())?;
        self.forward(self.batch)?;
        if difference(self.batch, &copy)? == 0.0 { pass() } else { Err("the images have changed".into()) }
    }

    /// Leaves grad mode, threads and random generator as they were.
    fn globals_are_kept(&self) -> Outcome {
        keeps_globals(&mut || self.forward(self.batch).map(drop))
    }

    /// Refuses wrong input with an error.
    fn wrong_input(&self) -> Outcome {
        let i = &self.spec.input;
        let array =
            |shape: &[usize]| Array::from_vec(shape, vec![0f32; shape.iter().product()]).map_err(|e| e.to_string());
        let mut other = i.shape(2);
        other[2] += 1;
        refuses(self.model.run(&Request::forward(array(&other)?)), "an image of another size")?;
        refuses(self.model.run(&Request::forward(array(&[4])?)), "a vector for images")?;
        let unknown = Request { values: vec!["no such site".into()], ..Request::forward(self.batch.clone()) };
        refuses(self.model.run(&unknown), "an unknown site")?;
        let input = || self.spec.site_of(Role::Input).map(|s| s.name.clone());
        let site = self.spec.cam_site.clone().or_else(input).unwrap_or_default();
        let target = Array::from_vec(&[2], vec![self.spec.classes() as i64; 2]).map_err(|e| e.to_string())?;
        let request = Request {
            grads: vec![site],
            objectives: vec![vec![Objective::Class(target)]],
            ..Request::forward(self.batch.clone())
        };
        refuses(self.model.run(&request), "a class that it does not have")?;
        pass()
    }
}

/// The tests of one model. `dead`: its making has ended the process before.
pub(super) fn check(plugin: &dyn OpenPlugin, spec: &ModelSpec, dead: bool, test: &mut Test<'_>) {
    let subject = spec.name.clone();
    let mut cell: Option<(ModelHandle, ModelSpec)> = None;
    let mut make = || {
        let model = make_small(plugin, &spec.name)?;
        let own = model.spec().map_err(|e| e.to_string())?;
        Ok((model, own))
    };
    test(&subject, MODEL_MADE, &mut || {
        made(&mut cell, &mut make)?;
        let mut names: Vec<&str> = spec.sites.iter().map(|s| s.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
            return Err(format!("two sites are called {}", twice[0]));
        }
        let i = &spec.input;
        if i.mean.len() != i.channels || i.std.len() != i.channels || i.std.iter().any(|s| *s <= 0.0) {
            return Err("mean and std do not have a positive value a channel".into());
        }
        for site in spec.cam_site.iter().chain(&spec.attention_site) {
            spec.site(site).map_err(|e| e.to_string())?;
        }
        if spec.reference.is_empty() {
            return Ok((Status::Warn, "it cites no reference".into()));
        }
        pass()
    });
    if dead || made(&mut cell, &mut make).is_err() {
        return;
    }
    let Some((model, spec)) = cell else { return };
    let tried = Tried { batch: &images(&spec, 2), model: &model, spec: &spec };
    let all: [(&str, Trial); 12] = [
        ("logits and sites have the shapes it says, and are finite", Tried::shapes),
        ("is deterministic", Tried::deterministic),
        ("gives an image the same logits in any batch", Tried::any_batch),
        ("gradients equal finite differences", Tried::gradients),
        ("a gradient is the same whatever else is asked for", Tried::gradients_among_others),
        ("a patch that changes nothing changes nothing, one that blots out does", Tried::patches),
        ("a run that begins at a site is the rest of the whole run", Tried::starts),
        ("rules change gradients and no value", Tried::rules),
        ("a fork with other parameters leaves the original as it was", Tried::forks),
        ("does not write to its input", Tried::input_is_kept),
        ("leaves grad mode, threads and random generator as they were", Tried::globals_are_kept),
        ("refuses wrong input with an error", Tried::wrong_input),
    ];
    for (name, run) in all {
        test(&subject, name, &mut || run(&tried));
    }
}
