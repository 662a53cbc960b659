//! Everything that crosses the boundary, and the only module that names abi_stable.
//!
//! Two things cross: arrays, as [`WireTensor`], and descriptions, as a JSON object inside a [`Message`]. Arrays are
//! `repr(C)` with DLPack's meaning and are never copied.
//!
//! Rules of growth inside one ABI version: methods are added after the last prefix field with a default body, fields of
//! [`PluginMod`] at its end, names to `HostCalls::call`, and fields to the JSON objects. A field that one side does not
//! know is ignored in a description; what changes a result is named under `requires` too, and a side that does not know
//! one of those names refuses the message. `docs/architecture.md` has the reasons.
//!
//! Streams: on CUDA both sides work on the current stream of the array's device, which is the default stream; what is
//! handed over may still be in flight there.

#![allow(non_local_definitions)] // what sabi_trait expands to

use crate::guard::guard;
use crate::{Error, Result};
use abi_stable::library::RootModule;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::{StableAbi, sabi_trait};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::c_void;
use std::marker::PhantomData;

pub(crate) use abi_stable::prefix_type::PrefixTypeTrait;
pub(crate) use abi_stable::sabi_trait::TD_Opaque;
pub(crate) use abi_stable::std_types::{RBox, RErr, RNone, ROk, ROption, RSome, RVec};
/// What the macro [`export!`](crate::export!) and the host's loader name.
#[doc(hidden)]
pub mod loading {
    pub use abi_stable::StableAbi;
    pub use abi_stable::abi_stability::abi_checking::{
        AbiInstability, AbiInstabilityErrors, CheckingGlobals, check_layout_compatibility_with_globals,
    };
    pub use abi_stable::library::{
        __call_root_module_loader, AbiHeaderRef, CheckTypeLayout, LibHeader, ROOT_MODULE_LOADER_NAME_WITH_NUL,
        RootModuleResult,
    };
    pub use abi_stable::std_types::{RErr, ROk, RResult, RString};
}
pub(crate) use abi_stable::std_types::RStr;
pub(crate) use loading::{RResult, RString};

/// The ABI's version. A plugin of another major version (another minor one while the major is 0) is rejected.
pub const ABI_VERSION: &str = "0.3";

/// An element type, as in DLPack: code 0 signed integer, 1 unsigned integer, 2 float, 4 bfloat, 6 bool.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireDType {
    /// DLPack's type code: 0 signed, 1 unsigned, 2 float, 4 bfloat, 6 bool.
    pub code: u8,
    /// Bits of an element.
    pub bits: u8,
    /// Always 1.
    pub lanes: u16,
}

/// An array: DLPack's meaning, owned by whoever made it. `release(owner)` is called once, when it is dropped. The fields are
/// private to the SDK: a safe function that could set them could free what is not its own.
#[repr(C)]
#[derive(StableAbi)]
pub struct WireTensor {
    /// The first element (DLPack's byte offset is already added).
    pub(crate) data: *mut c_void,
    /// 1 CPU, 2 CUDA.
    pub(crate) device_type: i32,
    pub(crate) device_id: i32,
    pub(crate) dtype: WireDType,
    pub(crate) shape: RVec<i64>,
    /// In elements.
    pub(crate) strides: RVec<i64>,
    pub(crate) owner: *mut c_void,
    pub(crate) release: ROption<unsafe extern "C" fn(*mut c_void)>,
}

// SAFETY: a handle owns its memory alone or through an atomic count, and is read only once it has been made.
unsafe impl Send for WireTensor {}
// SAFETY: as above.
unsafe impl Sync for WireTensor {}

impl Drop for WireTensor {
    fn drop(&mut self) {
        if let ROption::RSome(release) = self.release {
            self.release = ROption::RNone;
            // SAFETY: whoever made the handle gave both, to be brought together once; the fields are private.
            unsafe { release(self.owner) };
        }
    }
}

/// A description and the arrays it refers to by index.
#[repr(C)]
#[derive(StableAbi)]
pub struct Message {
    /// The header, a JSON object.
    pub json: RString,
    /// The arrays that the header's numbers stand for.
    pub tensors: RVec<WireTensor>,
}

/// What a plugin may ask of the host during a call. Requests go by name, so that they can be added; the names that this
/// version knows stand in [`crate::host`]. A host answers a name that it does not know with an error. It cannot be kept
/// beyond its call.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct HostCalls<'a> {
    /// Valid for the call to which it was given.
    pub(crate) data: *const c_void,
    pub(crate) call: unsafe extern "C" fn(*const c_void, RStr<'_>, Message) -> RResult<Message, RString>,
    pub(crate) lent: PhantomData<&'a ()>,
}

/// An answer, or an [`Error`] as JSON.
pub type Reply<T> = RResult<T, RString>;

/// How a [`Trainer`](crate::Trainer) crosses.
#[sabi_trait]
pub trait TrainerAbi: Send {
    /// One step on a batch; its loss.
    fn step(&mut self, batch: Message) -> RResult<f64, RString>;
    /// The rate of the next steps.
    fn set_learning_rate(&mut self, rate: f64) -> RResult<(), RString>;
    /// Logits of images.
    fn evaluate(&mut self, images: Message) -> RResult<Message, RString>;
    /// The parameters as they are now.
    fn parameters(&self) -> RResult<Message, RString>;
    /// What a later [`TrainerAbi::restore`] needs beside them.
    fn state(&self) -> RResult<Message, RString>;
    /// Goes on from an earlier state.
    #[sabi(last_prefix_field)]
    fn restore(&mut self, parameters: Message, state: Message) -> RResult<(), RString>;
}
/// A trainer that has crossed.
pub type TrainerBox = TrainerAbi_TO<'static, RBox<()>>;

/// How a [`Model`](crate::Model) crosses.
#[sabi_trait]
pub trait ModelAbi: Send {
    /// Its description, as JSON.
    fn spec(&self) -> RResult<RString, RString>;
    /// A [`RequestMessage`](crate::wire::RequestMessage) to a [`ResponseMessage`](crate::wire::ResponseMessage).
    fn run(&self, request: Message) -> RResult<Message, RString>;
    /// Its parameters, by name.
    fn parameters(&self) -> RResult<Message, RString>;
    /// Takes a checkpoint; a [`LoadReport`](crate::spec::LoadReport) as JSON.
    fn load(&mut self, parameters: Message) -> RResult<RString, RString>;
    /// A copy of this model with some parameters replaced.
    fn fork_with(&self, edits: Message) -> RResult<ModelAbi_TO<'static, RBox<()>>, RString>;
    /// A trainer of a copy; [`TrainerOptions`](crate::spec::TrainerOptions) as JSON.
    #[sabi(last_prefix_field)]
    fn trainer(&self, options: RString) -> RResult<TrainerBox, RString>;
    /// The key by which the process that holds the network finds it; empty where there is none.
    fn module(&self) -> RString {
        RString::new()
    }
}
/// A model that has crossed.
pub type ModelBox = ModelAbi_TO<'static, RBox<()>>;

/// An explainer that is bound to a model and parameters.
#[sabi_trait]
pub trait BoundAbi: Send {
    /// A [`crate::spec::Plan`] as JSON.
    fn plan(&self) -> RResult<RString, RString>;
    /// A [`FitMessage`](crate::wire::FitMessage) to a [`NamedMessage`](crate::wire::NamedMessage).
    fn fit(&self, context: Message, model: ROption<&ModelBox>, host: HostCalls<'_>) -> RResult<Message, RString>;
    /// An [`ExplainMessage`](crate::wire::ExplainMessage) to a [`MapsMessage`](crate::wire::MapsMessage).
    #[sabi(last_prefix_field)]
    fn explain(&self, context: Message, model: ROption<&ModelBox>, host: HostCalls<'_>) -> RResult<Message, RString>;
}
/// A bound explainer that has crossed.
pub type BoundBox = BoundAbi_TO<'static, RBox<()>>;

// A `cfg` inside a `sabi_trait` is not honoured, so the trait that the evolution test extends stands here twice.
#[cfg(not(feature = "abi-next"))]
mod explainer {
    use super::*;
    /// How an [`Explainer`](crate::Explainer) crosses.
    #[sabi_trait]
    pub trait ExplainerAbi: Send {
        /// A [`crate::wire::BindMessage`] as JSON.
        #[sabi(last_prefix_field)]
        fn bind(&self, message: RString) -> RResult<BoundBox, RString>;
    }
}
#[cfg(feature = "abi-next")]
mod explainer {
    use super::*;
    /// How an [`Explainer`](crate::Explainer) crosses.
    #[sabi_trait]
    pub trait ExplainerAbi: Send {
        /// A [`crate::wire::BindMessage`] as JSON.
        #[sabi(last_prefix_field)]
        fn bind(&self, message: RString) -> RResult<BoundBox, RString>;
        /// The method of a later version: what an older plugin's default answers.
        fn examples(&self) -> RString {
            RString::from("none")
        }
    }
}
pub use explainer::*;
/// An explainer that has crossed.
pub type ExplainerBox = ExplainerAbi_TO<'static, RBox<()>>;

/// The root module of a plugin: a prefix type, so later versions add fields at the end.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginModRef, prefix_fields = PluginModPrefix)))]
#[sabi(missing_field(option))]
pub struct PluginMod {
    /// What the plugin holds: a [`crate::spec::Manifest`] as JSON.
    pub manifest: extern "C" fn() -> RResult<RString, RString>,
    /// `(name, ModelOptions as JSON)`.
    pub make_model: extern "C" fn(RStr<'_>, RStr<'_>) -> RResult<ModelBox, RString>,
    /// `(name, ModelOptions as JSON)`: the specification of a model that is not built.
    pub model_spec: extern "C" fn(RStr<'_>, RStr<'_>) -> RResult<RString, RString>,
    /// Makes an explainer by its name.
    #[sabi(last_prefix_field)]
    pub make_explainer: extern "C" fn(RStr<'_>) -> RResult<ExplainerBox, RString>,
    /// The field of a later version.
    #[cfg(feature = "abi-next")]
    pub self_test: extern "C" fn() -> RResult<RString, RString>,
}

impl RootModule for PluginModRef {
    abi_stable::declare_root_module_statics! {PluginModRef}
    const BASE_NAME: &'static str = "lightbox_plugin";
    const NAME: &'static str = "lightbox_plugin";
    const VERSION_STRINGS: VersionStrings = VersionStrings::new("0.3.0");
}

/// The size of a [`Preflight`] record's text.
pub const PREFLIGHT_TEXT: usize = 496;
/// How a [`Preflight`] record begins; the file is searched for it.
pub const PREFLIGHT_MAGIC: [u8; 16] = *b"LIGHTBOX-PLUGIN\x01";

/// Who made this library, against what: read from the file before any of its code runs.
#[repr(C)]
pub struct Preflight {
    /// The bytes by which a file's record is found.
    pub magic: [u8; 16],
    /// `key=value;` pairs: plugin, version, abi, torch, rustc. Padded with zeros.
    pub text: [u8; PREFLIGHT_TEXT],
}

/// Joins `parts` into a record at compile time.
pub const fn preflight(parts: &[&str]) -> Preflight {
    let mut text = [0u8; PREFLIGHT_TEXT];
    let (mut n, mut i) = (0, 0);
    while i < parts.len() {
        let part = parts[i].as_bytes();
        let mut j = 0;
        while j < part.len() && n < PREFLIGHT_TEXT - 1 {
            text[n] = part[j];
            n += 1;
            j += 1;
        }
        i += 1;
    }
    Preflight { magic: PREFLIGHT_MAGIC, text }
}

/// Parses JSON that came over the boundary.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    Ok(serde_json::from_str(text)?)
}

pub(crate) fn print<T: Serialize>(value: &T) -> Result<RString> {
    Ok(serde_json::to_string(value)?.into())
}

/// The caller's side of a [`Reply`].
pub(crate) fn receive<T>(reply: RResult<T, RString>) -> Result<T> {
    match reply {
        ROk(value) => Ok(value),
        RErr(error) => Err(Error::from_wire(&error)),
    }
}

/// The plugin's side: runs `f` guarded and names the place in its error.
pub(crate) fn reply<T>(place: impl FnOnce() -> String, f: impl FnOnce() -> Result<T>) -> RResult<T, RString> {
    match guard(f) {
        Ok(value) => ROk(value),
        Err(error) => RErr(error.context(place()).to_wire().into()),
    }
}
