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

/// What the machine offers. The tests make up their own.
struct Machine {
    compiler: String,
    python: String,
    /// A LIBTORCH of the user's own.
    libtorch: Option<PathBuf>,
    driver: bool,
    free_gib: Option<u64>,
}

impl Machine {
    fn here(home: &Path) -> Self {
        let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_string());
        let python = if std::env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
        // `cargo xtask` runs with LIBTORCH from .cargo/config.toml; only another value is the user's own.
        let own = std::env::var_os("LIBTORCH").map(PathBuf::from).filter(|p| *p != home.join("libtorch"));
        Machine {
            compiler: variable("CXX", "c++"),
            python: variable("PYTHON", python),
            libtorch: own,
            driver: Path::new("/proc/driver/nvidia/version").is_file() || has("nvidia-smi"),
            free_gib: free_gib(home),
        }
    }
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

fn free_gib(folder: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(folder).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().nth(1)?.split_whitespace().nth(3)?.parse::<u64>().ok().map(|kib| kib >> 20)
}

/// Makes `.lightbox/libtorch` point to a good libtorch. Quick when it already does.
pub fn setup(cuda: bool) -> Result<(), String> {
    let home = root().join(".lightbox");
    std::fs::create_dir_all(&home).map_err(|e| format!("{}: {e}", home.display()))?;
    setup_on(&Machine::here(&home), &home, cuda)
}

fn setup_on(machine: &Machine, home: &Path, cuda: bool) -> Result<(), String> {
    if !has(&machine.compiler) {
        return Err(format!(
            "no C++ compiler: `{}` does not run (hint: install g++ or clang, on Debian `apt-get install g++`, or set CXX)",
            machine.compiler
        ));
    }
    let link = home.join("libtorch");
    let found = match &machine.libtorch {
        Some(folder) => match fault(folder) {
            None => folder.clone(),
            Some(fault) => return Err(format!("LIBTORCH: {fault} (hint: unset LIBTORCH and it is installed for you)")),
        },
        None => {
            let complete =
                |folder: &Path| fault(folder).is_none() && (!cuda || folder.join("lib/libtorch_cuda.so").is_file());
            // Our own installation without CUDA's libraries does not do where a driver has come since.
            let own = std::fs::canonicalize(&link).is_ok_and(|p| p.starts_with(home.join("venv")));
            let full = !(cuda || machine.driver) || !own || home.join("cuda").is_file();
            if link.exists() && complete(&link) && full {
                return Ok(());
            }
            match python_torch(&machine.python).filter(|f| complete(f)) {
                Some(folder) => folder,
                None => install(machine, home, cuda)?,
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

fn install(machine: &Machine, home: &Path, cuda: bool) -> Result<PathBuf, String> {
    let python = &machine.python;
    if !has(python) {
        return Err(format!(
            "no libtorch {RELEASE} was found, and `{python}` does not run to install it (hint: install Python 3.10 or later \
             with pip, or set LIBTORCH to a libtorch {RELEASE})"
        ));
    }
    let full = cuda || machine.driver;
    let needs = if full { NEEDS_CUDA } else { NEEDS_CPU };
    if let Some(free) = machine.free_gib.filter(|free| *free < needs) {
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

/// NumPy and scikit-learn for the test that recomputes a run. Without a network the test says that it is skipped.
pub fn recompute() {
    environment("recompute", "recompute-requirements.txt", "NumPy and scikit-learn for the tests (0.4 GB)");
}

/// The Python of an environment under `.lightbox/` with what `tests/oracle/REQUIREMENTS` lists. `None`, and said, where pip
/// cannot install it.
pub fn environment(name: &str, requirements: &str, what: &str) -> Option<PathBuf> {
    let home = root().join(".lightbox");
    let wanted = root().join("tests/oracle").join(requirements);
    let (environment, done) = (home.join(name), home.join(name).join("requirements.txt"));
    let own = environment.join("bin/python");
    if std::fs::read(&wanted).ok() == std::fs::read(&done).ok() && done.is_file() {
        return Some(own);
    }
    let python = Machine::here(&home).python;
    let _ = std::fs::remove_dir_all(&environment);
    let made = Command::new(&python).args(["-m", "venv"]).arg(&environment).status();
    let pip = |arguments: &[&str]| {
        let mut command = Command::new(&own);
        command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(arguments).status()
    };
    eprintln!("installing {what} ...");
    let installed = made.is_ok_and(|s| s.success())
        && pip(&["--only-binary", ":all:", "-r", &wanted.to_string_lossy()]).is_ok_and(|s| s.success());
    match installed {
        true => {
            drop(std::fs::copy(&wanted, &done));
            Some(own)
        }
        false => {
            eprintln!("note: pip could not install them; what needs them is left out");
            let _ = std::fs::remove_dir_all(&environment);
            None
        }
    }
}

/// Chromium, Node.js and what `tests/browser` needs, for the test that looks at a report: from Debian's packages, where this is
/// such a machine and we may, and from npm's. Otherwise the test says that it is skipped.
pub fn browser() {
    let has = |name: &str| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    let missing: Vec<&str> = [("chromium", "chromium"), ("node", "nodejs"), ("npm", "npm")]
        .into_iter()
        .filter(|(program, _)| !has(program))
        .map(|(_, package)| package)
        .collect();
    if !missing.is_empty() {
        let apt = |arguments: &[&str]| {
            let mut command = Command::new("apt-get");
            command.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-y"]).args(arguments);
            command.stdout(std::process::Stdio::null()).status().is_ok_and(|s| s.success())
        };
        eprintln!("installing {} for the tests of the report ...", missing.join(", "));
        let packages: Vec<&str> = ["install", "--no-install-recommends"].into_iter().chain(missing.clone()).collect();
        // Only root may; an old list of packages is renewed once.
        if !(apt(&packages) || apt(&["update"]) && apt(&packages)) {
            let names = missing.join(" ");
            eprintln!("note: the report is not looked at in a browser (hint: as root, `apt-get install {names}`)");
            return;
        }
    }
    let wanted = root().join("tests/browser/package.json");
    let folder = root().join(".lightbox/browser");
    let done = folder.join("package.json");
    if std::fs::read(&wanted).ok() == std::fs::read(&done).ok() && folder.join("node_modules").is_dir() {
        return;
    }
    let half = folder.join("half");
    let _ = std::fs::remove_dir_all(&folder);
    let made = std::fs::create_dir_all(&half).and_then(|()| std::fs::copy(&wanted, half.join("package.json")));
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]).current_dir(&half);
    if made.is_err() || !npm.status().is_ok_and(|s| s.success()) {
        eprintln!(
            "note: npm could not install tests/browser/package.json, so the report is not looked at in a browser"
        );
        let _ = std::fs::remove_dir_all(&folder);
        return;
    }
    // The list last: while it is there, all that it names is.
    let moved = std::fs::rename(half.join("node_modules"), folder.join("node_modules"))
        .and_then(|()| std::fs::copy(&wanted, &done));
    if let Err(e) = moved {
        eprintln!("note: {}: {e}; the report is not looked at in a browser", folder.display());
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
    use std::os::unix::fs::PermissionsExt;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("lightbox-setup-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn another_version_and_a_folder_without_libtorch_are_named() {
        let folder = folder("fault");
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

    /// A Python that has no torch, and whose `-m venv` and `-m pip` do this.
    fn python(folder: &Path, venv: &str, pip: &str) -> String {
        let path = folder.join("python3");
        let script = format!(
            "#!/bin/sh\ncase \"$1 $2\" in\n--version*) exit 0;;\n\"-m venv\") {venv};;\n\"-m pip\") {pip};;\nesac\n"
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_string_lossy().into_owned()
    }

    fn check(name: &str, change: impl FnOnce(&mut Machine, &Path), message: &str) {
        let folder = folder(name);
        let makes = "mkdir -p \"$3/bin\" && cp \"$0\" \"$3/bin/python\"";
        let mut machine = Machine {
            compiler: "true".into(),
            python: python(&folder, makes, "exit 0"),
            libtorch: None,
            driver: false,
            free_gib: Some(100),
        };
        change(&mut machine, &folder);
        let error = setup_on(&machine, &folder.join("home"), false).unwrap_err();
        assert!(error.contains(message) && error.contains("(hint: "), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_a_machine_lacks_is_said_with_a_remedy() {
        check(
            "compiler",
            |m, _| m.compiler = "no-such-compiler".into(),
            "no C++ compiler: `no-such-compiler` does not run",
        );
        check("python", |m, _| m.python = "no-such-python".into(), "`no-such-python` does not run to install it");
        check("disk", |m, _| m.free_gib = Some(1), "libtorch needs 4 GiB of disk");
        check("libtorch", |m, f| m.libtorch = Some(f.into()), "has no lib/libtorch_cpu.so (hint: unset LIBTORCH");
        let venv = "echo 'ensurepip is not available' >&2; exit 1";
        check("venv", |m, f| m.python = python(f, venv, ""), "-m venv fails: ensurepip is not available");
        let makes = "mkdir -p \"$3/bin\" && cp \"$0\" \"$3/bin/python\"";
        let pip = "echo 'No module named pip' >&2; exit 1";
        check("pip", |m, f| m.python = python(f, makes, pip), "install pip, on Debian");
        let network = "echo 'Max retries exceeded: Failed to establish a new connection' >&2; exit 1";
        check(
            "network",
            |m, f| m.python = python(f, makes, network),
            "is there a network? pip must reach a package index",
        );
        let version = "echo 'No matching distribution found for torch==2.11.* (from versions: 2.2.0)' >&2; exit 1";
        check("wheel", |m, f| m.python = python(f, makes, version), "this Python or platform has no such wheel");
    }
}
