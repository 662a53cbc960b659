//! `lightbox run`: results, continuing, and plugins that misbehave.

use lightbox_core::results::{self, Names};
use lightbox_tests::{built, fail, interrupt, lightbox, run, small_spec, succeed, texts, values};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;

const CONTROLS: &str =
    "[[explainers]]\nname = \"gradcam\"\n[[explainers]]\nname = \"noise\"\n[[explainers]]\nname = \"mean-mask\"\n";

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn summary(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("out/summary.json")).unwrap()).unwrap()
}

/// The cell of a column of a table's only row, or of a row of its first column where rows are explainers: the first table that
/// has one.
fn cell(summary: &Value, column: &str) -> Value {
    let list = |v: &Value| v.as_array().unwrap().clone();
    for table in list(&summary["tables"]) {
        let found = match table["by_explainer"] == true {
            true => list(&table["rows"]).iter().find(|r| r["title"] == column).map(|r| r["cells"][0].clone()),
            false => {
                let columns: Vec<Value> = list(&table["groups"]).iter().flat_map(|g| list(&g["columns"])).collect();
                columns.iter().position(|c| c == column).map(|at| table["rows"][0]["cells"][at].clone())
            }
        };
        if let Some(found) = found {
            return found;
        }
    }
    panic!("no column {column}")
}

#[test]
fn a_run_leaves_a_whole_folder() {
    let folder = tempfile::tempdir().unwrap();
    let spec = text(&small_spec(folder.path(), CONTROLS));
    let table = succeed(&["run", &spec]);
    assert!(table.contains("classification") && table.contains("gradcam") && table.contains("chance"), "{table}");
    let out = folder.path().join("out");
    for file in [
        "spec.toml",
        "environment.json",
        "splits/test.csv",
        "splits/train_fold0.csv",
        "summary.json",
        "summary.csv",
        "summary.md",
        "summary.tex",
        "sheet.png",
        "events.jsonl",
        "scores.parquet",
        "predictions.parquet",
        "images.parquet",
        "comparisons.json",
        "curves.jsonl",
        "maps.json",
        "timings.json",
        "spent.json",
        "report.html",
    ] {
        assert!(out.join(file).is_file(), "{file}");
    }
    let sheet = image::open(out.join("sheet.png")).unwrap();
    assert!(sheet.width() > 4 * 192 && sheet.height() > 2 * 192);
    let values = values(&folder.path().join("out"));
    // 12 test images have a score; 6 of them have a map of each of 3 explainers and of chance. Of the set there are two
    // metrics of predictions, and one of each explainer's and chance's pooled pixels, in which each map counts.
    assert_eq!(values.len(), 12 + 6 * 4 + 6 * 4 + 2 + 4);
    let alone = |metric: &str, image: &str| metric != "pixel-auprc-pooled" || image.is_empty();
    assert!(values.iter().all(|(key, value)| value.is_some() == alone(&key.4, &key.2)), "{values:?}");
    // The same command again computes nothing and prints the same.
    let (again, err, code) = run(&["run", &spec]);
    assert_eq!((again, code), (table, 0));
    assert!(err.contains("5 units, 5 of them done before") && !err.contains("chunk0000 ..."), "{err}");
}

#[test]
fn attention_is_not_applicable_to_a_densenet_and_is_to_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let extra = "[[models]]\nname = \"deit-mini\"\nweights = \"random\"\nparams = { size = 64 }\n[[models]]\nname = \"patchconvnet-mini-multi\"\nweights = \"random\"\n\
                 params = { size = 64 }\n[[explainers]]\nname = \"attention\"\n[[explainers]]\nname = \"gradcam\"\n";
    let table = succeed(&["run", &text(&small_spec(folder.path(), extra))]);
    assert!(table.contains("densenet-small x attention: not applicable: densenet-small has no attention."), "{table}");
    let found = summary(folder.path());
    let kinds = |row: usize| -> Vec<String> {
        let cells = found["tables"][0]["rows"][row]["cells"].as_array().unwrap();
        cells.iter().map(|c| c["cell"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(kinds(0)[2..4], ["not-applicable", "value"]);
    assert_eq!(
        (kinds(1)[2..4].to_vec(), kinds(2)[2..4].to_vec()),
        (vec!["value".to_string(); 2], vec!["value".to_string(); 2])
    );
}

#[test]
fn json_gives_one_event_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let spec = text(&small_spec(folder.path(), CONTROLS));
    let out = succeed(&["run", &spec, "--json"]);
    let events: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let kinds: Vec<&str> = events.iter().map(|e| e["event"].as_str().unwrap()).collect();
    assert_eq!((kinds[0], *kinds.last().unwrap()), ("run-started", "run-finished"));
    // A survey, the images, three blocks, and what they reduce to.
    assert_eq!(kinds.iter().filter(|k| **k == "unit-finished").count(), 6);
    assert!(events.iter().all(|e| e["time"].as_f64().is_some_and(|t| t > 1.7e9)));
    assert!(events.iter().all(|e| e["worker"] == 0 || e["event"].as_str().unwrap().starts_with("run-")), "{out}");
}

#[test]
fn another_batch_size_changes_no_draw() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let listed: Value = serde_json::from_str(&succeed(&["list", "metrics", "--json"])).unwrap();
    let mut extra = CONTROLS.to_string();
    for metric in listed["metrics"].as_array().unwrap() {
        extra += &format!("[[metrics]]\nname = {}\n", metric["name"]);
    }
    let spec_a = small_spec(a.path(), &extra);
    let spec_b = small_spec(b.path(), &extra);
    let other = std::fs::read_to_string(&spec_b)
        .unwrap()
        .replace("batch_size = 3", "batch_size = 1")
        .replace("chunk = 4", "chunk = 12");
    std::fs::write(&spec_b, other).unwrap();
    succeed(&["run", &text(&spec_a)]);
    succeed(&["run", &text(&spec_b)]);
    let (a, b) = (values(&a.path().join("out")), values(&b.path().join("out")));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (key, value) in &a {
        let (Some(x), Some(y)) = (*value, b[key]) else {
            assert!(value.is_none() && b[key].is_none(), "{key:?}");
            continue;
        };
        let metric = listed["metrics"].as_array().unwrap().iter().find(|m| m["name"] == key.4.as_str());
        let asks = metric
            .is_some_and(|m| ["faithfulness", "robustness", "randomisation"].contains(&m["family"].as_str().unwrap()));
        if (key.3 == "noise" || key.3 == "mean-mask") && !asks {
            assert_eq!(x, y, "{key:?}");
        } else {
            let limit = if asks { 1e-3 * x.abs().max(1.0) } else { 1e-4 };
            assert!((x - y).abs() < limit, "{key:?}: {x} {y}");
        }
    }
}

#[test]
fn kill_minus_nine_and_ctrl_c_lose_nothing() {
    let train = "[models.train]\nepochs = 3\nbatch_size = 4\n";
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let extra = format!("{train}{CONTROLS}");
    let spec = text(&small_spec(whole.path(), &extra));
    let table = succeed(&["run", &spec]);
    let spec = text(&small_spec(cut.path(), &extra));
    // In the middle of training, in the middle of explaining, and by Ctrl-C.
    interrupt(&["run", &spec], "\"event\":\"epoch\"", libc::SIGKILL);
    assert!(cut.path().join("out/checkpoints/densenet-small-fold0/last.safetensors").is_file());
    interrupt(&["run", &spec], "\"event\":\"epoch\"", libc::SIGKILL);
    let code = interrupt(&["run", &spec], "\"event\":\"cell-started\"", libc::SIGINT);
    assert_eq!(code, 130);
    let (out, err, code) = run(&["run", &spec]);
    assert_eq!(code, 0, "{err}");
    let cut_table = |t: &str| t.split("Pictures").next().unwrap().to_string();
    assert_eq!(cut_table(&out), cut_table(&table));
    assert_eq!(values(&cut.path().join("out")), values(&whole.path().join("out")));
    // No epoch that had ended was trained again.
    let log = std::fs::read_to_string(cut.path().join("out/events.jsonl")).unwrap();
    let epoch = |line: &str| serde_json::from_str::<Value>(line).unwrap()["epoch"].as_u64();
    let mut epochs: Vec<u64> = log.lines().filter(|l| l.contains("\"event\":\"epoch\"")).filter_map(epoch).collect();
    let count = epochs.len();
    epochs.dedup();
    assert_eq!(epochs.len(), count, "{epochs:?}");
    let history = |folder: &Path| {
        std::fs::read_to_string(folder.join("out/checkpoints/densenet-small-fold0/history.json")).unwrap()
    };
    assert_eq!(history(cut.path()), history(whole.path()));
}

#[test]
fn a_model_that_cannot_describe_itself_for_the_run_is_an_error_and_no_crash() {
    let folder = tempfile::tempdir().unwrap();
    let spec = small_spec(folder.path(), "[[models]]\nname = \"hostile-spec\"\nweights = \"random\"\n");
    let plugins = text(&built("test-plugins/hostile"));
    fail(
        &["run", &text(&spec), "--plugins", &plugins],
        3,
        "model hostile-spec: it crashed when it was opened (SIGABRT",
    );
}

/// Every metric of maps on a method and a control: a value within its range, and what chance has where it is that of a constant.
#[test]
fn every_metric_gives_values_within_its_range() {
    let listed: Value = serde_json::from_str(&succeed(&["list", "metrics", "--json"])).unwrap();
    let metrics = listed["metrics"].as_array().unwrap().clone();
    let folder = tempfile::tempdir().unwrap();
    let mut extra = format!("{CONTROLS}[[explainers]]\nname = \"inputxgradient\"\n");
    metrics.iter().for_each(|m| extra += &format!("[[metrics]]\nname = {}\n", m["name"]));
    succeed(&["run", &text(&small_spec(folder.path(), &extra)), "--set", "data.shortcut=1.0"]);
    let all = values(&folder.path().join("out"));
    // A metric that is tuned on validation images has values of test images alone, one each.
    let out = folder.path().join("out");
    let test = std::fs::read_to_string(out.join("splits/test.csv")).unwrap();
    let of = |metric: &str| -> Vec<String> {
        all.keys().filter(|k| k.3 == "gradcam" && k.4 == metric && !k.2.is_empty()).map(|k| k.2.clone()).collect()
    };
    assert!(of("dice").iter().all(|image| test.contains(image.as_str())) && !of("dice").is_empty());
    assert_eq!(of("dice"), of("pixel-auprc"));
    // What depends on the class of a control, or on its moving, is the same for all images.
    let constant = ["hit", "tolerant-hit", "nodule-recall", "average-increase", "average-drop"];
    for metric in metrics.iter().filter(|m| m["level"] == "image") {
        let (name, range) = (metric["name"].as_str().unwrap(), &metric["range"]);
        let family = metric["family"].as_str().unwrap();
        for explainer in ["gradcam", "noise", "mean-mask", "inputxgradient"] {
            let mine: Vec<Option<f64>> =
                all.iter().filter(|(k, _)| k.3 == explainer && k.4 == name).map(|(_, v)| *v).collect();
            let some: Vec<f64> = mine.iter().flatten().copied().collect();
            // Only a map with a sign claims to be complete.
            let claims = name != "completeness-gap" || explainer == "inputxgradient";
            assert_eq!(!some.is_empty(), claims, "{name} of {explainer}: {mine:?}");
            let (least, most) = (range[0].as_f64().unwrap_or(f64::MIN), range[1].as_f64().unwrap_or(f64::MAX));
            assert!(some.iter().all(|v| (least..=most).contains(v)), "{name} of {explainer}: {some:?}");
        }
        if constant.contains(&name) || ["robustness", "randomisation"].contains(&family) || name == "completeness-gap" {
            continue;
        }
        // Noise is no constant, and no two images have the same.
        let noise: Vec<f64> =
            all.iter().filter(|(k, _)| k.3 == "noise" && k.4 == name).filter_map(|(_, v)| *v).collect();
        assert!(noise.iter().any(|v| *v != noise[0]), "{name}: {noise:?}");
    }
}

#[test]
fn a_hostile_explainer_costs_its_cell_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let hostile = [
        "panic",
        "panic-in-no-grad",
        "torch",
        "error",
        "nan",
        "shape",
        "type",
        "crash",
        "exit",
        "hang",
        "prints",
        "writes",
        "cancelled",
        "fit-crash",
        "fit-hang",
        "site",
        "not-applicable",
        "plan",
        "pairs",
        "channel",
        "forge",
        "signals",
        "closes",
        "rounding",
    ];
    let mut extra = String::from(CONTROLS);
    hostile.iter().for_each(|n| extra += &format!("[[explainers]]\nname = \"hostile-{n}\"\n"));
    let spec = text(&small_spec(folder.path(), &extra));
    let plugins = text(&built("test-plugins/hostile"));
    let (out, err, code) = run(&["run", &spec, "--plugins", &plugins]);
    assert_eq!(code, 5, "{err}");
    assert!(!err.contains("panicked at"), "{err}");
    let found = summary(folder.path());
    let check = |name: &str, kind: &str, reason: &str| {
        let cell = cell(&found, &format!("hostile-{name}"));
        assert_eq!(cell["cell"], kind, "{name}: {cell}");
        assert!(cell["reason"].as_str().unwrap_or("").contains(reason), "{name}: {cell}");
    };
    check("panic", "failed", "explainer hostile-panic: panicked: index out of bounds");
    check("panic-in-no-grad", "failed", "panicked: in no_grad");
    check("torch", "failed", "mat1 and mat2 shapes cannot be multiplied");
    check("error", "failed", "I would rather not");
    check("nan", "failed", "all 6 maps failed: the map is not finite");
    check("writes", "failed", "explainer hostile-writes wrote to what it was given");
    check("shape", "failed", "gave a map of shape [2, 7], expected [2, h, w]");
    check("type", "failed", "gave a map of I64, expected F32");
    check("crash", "failed", "it crashed (SIGSEGV, segmentation fault)");
    check("cancelled", "failed", "cancelled");
    check("fit-crash", "failed", "it crashed (SIGSEGV, segmentation fault)");
    check("fit-hang", "failed", "it gave no sign for 10 s and was stopped");
    check("exit", "failed", "it ended the process (exit code 0)");
    check("hang", "failed", "it gave no sign for 10 s and was stopped");
    check("site", "failed", "has no site blocks.99");
    check("plan", "failed", "it crashed (SIGSEGV, segmentation fault)");
    check("pairs", "failed", "rule relu:rescale needs pairs of images");
    check("channel", "failed", "it said what is no event: `this is no event`");
    check("forge", "failed", "it does not begin as a line of this channel");
    check("signals", "failed", "explainer hostile-signals changed which signals are blocked; it was set back");
    check("closes", "failed", "changed where a descriptor of the program leads; it was set back");
    assert!(!err.lines().any(|line| line.starts_with("note: FORGED")), "{err}");
    if cfg!(target_arch = "x86_64") {
        check("rounding", "failed", "changed how the processor rounds; it was set back");
    }
    check("not-applicable", "not-applicable", "it never is");
    for good in ["gradcam", "noise", "mean-mask", "hostile-prints", "AUROC", "chance"] {
        assert_eq!(cell(&found, good)["cell"], "value", "{good}");
    }
    assert!(out.contains("N/A") && out.contains("failed"), "{out}");
    // The good numbers are those of a run without hostile neighbours.
    let alone = tempfile::tempdir().unwrap();
    succeed(&["run", &text(&small_spec(alone.path(), CONTROLS))]);
    for name in ["gradcam", "noise", "mean-mask", "AUROC"] {
        assert_eq!(cell(&found, name), cell(&summary(alone.path()), name), "{name}");
    }
    // Failed cells stay failed, and the rest is not computed again.
    let (_, err, code) = run(&["run", &spec, "--plugins", &plugins]);
    assert_eq!(code, 5);
    assert!(!err.contains("chunk0000 ...") && !err.contains("fit-hang ..."), "{err}");
}

#[test]
fn a_spec_beside_us_is_run_and_changed_data_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    succeed(&["data", "make", &text(&at("data")), "--count", "20", "--pixels", "64"]);
    let spec = "name = \"x\"\n[data]\nsource = \"table\"\ncsv = \"data/table.csv\"\n[[models]]\nname = \"densenet-small\"\nweights = \"random\"\n\
                params = { size = 64 }\n[[explainers]]\nname = \"noise\"\n";
    std::fs::write(at("x.toml"), spec).unwrap();
    let here = |more: &[&str]| {
        let arguments = [&["run", "x.toml"], more].concat();
        texts(lightbox(&arguments).current_dir(folder.path()).output().unwrap())
    };
    let (_, err, code) = here(&[]);
    assert_eq!(code, 0, "{err}");
    assert!(at("runs/x/summary.csv").is_file());
    // One row less: the prepared images and the units are of other data now.
    let table = std::fs::read_to_string(at("data/table.csv")).unwrap();
    let kept: Vec<&str> = table.lines().filter(|l| !l.starts_with("phantom-0000004")).collect();
    std::fs::write(at("data/table.csv"), kept.join("\n") + "\n").unwrap();
    let (_, err, code) = here(&[]);
    assert_eq!(code, 3);
    assert!(err.contains("labels or boxes of the data source have changed since"), "{err}");
    // A wrong table is said before anything is thrown away.
    std::fs::write(at("data/table.csv"), "image\nx.png\n").unwrap();
    let (_, err, code) = here(&["--restart"]);
    assert!(code == 3 && err.contains("no column label") && at("runs/x/summary.csv").is_file(), "{err}");
    std::fs::write(at("data/table.csv"), kept.join("\n") + "\n").unwrap();
    assert_eq!(here(&["--restart"]).2, 0);
    // A folder that is no run's is left alone.
    std::fs::create_dir_all(at("mine/splits")).unwrap();
    let (_, err, code) = here(&["--restart", "--output", "mine"]);
    assert!(
        code == 3
            && err.contains("is not the folder of a run, so --restart deletes nothing")
            && at("mine/splits").is_dir(),
        "{err}"
    );
}

#[test]
fn training_reaches_its_history_and_diverging_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let spec = text(&small_spec(
        folder.path(),
        "[models.train]\nepochs = 2\nbatch_size = 4\nflip = true\nbalance_loss = true\n",
    ));
    let out = succeed(&["train", &spec]);
    assert!(out.contains("densenet-small fold 0: best epoch") && out.contains("best.safetensors"), "{out}");
    let folder = tempfile::tempdir().unwrap();
    let sgd = "[models.train]\nepochs = 4\nbatch_size = 4\nlearning_rate = 1e30\noptimizer = \"sgd\"\n";
    let spec = text(&small_spec(folder.path(), sgd));
    let (out, err, code) = run(&["run", &spec]);
    assert_eq!(code, 8, "{err}");
    assert!(err.contains("training diverged: the") && err.contains("(no epoch had ended; hint: lower"), "{err}");
    assert!(out.contains("failed"), "{out}");
    // A first good epoch's checkpoint stays.
    let folder = tempfile::tempdir().unwrap();
    let later = "[models.train]\nepochs = 4\nbatch_size = 4\ndecay = 1e30\noptimizer = \"sgd\"\n";
    let (_, err, code) = run(&["train", &text(&small_spec(folder.path(), later))]);
    assert_eq!(code, 8, "{err}");
    assert!(err.contains("in epoch 2 at step") && err.contains("(the best checkpoint so far is kept; hint"), "{err}");
    let best = folder.path().join("out/checkpoints/densenet-small-fold0/best.safetensors");
    let finite = |t: &tch::Tensor| t.isfinite().all().int64_value(&[]) == 1;
    assert!(lightbox_core::checkpoint::read(&best).unwrap().iter().all(|(_, t)| finite(t)));
}

#[test]
fn mistakes_are_clear_errors() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| -> String {
        let path: PathBuf = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    };
    let good = std::fs::read_to_string(small_spec(folder.path(), CONTROLS)).unwrap();
    let check = |from: &str, to: &str, code: i32, message: &str| {
        assert!(good.contains(from));
        fail(&["run", &write("bad.toml", &good.replace(from, to))], code, message);
    };
    fail(
        &["run", "/no/such.toml"],
        3,
        "/no/such.toml: no such spec file, nor a built-in spec (known: all-explainers, all-metrics, any-model, demo, study, study-phantom, study-quick)",
    );
    check("densenet-small", "densenet-smal", 4, "no model is named densenet-smal (known: ");
    check("\"noise\"", "\"nois\"", 4, "no explainer is named nois (known: ");
    check("size = 64", "size = 4", 3, "model densenet-small: parameter size: 4 px is under");
    check("size = 64", "sizes = 64", 3, "unknown parameter sizes (known: size, precision, trunk, channels, mean, std)");
    check(
        "name = \"gradcam\"",
        "name = \"gradcam\"\nparams = { layr = \"x\" }",
        3,
        "explainer gradcam: unknown parameter layr",
    );
    check("count = 40", "count = \"many\"", 3, "invalid type: string \"many\"");
    check("test = 12", "test = 60", 3, "test = 60: a share under 1 or a number under 40 expected");
    check(
        "count = 40",
        "count = 40\nnodules = 0.0",
        3,
        "a test set of 6 images without and 6 with the finding was asked for; whole patients give 6 and 0",
    );
    check("name = \"t\"", "name = \"t\"\ndevice = \"tpu\"", 3, "device `tpu` is none of auto, cpu, cuda, cuda:N");
    // A folder of another spec is not overwritten.
    let spec = write("good.toml", &good);
    succeed(&["run", &spec]);
    let before = std::fs::read(folder.path().join("out/summary.json")).unwrap();
    check(
        "chunk = 4",
        "chunk = 4\nseed = 5",
        3,
        "holds a run of another seed (hint: give another `output`, or --restart",
    );
    assert_eq!(std::fs::read(folder.path().join("out/summary.json")).unwrap(), before);
    let other = write("bad.toml", &good.replace("chunk = 4", "chunk = 4\nseed = 5"));
    succeed(&["run", &other, "--restart"]);
}

/// The results lie on a file system of 420 kB that fills up. Needs the right to mount; says so where there is none.
#[test]
fn a_full_disk_is_said_and_the_run_continues_when_there_is_space() {
    let folder = tempfile::tempdir().unwrap();
    let mount = folder.path().join("small");
    std::fs::create_dir(&mount).unwrap();
    let status = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=420k", "tmpfs"])
        .arg(&mount)
        .stderr(Stdio::null())
        .status();
    if !status.is_ok_and(|s| s.success()) {
        lightbox_tests::skip("no right to mount a small file system");
        return;
    }
    let spec = small_spec(&mount, CONTROLS);
    let first = texts(lightbox(&["run", &text(&spec)]).output().unwrap());
    let remount = std::process::Command::new("mount").args(["-o", "remount,size=60M"]).arg(&mount).status();
    let second = texts(lightbox(&["run", &text(&spec)]).output().unwrap());
    let unmount = std::process::Command::new("umount").arg(&mount).status();
    assert_eq!(first.2, 6, "{}", first.1);
    assert!(
        first.1.contains("no space left on the disk (hint: free some space and run the same command again"),
        "{}",
        first.1
    );
    assert!(remount.unwrap().success() && unmount.unwrap().success());
    assert_eq!(second.2, 0, "{}", second.1);
}

/// Metrics that are tuned on validation images, and an explainer, are added to a run that is there: the numbers are those of
/// a run that had them from the beginning.
#[test]
fn a_tuned_metric_and_an_explainer_join_a_run() {
    let (grown, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let metric = |names: &[&str]| {
        let gradcam = "[[explainers]]\nname = \"gradcam\"\n".to_string();
        names.iter().fold(gradcam, |all, n| all + &format!("[[metrics]]\nname = \"{n}\"\n"))
    };
    let centre = "[[explainers]]\nname = \"centre\"\n";
    let first = text(&small_spec(grown.path(), &metric(&["pixel-auprc"])));
    succeed(&["run", &first]);
    small_spec(grown.path(), &metric(&["pixel-auprc", "dice", "froc"]));
    succeed(&["run", &first]);
    let all =
        format!("{centre}{}", metric(&["pixel-auprc", "dice", "froc", "iou", "nodule-recall", "max-sensitivity"]));
    small_spec(grown.path(), &all);
    succeed(&["run", &first]);
    succeed(&["run", &text(&small_spec(whole.path(), &all))]);
    let out = |folder: &Path| text(&folder.join("out"));
    let told: Value =
        serde_json::from_str(&succeed(&["compare", &out(grown.path()), &out(whole.path()), "--json"])).unwrap();
    let rows = told["rows"].as_array().unwrap();
    assert!(rows.len() >= 12 && rows.iter().all(|r| r["verdict"] == "equal"), "{told}");
    assert!(rows.iter().any(|r| r["metric"] == "iou" && r["explainer"] == "centre" && r["after"].as_f64() > Some(0.0)));
    assert_eq!(told["only_before"].as_array().unwrap().len() + told["only_after"].as_array().unwrap().len(), 0);
}

#[test]
fn prepared_images_are_found_by_the_next_run_of_the_same_data() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    succeed(&["data", "make", &text(&at("data")), "--count", "20", "--pixels", "64"]);
    let spec = "name = \"x\"\nthreads = 1\n[data]\nsource = \"table\"\ncsv = \"data/table.csv\"\n[[models]]\n\
                name = \"densenet-small\"\nweights = \"random\"\nparams = { size = 64 }\n[[explainers]]\nname = \"noise\"\n";
    std::fs::write(at("x.toml"), spec).unwrap();
    let start = |output: &str, cache: &str| {
        let mut command = lightbox(&["run", "x.toml", "--output", output]);
        let (_, err, code) =
            texts(command.current_dir(folder.path()).env("LIGHTBOX_CACHE", at(cache)).output().unwrap());
        assert_eq!(code, 0, "{err}");
        err
    };
    let prepared = |run: &str| std::fs::read(at(run).join("prepared/images-64.safetensors")).unwrap();
    let kept = || {
        let files = std::fs::read_dir(at("cache")).unwrap().flatten();
        files.filter(|e| e.path().extension().is_some_and(|x| x == "safetensors")).count()
    };
    let taken = "as an earlier run prepared them";
    assert!(!start("first", "cache").contains(taken) && kept() == 1);
    assert!(start("second", "cache").contains(taken) && kept() == 1);
    assert_eq!(prepared("first"), prepared("second"));
    assert_eq!(values(&at("first")), values(&at("second")));
    // The cache's file is the run's too. Nobody but root can write to it, and what was changed there is not taken.
    let file = at("second").join("prepared/images-64.safetensors");
    let mut changed = std::fs::read(&file).unwrap();
    changed[2000] ^= 1;
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::write(&file, changed).unwrap();
    assert!(!start("mended", "cache").contains(taken) && kept() == 1);
    assert_eq!(values(&at("first")), values(&at("mended")));
    // Another image is another set, and the old one is still there.
    lightbox_core::data::image::write_png(&at("data/phantom-0000003.png"), 64, 64, &[7; 4096]).unwrap();
    assert!(!start("third", "cache").contains(taken) && kept() == 2);
    assert!(prepared("third") != prepared("mended"));
    // Where nothing can be kept the run goes on and says so.
    std::fs::write(at("file"), "").unwrap();
    assert!(start("fourth", "file").contains("could not be kept for other runs"));
    // What was kept may go.
    std::fs::remove_dir_all(at("cache")).unwrap();
    assert!(start("third", "cache").contains("done before"));
}

/// A run of a random model over phantoms with a planted marker; the folder, which goes with the value.
fn marked_run(extra: &str, metrics: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let metrics: String = metrics.iter().map(|m| format!("[[metrics]]\nname = \"{m}\"\n")).collect();
    let spec = format!(
        "name = \"marked\"\noutput = \"{}\"\n[data]\nsource = \"phantom\"\ncount = 24\npixels = 64\nshortcut = 0.8\n[task]\n{extra}\n\
         [split]\ntest = \"all\"\n[[models]]\nname = \"densenet-small\"\nweights = \"random\"\nparams = {{ size = 64 }}\n\
         [[explainers]]\nname = \"edges\"\n{metrics}",
        folder.path().join("out").display()
    );
    let path = folder.path().join("s.toml");
    std::fs::write(&path, spec).unwrap();
    succeed(&["run", &path.to_string_lossy()]);
    folder
}

/// Each image is classified with the marker painted in and out; as it is, it has the run's own logit, but for the rounding of another
/// batch.
#[test]
fn a_shortcut_is_painted_in_and_out() {
    let folder = marked_run("intervene = true", &["auroc", "hit"]);
    let out = folder.path().join("out");
    let summary: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap();
    let effect = &summary["summary"]["interventions"][0];
    assert_eq!((effect["images"].as_u64(), effect["model"].as_str()), (Some(24), Some("densenet-small")));
    assert!(effect["logit"][0].as_f64().unwrap() != 0.0, "{effect}");
    assert!(
        std::fs::read_to_string(out.join("summary.md")).unwrap().contains("The planted shortcut, painted in and out")
    );
    let (mut logits, mut names) = (HashMap::new(), Names::default());
    results::read_predictions(&out.join("predictions.parquet"), &mut names, &mut |p| {
        logits.insert((p.image, p.class), p.logit);
    })
    .unwrap();
    let file = std::fs::read_dir(out.join("units")).unwrap().flatten().map(|e| e.path());
    let file = file.into_iter().find(|p| p.to_string_lossy().ends_with("interventions.jsonl")).unwrap();
    let mut planted = 0;
    for line in std::fs::read_to_string(file).unwrap().lines() {
        let one: lightbox_core::intervention::Intervention = serde_json::from_str(line).unwrap();
        let key = (names.find(&one.image).unwrap(), names.find("positive").unwrap());
        let (as_it_is, of_run) = (one.logits[usize::from(one.planted)], logits[&key]);
        assert!((as_it_is - of_run).abs() < 1e-6, "{}: {as_it_is} {of_run}", one.image);
        assert_ne!(one.logits[0], one.logits[1]);
        planted += usize::from(one.planted);
    }
    assert!((6..=18).contains(&planted), "{planted}");
}

/// Without a metric of predictions an image that is not explained is not run.
#[test]
fn only_what_is_needed_is_run() {
    let images = |metrics: &[&str]| {
        let folder = marked_run("", metrics);
        let (mut seen, mut names) = (HashSet::new(), Names::default());
        let path = folder.path().join("out/predictions.parquet");
        results::read_predictions(&path, &mut names, &mut |p| {
            seen.insert(p.image);
        })
        .unwrap();
        seen.len()
    };
    assert_eq!((images(&["auroc", "hit"]), images(&["hit"])), (24, 12));
}
