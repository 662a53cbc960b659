//! Python files as plugins. A file's comments may say what it needs, as inline script metadata (PEP 723); it runs in the interpreter
//! that `--interpreter` or `LIGHTBOX_PYTHON` names, else by `uv run` where there is uv and metadata, else in the current environment if
//! that has what the metadata asks for. What it computes depends on its file and on all packages of its interpreter.

use super::remote::{found, rejected};
use super::source::{OpenPlugin, PluginSource};
use super::{Found, Rejected};
use crate::error::{Error, Result};
use crate::remote::plugin::RemotePlugin;
use crate::remote::process::{Process, of_interpreter};
use lightbox_core::files;
use lightbox_sdk::remote::RawMessage;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Files that end in `.py`, but for those that begin with `_` or `test_`.
pub struct Python;

/// The variable that names an interpreter.
pub const VARIABLE: &str = "LIGHTBOX_PYTHON";

/// What a file asks for.
#[derive(Debug, Default, PartialEq, Deserialize)]
struct Metadata {
    #[serde(default, rename = "requires-python")]
    requires_python: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

/// Reads inline script metadata: a TOML document in the comments between `# /// script` and `# ///`.
///
/// # Errors
/// The document is none.
fn metadata(text: &str) -> std::result::Result<Option<Metadata>, String> {
    let mut lines = text.lines().skip_while(|line| line.trim_end() != "# /// script");
    if lines.next().is_none() {
        return Ok(None);
    }
    let mut document = String::new();
    for line in lines {
        if line.trim_end() == "# ///" {
            return toml::from_str(&document).map(Some).map_err(|e| format!("its script metadata: {}", e.message()));
        }
        let Some(rest) = line.strip_prefix('#') else { break };
        document += rest.strip_prefix(' ').unwrap_or(rest);
        document.push('\n');
    }
    Err("its script metadata has no end (`# ///`)".into())
}

/// The first of these programs on the path.
fn on_path(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let find = |name: &&str| std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    names.iter().find_map(find)
}

/// Where the module `lightbox` is, if the interpreter may not know: beside this program, or in the project that it was built from.
fn modules() -> Option<PathBuf> {
    let binary = std::env::current_exe().and_then(std::fs::canonicalize).ok()?;
    let has = |folder: &Path| folder.join("lightbox/serve.py").is_file();
    let beside = binary.ancestors().skip(1).take(3).find(|folder| has(folder)).map(Path::to_path_buf);
    let project = || Some(Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join("sdk/python")).filter(|f| has(f));
    beside.or_else(project)
}

/// The command that runs a file's interpreter.
fn interpreter(file: &Path) -> Result<Vec<String>> {
    let own = |path: &Path| vec![path.to_string_lossy().into_owned()];
    if let Some(named) = std::env::var_os(VARIABLE).filter(|v| !v.is_empty()) {
        return Ok(own(Path::new(&named)));
    }
    let text = std::fs::read_to_string(file)?;
    let wanted = metadata(&text).map_err(|e| Error::plugin(format!("{}: {e}", file.display())))?;
    if let (Some(wanted), Some(uv)) = (&wanted, on_path(&["uv"])) {
        let mut command = own(&uv);
        command.extend(["run".into(), "--no-project".into(), "--quiet".into()]);
        command.extend(wanted.requires_python.iter().flat_map(|v| ["--python".into(), v.clone()]));
        command.extend(wanted.dependencies.iter().flat_map(|d| ["--with".into(), d.clone()]));
        command.extend(["--with".into(), "numpy".into(), "python".into()]);
        return Ok(command);
    }
    let active = std::env::var_os("VIRTUAL_ENV").map(|folder| PathBuf::from(folder).join("bin/python"));
    let found = active.filter(|p| p.is_file()).or_else(|| on_path(&["python3", "python"]));
    found.map(|path| own(&path)).ok_or_else(|| {
        Error::plugin(format!("{}: there is no Python", file.display()))
            .hint("name an interpreter by --interpreter or LIGHTBOX_PYTHON")
    })
}

/// What an interpreter has.
#[derive(Deserialize)]
struct Environment {
    /// `Python 3.11.2`.
    language: String,
    /// `name==version`, sorted.
    packages: Vec<String>,
    /// What of the dependencies is not there.
    missing: Vec<String>,
}

fn start(file: &Path) -> Result<Arc<Process>> {
    Ok(of_interpreter(&interpreter(file)?, modules().as_deref())?)
}

fn environment(process: &Process, wanted: &Metadata) -> Result<Environment> {
    let asked = serde_json::json!({ "dependencies": wanted.dependencies, "python": wanted.requires_python });
    let reply = process.ask(("environment", 0), RawMessage::of(asked.to_string()))?;
    serde_json::from_str(&reply.header).map_err(|e| Error::plugin(format!("the interpreter's packages: {e}")))
}

fn open(file: &Path) -> Result<RemotePlugin> {
    let file = std::path::absolute(file)?;
    let text = std::fs::read_to_string(&file)?;
    let wanted = metadata(&text).map_err(|e| Error::plugin(format!("{}: {e}", file.display())))?.unwrap_or_default();
    let process = start(&file)?;
    let there = environment(&process, &wanted)?;
    if !there.missing.is_empty() {
        let interpreter = process.hello()?.interpreter;
        return Err(Error::plugin(format!("{interpreter} lacks {}", there.missing.join(", "))).hint(format!(
            "`{interpreter} -m pip install {}`, or name another one by --interpreter",
            there.missing.iter().map(|m| format!("'{m}'")).collect::<Vec<_>>().join(" ")
        )));
    }
    Ok(RemotePlugin::open(&process, &file)?)
}

/// Where a file's description is kept, by its digest.
fn kept(digest: String) -> Option<PathBuf> {
    Some(crate::user_cache::folder()?.join("python").join(format!("{digest}.json")))
}

/// A description that was kept, of this very file.
fn read_kept(path: &Path, file: &Path) -> Option<Found> {
    let found: Found = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (found.file == file).then_some(found)
}

impl PluginSource for Python {
    fn name(&self) -> &'static str {
        "a Python file (.py)"
    }

    fn takes(&self, file: &Path) -> bool {
        let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.ends_with(".py") && !name.starts_with('_') && !name.starts_with("test_")
    }

    /// It imports what it needs, which of torch takes seconds, and minutes where nothing of it is in the cache.
    fn limit(&self) -> Duration {
        Duration::from_secs(120)
    }

    fn describe(&self, file: &Path) -> std::result::Result<Found, Rejected> {
        // What the file said when it was last opened by this interpreter with these packages: to import torch takes seconds.
        let kept = kept(self.digest(file).map_err(|e| rejected(file, e))?);
        if let Some(found) = kept.as_ref().and_then(|path| read_kept(path, file)) {
            return Ok(found);
        }
        let found = found(file, open(file))?;
        if let (Some(path), Ok(text)) = (kept, serde_json::to_string(&found)) {
            // A folder that cannot be written to keeps nothing.
            let _ = path.parent().map(std::fs::create_dir_all);
            let _ = files::write_text(&path, &text);
        }
        Ok(found)
    }

    fn digest(&self, file: &Path) -> Result<String> {
        let process = start(file)?;
        let there = environment(&process, &Metadata::default())?;
        let own =
            [files::sha256(file)?, there.language, process.hello()?.interpreter, env!("CARGO_PKG_VERSION").into()];
        let mut hash = Sha256::new();
        for part in own.iter().chain(&there.packages) {
            hash.update(part);
            hash.update("\n");
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn open(&self, file: &Path) -> Result<Box<dyn OpenPlugin>> {
        Ok(Box::new(open(file)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn script_metadata_is_read() {
        let text = "#!/usr/bin/env python\n# /// script\n# requires-python = \">=3.9\"\n# dependencies = [\n#   \"captum>=0.7\",\n#   \"torch\",\n# ]\n# ///\nimport torch\n";
        let found = metadata(text).unwrap().unwrap();
        assert_eq!(found.requires_python.as_deref(), Some(">=3.9"));
        assert_eq!(found.dependencies, ["captum>=0.7", "torch"]);
        assert_eq!(metadata("import torch\n").unwrap(), None);
        assert!(metadata("# /// script\n# dependencies = [\n").unwrap_err().contains("no end"));
        assert!(metadata("# /// script\n# dependencies = 3\n# ///\n").unwrap_err().contains("script metadata"));
    }

    #[test]
    fn tests_and_helpers_are_no_plugins() {
        for (name, taken) in [("mine.py", true), ("test_mine.py", false), ("_shared.py", false), ("mine.txt", false)] {
            assert_eq!(Python.takes(Path::new(name)), taken, "{name}");
        }
    }
}
