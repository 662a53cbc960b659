//! Plugins in Python: tests/python/plain.py is a network and explainers in NumPy alone, tests/python/hostile.py what none should do. They
//! run in the environment that `cargo xtask test` makes for NumPy; those that need torch in the interpreter that LIGHTBOX_PEER_PYTHON names.

use lightbox_core::checkpoint;
use lightbox_core::results::{self, Names};
use lightbox_sdk::host::{Serving, Silent};
use lightbox_sdk::spec::{InputSpec, ModelSpec};
use lightbox_sdk::{Array, BoundHandle, ExplainInput, Target};
use lightbox_tests::{lightbox, relative, skip, small_spec, texts};
use std::collections::BTreeMap;
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
    // To files: a process that is left would hold a pipe open.
    let (to, mark) = (|name: &str| std::fs::File::create(folder.path().join(name)).unwrap(), text(folder.path()));
    let mut command = lightbox(&["run", &spec, "--plugins", &text(&project("tests/python"))]);
    command.env("LIGHTBOX_PYTHON", &python).env("LIGHTBOX_TEST_MARK", &mark);
    let code = command.stdout(to("stdout")).stderr(to("stderr")).status().unwrap().code().unwrap_or(-1);
    let [out, err] = ["stdout", "stderr"].map(|name| std::fs::read_to_string(folder.path().join(name)).unwrap());
    none_is_left(&mark);
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

/// In ten seconds no interpreter of this test is left, nor what one has forked.
fn none_is_left(mark: &str) {
    let until = Instant::now() + Duration::from_secs(10);
    while interpreters(mark) > 0 {
        assert!(Instant::now() < until, "{} interpreters are left", interpreters(mark));
        std::thread::sleep(Duration::from_millis(50));
    }
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
    assert!(interpreters(&mark) >= 1, "the interpreter is at work");
    child.kill().unwrap();
    child.wait().unwrap();
    none_is_left(&mark);
}

/// Ten thousand calls: neither side has more descriptors or much more memory than after the first thousand.
#[test]
fn calls_leak_nothing() {
    let Some(python) = numpy() else { return };
    // SAFETY: no other test of this process reads the variable; the programs that they start are given their own.
    unsafe { std::env::set_var("LIGHTBOX_PYTHON", &python) };
    let explainer =
        lightbox::registry::open(&project("tests/python/plain.py")).unwrap().make_explainer("py-nothing").unwrap();
    let model = ModelSpec::new("none", InputSpec::imagenet(16), 2);
    let images = Array::from_vec(&[2, 3, 16, 16], vec![0.5f32; 2 * 3 * 256]).unwrap();
    let logits = Array::from_vec(&[2, 2], vec![0f32; 4]).unwrap();
    let serving = Serving::new(&Silent);
    let call = |bound: &BoundHandle| {
        let input = ExplainInput::new(images.clone(), vec![Target::Class(0); 2], logits.clone(), &serving);
        assert_eq!(bound.explain(input).unwrap().array.shape(), [2, 1, 1]);
    };
    let own = std::process::id();
    let mut children =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|p| p.file_name().to_str()?.parse::<u32>().ok());
    let is_ours = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent =
            status.lines().find_map(|l| l.strip_prefix("PPid:")).map(str::trim).unwrap_or_default().to_string();
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        parent == own.to_string() && line.contains("lightbox.serve")
    };
    let child = children.find(is_ours).expect("an interpreter was started");
    let files = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let memory = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap().trim().to_string();
        line.split_whitespace().next().unwrap().parse::<usize>().unwrap()
    };
    // Bound anew, too: objects that are let go of are gone there.
    let bind = || explainer.bind(&model, &[], &BTreeMap::new()).unwrap();
    (0..1000).for_each(|_| call(&bind()));
    let before = (files(child), memory(child));
    let bound = bind();
    (0..8000).for_each(|_| call(&bound));
    (0..1000).for_each(|_| call(&bind()));
    let after = (files(child), memory(child));
    assert!(after.0 <= before.0 + 2, "descriptors {before:?} {after:?}");
    assert!(after.1 <= before.1 + 4000, "KiB {before:?} {after:?}");
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

/// Runs a script with the module on its path and the program of this build.
fn script(python: &Path, text: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(python);
    command.arg("-c").arg(text).args(arguments).env("PYTHONPATH", project("sdk/python"));
    let program = lightbox_tests::built("lightbox");
    let output =
        command.env("LIGHTBOX_BIN", program).env("LIGHTBOX_CACHE", "").env_remove("LIGHTBOX_PYTHON").output().unwrap();
    let (out, err, code) = texts(output);
    assert_eq!(code, 0, "{out}\n{err}");
    out
}

/// The script of the wheel's test: a run of a notebook's network by explainers of both sides, maps, scores, one explanation.
#[test]
fn the_module_runs_explains_and_scores() {
    let Some(python) = numpy() else { return };
    let folder = tempfile::tempdir().unwrap();
    let wheel = std::fs::read_to_string(project("tests/python/_wheel.py")).unwrap();
    let wheel = wheel.replace("__file__", &format!("{:?}", text(&project("tests/python/_wheel.py"))));
    let out = script(&python, &wheel, &[&text(folder.path())]);
    assert!(out.contains("the module works"), "{out}");
}

/// A run that is interrupted goes on; another explainer's code is another cell, and the same code is not computed again.
#[test]
fn a_notebooks_run_continues_and_knows_what_changed() {
    let Some(python) = numpy() else { return };
    let folder = tempfile::tempdir().unwrap();
    let text = |factor: f64| {
        format!(
            "import sys, json, pathlib\nimport numpy as np\nimport lightbox as lb\nsys.path.append({:?})\nimport plain\n\
             FACTOR = {factor}\n\
             def scaled(x):\n    return FACTOR * x\n\
             @lb.explainer(family='other', needs=lb.Needs())\ndef mine(ctx):\n    return scaled(ctx.images.sum(1))\n\
             x = np.random.default_rng(0).random((8, 3, 16, 16), np.float32)\nm = np.zeros((8, 16, 16), bool); m[:, 4:9, 4:9] = True\n\
             run = lb.run(plain.Plain(16, 0), x, m, np.arange(8) % 2, ['gradcam', mine], ['pixel-auprc'], folder=sys.argv[1], quiet=True)\n\
             events = [json.loads(l) for l in (run.folder / 'events.jsonl').read_text().splitlines()]\n\
             print(sorted({{e['explainer'] for e in events if e['event'] == 'cell-started' and e['explainer'] != ''}}))\n\
             print(float(np.mean(list(run.maps(mine).values()))))\n",
            project("tests/python")
        )
    };
    let run = |factor| {
        let before = std::fs::read_to_string(folder.path().join("run/events.jsonl")).map_or(0, |t| t.lines().count());
        let out = script(&python, &text(factor), &[&folder.path().join("run").to_string_lossy()]);
        let events = std::fs::read_to_string(folder.path().join("run/events.jsonl")).unwrap();
        let new: Vec<String> = events.lines().skip(before).map(str::to_string).collect();
        let cells = |name: &str| {
            new.iter().filter(|l| l.contains("cell-started") && l.contains(&format!("\"{name}\""))).count()
        };
        (cells("gradcam"), cells("mine"), out.lines().last().unwrap_or_default().parse::<f64>().unwrap())
    };
    let (gradcam, mine, first) = run(1.0);
    assert!(gradcam > 0 && mine > 0);
    assert_eq!(run(1.0), (0, 0, first), "nothing has changed");
    let (gradcam, mine, second) = run(2.0);
    assert_eq!(gradcam, 0, "the network and GradCAM are what they were");
    assert!(mine > 0 && (second - 2.0 * first).abs() < 1e-4, "{first} {second}");
}

#[test]
fn a_new_explainer_in_python_passes_its_test_and_the_check() {
    let Some(python) = numpy() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my-map");
    let out = succeed(&python, &["new", "explainer", "my-map", "--python", "--path", &text(&path)]);
    assert!(out.contains("lightbox check my_map.py"), "{out}");
    let mut command = Command::new(&python);
    command.arg("test_my_map.py").current_dir(&path).env("PYTHONPATH", project("sdk/python"));
    assert!(texts(command.output().unwrap()).0.contains("1 test passed"));
    let out = succeed(&python, &["check", &text(&path.join("my_map.py"))]);
    assert!(out.contains(" pass, 0 warn, 0 fail, 0 crash"), "{out}");
    let out = succeed(&python, &["list", "explainers", "--plugins", &text(&path)]);
    assert!(out.contains("my-map") && !out.contains("rejected"), "{out}");
}

/// The maps of a run, given back as a file, have the run's scores; the command and the module agree.
#[test]
fn maps_of_a_file_are_scored_as_a_runs() {
    let Some(python) = numpy() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    let spec = text(&small_spec(folder.path(), "[[explainers]]\nname = \"gradcam\"\n"));
    succeed(&python, &["run", &spec]);
    let out = at("out");
    for name in ["maps.npy", "maps.safetensors"] {
        succeed(&python, &["maps", &out, "--model", "densenet-small", "--explainer", "gradcam", "--output", &at(name)]);
    }
    for file in ["maps.npy", "maps.safetensors"] {
        let extra = format!(
            "[[explainers]]\nname = \"gradcam\"\n[[explainers]]\nname = \"given\"\nparams = {{ file = {:?}{} }}\n",
            at(file),
            if file.ends_with("npy") { format!(", names = {:?}", at("maps.txt")) } else { String::new() }
        );
        let spec = text(&small_spec(folder.path(), &extra));
        let table = succeed(&python, &["run", &spec]);
        // Columns: model, AUPRC, AUROC, gradcam, given, chance.
        let row = table.lines().find(|l| l.starts_with("densenet-small ")).unwrap_or_default();
        let columns: Vec<&str> = row.split_whitespace().collect();
        assert!(columns.len() > 5 && columns[3] == columns[4], "{file}: {table}");
        let (mut names, mut rows) = (Names::default(), Vec::new());
        results::read_scores(&Path::new(&out).join("scores.parquet"), &mut names, &mut |r| rows.push(r)).unwrap();
        let of = |explainer: &str| -> Vec<_> {
            let own =
                rows.iter().filter(|r| names.name(r.explainer) == explainer && names.name(r.metric) == "pixel-auprc");
            own.map(|r| (names.name(r.image).to_string(), r.value)).collect()
        };
        assert!(
            of("gradcam").len() == 6 && of("gradcam") == of("given"),
            "{file}: {:?} {:?}",
            of("gradcam"),
            of("given")
        );
    }
    // A file without one of the images: that image counts as failed, and the others do not.
    let (names, _) = (std::fs::read_to_string(at("maps.txt")).unwrap(), ());
    std::fs::write(at("maps.txt"), names.replacen(names.lines().next().unwrap(), "another.png", 1)).unwrap();
    let extra = format!(
        "[[explainers]]\nname = \"given\"\nparams = {{ file = {:?}, names = {:?} }}\n",
        at("maps.npy"),
        at("maps.txt")
    );
    let (table, _, _) = run(&python, &["run", &text(&small_spec(folder.path(), &extra))]);
    assert!(table.contains("x given: 1 of ") && table.contains(" maps failed"), "{table}");
}

#[test]
fn scores_of_maps_made_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    let maps = Tensor::rand([5, 8, 8], (Kind::Float, tch::Device::Cpu));
    let masks = maps.ge(0.6).to_kind(Kind::Float);
    maps.write_npy(at("maps.npy")).unwrap();
    masks.write_npy(at("masks.npy")).unwrap();
    let given = ["score", "--maps", &at("maps.npy"), "--masks", &at("masks.npy")].map(str::to_string);
    let score = |more: &[&str]| {
        let all: Vec<&str> = given.iter().map(String::as_str).chain(more.iter().copied()).collect();
        lightbox_tests::run(&all)
    };
    // Every marked pixel is above all others.
    let (out, _, _) = score(&["--metric", "pixel-auprc", "--metric", "hit", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(value["metrics"][0]["mean"], 1.0);
    assert_eq!(value["metrics"][1]["values"].as_array().unwrap().len(), 5);
    for (metric, said) in [
        ("deletion", "metric deletion asks the model"),
        ("auroc", "metric auroc is of predictions"),
        ("iou", "chooses its threshold on other images: --validation-maps"),
        ("nothing", "nothing"),
    ] {
        let (_, err, code) = score(&["--metric", metric]);
        assert!(code == 3 && err.contains(said), "{metric}: {code} {err}");
    }
    let (maps, masks) = (at("maps.npy"), at("masks.npy"));
    let (out, err, code) = score(&["--metric", "iou", "--validation-maps", &maps, "--validation-masks", &masks]);
    assert!(code == 0 && out.contains("mean of 5 images"), "{out} {err}");
    let other = at("other.npy");
    Tensor::rand([4, 8, 8], (Kind::Float, tch::Device::Cpu)).write_npy(&other).unwrap();
    let (_, err, _) = lightbox_tests::run(&["score", "--maps", &maps, "--masks", &other, "--metric", "hit"]);
    assert!(err.contains("5 maps and 4 masks"), "{err}");
}

/// The gallery's notebooks, cell by cell.
#[test]
fn the_notebooks_run() {
    let Some(python) = std::env::var_os("LIGHTBOX_PEER_PYTHON").map(PathBuf::from) else {
        return skip("LIGHTBOX_PEER_PYTHON names no interpreter with torch and captum");
    };
    let run = "import json, sys, os\nfile, folder = sys.argv[1:]\nos.chdir(folder)\nnames = {}\n\
               for cell in json.load(open(file))['cells']:\n    if cell['cell_type'] == 'code':\n        \
               exec(compile(''.join(cell['source']), file, 'exec'), names)\nprint('ran')\n";
    let folder = tempfile::tempdir().unwrap();
    for name in ["own_model", "own_explainer", "captum_maps"] {
        let file = project(&format!("docs/notebooks/{name}.ipynb"));
        assert!(script(&python, run, &[&text(&file), &text(folder.path())]).contains("ran"), "{name}");
    }
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
        ("saliency:channels=sum-abs", "captum-saliency"),
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
