//! `lightbox new`: what it writes builds, passes its own test and its check, and runs.

use lightbox_tests::{built, fail, succeed};
use std::process::Command;

/// Writes a crate, tests and builds it, checks the plugin.
fn check(arguments: &[&str], name: &str, check: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name).to_string_lossy().into_owned();
    let said = succeed(&[&["new"], arguments, &["--path", &path]].concat());
    assert!(said.contains("cargo test") && said.contains("lightbox check"), "{said}");
    fail(&[&["new"], arguments, &["--path", &path]].concat(), 3, "is there already");
    // A target folder that is kept: only the first test on a machine compiles the SDK's dependencies.
    let target = built("plugins").parent().unwrap().parent().unwrap().join("outside");
    for task in ["test", "build"] {
        let status = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
            .args([task, "--quiet"])
            .env("CARGO_TARGET_DIR", &target)
            .env_remove("LIBTORCH")
            .env_remove("LD_LIBRARY_PATH")
            .current_dir(&path)
            .status();
        assert!(status.unwrap().success(), "{name}: cargo {task}");
    }
    let library = target.join("debug").join(format!("lib{}.so", name.replace('-', "_")));
    let library = library.to_string_lossy().into_owned();
    let out = succeed(&[&["check", &library], check].concat());
    assert!(out.contains(", 0 fail, 0 crash"), "{out}");
}

#[test]
fn an_explainer_on_ndarray() {
    check(&["explainer", "made-map"], "made-map", &[]);
}

#[test]
fn an_explainer_on_tch_and_a_model() {
    check(&["explainer", "made-gradient", "--tch"], "made-gradient", &["--model", "deit-mini"]);
    check(&["model", "made-net"], "made-net", &[]);
}

#[test]
fn mistakes_are_clear_errors() {
    fail(&["new", "explainer", "Made_Map"], 3, "name `Made_Map`: lower-case letters, digits and - expected");
    fail(&["new", "explainer", "made", "--sdk", "/no/sdk"], 3, "/no/sdk: lightbox-sdk is not there (hint: --sdk");
    let folder = tempfile::tempdir().unwrap();
    let rlib = folder.path().join("libmade.rlib");
    std::fs::write(&rlib, b"!<arch>\nrest").unwrap();
    let (out, _, code) = lightbox_tests::run(&["check", &rlib.to_string_lossy()]);
    assert_eq!(code, 7);
    assert!(out.contains("crate-type = [\"cdylib\"]"), "{out}");
}
