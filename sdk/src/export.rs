//! What `export!` puts into a plugin.

use crate::abi::{self, PluginMod, PluginModRef};
use crate::abi::{PrefixTypeTrait, RResult, RString};
use crate::explainer::ExplainerEntry;
use crate::model::ModelEntry;
use crate::spec::{Manifest, ModelOptions};
use crate::{explainer_abi, model_abi};

/// The manifest of this library, sorted by name: `inventory` has no order.
pub fn manifest(plugin: &str, version: &str) -> RResult<RString, RString> {
    let build = || {
        let mut manifest =
            Manifest { plugin: plugin.into(), version: version.into(), models: vec![], explainers: vec![] };
        for entry in inventory::iter::<ModelEntry>.into_iter().filter(|e| !e.hidden) {
            manifest.models.push((entry.spec)(&ModelOptions::default())?);
        }
        for entry in inventory::iter::<ExplainerEntry> {
            manifest.explainers.push((entry.make)().spec());
        }
        manifest.models.sort_by(|a, b| a.name.cmp(&b.name));
        manifest.explainers.sort_by(|a, b| a.name.cmp(&b.name));
        abi::print(&manifest)
    };
    abi::reply(|| format!("plugin {plugin}"), build)
}

#[cfg(feature = "abi-next")]
extern "C" fn self_test() -> RResult<RString, RString> {
    abi::reply(|| "self-test".into(), || Ok("ok".into()))
}

/// The root module of this library.
pub fn module(manifest: extern "C" fn() -> RResult<RString, RString>) -> PluginModRef {
    PluginMod {
        manifest,
        make_model: model_abi::make,
        model_spec: model_abi::spec,
        make_explainer: explainer_abi::make,
        #[cfg(feature = "abi-next")]
        self_test,
    }
    .leak_into_prefix()
}

/// Registers a model: `register_model!("name", spec, make)` with
/// `spec: fn(&ModelOptions) -> Result<ModelSpec>` and `make: fn(&ModelOptions) -> Result<Box<dyn Model>>`.
#[macro_export]
macro_rules! register_model {
    ($name:expr, $spec:expr, $make:expr) => {
        $crate::inventory::submit! { $crate::model::ModelEntry { name: $name, spec: $spec, make: $make, hidden: false } }
    };
    // A model that is nothing without options of its own, as a file: it can be made, and no list has it.
    (@hidden $name:expr, $spec:expr, $make:expr) => {
        $crate::inventory::submit! { $crate::model::ModelEntry { name: $name, spec: $spec, make: $make, hidden: true } }
    };
}

/// Registers an explainer: `register_explainer!(GradCam)`, a value that implements [`Explainer`](crate::Explainer).
#[macro_export]
macro_rules! register_explainer {
    ($explainer:expr) => {
        $crate::inventory::submit! {
            $crate::explainer::ExplainerEntry { make: || ::std::boxed::Box::new($explainer) }
        }
    };
}

/// Makes this crate a plugin. Once a crate, in `lib.rs`; the crate's type must be `cdylib`.
#[macro_export]
macro_rules! export {
    () => {
        #[cfg(panic = "abort")]
        ::core::compile_error!("a Lightbox plugin must unwind: remove `panic = \"abort\"` from the Cargo profile");

        /// Read from the file before any code of this library runs.
        #[unsafe(no_mangle)]
        pub static lightbox_plugin_preflight: $crate::abi::Preflight = $crate::abi::preflight(&[
            "plugin=",
            env!("CARGO_PKG_NAME"),
            ";version=",
            env!("CARGO_PKG_VERSION"),
            ";abi=",
            $crate::abi::ABI_VERSION,
            ";torch=",
            $crate::BUILT_WITH_TORCH,
            ";rustc=",
            $crate::BUILT_WITH_RUSTC,
            ";",
        ]);

        const _: () = {
            use $crate::abi::loading::{CheckTypeLayout, LibHeader, RResult, RString, RootModuleResult};
            extern "C" fn manifest() -> RResult<RString, RString> {
                $crate::export::manifest(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
            }
            fn module() -> $crate::abi::PluginModRef {
                $crate::export::module(manifest)
            }
            extern "C" fn root() -> RootModuleResult {
                $crate::abi::loading::__call_root_module_loader(module)
            }
            // The symbol that abi_stable's `#[export_root_module]` emits (abi_stable::library::ROOT_MODULE_LOADER_NAME),
            // written by hand so that a plugin needs no dependency of its own on abi_stable.
            #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
            pub static HEADER: LibHeader =
                // SAFETY: `root` makes the root module of exactly this type.
                unsafe { LibHeader::from_constructor::<$crate::abi::PluginModRef>(root, CheckTypeLayout::Yes) };
        };
    };
}
