//! A run can be mended, extended, and worked on by several workers; it does not go on where its numbers would change.

use lightbox_core::data::image::{write_png, write_png_rgb};
use lightbox_tests::{built, fail, interrupt, lightbox, run, small_spec, succeed, texts, values};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

const TWO: &str = "[[explainers]]\nname = \"gradcam\"\n[[explainers]]\nname = \"noise\"\n";

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn events(folder: &Path) -> Vec<Value> {
    let log = std::fs::read_to_string(folder.join("out/events.jsonl")).unwrap();
    log.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The keys of the units that ended since event `from`.
fn ended(folder: &Path, from: usize) -> Vec<String> {
    let done = |e: &Value| (e["event"] == "unit-finished").then(|| e["unit"].as_str().unwrap().to_string());
    events(folder)[from..].iter().filter_map(done).collect()
}

fn write(path: &Path, text: String) -> String {
    std::fs::write(path, text).unwrap();
    path.to_string_lossy().into_owned()
}

#[test]
fn a_failed_cell_is_retried_alone() {
    let folder = tempfile::tempdir().unwrap();
    let spec = text(&small_spec(folder.path(), &format!("{TWO}[[explainers]]\nname = \"hostile-moody\"\n")));
    let plugins = text(&built("test-plugins/hostile"));
    let mood = folder.path().join("mood");
    std::fs::write(&mood, "").unwrap();
    let go = |more: &[&str]| {
        let arguments = [&["run", &spec, "--plugins", &plugins], more].concat();
        texts(lightbox(&arguments).env("LIGHTBOX_TEST_MOOD", &mood).output().unwrap())
    };
    let (out, err, code) = go(&[]);
    assert_eq!(code, 5, "{err}");
    assert!(out.contains("densenet-small x hostile-moody: failed: explainer hostile-moody: not today."), "{out}");
    let before = values(&folder.path().join("out"));
    std::fs::remove_file(&mood).unwrap();
    // Without the word it stays failed, and nothing is computed.
    let from = events(folder.path()).len();
    assert_eq!(go(&[]).2, 5);
    assert_eq!(ended(folder.path(), from), Vec::<String>::new());
    let from = events(folder.path()).len();
    let (out, err, code) = go(&["--retry-failed"]);
    assert_eq!(code, 0, "{err}");
    assert!(!out.contains("failed"), "{out}");
    // The three blocks for that explainer, and what they reduce to; no image is classified again, no other map made.
    let done = ended(folder.path(), from);
    assert_eq!(done.len(), 4, "{done:?}");
    let after = values_of(folder.path(), &["gradcam", "noise"]);
    assert!(before.iter().filter(|(k, _)| ["gradcam", "noise"].contains(&k.3.as_str()) && !k.2.is_empty()).all(
        |(k, v)| {
            after.iter().filter(|(other, _)| other == k).count() == 1 && after.iter().any(|(o, w)| o == k && w == v)
        }
    ));
}

type Key = (String, i32, String, String, String);

/// Values of images by some explainers.
fn values_of(folder: &Path, explainers: &[&str]) -> Vec<(Key, Option<f64>)> {
    let mut names = lightbox_core::results::Names::default();
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder.join("out/units")).unwrap().flatten() {
        if entry.file_name().to_string_lossy().ends_with(".scores.parquet") {
            let mut rows = Vec::new();
            lightbox_core::results::read_scores(&entry.path(), &mut names, &mut |r| rows.push(r)).unwrap();
            for r in rows {
                let name = |n: u32| names.name(n).to_string();
                if explainers.contains(&names.name(r.explainer)) && !name(r.image).is_empty() {
                    all.push(((name(r.model), r.fold, name(r.image), name(r.explainer), name(r.metric)), r.value));
                }
            }
        }
    }
    all
}

#[test]
fn an_explainer_a_metric_and_a_model_extend_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let spec = small_spec(folder.path(), TWO);
    succeed(&["run", &text(&spec)]);
    let first = std::fs::read_to_string(&spec).unwrap();
    let from = events(folder.path()).len();
    let more = format!("{first}[[explainers]]\nname = \"centre\"\n");
    let table = succeed(&["run", &write(&spec, more.clone())]);
    assert!(table.contains("centre"), "{table}");
    let done = ended(folder.path(), from);
    // A survey, three blocks for one explainer, what they reduce to.
    assert_eq!(done.len(), 5, "{done:?}");
    // A metric scores the stored maps; one that runs the model too.
    let from = events(folder.path()).len();
    let metrics = "[[metrics]]\nname = \"auroc\"\n[[metrics]]\nname = \"pixel-auprc\"\n[[metrics]]\nname = \"deletion\"\n\
                   params = { steps = 4 }\n";
    let more = format!("{more}{metrics}");
    let table = succeed(&["run", &write(&spec, more.clone())]);
    assert!(table.contains("deletion, mean over images"), "{table}");
    let done = ended(folder.path(), from);
    assert!(done.len() == 4 && done.iter().filter(|u| u.ends_with("-score")).count() == 3, "{done:?}");
    // Blocks in which nothing is to be explained have no maps to score.
    let single = tempfile::tempdir().unwrap();
    let blocks = |extra: &str| {
        let path = small_spec(single.path(), &format!("{TWO}{extra}"));
        let text = std::fs::read_to_string(&path).unwrap().replace("chunk = 4", "chunk = 1");
        succeed(&["run", &write(&path, text)])
    };
    blocks("");
    let scored = blocks("[[metrics]]\nname = \"deletion\"\nparams = { steps = 2 }\n");
    assert!(scored.contains("deletion, mean over images") && !scored.contains("failed"), "{scored}");
    // All at once gives the same.
    let whole = tempfile::tempdir().unwrap();
    let at_once = more.replace(&text(folder.path()), &text(whole.path()));
    let other = succeed(&["run", &write(&whole.path().join("spec.toml"), at_once)]);
    let cut = |t: &str| t.split("Pictures").next().unwrap().to_string();
    assert_eq!(cut(&table), cut(&other));
    // A model is a row.
    let from = events(folder.path()).len();
    let models = more.replace(
        "[[explainers]]\nname = \"gradcam\"",
        "[[models]]\nname = \"deit-mini\"\nweights = \"random\"\nparams = { size = 64 }\n[[explainers]]\nname = \"gradcam\"",
    );
    let table = succeed(&["run", &write(&spec, models)]);
    assert!(table.contains("deit-mini"), "{table}");
    assert!(ended(folder.path(), from).iter().all(|u| u.starts_with("deit-mini")), "{:?}", ended(folder.path(), from));
}

#[test]
fn a_rebuilt_plugin_is_computed_anew_and_the_folder_says_which_build_made_what() {
    let folder = tempfile::tempdir().unwrap();
    // A folder of plugins of its own, whose file can change.
    let plugins = folder.path().join("plugins");
    std::fs::create_dir(&plugins).unwrap();
    let hostile = plugins.join("h.so");
    std::fs::copy(built("test-plugins/hostile/liblightbox_hostile.so"), &hostile).unwrap();
    let spec = text(&small_spec(folder.path(), &format!("{TWO}[[explainers]]\nname = \"hostile-prints\"\n")));
    let go = || succeed(&["run", &spec, "--plugins", &text(&plugins)]);
    let table = go();
    let hashes = |explainer: &str| -> std::collections::BTreeSet<String> {
        let records = std::fs::read_dir(folder.path().join("out/units")).unwrap().flatten().map(|e| e.path());
        let records = records.filter(|p| p.extension().is_some_and(|e| e == "json"));
        let read = |p: std::path::PathBuf| -> Value { serde_json::from_slice(&std::fs::read(p).unwrap()).unwrap() };
        records.map(read).filter_map(|r| r["cells"][explainer]["plugin"].as_str().map(str::to_string)).collect()
    };
    assert_eq!(hashes("hostile-prints").len(), 1);
    // Another build: the same code, other bytes at its end.
    let mut bytes = std::fs::read(&hostile).unwrap();
    bytes.extend([0; 8]);
    std::fs::remove_file(&hostile).unwrap();
    std::fs::write(&hostile, bytes).unwrap();
    let from = events(folder.path()).len();
    assert_eq!(go(), table);
    assert_eq!(ended(folder.path(), from).len(), 5);
    assert_eq!((hashes("hostile-prints").len(), hashes("gradcam").len()), (2, 1));
}

#[test]
fn silence_is_what_is_limited() {
    let folder = tempfile::tempdir().unwrap();
    // 14 s of work under a limit of 10 s, with calls to the host.
    let extra = "[[explainers]]\nname = \"hostile-busy\"\n";
    let spec = small_spec(folder.path(), extra);
    let one =
        std::fs::read_to_string(&spec).unwrap().replace("test = 12", "test = 2").replace("count = 40", "count = 16");
    let table = succeed(&["run", &write(&spec, one), "--plugins", &text(&built("test-plugins/hostile"))]);
    assert!(!table.contains("failed"), "{table}");
    // The work was longer than the limit, and signs of life fill no log.
    let all = events(folder.path());
    let long = |e: &Value| e["event"] == "unit-finished" && e["seconds"].as_f64().is_some_and(|s| s > 12.0);
    assert!(all.iter().any(long), "{all:?}");
    assert!(all.iter().all(|e| e["event"] != "alive" && e["event"] != "steps"));
}

#[test]
fn ctrl_c_reaches_a_long_explainer() {
    let folder = tempfile::tempdir().unwrap();
    let plugins = text(&built("test-plugins/hostile"));
    // In a run: the plugin never ends of itself, and it calls the host all the time.
    let spec = small_spec(folder.path(), "[[explainers]]\nname = \"hostile-patient\"\n");
    let started = Instant::now();
    let arguments = ["run", &text(&spec), "--plugins", &plugins];
    assert_eq!(interrupt(&arguments, "\"event\":\"cell-started\",\"unit\":\"densenet-small-fold0", libc::SIGINT), 130);
    assert!(started.elapsed() < Duration::from_secs(30));
    // In `explain`, which has no child: the plugin must see it.
    let image = folder.path().join("a.png");
    write_png(&image, 64, 64, &[9; 4096]).unwrap();
    let image = text(&image);
    let out = text(&folder.path().join("o"));
    let explain = [
        &["explain", &image, "--model", "densenet-small", "--random-weights"][..],
        &["--explainer", "hostile-patient", "--out", &out],
    ];
    let explain = explain.concat();
    let mut child =
        lightbox(&explain).args(["--plugins", &plugins]).stderr(std::process::Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(3));
    // SAFETY: a signal to a process that is ours and has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let deadline = Instant::now() + Duration::from_secs(20);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status.code(),
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    assert_eq!(status, Some(130), "it did not end by itself with 130");
}

#[test]
fn changed_pixels_and_other_threads_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    succeed(&["data", "make", &text(&at("data")), "--count", "20", "--pixels", "64"]);
    let spec = "name = \"x\"\noutput = \"out\"\nthreads = 1\n[data]\nsource = \"table\"\ncsv = \"data/table.csv\"\n[[models]]\n\
                name = \"densenet-small\"\nweights = \"random\"\nparams = { size = 64 }\n[[explainers]]\nname = \"noise\"\n";
    std::fs::write(at("x.toml"), spec).unwrap();
    let here = |more: &[&str]| {
        texts(lightbox(&[&["run", "x.toml"], more].concat()).current_dir(folder.path()).output().unwrap())
    };
    assert_eq!(here(&[]).2, 0);
    // Touched, with the same content: nothing has changed.
    let image = at("data/phantom-0000003.png");
    let bytes = std::fs::read(&image).unwrap();
    std::fs::write(&image, &bytes).unwrap();
    assert_eq!(here(&[]).2, 0);
    write_png(&image, 64, 64, &[7; 4096]).unwrap();
    let (_, err, code) = here(&[]);
    assert!(code == 3 && err.contains("phantom-0000003.png has changed since"), "{err}");
    std::fs::write(&image, &bytes).unwrap();
    // Other threads: refused, or recorded.
    let (_, err, code) = here(&["--set", "threads=2"]);
    assert!(
        code == 3 && err.contains("which change numbers: threads 1, now 2 (hint: go on under the same, --mixed"),
        "{err}"
    );
    let (out, err, code) = here(&["--set", "threads=2", "--mixed", "--set", "explainers=[{ name = \"centre\" }]"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("Computed under 2 different conditions"), "{out}");
    let environment: Value = serde_json::from_slice(&std::fs::read(at("out/environment.json")).unwrap()).unwrap();
    assert_eq!(
        (environment["machines"][0]["threads"].as_u64(), environment["machines"][1]["threads"].as_u64()),
        (Some(1), Some(2))
    );
}

#[test]
fn folds_seeds_and_shared_weights() {
    let folder = tempfile::tempdir().unwrap();
    let spec = small_spec(folder.path(), &format!("[models.train]\nepochs = 1\nbatch_size = 4\n{TWO}"));
    let two = std::fs::read_to_string(&spec).unwrap().replace("name = \"t\"", "name = \"t\"\nseeds = 2");
    let two = two.replace("test = 12", "test = 12\nfolds = 2");
    let table = succeed(&["run", &write(&spec, two.clone())]);
    assert!(table.contains("Mean over 2 folds of 2 trainings each, and standard deviation over folds."), "{table}");
    let all = values(&folder.path().join("out"));
    let score = |fold: i32| all.iter().find(|(k, _)| k.1 == fold && k.4 == "auroc").map(|(_, v)| v.unwrap());
    assert_eq!([0, 1, 100, 101].map(|f| score(f).is_some()), [true; 4]);
    let logits: Vec<Option<f64>> =
        [0, 1, 100, 101].map(|f| all.iter().find(|(k, _)| k.1 == f && k.4 == "score").and_then(|(_, v)| *v)).to_vec();
    assert!((1..4).all(|i| (0..i).all(|j| logits[i] != logits[j])), "each training is its own: {logits:?}");
    let csv = std::fs::read_to_string(folder.path().join("out/summary.csv")).unwrap();
    let gradcam: Vec<&str> = csv.lines().find(|l| l.contains(",gradcam,ok,")).unwrap().split(',').collect();
    // mean, std over folds and over trainings, the interval's ends, then four values.
    assert!(gradcam.iter().any(|f| f.split(' ').count() == 4), "{gradcam:?}");
    // Untrained models differ by fold; shared weights have no spread.
    let other = tempfile::tempdir().unwrap();
    let weights = folder.path().join("out/checkpoints/densenet-small-fold0/best.safetensors");
    let plain = small_spec(other.path(), TWO);
    let base = std::fs::read_to_string(&plain).unwrap().replace("test = 12", "test = 12\nfolds = 2");
    let table = succeed(&["run", &write(&plain, base.clone())]);
    assert!(table.lines().any(|l| l.starts_with("densenet-small") && l.contains('±')), "{table}");
    let all = values(&other.path().join("out"));
    let scores: Vec<Option<f64>> = all.iter().filter(|(k, _)| k.4 == "score").map(|(_, v)| *v).collect();
    assert_ne!(scores[..12], scores[12..], "the folds' initial values differ");
    let shared = base.replace("weights = \"random\"", &format!("weights = {weights:?}"));
    let table = succeed(&["run", &write(&plain, shared), "--restart"]);
    assert!(table.lines().any(|l| l.starts_with("densenet-small")) && !table.contains('±'), "{table}");
}

#[test]
fn two_workers_killed_again_and_again_give_the_table_of_one() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let extra = format!(
        "[models.train]\nepochs = 2\nbatch_size = 4\n[[models]]\nname = \"deit-mini\"\nweights = \"random\"\nparams = {{ size = 64 }}\n{TWO}[[explainers]]\nname = \"mean-mask\"\n"
    );
    let with = |folder: &Path| {
        let spec = small_spec(folder, &extra);
        let text = std::fs::read_to_string(&spec).unwrap().replace("test = 12", "test = 12\nfolds = 3");
        write(&spec, text)
    };
    let (a, b) = (with(one.path()), with(two.path()));
    let table = succeed(&["run", &a]);
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut killed = 0;
    while killed < 10 {
        let mut child = lightbox(&["run", &b, "--workers", "2"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // A time that is drawn, from a tenth of a second to a second and a half.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        std::thread::sleep(Duration::from_millis(100 + state % 1400));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        killed += 1;
    }
    let other = succeed(&["run", &b, "--workers", "2"]);
    let cut = |t: &str| t.split("Pictures").next().unwrap().to_string();
    assert_eq!(cut(&other), cut(&table));
    let csv = |f: &Path| std::fs::read_to_string(f.join("out/summary.csv")).unwrap();
    assert_eq!(csv(two.path()), csv(one.path()));
    assert!(killed >= 3, "the run ended after {killed} kills");
}

#[test]
fn colour_images_of_several_classes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let colours = [("red", [200, 40, 40]), ("green", [40, 200, 40]), ("blue", [40, 40, 200])];
    let mut csv = String::from("image,label,x,y,width,height\n");
    for i in 0..48u32 {
        let (name, colour) = colours[i as usize % 3];
        let (x, y) = (8 + i * 7 % 40, 8 + i * 13 % 40);
        let pixel = |p: u32| {
            let (px, py) = (p % 64, p / 64);
            let inside = (x..x + 14).contains(&px) && (y..y + 14).contains(&py);
            if inside { colour } else { [90 + (p % 7) as u8; 3] }
        };
        let rgb: Vec<u8> = (0..64 * 64).flat_map(pixel).collect();
        write_png_rgb(&at(&format!("{i:03}.png")), 64, 64, &rgb).unwrap();
        csv += &format!("{i:03}.png,{name},{x},{y},14,14\n");
    }
    std::fs::write(at("t.csv"), csv).unwrap();
    let spec = |kind: &str, explain: &str| {
        format!(
            "name = \"c\"\noutput = {:?}\nbatch_size = 8\n[data]\nsource = \"table\"\ncsv = \"t.csv\"\ncolour = true\n\
             [task]\nkind = \"{kind}\"\nexplain = \"{explain}\"\n[split]\ntest = 12\nvalidation = 0.25\n[[models]]\n\
             name = \"densenet-small\"\nweights = \"random\"\nparams = {{ size = 64 }}\n[models.train]\nepochs = 12\nbatch_size = 8\n\
             learning_rate = 3e-3\n[[explainers]]\nname = \"gradcam\"\n[[explainers]]\nname = \"edges\"\n",
            at(kind)
        )
    };
    let table = succeed(&["run", &write(&at("s.toml"), spec("multi-class", ""))]);
    assert!(table.contains("12 test images, each explained for its own class."), "{table}");
    let summary: Value = serde_json::from_slice(&std::fs::read(at("multi-class/summary.json")).unwrap()).unwrap();
    let value = |column: usize| summary["tables"][0]["rows"][0]["cells"][column]["mean"].as_f64().unwrap();
    // Three colours are no riddle for a network that sees them; grey ones would be.
    assert!(value(1) > 0.9, "macro AUROC {}: {table}", value(1));
    let all = values(&at("multi-class"));
    assert_eq!(all.keys().filter(|k| k.3 == "gradcam" && k.4 == "pixel-auprc").count(), 12);
    let table = succeed(&["run", &write(&at("s.toml"), spec("multi-label", "green"))]);
    assert!(table.contains("12 test images, 4 of class green, which is explained, 4 of them with a mask."), "{table}");
    let table = succeed(&["run", &write(&at("s.toml"), spec("multi-label", "")), "--restart"]);
    assert!(table.contains("12 test images, each explained for each of its classes."), "{table}");
    fail(&["run", &write(&at("s.toml"), spec("multi-class", "pink"))], 3, "label, predicted or a class expected");
    let (_, err, code) = run(&[
        "run",
        &write(
            &at("s.toml"),
            spec("multi-class", "").replace("\"table\"\ncsv = \"t.csv\"\ncolour = true", "\"phantom\""),
        ),
    ]);
    assert!(code == 3 && err.contains("this data source has two classes"), "{err}");
}

/// The processes that a process has started and that still run.
fn children(of: u32) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let is_child = |pid: &i32| {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        // After the name, which may hold anything: the state and the parent.
        let rest: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        rest.get(1).and_then(|p| p.parse().ok()) == Some(of) && rest[0] != "Z"
    };
    all.filter_map(|e| e.file_name().to_string_lossy().parse().ok()).filter(is_child).collect()
}

#[test]
fn a_worker_that_is_killed_in_training_costs_nothing() {
    let (calm, hurt) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let train =
        "[models.train]\nepochs = 40\nbatch_size = 8\nlearning_rate = 1e-3\n[[explainers]]\nname = \"gradcam\"\n";
    let wanted = succeed(&["run", &text(&small_spec(calm.path(), train))]);
    let mut child = lightbox(&["run", &text(&small_spec(hurt.path(), train))])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let log = hurt.path().join("out/events.jsonl");
    let deadline = Instant::now() + Duration::from_secs(60);
    let in_training = || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.lines().any(|l| l.contains("\"event\":\"epoch") || l.contains("\"unit\":\"densenet-small-fold0-train\""))
    };
    while !in_training() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "it never trained");
        std::thread::sleep(Duration::from_millis(10));
    }
    let workers = children(child.id());
    assert_eq!(workers.len(), 1);
    // SAFETY: a signal to a process that our child has started.
    unsafe { libc::kill(workers[0], libc::SIGKILL) };
    let (out, _, code) = texts(child.wait_with_output().unwrap());
    assert_eq!(code, 0, "{out}");
    let log = events(hurt.path());
    assert_eq!(log.iter().filter(|e| e["event"] == "worker-lost").count(), 1);
    assert!(log.iter().all(|e| e["event"] != "cell-failed"));
    let table = |text: &str| text.split("Pictures").next().unwrap().to_string();
    assert_eq!(table(&out), table(&wanted));
}

#[test]
fn a_model_at_which_workers_are_lost_is_tried_three_times_and_again_by_the_next_command() {
    let folder = tempfile::tempdir().unwrap();
    let plugins = text(&built("test-plugins/hostile"));
    let spec = text(&small_spec(
        folder.path(),
        "[[models]]\nname = \"hostile-dies\"\nweights = \"random\"\n[[explainers]]\nname = \"edges\"\n",
    ));
    let arguments = ["run", &spec, "--plugins", &plugins];
    let (out, _, code) = texts(lightbox(&arguments).env("HOSTILE_DIES", "1").output().unwrap());
    assert_eq!(code, 5, "{out}");
    let said = "hostile-dies: failed: 3 workers were lost at hostile-dies-fold0-chunk0000: it crashed (SIGABRT";
    assert!(out.contains(said) && out.contains("the same command tries again"), "{out}");
    // The other model has its row.
    let log = events(folder.path());
    assert_eq!(log.iter().filter(|e| e["event"] == "worker-lost").count(), 3);
    let from = log.len();
    let out = succeed(&arguments);
    assert!(!out.contains("failed"), "{out}");
    let again = ended(folder.path(), from);
    assert!(!again.is_empty() && again.iter().all(|unit| unit.starts_with("hostile-dies")), "{again:?}");
}

#[test]
fn a_default_that_is_written_down_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let explainer = "[[explainers]]\nname = \"occlusion\"\n";
    let metric = "[[metrics]]\nname = \"deletion\"\n";
    let (plain, size) = (format!("{explainer}{metric}"), "params = { size = 64 }");
    succeed(&["run", &text(&small_spec(folder.path(), &plain))]);
    let resolved = std::fs::read_to_string(folder.path().join("out/spec.toml")).unwrap();
    // Every parameter is in the run's own spec.
    for line in ["window = 32", "stride = 16", "baseline = \"mean\"", "steps = 16"] {
        assert!(resolved.contains(line), "{line}: {resolved}");
    }
    let from = events(folder.path()).len();
    let written = format!(
        "{explainer}params = {{ window = 32.0, stride = 16 }}\n{metric}params = {{ steps = 16, baseline = \"mean\" }}\n"
    );
    let spec = small_spec(folder.path(), &written);
    let model =
        std::fs::read_to_string(&spec).unwrap().replace(size, "params = { size = 64, precision = \"float32\" }");
    succeed(&["run", &write(&spec, model)]);
    assert_eq!(ended(folder.path(), from), Vec::<String>::new(), "nothing is computed again");
    // Another value is another map.
    let other = format!("{explainer}params = {{ window = 24 }}\n{metric}");
    succeed(&["run", &text(&small_spec(folder.path(), &other))]);
    assert_eq!(ended(folder.path(), from).iter().filter(|u| u.contains("chunk")).count(), 3);
}

#[test]
fn an_explainer_for_some_models() {
    let folder = tempfile::tempdir().unwrap();
    let extra = "[[models]]\nname = \"deit-mini\"\nweights = \"random\"\nparams = { size = 64 }\n[[explainers]]\nname = \"gradcam\"\nlabel = \"norm5\"\n\
                 params = { layer = \"features.norm5\" }\n[[explainers]]\nname = \"gradcam\"\nlabel = \"mine\"\nmodels = [\"deit-mini\"]\n";
    let table = succeed(&["run", &text(&small_spec(folder.path(), extra))]);
    for part in [
        "deit-mini x norm5: not applicable: deit-mini has no layer features.norm5.",
        "densenet-small x mine: not applicable: the spec gives it to other models.",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
}

#[test]
fn a_method_that_a_fold_has_no_value_for_is_not_applicable_and_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    succeed(&["data", "make", &text(&at("data")), "--count", "40", "--pixels", "64"]);
    let spec = |split: &str, out: &str| {
        format!(
            "name = \"t\"\noutput = {:?}\n[data]\nsource = \"table\"\ncsv = \"data/table.csv\"\n[split]\n{split}\n\
             [[models]]\nname = \"densenet-small\"\nweights = \"random\"\nparams = {{ size = 64 }}\n[[explainers]]\nname = \"mean-mask\"\n\
             [[explainers]]\nname = \"noise\"\n",
            at(out)
        )
    };
    let table = succeed(&["run", &write(&at("a.toml"), spec("test = 10\nfolds = 2", "a"))]);
    assert!(!table.contains("N/A"), "{table}");
    // Nobody knows where the nodules are in the images that the second fold trains on: there is no mean of masks.
    let second = std::fs::read_to_string(at("a/splits/train_fold1.csv")).unwrap();
    let names: Vec<&str> = second.lines().skip(1).map(|l| l.split(',').next().unwrap()).collect();
    let rows = std::fs::read_to_string(at("data/table.csv")).unwrap();
    let header: Vec<&str> = rows.lines().next().unwrap().split(',').collect();
    let blank = |line: &str| -> String {
        let unknown = line.split(',').next().is_some_and(|name| names.contains(&name));
        let cell = |(i, c)| if unknown && ["x", "y", "width", "height"].contains(&header[i]) { "" } else { c };
        line.split(',').enumerate().map(cell).collect::<Vec<&str>>().join(",") + "\n"
    };
    let mut blanked: Vec<String> = rows.lines().map(blank).collect();
    // A second box of an image is a second row, now the same.
    blanked.dedup();
    std::fs::write(at("data/table.csv"), blanked.concat()).unwrap();
    // The same split, which would keep the share of images with a mask.
    let same = format!("files = {:?}", at("a/splits"));
    let table = succeed(&["run", &write(&at("b.toml"), spec(&same, "b"))]);
    let reason = "densenet-small x mean-mask: not applicable: it needs the mean of the training set's masks";
    assert!(table.contains(reason) && !table.contains("failed"), "{table}");
}

/// A folder that somebody else has made must not make us write or show what is elsewhere.
#[test]
fn links_in_a_runs_folder_are_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let spec = text(&small_spec(folder.path(), "[[explainers]]\nname = \"edges\"\n"));
    succeed(&["run", &spec]);
    let (out, precious) = (folder.path().join("out"), folder.path().join("precious"));
    let link = |name: &str| {
        std::fs::write(&precious, "kept").unwrap();
        let _ = std::fs::remove_file(out.join(name));
        std::os::unix::fs::symlink(&precious, out.join(name)).unwrap();
    };
    for name in [".lock", "events.jsonl"] {
        link(name);
        let (_, err, code) = texts(lightbox(&["run", &spec]).output().unwrap());
        assert!(code != 0 && err.contains(name), "{err}");
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "kept");
        std::fs::remove_file(out.join(name)).unwrap();
    }
    succeed(&["run", &spec]);
    let maps = std::fs::read_to_string(out.join("maps.json")).unwrap();
    let at = maps.find("units/").unwrap();
    std::fs::write(out.join("maps.json"), format!("{}../{}", &maps[..at], &maps[at..])).unwrap();
    let target = text(&folder.path().join("m.safetensors"));
    let maps = ["maps", &text(&out), "--model", "densenet-small", "--explainer", "edges", "--output", &target];
    let (_, err, code) = texts(lightbox(&maps).output().unwrap());
    assert!(code == 3 && err.contains("leads out of the run's folder"), "{err}");
}
