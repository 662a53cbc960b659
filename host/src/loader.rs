//! Opens one plugin file.
//!
//! In this order, so that each failure is one clear sentence: the file is a whole ELF library for this CPU (a truncated
//! one would kill the process in `dlopen`); it has a record that says plugin, ABI and libtorch, read without running its
//! code; the record's versions suit; `dlopen` with RTLD_NOW | RTLD_LOCAL; the layout of every type that crosses is checked
//! in both directions, since abi_stable's own check rejects every plugin older than the host; the manifest is asked for.
//! A library is never unloaded.
//!
//! This module uses the SDK alone: the test of ABI evolution compiles it against the next version's ABI.

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use lightbox_sdk::abi::loading::{
    AbiHeaderRef, AbiInstability, AbiInstabilityErrors, CheckingGlobals, RErr, ROOT_MODULE_LOADER_NAME_WITH_NUL, ROk,
    RResult, RString, StableAbi, check_layout_compatibility_with_globals,
};
use lightbox_sdk::abi::{ABI_VERSION, PREFLIGHT_MAGIC, PREFLIGHT_TEXT, PluginModRef};
use lightbox_sdk::spec::{Manifest, ModelOptions, ModelSpec};
use lightbox_sdk::{ExplainerHandle, ModelHandle};
use std::path::{Path, PathBuf};

/// Why a file is not a plugin for this host. Each is one sentence.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    #[error("cannot be read: {0}")]
    Unreadable(String),
    #[error("not a shared library")]
    NotElf,
    #[error(
        "a Rust library for the compiler, not one that can be loaded (hint: the crate needs `[lib] crate-type = [\"cdylib\"]`)"
    )]
    Rlib,
    #[error("built for another CPU (ELF machine {found}, this one is {wanted})")]
    OtherCpu { found: u16, wanted: u16 },
    #[error("the file is truncated ({have} bytes, its headers speak of {need})")]
    Truncated { have: u64, need: u64 },
    #[error("not a Lightbox plugin (it has no preflight record; does its lib.rs call `lightbox_sdk::export!()`?)")]
    NotAPlugin,
    #[error("built for ABI {found}, this host has {ABI_VERSION}; {}", remedy(found))]
    OtherAbi { found: String },
    #[error("built against libtorch {found}, this host has {wanted}; build it against the same one")]
    OtherTorch { found: String, wanted: String },
    #[error("cannot be opened: {0}")]
    Open(String),
    #[error("its types differ from this host's: {0}")]
    Layout(String),
    #[error("its start-up failed: {0}")]
    Start(String),
}

/// What the author of a plugin of another ABI is to do.
fn remedy(found: &str) -> &'static str {
    match found {
        "0.2" => {
            "its explainers must implement `bind` in place of `plan` and `explain`, with parameters that derive `Params`, and \
             its models name their outputs and sites' roles (docs/plugin-authors-guide.md, From 0.2 to 0.3)"
        }
        _ => "build it against this host's SDK",
    }
}

/// The record in the file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Preflight {
    pub plugin: String,
    pub version: String,
    pub abi: String,
    /// `none` for a plugin without libtorch.
    pub torch: String,
    pub rustc: String,
}

/// An open plugin.
pub struct Plugin {
    pub path: PathBuf,
    pub preflight: Preflight,
    pub manifest: Manifest,
    module: PluginModRef,
}

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

/// Checks the ELF headers against the file's length. Where what is loaded of the file ends.
fn check_elf(bytes: &[u8]) -> Result<usize, LoadError> {
    let number = |at: usize, n: usize| -> Result<u64, LoadError> {
        let end = LoadError::Truncated { have: bytes.len() as u64, need: (at + n) as u64 };
        Ok(bytes.get(at..at + n).ok_or(end)?.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b)))
    };
    if bytes.starts_with(b"!<arch>\n") {
        return Err(LoadError::Rlib);
    }
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return Err(LoadError::NotElf);
    }
    let machine = number(18, 2)? as u16;
    if machine != MACHINE {
        return Err(LoadError::OtherCpu { found: machine, wanted: MACHINE });
    }
    if number(16, 2)? != 3 {
        return Err(LoadError::NotElf);
    }
    let (headers, each, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let mut need = headers.saturating_add(each.saturating_mul(count));
    need = need.max(number(40, 8)?.saturating_add(number(58, 2)?.saturating_mul(number(60, 2)?)));
    let mut loaded = 0;
    for i in 0..count {
        let at = usize::try_from(headers.saturating_add(i * each)).unwrap_or(usize::MAX / 2).min(usize::MAX / 2);
        loaded = loaded.max(number(at + 8, 8)?.saturating_add(number(at + 32, 8)?));
    }
    need = need.max(loaded);
    match need > bytes.len() as u64 {
        true => Err(LoadError::Truncated { have: bytes.len() as u64, need }),
        false => Ok(loaded as usize),
    }
}

/// Reads the record of a file. No code of the file runs.
pub fn preflight(path: &Path) -> Result<Preflight, LoadError> {
    let file = std::fs::File::open(path).map_err(|e| LoadError::Unreadable(e.to_string()))?;
    // SAFETY: a file that another process shortens meanwhile would end this one, as in `dlopen`, which maps it too.
    let bytes = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| LoadError::Unreadable(e.to_string()))?;
    // What is loaded stands before what is for debuggers only, which is much larger.
    let bytes = &bytes[..check_elf(&bytes)?];
    // The magic also stands in the constants of whoever searches for it; the text tells.
    let record = memchr::memmem::find_iter(bytes, &PREFLIGHT_MAGIC)
        .filter_map(|at| bytes.get(at + PREFLIGHT_MAGIC.len()..at + PREFLIGHT_MAGIC.len() + PREFLIGHT_TEXT))
        .find(|text| text.starts_with(b"plugin="));
    let text = record.ok_or(LoadError::NotAPlugin)?;
    let text = String::from_utf8_lossy(text);
    let mut found = Preflight::default();
    for pair in text.trim_end_matches('\0').split(';') {
        match pair.split_once('=') {
            Some(("plugin", v)) => found.plugin = v.into(),
            Some(("version", v)) => found.version = v.into(),
            Some(("abi", v)) => found.abi = v.into(),
            Some(("torch", v)) => found.torch = v.into(),
            Some(("rustc", v)) => found.rustc = v.into(),
            _ => {}
        }
    }
    Ok(found)
}

/// `2.11.0` of `2.11.0+cu130`: the same release has one ABI whatever it was built for.
fn release(version: &str) -> &str {
    version.split('+').next().unwrap_or(version)
}

/// Opens a plugin. `torch` is the libtorch of this process; a plugin without libtorch suits any.
pub fn load(path: &Path, torch: &str) -> Result<Plugin, LoadError> {
    let preflight = preflight(path)?;
    if preflight.abi != ABI_VERSION {
        return Err(LoadError::OtherAbi { found: preflight.abi });
    }
    if preflight.torch != "none" && release(&preflight.torch) != release(torch) {
        return Err(LoadError::OtherTorch { found: preflight.torch, wanted: torch.into() });
    }
    // The path is made absolute, since dlopen searches its own folders for a plain name.
    let absolute = std::fs::canonicalize(path).map_err(|e| LoadError::Unreadable(e.to_string()))?;
    // SAFETY: opening runs the library's own start-up code; that is what a plugin is trusted with.
    let library = unsafe { Library::open(Some(&absolute), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|e| LoadError::Open(e.to_string()))?;
    let library: &'static Library = Box::leak(Box::new(library));
    // SAFETY: the symbol that every plugin's `export!` makes, of this type.
    let header = unsafe { library.get::<AbiHeaderRef>(ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes()) };
    let header = *header.map_err(|_| LoadError::NotAPlugin)?;
    let header = header.upgrade().map_err(|_| LoadError::Layout("another major version of abi_stable".into()))?;
    let ours = <PluginModRef as StableAbi>::LAYOUT;
    let theirs = header.layout().ok_or_else(|| LoadError::Layout("it carries no description of them".into()))?;
    // Each pair for itself: what abi_stable remembers of other plugins would refuse a newer one beside an older one.
    let compared = |a, b| check_layout_compatibility_with_globals(a, b, &CheckingGlobals::new());
    // As old as the host or newer; else older.
    if let Err(e) = compared(ours, theirs)
        && !is_of_versions(&e)
        && compared(theirs, ours).is_err_and(|e| !is_of_versions(&e))
    {
        return Err(LoadError::Layout(first_difference(&e)));
    }
    // SAFETY: the layouts have been compared.
    let module = unsafe { header.unchecked_layout::<PluginModRef>() }.map_err(|e| LoadError::Start(e.to_string()))?;
    let manifest = answer(module.manifest()()).map_err(LoadError::Start)?;
    let manifest = serde_json::from_str(&manifest).map_err(|e| LoadError::Start(format!("its manifest: {e}")))?;
    Ok(Plugin { path: path.to_path_buf(), preflight, manifest, module })
}

/// True for a report that finds nothing but other package versions: the ABI's own version was compared before.
fn is_of_versions(errors: &AbiInstabilityErrors) -> bool {
    let mut all = errors.errors.iter().flat_map(|level| level.errs.iter());
    all.all(|e| matches!(e, AbiInstability::PackageVersion(_)))
}

/// abi_stable's report is pages long; its first error and where it is say enough.
fn first_difference(errors: &AbiInstabilityErrors) -> String {
    for level in &errors.errors {
        if let Some(first) = level.errs.first() {
            let place: Vec<String> = level.stack_trace.iter().map(|f| f.found.to_string()).collect();
            let text = format!("{first:?}").split_whitespace().collect::<Vec<_>>().join(" ");
            let text: String = text.chars().take(200).collect();
            return match place.last() {
                Some(place) => format!("{}: {text}", place.split_whitespace().collect::<Vec<_>>().join(" ")),
                None => text,
            };
        }
    }
    "unknown difference".into()
}

fn answer<T>(reply: RResult<T, RString>) -> Result<T, String> {
    match reply {
        ROk(value) => Ok(value),
        RErr(error) => {
            let error: Result<lightbox_sdk::Error, _> = serde_json::from_str(&error);
            Err(error.map_or_else(|e| e.to_string(), |e| e.to_string()))
        }
    }
}

impl Plugin {
    fn typed<T>(reply: RResult<T, RString>) -> Result<T, lightbox_sdk::Error> {
        match reply {
            ROk(value) => Ok(value),
            RErr(text) => Err(serde_json::from_str(&text)
                .unwrap_or_else(|_| lightbox_sdk::Error::new(lightbox_sdk::ErrorKind::Other, text.as_str()))),
        }
    }

    fn options(options: &ModelOptions) -> Result<String, lightbox_sdk::Error> {
        serde_json::to_string(options).map_err(|e| lightbox_sdk::Error::invalid(e.to_string()))
    }

    /// Builds a model.
    pub fn make_model(&self, name: &str, options: &ModelOptions) -> Result<ModelHandle, lightbox_sdk::Error> {
        let options = Self::options(options)?;
        Ok(ModelHandle::from_abi(Self::typed(self.module.make_model()(name.into(), options.as_str().into()))?))
    }

    /// The specification of a model that is not built.
    pub fn model_spec(&self, name: &str, options: &ModelOptions) -> Result<ModelSpec, lightbox_sdk::Error> {
        let options = Self::options(options)?;
        let text = Self::typed(self.module.model_spec()(name.into(), options.as_str().into()))?;
        serde_json::from_str(&text).map_err(|e| lightbox_sdk::Error::invalid(e.to_string()))
    }

    pub fn make_explainer(&self, name: &str) -> Result<ExplainerHandle, lightbox_sdk::Error> {
        Ok(ExplainerHandle::from_abi(Self::typed(self.module.make_explainer()(name.into()))?))
    }

    /// The field that the next version of the ABI adds; `None` in a plugin of this one.
    #[cfg(feature = "abi-next")]
    pub fn self_test(&self) -> Option<Result<String, String>> {
        self.module.self_test().map(|f| answer(f()).map(|s| s.into_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header whose sums go beyond the largest number: refused as truncated in every build.
    #[test]
    fn headers_at_the_end_of_all_numbers_are_refused() {
        let mut bytes = vec![0u8; 128];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16..18].copy_from_slice(&3u16.to_le_bytes());
        bytes[18..20].copy_from_slice(&MACHINE.to_le_bytes());
        for (offset, each, count) in [(u64::MAX - 4, 56u16, 1u16), (u64::MAX, u16::MAX, u16::MAX), (0, u16::MAX, 2)] {
            for (at, sizes) in [(32, 54), (40, 58)] {
                bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
                bytes[sizes..sizes + 2].copy_from_slice(&each.to_le_bytes());
                bytes[sizes + 2..sizes + 4].copy_from_slice(&count.to_le_bytes());
            }
            assert!(matches!(check_elf(&bytes), Err(LoadError::Truncated { .. })), "{offset} {each} {count}");
        }
    }
}
