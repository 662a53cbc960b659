//! Finds libtorch 2.11 or installs it, and makes `.lightbox/libtorch` point to it; `.cargo/config.toml` does the rest.
//!
//! In this order: `LIBTORCH`; `torch==2.11.*` in the active Python; a private environment under `.lightbox/`, filled by
//! pip. Without an NVIDIA driver only what libtorch_cpu needs is installed (1.3 GB instead of 5 GB).

use crate::root;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const RELEASE: &str = "2.11";
/// Free space that an installation needs, GiB: the wheel, its unpacked files, and pip's own copy.
const NEEDS_CPU: u64 = 4;
const NEEDS_CUDA: u64 = 12;

/// The release of a libtorch folder, if it is one.
fn release(folder: &Path) -> Option<String> {
    let wheel = std::fs::read_to_string(folder.join("version.py")).ok().and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("__version__ = '").map(str::to_string))?;
        Some(line.trim_end_matches('\'').to_string())
    });
    wheel.or_else(|| std::fs::read_to_string(folder.join("build-version")).ok().map(|s| s.trim().to_string()))
}

/// Why a folder is not the libtorch that we need; `None` for a good one.
fn fault(folder: &Path) -> Option<String> {
    if !folder.join("lib/libtorch_cpu.so").is_file() {
        return Some(format!("{} has no lib/libtorch_cpu.so", folder.display()));
    }
    if !folder.join("include/torch").is_dir() {
        return Some(format!("{} has no include/torch", folder.display()));
    }
    match release(folder) {
        Some(v) if v == RELEASE || v.starts_with(&format!("{RELEASE}.")) => None,
        Some(v) => Some(format!("{} is libtorch {v}, Lightbox needs {RELEASE}", folder.display())),
        None => Some(format!("{} does not say its version", folder.display())),
    }
}

/// What the checks of a made-up machine may replace, so that the tests can try them.
fn tool(variable: &str, default: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| default.to_string())
}

fn has(program: &str) -> bool {
    let status = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|s| s.success())
}

/// The folder of the torch package that a Python imports, without importing it.
fn python_torch(python: &str) -> Option<PathBuf> {
    let code =
        "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')";
    let output = Command::new(python).args(["-c", code]).stderr(Stdio::null()).output().ok()?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_string();
    (!path.is_empty()).then(|| PathBuf::from(path))
}

fn driver() -> bool {
    Path::new("/proc/driver/nvidia/version").is_file() || has("nvidia-smi")
}

fn free_gib(folder: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(folder).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().nth(1)?.split_whitespace().nth(3)?.parse::<u64>().ok().map(|kib| kib >> 20)
}

/// Makes `.lightbox/libtorch` point to a good libtorch. Quick when it already does.
pub fn setup(cuda: bool) -> Result<(), String> {
    let home = root().join(".lightbox");
    std::fs::create_dir_all(&home).map_err(|e| format!("{}: {e}", home.display()))?;
    let compiler = tool("CXX", "c++");
    if !has(&compiler) {
        return Err(format!(
            "no C++ compiler: `{compiler}` does not run (hint: install g++ or clang, on Debian `apt-get install g++`, or \
             set CXX)"
        ));
    }
    let link = home.join("libtorch");
    // `cargo xtask` runs with LIBTORCH from .cargo/config.toml; only another value is the user's own.
    let given = std::env::var_os("LIBTORCH").map(PathBuf::from).filter(|p| *p != link);
    let found = match given {
        Some(folder) => match fault(&folder) {
            None => folder,
            Some(fault) => return Err(format!("LIBTORCH: {fault} (hint: unset LIBTORCH and it is installed for you)")),
        },
        None => {
            let complete =
                |folder: &Path| fault(folder).is_none() && (!cuda || folder.join("lib/libtorch_cuda.so").is_file());
            if link.exists() && complete(&link) && (!cuda || home.join("cuda").is_file()) {
                return Ok(());
            }
            let python = tool("PYTHON", if std::env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" });
            match python_torch(&python).filter(|f| complete(f)) {
                Some(folder) => folder,
                None => install(&home, &python, cuda)?,
            }
        }
    };
    let found = std::fs::canonicalize(&found).map_err(|e| format!("{}: {e}", found.display()))?;
    if std::fs::canonicalize(&link).ok().as_ref() != Some(&found) {
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&found, &link).map_err(|e| format!("{}: {e}", link.display()))?;
        eprintln!("libtorch {} in {}", release(&found).unwrap_or_default(), found.display());
    }
    Ok(())
}

fn install(home: &Path, python: &str, cuda: bool) -> Result<PathBuf, String> {
    if !has(python) {
        return Err(format!(
            "no libtorch {RELEASE} was found, and `{python}` does not run to install it (hint: install Python 3.10 or later \
             with pip, or set LIBTORCH to a libtorch {RELEASE})"
        ));
    }
    let full = cuda || driver();
    let needs = if full { NEEDS_CUDA } else { NEEDS_CPU };
    if let Some(free) = free_gib(home).filter(|free| *free < needs) {
        return Err(format!(
            "libtorch needs {needs} GiB of disk, {} has {free} (hint: free some, or set LIBTORCH to a libtorch {RELEASE})",
            home.display()
        ));
    }
    let environment = home.join("venv");
    let pip = environment.join("bin/python");
    if !has(&pip.to_string_lossy()) {
        let _ = std::fs::remove_dir_all(&environment);
        let made = Command::new(python).args(["-m", "venv"]).arg(&environment).output();
        let made = made.map_err(|e| format!("{python} -m venv: {e}"))?;
        if !made.status.success() {
            let _ = std::fs::remove_dir_all(&environment);
            let text = String::from_utf8_lossy(&made.stderr).trim().to_string();
            return Err(format!(
                "{python} -m venv fails: {text} (hint: on Debian `apt-get install python3-venv python3-pip`)"
            ));
        }
    }
    let pip_install = |arguments: &[String]| -> Result<(), String> {
        let mut command = Command::new(&pip);
        command.args(["-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]).args(arguments);
        let output = command.stdout(Stdio::inherit()).output().map_err(|e| format!("pip: {e}"))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr).trim().to_string();
        let hint = match text.as_str() {
            t if t.contains("No module named pip") => {
                "install pip, on Debian `apt-get install python3-pip python3-venv`"
            }
            t if t.contains("No space left") => "free some disk",
            t if t.contains("No matching distribution") && !t.contains("from versions: none") => {
                "this Python or platform has no such wheel; Python 3.10 to 3.14 on Linux has"
            }
            _ => "is there a network? pip must reach a package index",
        };
        Err(format!("pip install {} fails: {text} (hint: {hint})", arguments.join(" ")))
    };
    let torch = format!("torch=={RELEASE}.*");
    if full {
        eprintln!("installing libtorch {RELEASE} with CUDA (5 GB) ...");
        pip_install(&[torch, "numpy".into()])?;
        std::fs::write(home.join("cuda"), "").map_err(|e| e.to_string())?;
    } else {
        eprintln!("installing libtorch {RELEASE} for CPU (1.3 GB; `cargo xtask setup --cuda` for the whole) ...");
        pip_install(&["--no-deps".into(), torch])?;
    }
    let folder = python_torch(&pip.to_string_lossy()).ok_or("pip installed torch, and Python does not find it")?;
    if !full {
        // libtorch_cpu of the ordinary wheel is linked against these two.
        if let Some(toolkit) = toolkit(&folder) {
            let of = |name: &str| format!("nvidia-cuda-{name}=={toolkit}.*");
            pip_install(&["--no-deps".into(), of("runtime"), of("cupti")])?;
        }
    }
    match fault(&folder) {
        None => Ok(folder),
        Some(fault) => Err(format!("after the installation: {fault}")),
    }
}

/// `13.0` of the wheel's requirement `cuda-toolkit[...]==13.0.2`; `None` for a wheel that needs none.
fn toolkit(torch: &Path) -> Option<String> {
    let packages = std::fs::read_dir(torch.parent()?).ok()?;
    let info = packages.flatten().map(|e| e.path()).find(|p| {
        p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("torch-") && n.ends_with(".dist-info"))
    })?;
    let text = std::fs::read_to_string(info.join("METADATA")).ok()?;
    let line = text.lines().find(|l| l.starts_with("Requires-Dist: cuda-toolkit"))?;
    let version = line.split("==").nth(1)?.split(';').next()?.trim().to_string();
    let mut parts = version.split('.');
    Some(format!("{}.{}", parts.next()?, parts.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_and_a_folder_without_libtorch_are_named() {
        let folder = std::env::temp_dir().join(format!("lightbox-setup-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("lib")).unwrap();
        std::fs::create_dir_all(folder.join("include/torch")).unwrap();
        assert!(fault(&folder).unwrap().contains("has no lib/libtorch_cpu.so"));
        std::fs::write(folder.join("lib/libtorch_cpu.so"), "").unwrap();
        assert!(fault(&folder).unwrap().contains("does not say its version"));
        std::fs::write(folder.join("version.py"), "__version__ = '2.9.1+cpu'\n").unwrap();
        assert!(fault(&folder).unwrap().ends_with("is libtorch 2.9.1+cpu, Lightbox needs 2.11"));
        std::fs::write(folder.join("version.py"), "__version__ = '2.11.0+cu130'\n").unwrap();
        assert_eq!(fault(&folder), None);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
