//! Plugins in Python: tests/python/plain.py is a network and explainers in NumPy alone, tests/python/hostile.py what none should do. They
//! run in the environment that `cargo xtask test` makes for NumPy; those that need torch in the interpreter that LIGHTBOX_PEER_PYTHON names.

use lightbox_core::checkpoint;
use lightbox_tests::{lightbox, relative, skip, small_spec, texts};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

fn project(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(name)
}

/// An interpreter with NumPy.
fn numpy() -> Option<PathBuf> {
    let python = project(".lightbox/recompute/bin/python");
    if !python.is_file() {
        skip("`cargo xtask test` installs the Python of this test; pip could not");
        return None;
    }
    Some(python)
}

/// The program with its interpreter; stdout, stderr and exit code.
fn run(python: &Path, arguments: &[&str]) -> (String, String, i32) {
    texts(lightbox(arguments).env("LIGHTBOX_PYTHON", python).output().unwrap())
}

fn succeed(python: &Path, arguments: &[&str]) -> String {
    let (out, err, code) = run(python, arguments);
    assert_eq!(code, 0, "lightbox {arguments:?}\n{out}\n{err}");
    out
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[test]
fn a_network_and_explainers_in_python_pass_the_check() {
    let Some(python) = numpy() else { return };
    let out = succeed(&python, &["check", &text(&project("tests/python/plain.py"))]);
    assert!(out.contains(" pass, 0 warn, 0 fail, 0 crash"), "{out}");
    for test in ["gradients equal finite differences", "gives an image the same map in any batch"] {
        assert!(out.contains(test), "{test}: {out}");
    }
}

/// GradCAM in Python on a model in Rust is ours, and ours on a model in Python is Python's, to float32.
#[test]
fn both_sides_explain_each_others_models() {
    let Some(python) = numpy() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    let images = Tensor::randn([5, 3, 64, 64], (Kind::Float, tch::Device::Cpu));
    images.write_npy(at("batch.npy")).unwrap();
    let plugins = text(&project("tests/python"));
    for model in [&["densenet-small", "--random-weights", "--model-param", "size=64"][..], &["plain"]] {
        let raw = at("raw.safetensors");
        let mut arguments = vec!["explain", "BATCH", "--model"];
        arguments.extend(model);
        arguments.extend(["--plugins", &plugins, "--raw", &raw, "--batch-size", "3"]);
        arguments.extend(["--explainer", "gradcam", "--explainer", "py-gradcam", "--explainer", "py-occlusion"]);
        arguments.extend(["--explainer", "saliency", "--explainer", "py-fork"]);
        let batch = at("batch.npy");
        arguments[1] = &batch;
        succeed(&python, &arguments);
        let all = checkpoint::read(Path::new(&raw)).unwrap();
        let get =
            |name: &str| all.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1.shallow_clone();
        let (ours, theirs) = (get("gradcam"), get("py-gradcam"));
        assert!(ours.abs().max().double_value(&[]) > 0.0, "{model:?}");
        let off = relative(&theirs.reshape(ours.size()), &ours);
        assert!(off < 1e-5, "{model:?}: {off}");
        assert!(get("py-occlusion").std(true).double_value(&[]) > 0.0 && get("py-fork").max().double_value(&[]) > 0.0);
    }
}

/// A run in which each explainer does something else that none should: its own cell says what, and the others have their numbers.
#[test]
fn a_hostile_plugin_costs_its_cell() {
    let Some(python) = numpy() else { return };
    let folder = tempfile::tempdir().unwrap();
    let cells = [
        ("py-leaves", "it ended the process (exit code 3)"),
        ("py-crashes", "it crashed (SIGSEGV, segmentation fault)"),
        ("py-hangs", "it gave no sign for 10 s and was stopped"),
        ("py-raises", "explainer py-raises: ValueError: not today (hostile.py:"),
        ("py-wrong-shape", "explainer py-wrong-shape gave a map of shape [2, 3], expected [2, h, w]"),
        ("py-too-few", "explainer py-too-few gave a map of shape [1, 64, 64], expected [2, h, w]"),
        ("py-no-array", "explainer py-no-array: maps of <U5, numbers [B, H, W] are expected"),
        ("py-closes", "it crashed (SIGKILL"),
        ("py-writes-to-its-input", "ValueError: assignment destination is read-only (hostile.py:"),
        ("py-lies", "it crashed (SIGKILL"),
        ("py-babbles", "it crashed (SIGKILL"),
        ("py-takes-all", "MemoryError: Unable to allocate"),
        ("py-exits", "SystemExit: 5"),
    ];
    let works = ["noise", "py-fine", "py-floods", "py-forks", "py-not-a-number"];
    let all = works.iter().copied().chain(cells.iter().map(|(name, _)| *name));
    let extra: String = all.map(|name| format!("[[explainers]]\nname = \"{name}\"\n")).collect();
    let spec = text(&small_spec(folder.path(), &extra));
    let (out, err, code) = run(&python, &["run", &spec, "--plugins", &text(&project("tests/python"))]);
    assert_eq!(code, 5, "{out}\n{err}");
    for (name, reason) in cells {
        let line =
            out.lines().find(|l| l.starts_with(&format!("densenet-small x {name}: failed: "))).unwrap_or_default();
        assert!(line.contains(reason), "{name}: `{line}`\n{out}\n{err}");
    }
    let row =
        |name: &str| out.lines().find(|l| l.split_whitespace().next() == Some(name)).unwrap_or_default().to_string();
    for name in works {
        assert!(!row(name).contains("failed") && !row(name).is_empty(), "{name}: {out}");
    }
    assert!(row("py-not-a-number").contains('!'), "{out}");
}

/// Interpreters of this test, by the folder that stands in their environment.
fn interpreters(mark: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let ours = |process: &std::fs::DirEntry| {
        let read = |name: &str| std::fs::read(process.path().join(name)).unwrap_or_default();
        let has = |bytes: Vec<u8>, text: &str| String::from_utf8_lossy(&bytes).contains(text);
        has(read("cmdline"), "lightbox.serve") && has(read("environ"), mark)
    };
    processes.filter(ours).count()
}

#[test]
fn no_interpreter_is_left_when_the_program_is_killed() {
    let Some(python) = numpy() else { return };
    let folder = tempfile::tempdir().unwrap();
    let extra = "[[explainers]]\nname = \"py-forks\"\n[[explainers]]\nname = \"py-hangs\"\n";
    let spec = text(&small_spec(folder.path(), extra));
    let mark = text(folder.path());
    let mut command: Command = lightbox(&["run", &spec, "--json", "--plugins", &text(&project("tests/python"))]);
    command.env("LIGHTBOX_PYTHON", &python).env("LIGHTBOX_TEST_MARK", &mark);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let hangs = |line: &String| line.contains("cell-started") && line.contains("py-hangs");
    assert!(lines.map_while(Result::ok).any(|l| hangs(&l)), "it came to the explainer that hangs");
    // The interpreter, and what it has forked.
    assert!(interpreters(&mark) >= 2, "{}", interpreters(&mark));
    child.kill().unwrap();
    child.wait().unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while interpreters(&mark) > 0 {
        assert!(Instant::now() < until, "{} interpreters are left", interpreters(&mark));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_a_file_lacks_is_said_with_the_command_that_mends_it() {
    let Some(python) = numpy() else { return };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write(
        "lacks.py",
        "# /// script\n# dependencies = [\"numpy>=1\", \"no-such-package>=2\"]\n# ///\nimport no_such_package\n",
    );
    write("broken.py", "import lightbox\nthis is no Python\n");
    write("empty.py", "import lightbox\n");
    write("test_it.py", "raise SystemExit(9)\n");
    let out = succeed(&python, &["list", "plugins", "--plugins", &text(folder.path())]);
    let interpreter = text(&python);
    for said in [
        format!("{interpreter} lacks no-such-package>=2 (`{interpreter} -m pip install 'no-such-package>=2'`"),
        "SyntaxError: invalid syntax".into(),
        "it has no function or class with @lightbox.explainer or @lightbox.model".into(),
    ] {
        assert!(out.contains(&said), "{said}\n{out}");
    }
    assert!(!out.contains("test_it.py"), "{out}");
    let (_, err, code) =
        run(Path::new("/no/such/python"), &["info", "py-noise", "--plugins", &text(&project("tests/python"))]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("/no/such/python: No such file or directory"), "{err}");
}

/// Captum and pytorch-grad-cam on a live network, beside ours.
#[test]
fn the_peers_stand_in_the_same_table() {
    let Some(python) = std::env::var_os("LIGHTBOX_PEER_PYTHON").map(PathBuf::from) else {
        return skip("LIGHTBOX_PEER_PYTHON names no interpreter with torch, torchvision, captum and grad-cam");
    };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    Tensor::randn([4, 3, 96, 96], (Kind::Float, tch::Device::Cpu)).write_npy(at("batch.npy")).unwrap();
    let (batch, raw, plugins) = (at("batch.npy"), at("raw.safetensors"), text(&project("plugins/python")));
    let pairs = [
        ("gradcam", "captum-gradcam"),
        ("saliency:channels=sum", "captum-saliency"),
        ("inputxgradient:channels=sum", "captum-inputxgradient"),
    ];
    let mut arguments =
        vec!["explain", &batch, "--model", "torchvision", "--model-param", "size=96", "--random-weights"];
    arguments.extend(["--plugins", &plugins, "--raw", &raw]);
    for (ours, theirs) in pairs {
        arguments.extend(["--explainer", ours, "--explainer", theirs]);
    }
    arguments.extend(["--explainer", "pytorch-grad-cam-gradcam"]);
    succeed(&python, &arguments);
    let all = checkpoint::read(Path::new(&raw)).unwrap();
    let get = |name: &str| {
        all.iter().find(|(n, _)| n.starts_with(name)).unwrap_or_else(|| panic!("no {name}")).1.shallow_clone()
    };
    for (ours, theirs) in pairs {
        let ours = get(ours.split(':').next().unwrap());
        let off = relative(&get(theirs).reshape(ours.size()), &ours);
        assert!(off < 1e-3, "{theirs}: {off}");
    }
}
