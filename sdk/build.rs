//! With feature `tch`: compiles the C++ functions that tch lacks and tells dependents where libtorch is.
//! Always: records the compiler and libtorch that a plugin was built with.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=csrc");
    println!("cargo:rerun-if-changed=build.rs");
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = Command::new(rustc).arg("-V").output();
    let version = version.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string());
    println!("cargo:rustc-env=LIGHTBOX_RUSTC={}", version.unwrap_or_else(|_| "unknown".into()));
    let torch = torch();
    println!("cargo:rustc-env=LIGHTBOX_TORCH={}", torch.unwrap_or_else(|| "none".into()));
}

#[cfg(not(feature = "tch"))]
fn torch() -> Option<String> {
    None
}

/// Builds the shim; the version of the libtorch it was built against.
#[cfg(feature = "tch")]
fn torch() -> Option<String> {
    let Ok(lib) = env::var("DEP_TCH_LIBTORCH_LIB") else {
        println!(
            "cargo::error=torch-sys does not say where libtorch is: set LIBTORCH to a libtorch 2.11, in a checkout of Lightbox `.lightbox/libtorch` after `cargo xtask setup`"
        );
        return None;
    };
    let lib = std::path::PathBuf::from(lib);
    // Dependents' build scripts read this as DEP_LIGHTBOX_SDK_LIBTORCH_LIB and set an rpath.
    println!("cargo:libtorch_lib={}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    let root = lib.parent()?.to_path_buf();
    let include = root.join("include");
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .warnings(false)
        .std("c++17")
        .opt_level(0)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("csrc/for_blob.cpp")
        .file("csrc/autocast.cpp")
        .file("csrc/relu.cpp")
        .compile("lightbox_sdk_shim");
    if env::var_os("CARGO_FEATURE_NN").is_some() {
        // Called for every operator of a program: worth a little optimisation.
        cc::Build::new()
            .cpp(true)
            .pic(true)
            .warnings(false)
            .debug(false)
            .std("c++17")
            .opt_level(1)
            .include(&include)
            .include(include.join("torch/csrc/api/include"))
            .file("csrc/dispatch.cpp")
            .compile("lightbox_sdk_dispatch");
    }
    let wheel = std::fs::read_to_string(root.join("version.py")).ok().and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("__version__ = '").map(str::to_string));
        line.map(|l| l.trim_end_matches('\'').to_string())
    });
    let zip = || std::fs::read_to_string(root.join("build-version")).ok().map(|s| s.trim().to_string());
    wheel.or_else(zip).or_else(|| Some("unknown".into()))
}
