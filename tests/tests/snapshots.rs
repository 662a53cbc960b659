//! What users read, word for word: lists, help, tables, errors. After a change that is meant, `INSTA_UPDATE=always cargo test
//! -p lightbox-tests --test snapshots` writes the files in `snapshots/` anew; the difference is looked at in the commit.

use insta::assert_snapshot;
use lightbox_tests::{run, small_spec};

/// Runs `check` where paths, checksums and whatever hangs on the machine are replaced.
fn settled(check: impl FnOnce()) {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for (pattern, shown) in [
        (r"/\S*/plugins/", "PLUGINS/"),
        (r"/tmp/[^/\s]+", "TMP"),
        (r"[0-9a-f]{64}", "SHA256"),
        (r"libtorch [0-9.]+\S*", "libtorch VERSION"),
        (r"rustc [0-9.]+ \([^)]*\)", "rustc VERSION"),
    ] {
        settings.add_filter(pattern, shown);
    }
    settings.bind(check);
}

/// A command's exit code and all that it says.
fn check(name: &str, arguments: &[&str]) {
    let (out, err, code) = run(arguments);
    settled(|| assert_snapshot!(name, format!("exit code {code}\n--- stdout\n{out}--- stderr\n{err}")));
}

#[test]
fn lists() {
    check("list", &["list"]);
    check("list-models", &["list", "models"]);
    check("list-datasets", &["list", "datasets"]);
}

#[test]
fn what_is_known_of_one_thing() {
    check("info-explainer", &["info", "gradcam"]);
    check("info-model", &["info", "deit-mini"]);
    check("info-metric", &["info", "pixel-auprc"]);
}

#[test]
fn help() {
    check("help", &["--help"]);
    for command in ["run", "explain", "list", "info", "check", "compare", "report", "serve", "maps", "data", "new"] {
        check(&format!("help-{command}"), &[command, "--help"]);
    }
}

#[test]
fn errors() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let spec = std::fs::read_to_string(small_spec(folder.path(), "[[explainers]]\nname = \"edges\"\n")).unwrap();
    let bad = |name: &str, from: &str, to: &str| {
        assert!(spec.contains(from), "{from}: {spec}");
        std::fs::write(at(&format!("{name}.toml")), spec.replace(from, to)).unwrap();
        check(&format!("error-{name}"), &["run", &at(&format!("{name}.toml"))]);
    };
    bad("explainer", "\"edges\"", "\"edgse\"");
    bad("key", "chunk = 4", "chunks = 4");
    bad("value", "batch_size = 3", "batch_size = \"many\"");
    bad("parameter", "name = \"edges\"", "name = \"gradcam\"\nparams = { layers = \"x\" }");
    bad("weights", "weights = \"random\"", "weights = \"none.pth\"");
    bad("no-weights", "weights = \"random\"\n", "");
    check("error-model", &["info", "densenet"]);
    check("error-command", &["explian"]);
    check("error-spec", &["run", "nothing.toml"]);
    check("error-run-folder", &["report", &at("nowhere")]);
}

#[test]
fn a_table() {
    let folder = tempfile::tempdir().unwrap();
    let spec = small_spec(folder.path(), "[[explainers]]\nname = \"edges\"\n[[explainers]]\nname = \"attention\"\n");
    let (out, err, code) = run(&["run", &spec.to_string_lossy()]);
    assert_eq!(code, 0, "{err}");
    settled(|| {
        let mut settings = insta::Settings::clone_current();
        // Weights are random, and another CPU rounds them otherwise.
        settings.add_filter(r" *\d+\.\d", "    N.N");
        settings.bind(|| assert_snapshot!("table", out));
    });
}
