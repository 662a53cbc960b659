//! Finding, loading, rejecting and checking plugins.

use lightbox_tests::{built, fail, lightbox, run, succeed, texts};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn names(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect()
}

#[test]
fn everything_is_listed() {
    let all = json(&succeed(&["list", "--json"]));
    for model in ["densenet-small", "densenet121", "densenet201", "deit_tiny_patch16_224", "patchconvnet_s60_multi"] {
        assert!(names(&all["models"]).contains(&model), "{model}");
    }
    for explainer in
        ["attention", "gradcam", "noise", "centre", "edges", "brightness", "mean-mask", "example-occlusion"]
    {
        assert!(names(&all["explainers"]).contains(&explainer), "{explainer}");
    }
    assert_eq!(names(&all["datasets"]), ["chexpert", "nih", "node21", "phantom", "table"]);
    let metrics = names(&all["metrics"]);
    assert!(metrics.len() == 40 && metrics.contains(&"hit") && metrics.contains(&"pixel-auprc"), "{metrics:?}");
    assert_eq!(all["rejected"], json("[]"));
    let text = succeed(&["list", "explainers"]);
    assert!(text.contains("gradcam") && !text.contains("densenet121"));
}

#[test]
fn plugins_on_ndarray_alone_do_not_need_libtorch() {
    let all = json(&succeed(&["list", "plugins", "--json"]));
    for plugin in all["plugins"].as_array().unwrap() {
        let name = plugin["manifest"]["plugin"].as_str().unwrap();
        let bare = ["lightbox-plugin-controls", "lightbox-plugin-example"].contains(&name);
        assert_eq!(plugin["torch"] == "none", bare, "{name}");
        let bytes = std::fs::read(plugin["file"].as_str().unwrap()).unwrap();
        let linked = bytes.windows(15).any(|w| w == b"libtorch_cpu.so");
        assert_eq!(linked, !bare, "{name}");
    }
}

#[test]
fn info_shows_what_a_user_asks() {
    let text = succeed(&["info", "gradcam"]);
    for part in ["arXiv:1610.02391", "layer = \"\"", "gradient at features.relu5", "liblightbox_cam.so", "sha256"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = succeed(&["info", "densenet121"]);
    for part in ["features.norm5", "rules      relu:guided, ", "linear:zplus", "after the stem; a run can begin here"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(succeed(&["info", "pixel-auprc"]).contains("ties") || succeed(&["info", "auprc"]).contains("ties"));
    assert!(succeed(&["info", "demo"]).contains("[data]"));
    fail(&["info", "gradcma"], 3, "nothing is named gradcma (known: ");
}

/// A folder with a copy of a built plugin under another name.
fn copy(folder: &Path, plugin: &str, name: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::copy(built("plugins").join(plugin), &path).unwrap();
    path
}

#[test]
fn one_name_in_two_files_is_an_error_that_names_both() {
    let folder = tempfile::tempdir().unwrap();
    copy(folder.path(), "liblightbox_cam.so", "other.so");
    let folder = folder.path().to_string_lossy().into_owned();
    let (out, err, code) = run(&["list", "--plugins", &folder]);
    assert_eq!(code, 4);
    assert!(out.contains("densenet121"), "the good ones are listed: {out}");
    assert!(err.contains("two plugins offer the explainer gradcam: ") && err.contains("other.so and "), "{err}");
    // The same file by two ways is one file.
    let own = built("plugins").to_string_lossy().into_owned();
    succeed(&["list", "--plugins", &own]);
}

#[test]
fn folders_are_searched_in_order_and_never_the_current_one() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(built("test-plugins/hostile/liblightbox_hostile.so"), folder.path().join("h.so")).unwrap();
    std::fs::create_dir(folder.path().join("plugins")).unwrap();
    std::fs::copy(folder.path().join("h.so"), folder.path().join("plugins/h.so")).unwrap();
    let list = |command: &mut Command| texts(command.output().unwrap()).0;
    let arguments = ["list", "explainers"];
    assert!(!list(lightbox(&arguments).current_dir(folder.path())).contains("hostile"));
    assert!(
        !list(lightbox(&arguments).current_dir(folder.path()).env("LIGHTBOX_PLUGIN_PATH", ".")).contains("hostile")
    );
    assert!(list(lightbox(&arguments).env("LIGHTBOX_PLUGIN_PATH", folder.path())).contains("hostile-nan"));
    // What anybody may write is opened where the user has named it, and not where it only lies on the path.
    let mode = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    for path in [folder.path().to_path_buf(), folder.path().join("h.so")] {
        mode(&path, 0o777);
        assert!(!list(lightbox(&arguments).env("LIGHTBOX_PLUGIN_PATH", folder.path())).contains("hostile-nan"));
        assert!(list(lightbox(&arguments).arg("--plugins").arg(folder.path())).contains("hostile-nan"));
        mode(&path, 0o755);
    }
    assert!(list(lightbox(&arguments).arg("--plugins").arg(folder.path())).contains("hostile-nan"));
    fail(&["list", "--plugins", "/no/such/folder"], 4, "/no/such/folder: no such plugin folder (given by --plugins)");
}

/// A library made of C source.
fn c_library(folder: &Path, name: &str, source: &str) {
    let file = folder.join("x.c");
    std::fs::write(&file, source).unwrap();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let status = Command::new(compiler).args(["-shared", "-fPIC", "-o"]).arg(folder.join(name)).arg(&file).status();
    assert!(status.expect("a C compiler runs").success());
    std::fs::remove_file(file).unwrap();
}

fn record(abi: &str, torch: &str) -> String {
    format!(
        "__attribute__((used)) const char lightbox_plugin_preflight[512] = \
         \"LIGHTBOX-PLUGIN\\x01\" \"plugin=x;version=1;abi={abi};torch={torch};rustc=y;\";"
    )
}

#[test]
fn bad_files_are_rejected_each_with_its_reason_and_hide_no_good_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let whole = std::fs::read(built("plugins/liblightbox_cam.so")).unwrap();
    std::fs::write(at("a-truncated.so"), &whole[..whole.len() * 2 / 3]).unwrap();
    std::fs::write(at("b-cut-in-the-header.so"), &whole[..70]).unwrap();
    std::fs::write(at("c-empty.so"), "").unwrap();
    std::fs::write(at("d-text.so"), "hello").unwrap();
    let mut arm = whole.clone();
    arm[18] = 183;
    std::fs::write(at("e-arm.so"), arm).unwrap();
    c_library(folder.path(), "f-library.so", "int f(void) { return 1; }");
    c_library(folder.path(), "g-abi.so", &record("9.7", "none"));
    c_library(folder.path(), "g-older.so", &record("0.2", "none"));
    c_library(folder.path(), "h-torch.so", &record("0.3", "1.13.1+cu117"));
    c_library(folder.path(), "i-record-only.so", &record("0.3", "none"));
    let crash = format!(
        "{}\n__attribute__((constructor)) static void c(void) {{ *(volatile int *)0 = 1; }}",
        record("0.3", "none")
    );
    c_library(folder.path(), "j-crash.so", &crash);
    c_library(
        folder.path(),
        "k-symbol.so",
        &format!("{}\nint nowhere(void);\nint f(void) {{ return nowhere(); }}", record("0.3", "none")),
    );
    std::fs::create_dir(at("l-folder.so")).unwrap();
    copy(folder.path(), "liblightbox_example.so", "z-good.so");

    // Of two good files with one name the listing still shows both; here only the folder's own is asked for.
    let shown = folder.path().to_string_lossy().into_owned();
    let (out, _, _) = run(&["list", "plugins", "--json", "--plugins", &shown]);
    let all = json(&out);
    let expected = [
        ("a-truncated.so", "the file is truncated ("),
        ("b-cut-in-the-header.so", "the file is truncated ("),
        ("c-empty.so", "not a shared library"),
        ("d-text.so", "not a shared library"),
        ("e-arm.so", "built for another CPU (ELF machine 183, this one is 62)"),
        ("f-library.so", "not a Lightbox plugin (it has no preflight record"),
        ("g-abi.so", "built for ABI 9.7, this host has 0.3; build it against this host's SDK"),
        ("g-older.so", "built for ABI 0.2, this host has 0.3; its explainers must implement `bind` in place of"),
        ("h-torch.so", "built against libtorch 1.13.1+cu117, this host has 2.11"),
        ("i-record-only.so", "not a Lightbox plugin"),
        ("j-crash.so", "it crashed when it was opened (SIGSEGV, segmentation fault)"),
        ("k-symbol.so", "cannot be opened: "),
        ("l-folder.so", "cannot be read: "),
    ];
    let rejected = all["rejected"].as_array().unwrap();
    assert_eq!(rejected.len(), expected.len(), "{rejected:#?}");
    for ((name, reason), found) in expected.into_iter().zip(rejected) {
        assert!(found["file"].as_str().unwrap().ends_with(name), "{found}");
        assert!(found["reason"].as_str().unwrap().contains(reason), "{found}");
    }
    let files: Vec<&str> = all["plugins"].as_array().unwrap().iter().map(|p| p["file"].as_str().unwrap()).collect();
    assert!(files.iter().any(|f| f.ends_with("z-good.so")) && files.iter().any(|f| f.ends_with("liblightbox_cam.so")));

    let shown = at("h-torch.so").to_string_lossy().into_owned();
    let (out, _, code) = run(&["check", &shown]);
    assert_eq!(code, 7);
    assert!(out.contains("FAIL   h-torch.so  opens: built against libtorch 1.13.1"), "{out}");
    let shown = at("j-crash.so").to_string_lossy().into_owned();
    let (out, _, code) = run(&["check", &shown]);
    assert_eq!(code, 7);
    assert!(out.contains("CRASH  j-crash.so  opens: it crashed (SIGSEGV"), "{out}");
}

#[test]
fn our_own_plugins_pass_their_check() {
    // Methods of many passes with fewer; what else is asked of all is in passes.rs.
    let cases: [(&str, &[&str]); 18] = [
        ("attention", &["--model", "deit-mini"]),
        (
            "cam",
            &[
                "--model",
                "densenet-small",
                "--only",
                "gradcam",
                "--only",
                "hirescam",
                "--only",
                "cam",
                "--only",
                "fullgrad",
            ],
        ),
        ("cam", &["--model", "deit-mini", "--only", "gradcampp", "--only", "eigencam", "--only", "finercam"]),
        (
            "cam",
            &[
                "--model",
                "patchconvnet-mini",
                "--only",
                "ablationcam",
                "--only",
                "shapleycam",
                "--only",
                "concept",
                "--only",
                "probe",
            ],
        ),
        (
            "gradient",
            &[
                "--model",
                "densenet-small",
                "--only",
                "deconvolution",
                "--only",
                "deeplift",
                "--only",
                "gradientshap",
                "--only",
                "guidedbackprop",
                "--only",
                "guidedgradcam",
                "--only",
                "inputxgradient",
                "--only",
                "integratedgradients",
                "--only",
                "lrp",
                "--only",
                "saliency",
                "--only",
                "smoothgrad",
                "--only",
                "xrai",
            ],
        ),
        // A variance is a small difference: where a ReLU's kink is crossed, rounding shows in it.
        ("gradient", &["--model", "deit-mini", "--only", "vargrad", "--only", "smoothgradsq"]),
        ("perturbation", &["--model", "deit-mini", "--only", "occlusion"]),
        ("perturbation", &["--model", "deit-mini", "--only", "rise", "--param", "masks=30"]),
        ("perturbation", &["--model", "deit-mini", "--only", "kernelshap", "--param", "samples=40"]),
        ("perturbation", &["--model", "deit-mini", "--only", "lime", "--param", "samples=40"]),
        ("perturbation", &["--model", "deit-mini", "--only", "partitionshap", "--param", "evaluations=40"]),
        ("perturbation", &["--model", "deit-mini", "--only", "meaningful", "--param", "iterations=4"]),
        ("perturbation", &["--model", "deit-mini", "--only", "extremal", "--param", "iterations=4"]),
        (
            "controls",
            &["--only", "brightness", "--only", "centre", "--only", "edges", "--only", "mean-mask", "--only", "noise"],
        ),
        ("example", &[]),
        ("deit", &["--only", "deit-mini", "--only", "deit_tiny_distilled_patch16_224"]),
        ("densenet", &["--only", "densenet-small", "--only", "densenet121"]),
        // The large ones take gigabytes.
        ("patchconvnet", &["--only", "patchconvnet-mini", "--only", "patchconvnet-mini-multi"]),
    ];
    for (name, only) in cases {
        let file = built("plugins").join(format!("liblightbox_{name}.so")).to_string_lossy().into_owned();
        let out = succeed(&[&["check", &file], only].concat());
        assert!(out.contains(", 0 warn, 0 fail, 0 crash"), "{out}");
        // The small PatchConvNet's attention is nearly uniform at first, so its query hardly matters.
        assert!(name == "patchconvnet" || !out.contains("too small to compare"), "{out}");
    }
}

#[test]
fn check_finds_what_each_hostile_plugin_does() {
    let file = built("test-plugins/hostile/liblightbox_hostile.so").to_string_lossy().into_owned();
    let (out, err, code) = run(&["check", &file, "--json", "--limit", "8", "--model", "densenet-small"]);
    assert_eq!(code, 7, "{err}");
    let all = json(&out);
    let finding = |subject: &str, test: &str| -> (String, String) {
        let found = all["tests"].as_array().unwrap().iter().find(|f| f["subject"] == subject && f["test"] == test);
        let found = found.unwrap_or_else(|| panic!("no {subject} {test} in {out}"));
        (found["status"].as_str().unwrap().into(), found["message"].as_str().unwrap().into())
    };
    let check = |subject: &str, test: &str, status: &str, message: &str| {
        let found = finding(&format!("hostile-{subject}"), test);
        assert!(found.0 == status && found.1.contains(message), "{subject}: {found:?}");
    };
    let shape = "maps have the right shape and are finite";
    let globals = "leaves grad mode, threads and random generator as they were";
    check(
        "panic",
        shape,
        "FAIL",
        "panicked: index out of bounds: the len is 0 but the index is 3 (tests/hostile/src/lib.rs:",
    );
    check("panic-in-no-grad", shape, "FAIL", "panicked: in no_grad");
    check("panic-in-no-grad", globals, "FAIL", "panicked");
    check("torch", shape, "FAIL", "mat1 and mat2 shapes cannot be multiplied");
    check("error", shape, "FAIL", "explainer hostile-error: I would rather not");
    check("nan", shape, "FAIL", "the map holds values that are not finite");
    check("nan", "is deterministic", "WARN", "not finite, so they cannot be compared");
    check("shape", shape, "FAIL", "the map has shape [3, 7], expected [3, h, w]");
    check("type", shape, "FAIL", "the map is I64, expected F32");
    check("crash", shape, "CRASH", "SIGSEGV");
    check("exit", shape, "CRASH", "exit code 0");
    check("hang", shape, "CRASH", "no answer within 8 s");
    check("hang", "is deterministic", "WARN", "not tried: it hung in an earlier test");
    check("prints", shape, "PASS", "");
    check("threads", globals, "FAIL", "it changed the number of threads");
    check("random", "is deterministic", "FAIL", "two calls differ");
    check("random", globals, "FAIL", "libtorch's random generator");
    check("batch", "gives an image the same map in any batch", "FAIL", "differ by");
    check("writes", "does not write to its input", "FAIL", "the images have changed");
    check("drop", shape, "FAIL", "panicked: in drop");
    check("plan", "plans", "CRASH", "SIGSEGV");
    check("fit-crash", "fits", "CRASH", "SIGSEGV");
    check("fit-hang", "fits", "CRASH", "no answer within 8 s");
    // Nothing of a dead one is tried again, and nothing of its neighbours left out.
    let count = |subject: &str| {
        all["tests"].as_array().unwrap().iter().filter(|f| f["subject"] == format!("hostile-{subject}")).count()
    };
    assert_eq!((count("fit-crash"), count("fit-hang"), count("plan")), (3, 3, 2));
    assert_eq!((count("error"), count("crash"), count("cancelled")), (9, 9, 9));
    check("cancelled", shape, "FAIL", "cancelled");
    check("site", "plans", "FAIL", "has no site blocks.99");
    check("not-applicable", "plans", "WARN", "not applicable to densenet-small: it never is");
    let gradients = "gradients equal finite differences";
    check(
        "gradient-shape",
        gradients,
        "FAIL",
        "the gradient at input has shape [2, 3, 16, 7], its value [2, 3, 16, 16]",
    );
    check("gradient-part", gradients, "FAIL", "at input they differ by");
}

#[test]
fn a_plugin_of_the_next_abi_runs_in_this_host() {
    let folder = built("test-plugins/next").to_string_lossy().into_owned();
    assert!(succeed(&["list", "explainers", "--plugins", &folder]).contains("newer"));
    let file = built("test-plugins/next/liblightbox_abi_next.so").to_string_lossy().into_owned();
    assert!(succeed(&["check", &file, "--only", "newer"]).contains(", 0 fail, 0 crash"));
    // What changes the result and is not known here is refused, not left out.
    let (out, _, code) = run(&["check", &file, "--only", "newer-noise"]);
    assert_eq!(code, 7);
    assert!(out.contains("the request requires `noise`, which this side's SDK ("), "{out}");
}

#[test]
fn a_plugin_of_this_abi_runs_in_the_next_host() {
    let output = Command::new(built("test-plugins/abi-next-host"))
        .arg(built("plugins/liblightbox_controls.so"))
        .arg("noise")
        // One of the next version opens in the same process as the one of this.
        .arg(built("test-plugins/next/liblightbox_abi_next.so"))
        .output()
        .unwrap();
    let (out, err, code) = texts(output);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("beside it: "), "{out}");
    assert!(out.contains("self_test: None\n"), "the field that it lacks is absent: {out}");
    assert!(out.contains("examples: none\n"), "the method that it lacks has the host's default: {out}");
    assert!(out.contains("map: [2, 8, 8]\n"), "{out}");
}

/// The teaching plugin, copied out of the workspace with the SDK as its only dependency.
#[test]
fn a_crate_outside_the_workspace_becomes_a_plugin() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("src")).unwrap();
    let source = std::fs::read_to_string(root.join("plugins/example/src/lib.rs")).unwrap();
    let source = source.replace("example-occlusion", "my-occlusion");
    std::fs::write(folder.path().join("src/lib.rs"), source).unwrap();
    let manifest = format!(
        "[package]\nname = \"my-plugin\"\nversion = \"0.3.0\"\nedition = \"2024\"\n[lib]\ncrate-type = [\"cdylib\"]\n\
         [dependencies]\nlightbox-sdk = {{ path = {:?} }}\n[workspace]\n",
        root.join("sdk")
    );
    std::fs::write(folder.path().join("Cargo.toml"), manifest).unwrap();
    // The same versions as ours, so that nothing is fetched.
    std::fs::copy(root.join("Cargo.lock"), folder.path().join("Cargo.lock")).unwrap();
    // A target folder that is kept: only the first test on a machine compiles the SDK's dependencies.
    let target = built("plugins").parent().unwrap().parent().unwrap().join("outside");
    let status = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["build", "--quiet"])
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("LIBTORCH")
        .current_dir(folder.path())
        .status();
    assert!(status.unwrap().success());
    let drop = folder.path().join("drop");
    std::fs::create_dir(&drop).unwrap();
    std::fs::copy(target.join("debug/libmy_plugin.so"), drop.join("libmy_plugin.so")).unwrap();
    let drop_folder = drop.to_string_lossy().into_owned();

    let plugins = ["--plugins", drop_folder.as_str()];
    let with = |arguments: &[&'static str]| succeed(&[arguments, &plugins].concat());
    assert!(with(&["list", "explainers"]).contains("my-occlusion"));
    assert!(with(&["list", "plugins"]).contains("my-plugin 0.3.0: 0 models, 1 explainers, without libtorch"));
    let file = drop.join("libmy_plugin.so").to_string_lossy().into_owned();
    assert!(succeed(&["check", &file]).contains(", 0 fail, 0 crash"));

    let image = folder.path().join("a.png");
    lightbox_core::data::image::write_png(&image, 80, 80, &(0..6400).map(|i| (i % 251) as u8).collect::<Vec<_>>())
        .unwrap();
    let (image, out) = (image.to_string_lossy().into_owned(), folder.path().join("o").to_string_lossy().into_owned());
    let explain = [
        "explain",
        &image,
        "--model",
        "densenet-small",
        "--random-weights",
        "--explainer",
        "my-occlusion:grid=2",
        "--out",
        &out,
        "--plugins",
        &drop_folder,
    ];
    assert!(succeed(&explain).contains("a.my-occlusion_grid=2.png"));

    let extra = "[[explainers]]\nname = \"my-occlusion\"\nparams = { grid = 2 }\n[[explainers]]\nname = \"noise\"\n";
    let spec = lightbox_tests::small_spec(folder.path(), extra).to_string_lossy().into_owned();
    let table = succeed(&["run", &spec, "--plugins", &drop_folder]);
    assert!(table.contains("my-occlusion") && table.contains("noise"), "{table}");
}

#[test]
fn a_full_disk_behind_stdout_is_an_error_and_no_panic() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = lightbox(&["list"]).stdout(full).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{err}");
    assert!(err.contains("error: No space left on device") && !err.contains("panicked"), "{err}");
}
