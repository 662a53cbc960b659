//! Building, testing, measuring. Packages are built in groups: the plugins that do without libtorch first and alone, since
//! cargo would otherwise give them the SDK with libtorch that their neighbours ask for.

use crate::{cargo, root, run};
use std::path::{Path, PathBuf};

/// Plugins on ndarray alone.
const BARE: [&str; 2] = ["controls", "example"];
/// Plugins on libtorch.
const TORCH: [&str; 5] = ["attention", "cam", "deit", "densenet", "patchconvnet"];

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
        .args(args))
}

/// Format, clippy and rustdoc, with warnings denied; licences and sources where cargo-deny is installed.
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
    let installed = cargo().args(["deny", "--version"]).output().is_ok_and(|o| o.status.success());
    if !installed {
        eprintln!(
            "note: cargo-deny is not installed, so licences and sources are not checked (cargo install cargo-deny)"
        );
        return Ok(());
    }
    run(cargo().args(["deny", "check", "licenses", "bans", "sources"]))
}

/// The benchmarks, with optimisation.
pub fn bench() -> Result<(), String> {
    build(true)?;
    run(cargo().args(["bench", "-p", "lightbox"]))
}
