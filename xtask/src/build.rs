//! Building, testing, measuring. Packages are built in groups: the plugins that do without libtorch first and alone, since
//! cargo would otherwise give them the SDK with libtorch that their neighbours ask for.

use crate::{cargo, root, run};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Plugins on ndarray alone.
const BARE: [&str; 2] = ["controls", "example"];
/// Plugins on libtorch.
const TORCH: [&str; 8] =
    ["attention", "cam", "deit", "densenet", "exported", "gradient", "patchconvnet", "perturbation"];

fn packages(names: &[&str]) -> Vec<String> {
    names.iter().flat_map(|n| ["-p".to_string(), format!("lightbox-plugin-{n}")]).collect()
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let error = |e: std::io::Error| format!("{}: {e}", to.display());
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).map_err(error)?;
    }
    // Under another name first: a program may have the old file mapped. An unchanged file keeps its place.
    if std::fs::read(from).ok() == std::fs::read(to).ok() && to.is_file() {
        return Ok(());
    }
    let new = to.with_extension("new");
    std::fs::copy(from, &new).map_err(|e| format!("{}: {e}", from.display()))?;
    std::fs::rename(&new, to).map_err(error)
}

fn target(release: bool) -> PathBuf {
    let base = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    base.join(if release { "release" } else { "debug" })
}

/// Builds the program and puts the plugins into `plugins/` beside it; the program's path.
pub fn build(release: bool) -> Result<PathBuf, String> {
    let profile: &[&str] = if release { &["--release"] } else { &[] };
    let folder = target(release);
    let plugin =
        |n: &&str| (folder.join(format!("liblightbox_{n}.so")), folder.join(format!("plugins/liblightbox_{n}.so")));
    run(cargo().arg("build").args(profile).args(packages(&BARE)))?;
    for (from, to) in BARE.iter().map(plugin) {
        copy(&from, &to)?;
    }
    run(cargo().arg("build").args(profile).args(["-p", "lightbox"]).args(packages(&TORCH)))?;
    for (from, to) in TORCH.iter().map(plugin) {
        copy(&from, &to)?;
    }
    Ok(folder.join("lightbox"))
}

/// Builds what the tests load beside the plugins: hostile plugins, and one of the next version of the ABI.
fn build_test_plugins() -> Result<(), String> {
    let folder = target(false);
    run(cargo().args(["build", "-p", "lightbox-abi-next"]))?;
    let test = folder.join("test-plugins");
    copy(&folder.join("liblightbox_abi_next.so"), &test.join("next/liblightbox_abi_next.so"))?;
    copy(&folder.join("abi-next-host"), &test.join("abi-next-host"))?;
    run(cargo().args(["build", "-p", "lightbox-hostile", "-p", "lightbox-hard"]))?;
    copy(&folder.join("liblightbox_hard.so"), &test.join("hard/liblightbox_hard.so"))?;
    copy(&folder.join("liblightbox_hostile.so"), &test.join("hostile/liblightbox_hostile.so"))
}

/// All tests.
pub fn test(args: &[String]) -> Result<(), String> {
    build(false)?;
    build_test_plugins()?;
    run(cargo().args(["test", "-p", "lightbox-sdk", "-p", "xtask"]).args(packages(&BARE)).arg("--").args(args))?;
    // A test binary of the plugins with libtorch would replace their libraries' features; groups keep them as they are.
    run(cargo()
        .args([
            "test",
            "--no-fail-fast",
            "-p",
            "lightbox-sdk",
            "-p",
            "lightbox-core",
            "-p",
            "lightbox",
            "-p",
            "lightbox-tests",
        ])
        .args(["--features", "lightbox-sdk/nn"])
        .args(packages(&TORCH))
        .arg("--")
        .args(args))?;
    // The references once more without the ways that are faster and round otherwise: no number may hang on one.
    eprintln!("\n$ LIGHTBOX_PLAIN=1");
    run(cargo()
        .args(["test", "-p", "lightbox-sdk", "-p", "lightbox-core", "-p", "lightbox", "-p", "lightbox-tests"])
        .args(["--features", "lightbox-sdk/nn"])
        .args(packages(&TORCH))
        .args(["--test", "golden", "--test", "oracle", "--test", "recompute", "--"])
        .args(args)
        .env("LIGHTBOX_PLAIN", "1"))
}

/// The release of cargo-deny that reads `deny.toml`.
const CARGO_DENY: &str = "0.20.2";

/// Format, clippy and rustdoc, with warnings denied; licences and sources by cargo-deny, which is installed under
/// `.lightbox/tools` where it is missing; a check with the oldest Rust that `Cargo.toml` names, where rustup can install it.
pub fn lint() -> Result<(), String> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    let deny = ["--all-targets", "--", "-D", "warnings"];
    run(cargo().args(["clippy", "-p", "xtask", "-p", "lightbox-sdk"]).args(packages(&BARE)).args(deny))?;
    run(cargo().args(["clippy", "-p", "lightbox-abi-next"]).args(deny))?;
    run(cargo()
        .args(["clippy", "-p", "lightbox-core", "-p", "lightbox", "-p", "lightbox-tests", "-p", "lightbox-hostile"])
        .args(["-p", "lightbox-hard"])
        .args(packages(&TORCH))
        .args(deny))?;
    run(cargo()
        .args(["doc", "--no-deps", "-p", "lightbox-sdk", "-p", "lightbox-core", "-p", "lightbox"])
        .args(["--features", "lightbox-sdk/nn"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    let tools = root().join(".lightbox/tools");
    let tool = tools.join("bin/cargo-deny");
    let found = Command::new(&tool).arg("--version").output();
    if !found.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).trim().ends_with(CARGO_DENY)) {
        run(cargo().args(["install", "cargo-deny", "--locked", "--version", CARGO_DENY, "--root"]).arg(&tools))?;
    }
    run(Command::new(&tool).args(["check", "licenses", "bans", "sources"]))?;
    match run(Command::new(&tool).args(["fetch", "db"])) {
        Ok(()) => run(Command::new(&tool).args(["check", "--disable-fetch", "advisories"]))?,
        Err(_) => eprintln!("advisories were not checked: their database cannot be had from here"),
    }
    oldest()
}

/// Checks what is published with the `rust-version` of `Cargo.toml`.
fn oldest() -> Result<(), String> {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).map_err(|e| format!("Cargo.toml: {e}"))?;
    let version = manifest.lines().find_map(|l| l.strip_prefix("rust-version = "));
    let version = version.ok_or("Cargo.toml names no rust-version")?.trim_matches('"').to_string();
    let mut install = Command::new("rustup");
    install.args(["toolchain", "install", &version, "--profile", "minimal", "--no-self-update"]);
    if !install.status().is_ok_and(|s| s.success()) {
        eprintln!("note: rustup cannot install Rust {version}, so that it suffices was not checked");
        return Ok(());
    }
    run(Command::new("rustup")
        .args(["run", &version, "cargo", "check", "--target-dir", "target/oldest", "-p", "lightbox-sdk"])
        .args(["-p", "lightbox-core", "-p", "lightbox", "--features", "lightbox-sdk/nn"])
        .args(packages(&TORCH)))
}

/// The benchmarks, with optimisation. Without a network they have no peers, and say so.
pub fn bench(args: &[String]) -> Result<(), String> {
    build(true)?;
    let mut command = cargo();
    if std::env::var_os("LIGHTBOX_PEER_PYTHON").is_none()
        && let Some(python) = crate::setup::environment("bench", "bench-requirements.txt", "the peers (5 GB)")
    {
        command.env("LIGHTBOX_PEER_PYTHON", python);
    }
    // The folder of a relative --output is the caller's.
    let here = std::env::current_dir().map_err(|e| e.to_string())?;
    let args = args.iter().enumerate().map(|(i, arg)| match i > 0 && args[i - 1] == "--output" {
        true => here.join(arg).to_string_lossy().into_owned(),
        false => arg.clone(),
    });
    run(command.args(["bench", "-p", "lightbox", "--bench", "bench", "--"]).args(args))
}
