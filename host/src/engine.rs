//! One model and its explainers, ready to run on batches.
//!
//! [`Engine::prepare`] asks every explainer what it needs; [`Engine::run`] merges the answers into one request and serves a
//! batch with one run of the model, whatever the number of explainers.

use crate::error::{Error, Result};
use crate::registry;
use lightbox_sdk::abi::HostCalls;
use lightbox_sdk::spec::{ExplainerSpec, ModelOptions, ModelSpec, Params, Plan};
use lightbox_sdk::{Array, DType, ExplainInput, ExplainerHandle, ModelHandle, Place, Request};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// An explainer as a spec or command line names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainerChoice {
    pub name: String,
    /// The column's title; the name where it is empty.
    #[serde(default)]
    pub label: String,
    #[serde(default)]
    pub params: BTreeMap<String, Value>,
}

impl ExplainerChoice {
    /// Parses `name` or `name:param=value,...`.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let mut params = BTreeMap::new();
        for pair in rest.split(',').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                Error::input(format!(
                    "explainer `{text}`: `{pair}` is not param=value (example: gradcam:layer=features.norm5)"
                ))
            })?;
            params.insert(key.to_string(), Value::from(value));
        }
        if name.is_empty() {
            return Err(Error::input(format!("explainer `{text}` has no name")));
        }
        let label = if params.is_empty() { String::new() } else { text.to_string() };
        Ok(ExplainerChoice { name: name.into(), label, params })
    }

    /// What names this choice in tables, files and events.
    pub fn label(&self) -> &str {
        if self.label.is_empty() { &self.name } else { &self.label }
    }
}

/// An explainer that was asked for its plan.
pub struct Prepared {
    pub label: String,
    pub spec: ExplainerSpec,
    pub file: PathBuf,
    pub plan: Plan,
    handle: ExplainerHandle,
    params: Params,
}

/// A model and its explainers.
pub struct Engine {
    pub model: ModelHandle,
    pub spec: ModelSpec,
    pub explainers: Vec<Prepared>,
    device: Device,
    seed: u64,
    mean_mask: Option<Array>,
}

/// Maps of a batch at the explainer's own resolution.
#[derive(Debug, Clone, PartialEq)]
pub struct Maps {
    pub n: usize,
    pub height: usize,
    pub width: usize,
    /// [n, height, width], row-major.
    pub values: Vec<f32>,
}

impl Maps {
    pub fn image(&self, i: usize) -> &[f32] {
        let size = self.height * self.width;
        &self.values[i * size..][..size]
    }
}

/// What a batch gave. Maps are in the order of [`Engine::explainers`], without those that do not apply.
pub struct Batch {
    /// [B, classes] float32, CPU.
    pub logits: Tensor,
    pub targets: Vec<i64>,
    pub maps: Vec<(usize, std::result::Result<Maps, lightbox_sdk::Error>)>,
}

/// Builds a model and loads its weights. What the model says of them comes back as sentences.
pub fn load_model(
    file: &Path,
    name: &str,
    options: &ModelOptions,
    weights: Option<&Path>,
) -> Result<(ModelHandle, Vec<String>)> {
    let plugin = registry::open(file)?;
    let mut model = plugin.make_model(name, options)?;
    let mut notes = Vec::new();
    if let Some(path) = weights {
        let state = lightbox_core::checkpoint::read(path)?;
        let mut named = Vec::new();
        for (key, tensor) in &state {
            named.push((key.clone(), Array::from_tensor(tensor)?));
        }
        let report = model.load(&named).map_err(|e| Error::input(format!("{}: {e}", path.display())))?;
        notes.extend(report.notes);
        if !report.unused.is_empty() {
            let (n, first) = (report.unused.len(), &report.unused[0]);
            notes.push(format!("{n} entries of {} were not used, first {first}", path.display()));
        }
    }
    Ok((model, notes))
}

/// A stable number of an image by its name, whatever stands beside it.
pub fn image_id(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

fn to_cpu(array: &Array) -> Result<Array, lightbox_sdk::Error> {
    match array.place() {
        Place::Cpu => Ok(array.clone()),
        Place::Cuda(_) => Array::from_tensor(&array.to_tensor()?.f_to_device(Device::Cpu)?.f_contiguous()?),
    }
}

extern "C" fn cancelled(_: *const std::ffi::c_void) -> bool {
    crate::signals::interrupted()
}

extern "C" fn log(_: *const std::ffi::c_void, line: abi_stable::std_types::RStr<'_>) {
    eprintln!("{line}");
}

/// The host as a plugin sees it: cancelled by Ctrl-C, lines go to stderr.
pub fn host_calls() -> HostCalls {
    HostCalls { data: std::ptr::null(), cancelled, log }
}

impl Engine {
    pub fn new(model: ModelHandle, device: Device, seed: u64) -> Result<Self> {
        let spec = model.spec()?;
        Ok(Engine { model, spec, explainers: vec![], device, seed, mean_mask: None })
    }

    /// The mean of the training masks, [H, W], for explainers that ask for it.
    pub fn set_mean_mask(&mut self, mask: Vec<f32>, side: usize) -> Result<()> {
        self.mean_mask = Some(Array::from_vec(&[side, side], mask)?);
        Ok(())
    }

    /// Opens an explainer and asks for its needs. Wrong parameters, an unknown site and a plugin that cannot be opened are
    /// errors; "not applicable" is a plan.
    pub fn prepare(&mut self, file: &Path, choice: &ExplainerChoice) -> Result<()> {
        let plugin = registry::open(file)?;
        let spec = plugin.manifest.explainers.iter().find(|e| e.name == choice.name).cloned();
        let spec = spec.ok_or_else(|| Error::plugin(format!("{} has no explainer {}", file.display(), choice.name)))?;
        let params = Params::resolve(&spec.parameters, &choice.params)
            .map_err(|e| Error::input(format!("explainer {}: {e}", choice.name)))?;
        let handle = plugin.make_explainer(&choice.name)?;
        let mut plan = handle.plan(&self.spec, &params)?;
        if plan == Plan::Other {
            plan = Plan::not_applicable("its answer is of a newer SDK than this host's");
        }
        if let Plan::Run(needs) = &plan {
            for site in needs.values.iter().chain(&needs.gradients) {
                self.spec.site(site).map_err(|e| Error::from(e.context(format!("explainer {}", choice.name))))?;
            }
            if needs.mean_mask && self.mean_mask.is_none() {
                plan = Plan::not_applicable("it needs the mean of the training set's masks, and there is none");
            }
        }
        let label = choice.label().to_string();
        self.explainers.push(Prepared { label, spec, file: file.to_path_buf(), plan, handle, params });
        Ok(())
    }

    /// Logits [B, classes], CPU, and nothing else.
    pub fn classify(&self, images: &Tensor) -> Result<Tensor> {
        let response = self.model.run(&Request::forward(Array::from_tensor(images)?))?;
        self.check_logits(&response.logits, images.size()[0] as usize)
    }

    /// Logits as [n, classes] float32, CPU.
    fn check_logits(&self, logits: &Array, n: usize) -> Result<Tensor> {
        let wanted = [n, self.spec.classes];
        if logits.shape() != wanted {
            let (name, shape) = (&self.spec.name, logits.shape());
            return Err(Error::plugin(format!("model {name} gave logits of shape {shape:?}, expected {wanted:?}")));
        }
        Ok(logits.to_tensor()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?)
    }

    /// Runs the model once, for what the explainers of `active` need together (indices of [`Engine::explainers`]), and each
    /// of them that applies.
    /// `targets` are classes, `None` for each image's highest logit. `before` is called before each explainer.
    pub fn run(
        &self,
        images: &Tensor,
        targets: Option<&[i64]>,
        ids: &[u64],
        active: &[usize],
        before: &mut dyn FnMut(&Prepared),
    ) -> Result<Batch> {
        let n = images.size()[0] as usize;
        let wanted = targets.map_or_else(|| vec![-1; n], <[i64]>::to_vec);
        let images = Array::from_tensor(&images.f_to_device(self.device)?)?;
        let (mut values, mut gradients) = (Vec::new(), Vec::new());
        for &index in active {
            if let Plan::Run(needs) = &self.explainers[index].plan {
                merge(&mut values, &needs.values);
                merge(&mut gradients, &needs.gradients);
            }
        }
        let targets = Array::from_vec(&[n], wanted.clone())?;
        let request = Request::explain(images.clone(), targets, &values, &gradients);
        let mut response = self.model.run(&request)?;
        let logits = self.check_logits(&response.logits, n)?;
        if logits.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Err(Error::plugin(format!(
                "model {}: its logits are not finite (hint: are there NaN in the weights?)",
                self.spec.name
            )));
        }
        let first = Vec::<i64>::try_from(logits.f_argmax(1, false)?)?;
        let targets: Vec<i64> = wanted.iter().zip(first).map(|(&w, f)| if w < 0 { f } else { w }).collect();
        let gradients = response.grads.pop().unwrap_or_default();

        let pick = |all: &BTreeMap<String, Array>, names: &[String], cpu: bool| {
            let one = |name: &String| -> Result<(String, Array), lightbox_sdk::Error> {
                let array = all.get(name).ok_or_else(|| {
                    lightbox_sdk::Error::output(format!("model {} did not hand back site {name}", self.spec.name))
                })?;
                Ok((name.clone(), if cpu { to_cpu(array)? } else { array.clone() }))
            };
            names.iter().map(one).collect::<Result<BTreeMap<_, _>, _>>()
        };
        let mut maps = Vec::new();
        for &index in active {
            let explainer = &self.explainers[index];
            let Plan::Run(needs) = &explainer.plan else { continue };
            before(explainer);
            let cpu = explainer.spec.cpu_only;
            let map = (|| {
                let input = ExplainInput {
                    images: if cpu { to_cpu(&images)? } else { images.clone() },
                    targets: Array::from_vec(&[n], targets.clone())?,
                    logits: if cpu { to_cpu(&response.logits)? } else { response.logits.clone() },
                    ids: ids.to_vec(),
                    model: &self.spec,
                    params: &explainer.params,
                    seed: self.seed,
                    values: pick(&response.values, &needs.values, cpu)?,
                    gradients: pick(&gradients, &needs.gradients, cpu)?,
                    mean_mask: self.mean_mask.clone().filter(|_| needs.mean_mask),
                    runner: needs.model.then(|| self.model.as_ref()),
                    host: host_calls(),
                };
                check_map(explainer.handle.explain(input)?, n, &explainer.spec.name)
            })();
            maps.push((index, map));
        }
        Ok(Batch { logits, targets, maps })
    }
}

fn merge(all: &mut Vec<String>, more: &[String]) {
    for site in more {
        if !all.contains(site) {
            all.push(site.clone());
        }
    }
}

/// A map must be [n, h, w] float32. Whether its values are finite is each image's own matter.
fn check_map(map: Array, n: usize, name: &str) -> Result<Maps, lightbox_sdk::Error> {
    let shape = map.shape();
    let [b, height, width] = shape.as_slice().try_into().map_err(|_| {
        lightbox_sdk::Error::output(format!("explainer {name} gave a map of shape {shape:?}, expected [{n}, h, w]"))
    })?;
    if b != n || height == 0 || width == 0 {
        return Err(lightbox_sdk::Error::output(format!(
            "explainer {name} gave a map of shape {shape:?}, expected [{n}, h, w]"
        )));
    }
    if map.dtype() != DType::F32 {
        return Err(lightbox_sdk::Error::output(format!(
            "explainer {name} gave a map of {:?}, expected F32",
            map.dtype()
        )));
    }
    let values = to_cpu(&map)?.to_vec::<f32>()?;
    Ok(Maps { n, height, width, values })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explainers_are_parsed() {
        let plain = ExplainerChoice::parse("gradcam").unwrap();
        assert_eq!((plain.label(), plain.params.len()), ("gradcam", 0));
        let set = ExplainerChoice::parse("gradcam:layer=features.norm5,relu=false").unwrap();
        assert_eq!((set.name.as_str(), set.params["relu"].as_str()), ("gradcam", Some("false")));
        assert_eq!(set.label(), "gradcam:layer=features.norm5,relu=false");
        assert!(ExplainerChoice::parse("gradcam:layer").unwrap_err().message.contains("`layer` is not param=value"));
    }
}
