//! Models and explainers that live in another process. Their messages are handed on as they are, header and arrays, so that what is
//! between the processes ([`crate::wire`]) needs to know no field of them. A host implements these traits; authors do not.

use crate::abi::{self, BoundAbi, BoundAbi_TO, BoundBox, ExplainerAbi, ExplainerAbi_TO, HostCalls, Message, ModelAbi};
use crate::abi::{ModelAbi_TO, ModelBox, ROption, RResult, RString, TD_Opaque, TrainerBox};
use crate::message::{Unpacker, pack_named, unpack_named};
use crate::spec::{LoadReport, ModelSpec};
use crate::{Array, Error, ExplainerHandle, ModelHandle, Request, Response, Result};
use serde_json::value::RawValue;
use std::sync::Mutex;

/// A header and its arrays.
#[derive(Debug, Clone)]
pub struct RawMessage {
    /// A JSON object, as text.
    pub header: String,
    /// What the header's numbers stand for.
    pub arrays: Vec<Array>,
}

impl RawMessage {
    /// A message without arrays.
    pub fn of(header: impl Into<String>) -> Self {
        RawMessage { header: header.into(), arrays: vec![] }
    }

    fn from_abi(message: Message) -> Result<Self> {
        let (header, arrays): (Box<RawValue>, Unpacker) = Unpacker::open(message)?;
        Ok(RawMessage { header: header.get().into(), arrays: arrays.into_arrays() })
    }

    fn into_abi(self) -> Message {
        Message { json: self.header.into(), tensors: self.arrays.iter().map(Array::to_wire).collect() }
    }
}

/// A model in another process.
pub trait RemoteModel: Send {
    /// As [`Model::spec`](crate::Model::spec).
    fn spec(&self) -> ModelSpec;

    /// As [`Model::module`](crate::Model::module).
    fn module(&self) -> String;

    /// A [`RequestMessage`](crate::wire::RequestMessage) to a [`ResponseMessage`](crate::wire::ResponseMessage). The request was
    /// checked against the description.
    fn run(&self, request: RawMessage) -> Result<RawMessage>;

    /// A [`NamedMessage`](crate::wire::NamedMessage).
    fn parameters(&self) -> Result<RawMessage>;

    /// A [`NamedMessage`](crate::wire::NamedMessage) to a [`LoadReport`].
    fn load(&mut self, parameters: RawMessage) -> Result<LoadReport>;

    /// A copy with the parameters of a [`NamedMessage`](crate::wire::NamedMessage).
    fn fork_with(&self, edits: RawMessage) -> Result<Box<dyn RemoteModel>>;
}

/// An explainer in another process.
pub trait RemoteExplainer: Send {
    /// A [`BindMessage`](crate::wire::BindMessage).
    fn bind(&self, message: &str) -> Result<Box<dyn RemoteBound>>;
}

/// An explainer in another process that is bound to a model.
pub trait RemoteBound: Send {
    /// A [`Plan`](crate::spec::Plan) as JSON.
    fn plan(&self) -> Result<String>;

    /// A [`FitMessage`](crate::wire::FitMessage) to a [`NamedMessage`](crate::wire::NamedMessage).
    fn fit(&self, message: RawMessage, calls: &Callbacks<'_>) -> Result<RawMessage>;

    /// An [`ExplainMessage`](crate::wire::ExplainMessage) to a [`MapsMessage`](crate::wire::MapsMessage).
    fn explain(&self, message: RawMessage, calls: &Callbacks<'_>) -> Result<RawMessage>;
}

/// What an explainer in another process may ask for while it is called: its model, and its host.
pub struct Callbacks<'a> {
    model: Option<&'a ModelBox>,
    host: HostCalls<'a>,
    /// Copies of the model that were asked for during this call, by their number less 1.
    forks: Mutex<Vec<ModelBox>>,
}

impl Callbacks<'_> {
    fn new<'a>(model: ROption<&'a ModelBox>, host: HostCalls<'a>) -> Callbacks<'a> {
        Callbacks { model: model.into_option(), host, forks: Mutex::new(Vec::new()) }
    }

    /// See [`Model::module`](crate::Model::module); `None` where there is no model to ask.
    pub fn module(&self) -> Option<String> {
        self.model.map(|m| m.module().into_string())
    }

    /// Answers a call. `run`, `parameters` and `fork` are the model's, of which `model` is the number: 0, or what `fork` gave in
    /// `model`. All other names are the host's ([`HOST_CALLS`](crate::wire::HOST_CALLS)).
    ///
    /// # Errors
    /// There is no such call or model, or it failed.
    pub fn answer(&self, name: &str, model: usize, message: RawMessage) -> Result<RawMessage> {
        if !["run", "parameters", "fork"].contains(&name) {
            // SAFETY: the host's side outlives the call to which it was lent, and with it this value.
            let reply = unsafe { (self.host.call)(self.host.data, name.into(), message.into_abi()) };
            return RawMessage::from_abi(abi::receive(reply)?);
        }
        let forks = || self.forks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let missing = || Error::invalid("the explainer did not ask for a model (Needs::model)");
        let ask = |f: &dyn Fn(&ModelBox) -> Result<RawMessage>| match model {
            0 => f(self.model.ok_or_else(missing)?),
            n => f(forks().get(n - 1).ok_or_else(|| Error::invalid(format!("there is no model {n}")))?),
        };
        match name {
            "run" => ask(&|m| RawMessage::from_abi(abi::receive(m.run(message.clone().into_abi()))?)),
            "parameters" => ask(&|m| RawMessage::from_abi(abi::receive(m.parameters())?)),
            _ => {
                let fork = match model {
                    0 => abi::receive(self.model.ok_or_else(missing)?.fork_with(message.into_abi()))?,
                    _ => return Err(Error::unsupported("a copy of a copy; edit the model's own parameters")),
                };
                let module = fork.module().into_string();
                let mut all = forks();
                all.push(fork);
                Ok(RawMessage::of(serde_json::json!({ "model": all.len(), "module": module }).to_string()))
            }
        }
    }
}

impl ModelHandle {
    /// A handle of a model in another process.
    pub fn remote(model: Box<dyn RemoteModel>) -> Self {
        ModelHandle::from_abi(model_box(model))
    }
}

impl ExplainerHandle {
    /// A handle of an explainer in another process.
    pub fn remote(name: &str, explainer: Box<dyn RemoteExplainer>) -> Self {
        let adapter = Explainer { name: name.into(), explainer };
        ExplainerHandle::from_abi(ExplainerAbi_TO::from_value(adapter, TD_Opaque))
    }
}

struct Model {
    spec: ModelSpec,
    model: Box<dyn RemoteModel>,
}

fn model_box(model: Box<dyn RemoteModel>) -> ModelBox {
    let spec = model.spec();
    ModelAbi_TO::from_value(Model { spec, model }, TD_Opaque)
}

impl Model {
    fn reply<T>(&self, f: impl FnOnce(&dyn RemoteModel) -> Result<T>) -> RResult<T, RString> {
        abi::reply(|| format!("model {}", self.spec.name), || f(self.model.as_ref()))
    }
}

impl ModelAbi for Model {
    fn spec(&self) -> RResult<RString, RString> {
        self.reply(|_| abi::print(&self.spec))
    }

    fn run(&self, request: Message) -> RResult<Message, RString> {
        self.reply(|m| {
            let request = Request::unpack(request)?;
            request.check(&self.spec)?;
            let reply = m.run(RawMessage::from_abi(request.pack()?)?)?;
            // Read once here, so that what is malformed is this model's fault and not its reader's.
            Response::unpack(reply.into_abi())?.pack()
        })
    }

    fn parameters(&self) -> RResult<Message, RString> {
        self.reply(|m| pack_named(&unpack_named(m.parameters()?.into_abi())?))
    }

    fn load(&mut self, parameters: Message) -> RResult<RString, RString> {
        let (name, model) = (&self.spec.name, &mut self.model);
        abi::reply(|| format!("model {name}"), || abi::print(&model.load(RawMessage::from_abi(parameters)?)?))
    }

    fn fork_with(&self, edits: Message) -> RResult<ModelBox, RString> {
        self.reply(|m| Ok(model_box(m.fork_with(RawMessage::from_abi(edits)?)?)))
    }

    fn trainer(&self, _: RString) -> RResult<TrainerBox, RString> {
        self.reply(|_| Err(Error::unsupported("a model of another process cannot be trained here")))
    }

    fn module(&self) -> RString {
        crate::guard(|| Ok(self.model.module())).unwrap_or_default().into()
    }
}

struct Explainer {
    name: String,
    explainer: Box<dyn RemoteExplainer>,
}

impl ExplainerAbi for Explainer {
    fn bind(&self, message: RString) -> RResult<BoundBox, RString> {
        let name = || format!("explainer {}", self.name);
        abi::reply(name, || {
            let bound = self.explainer.bind(&message)?;
            Ok(BoundAbi_TO::from_value(Bound { name: self.name.clone(), bound }, TD_Opaque))
        })
    }
}

struct Bound {
    name: String,
    bound: Box<dyn RemoteBound>,
}

impl BoundAbi for Bound {
    fn plan(&self) -> RResult<RString, RString> {
        abi::reply(|| format!("explainer {}", self.name), || Ok(self.bound.plan()?.into()))
    }

    fn fit(&self, context: Message, model: ROption<&ModelBox>, host: HostCalls<'_>) -> RResult<Message, RString> {
        let name = || format!("explainer {}", self.name);
        abi::reply(name, || {
            let calls = Callbacks::new(model, host);
            Ok(self.bound.fit(RawMessage::from_abi(context)?, &calls)?.into_abi())
        })
    }

    fn explain(&self, context: Message, model: ROption<&ModelBox>, host: HostCalls<'_>) -> RResult<Message, RString> {
        let name = || format!("explainer {}", self.name);
        abi::reply(name, || {
            let calls = Callbacks::new(model, host);
            Ok(self.bound.explain(RawMessage::from_abi(context)?, &calls)?.into_abi())
        })
    }
}
