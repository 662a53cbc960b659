//! A plugin on the other side of a connection, its models and its explainers.

use super::channel::Incoming;
use super::process::Process;
use lightbox_sdk::remote::{Callbacks, RawMessage, RemoteBound, RemoteExplainer, RemoteModel};
use lightbox_sdk::spec::{LoadReport, Manifest, ModelOptions, ModelSpec};
use lightbox_sdk::{Array, Error, ExplainerHandle, ModelHandle, Place, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use serde_json::value::RawValue;
use std::path::Path;
use std::sync::Arc;
use tch::Device;

/// A plugin in another process.
pub struct RemotePlugin {
    process: Arc<Process>,
    object: usize,
    manifest: Manifest,
}

fn header(value: serde_json::Value) -> RawMessage {
    RawMessage::of(value.to_string())
}

fn read<T: DeserializeOwned>(message: &RawMessage) -> Result<T> {
    Ok(serde_json::from_str(&message.header)?)
}

/// An object of the other side, which is let go of when this is dropped.
struct Object {
    process: Arc<Process>,
    number: usize,
}

impl Drop for Object {
    fn drop(&mut self) {
        self.process.let_go(self.number);
    }
}

impl RemotePlugin {
    /// Has the other side open a plugin's file.
    ///
    /// # Errors
    /// The process's own, with the place in the file.
    pub fn open(process: &Arc<Process>, file: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Opened {
            object: usize,
            manifest: Manifest,
        }
        let opened = process.ask(("open", 0), header(json!({ "file": file })))?;
        let Opened { object, manifest } = read(&opened)?;
        Ok(RemotePlugin { process: process.clone(), object, manifest })
    }
}

impl RemotePlugin {
    /// Where it runs.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// What it offers.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Builds a model; see [`Process::call`] for errors.
    pub fn make_model(&self, name: &str, options: &ModelOptions) -> Result<ModelHandle> {
        let made =
            self.process.ask(("make-model", self.object), header(json!({ "name": name, "options": options })))?;
        Ok(ModelHandle::remote(Box::new(OtherModel::of(&self.process, &made)?)))
    }

    /// The specification of a model that is not built.
    pub fn model_spec(&self, name: &str, options: &ModelOptions) -> Result<ModelSpec> {
        read(&self.process.ask(("model-spec", self.object), header(json!({ "name": name, "options": options })))?)
    }

    /// Makes an explainer.
    pub fn make_explainer(&self, name: &str) -> Result<ExplainerHandle> {
        if !self.manifest.explainers.iter().any(|e| e.name == name) {
            return Err(Error::invalid(format!("this plugin has no explainer {name}")));
        }
        let explainer = OtherExplainer { process: self.process.clone(), plugin: self.object, name: name.into() };
        Ok(ExplainerHandle::remote(name, Box::new(explainer)))
    }
}

struct OtherModel {
    object: Object,
    spec: ModelSpec,
    module: String,
}

impl OtherModel {
    fn of(process: &Arc<Process>, made: &RawMessage) -> Result<Self> {
        #[derive(Deserialize)]
        struct Made {
            object: usize,
            spec: ModelSpec,
            module: String,
        }
        let Made { object, spec, module } = read(made)?;
        Ok(OtherModel { object: Object { process: process.clone(), number: object }, spec, module })
    }

    fn ask(&self, name: &str, message: RawMessage) -> Result<RawMessage> {
        self.object.process.ask((name, self.object.number), message)
    }
}

/// Arrays came over in CPU memory; a model on another device gives what is there.
fn to_device(arrays: Vec<Array>, device: Device) -> Result<Vec<Array>> {
    let there = |a: Array| Array::from_tensor(&a.share_tensor()?.f_to_device(device)?);
    if device == Device::Cpu { Ok(arrays) } else { arrays.into_iter().map(there).collect() }
}

impl RemoteModel for OtherModel {
    fn spec(&self) -> ModelSpec {
        self.spec.clone()
    }

    fn module(&self) -> String {
        self.module.clone()
    }

    fn run(&self, request: RawMessage) -> Result<RawMessage> {
        let places = request.arrays.iter().map(Array::place);
        let on = places.filter_map(|p| if let Place::Cuda(n) = p { Some(Device::Cuda(n)) } else { None }).next();
        let RawMessage { header, arrays } = self.ask("run", request)?;
        Ok(RawMessage { header, arrays: to_device(arrays, on.unwrap_or(Device::Cpu))? })
    }

    fn parameters(&self) -> Result<RawMessage> {
        self.ask("parameters", header(json!({})))
    }

    fn load(&mut self, parameters: RawMessage) -> Result<LoadReport> {
        read(&self.ask("load", parameters)?)
    }

    fn fork_with(&self, edits: RawMessage) -> Result<Box<dyn RemoteModel>> {
        Ok(Box::new(OtherModel::of(&self.object.process, &self.ask("fork", edits)?)?))
    }
}

struct OtherExplainer {
    process: Arc<Process>,
    plugin: usize,
    name: String,
}

impl RemoteExplainer for OtherExplainer {
    fn bind(&self, message: &str) -> Result<Box<dyn RemoteBound>> {
        #[derive(Deserialize)]
        struct Bound {
            object: usize,
            plan: Box<RawValue>,
        }
        let message: &RawValue = serde_json::from_str(message)?;
        let asked = serde_json::to_string(&json!({ "explainer": self.name, "message": message }))?;
        let Bound { object, plan } = read(&self.process.ask(("bind", self.plugin), RawMessage::of(asked))?)?;
        let object = Object { process: self.process.clone(), number: object };
        Ok(Box::new(OtherBound { object, plan: plan.get().into() }))
    }
}

struct OtherBound {
    object: Object,
    plan: String,
}

impl OtherBound {
    fn call(&self, name: &str, message: RawMessage, calls: &Callbacks<'_>) -> Result<RawMessage> {
        let inner: &RawValue = serde_json::from_str(&message.header)?;
        let header = serde_json::to_string(&json!({ "message": inner, "module": calls.module() }))?;
        let message = RawMessage { header, arrays: message.arrays };
        let answer = &mut |call: Incoming| calls.answer(&call.name, call.object, call.message);
        self.object.process.call((name, self.object.number), message, answer)
    }
}

impl RemoteBound for OtherBound {
    fn plan(&self) -> Result<String> {
        Ok(self.plan.clone())
    }

    fn fit(&self, message: RawMessage, calls: &Callbacks<'_>) -> Result<RawMessage> {
        self.call("fit", message, calls)
    }

    fn explain(&self, message: RawMessage, calls: &Callbacks<'_>) -> Result<RawMessage> {
        self.call("explain", message, calls)
    }
}
