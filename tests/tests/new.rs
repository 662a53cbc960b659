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

/// The code that the guide gives for `file`: the block after its name.
fn from_guide(file: &str) -> String {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/plugin-authors-guide.md");
    let text = std::fs::read_to_string(guide).unwrap();
    let (_, rest) = text.split_once(&format!("\n`{file}`:\n\n```rust\n")).unwrap_or_else(|| panic!("no {file}"));
    rest.split_once("```").unwrap().0.to_string()
}

/// One more explainer is one new file and one line, as the guide has them.
#[test]
fn an_explainer_added_as_the_guide_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made-more");
    succeed(&["new", "explainer", "made-more", "--path", &path.to_string_lossy()]);
    std::fs::write(path.join("src/energy.rs"), from_guide("src/energy.rs")).unwrap();
    let line = from_guide("src/lib.rs");
    assert_eq!(line.lines().count(), 1);
    let lib = path.join("src/lib.rs");
    std::fs::write(&lib, std::fs::read_to_string(&lib).unwrap() + &line).unwrap();
    let target = built("plugins").parent().unwrap().parent().unwrap().join("outside");
    let status = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["build", "--quiet"])
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("LIBTORCH")
        .env_remove("LD_LIBRARY_PATH")
        .current_dir(&path)
        .status();
    assert!(status.unwrap().success());
    let plugins = folder.path().join("plugins");
    std::fs::create_dir(&plugins).unwrap();
    let library = plugins.join("libmade_more.so");
    std::fs::copy(target.join("debug/libmade_more.so"), &library).unwrap();
    let out = succeed(&["check", &library.to_string_lossy(), "--only", "energy"]);
    assert!(out.contains(", 0 fail, 0 crash"), "{out}");
    let plugins = plugins.to_string_lossy().into_owned();
    let listed = succeed(&["list", "explainers", "--plugins", &plugins]);
    let row = listed.lines().find(|l| l.trim_start().starts_with("energy ")).unwrap_or_else(|| panic!("{listed}"));
    assert!(row.contains("densenet") && !row.contains("deit") && row.contains("1 F"), "{row}");
    let info = succeed(&["info", "energy", "--plugins", &plugins]);
    assert!(info.contains("formula    sqrt(sum_c A_c^2)"), "{info}");
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
