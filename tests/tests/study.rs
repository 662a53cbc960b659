//! The protocol of the first study: the built-in specs.

use lightbox_core::checkpoint;
use lightbox_tests::{fail, interrupt, run, succeed, values};
use std::path::Path;

/// `study-quick`, whole where LIGHTBOX_LONG is set, otherwise the same with fewer images and epochs.
fn quick(output: &str) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["run", "study-quick", "--output", output, "--device", "cpu"].map(String::from).into();
    if std::env::var_os("LIGHTBOX_LONG").is_none() {
        for set in ["data.count=90", "split.test=30", "chunk=20", "models.*.train.epochs=2"] {
            arguments.extend(["--set".to_string(), set.to_string()]);
        }
    }
    arguments
}

#[test]
fn study_quick_with_two_workers_killed_ten_times_gives_the_numbers_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (whole, cut) = (at("whole"), at("cut"));
    let table = |output: &str| {
        let arguments = quick(output);
        let text = succeed(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        text.split("Pictures").next().unwrap().to_string()
    };
    let wanted = table(&whole);
    let mut arguments = quick(&cut);
    arguments.extend(["--workers".to_string(), "2".to_string()]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // While each model trains, and while maps are made; the other worker is at a neighbouring fold.
    for place in [1, 4, 7, 10, 13] {
        let (model, fold) = (["densenet-small", "deit-mini", "patchconvnet-mini"][place / 5], place % 5);
        for (event, part) in [("epoch", "train"), ("cell-started", "chunk0000")] {
            let event = format!("\"event\":\"{event}\",\"unit\":\"{model}-fold{fold}-{part}\"");
            assert_eq!(interrupt(&arguments, &event, libc::SIGKILL), -1, "{event}");
        }
    }
    assert_eq!(table(&cut), wanted);
    assert_eq!(values(Path::new(&cut)), values(Path::new(&whole)));
    for part in ["Mean and standard deviation over 5 folds", "N/A", "chance", "pixel AUPRC, pooled"] {
        assert!(wanted.contains(part), "{wanted}");
    }
    let csv = |output: &str| std::fs::read_to_string(Path::new(output).join("summary.csv")).unwrap();
    assert_eq!(csv(&cut), csv(&whole));
}

#[test]
fn the_study_runs_on_a_folder_of_node21s_shape_from_checkpoint_files() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    succeed(&["data", "make", &at("node21"), "--count", "24", "--pixels", "256", "--format", "node21"]);
    // Small presets in the places of the three models; an initial checkpoint for one of them.
    let arguments = |out: &str, extra: &[String]| {
        let mut all =
            vec!["run".to_string(), "study".into(), "--output".into(), at(out), "--device".into(), "cpu".into()];
        let sets = [
            format!("data.root={}", at("node21")),
            "split={ test = 8, folds = 2 }".into(),
            "models.*.train.epochs=1".into(),
            "models.*.train.batch_size=4".into(),
            "models.*.params.size=64".into(),
            "models.DenseNet121.name=densenet-small".into(),
            "models.DeiT.name=deit-mini".into(),
            "models.PatchConvNet.name=patchconvnet-mini".into(),
        ];
        for set in sets.iter().chain(extra) {
            all.extend(["--set".to_string(), set.clone()]);
        }
        all
    };
    let start = |out: &str, extra: &[String]| {
        let (out, err, code) = run(&arguments(out, extra).iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(code, 0, "{err}");
        (out, err)
    };
    let (out, err) = start("out", &[]);
    assert!(err.contains("DeiT, fold 1: no weights: training begins with seeded random values"), "{err}");
    assert!(out.contains("PatchConvNet: trained for 1 epochs from seeded random values; one draw a fold."), "{out}");
    assert!(out.contains("DenseNet121 x attention: not applicable"), "{out}");

    let trained = folder.path().join("out/checkpoints/DeiT-fold0/best.safetensors");
    let weights = folder.path().join("imagenet.safetensors");
    std::fs::copy(&trained, &weights).unwrap();
    let (out, err) = start("from", &[format!("models.DeiT.weights={}", weights.display())]);
    assert!(out.contains("DeiT: trained for 1 epochs from imagenet.safetensors; one draw a fold."), "{out}");
    assert!(!err.contains("DeiT, fold 0: no weights"), "{err}");
    // Another file under the same name is another run.
    let other = checkpoint::read(&trained.with_file_name("../DeiT-fold1/best.safetensors")).unwrap();
    let kept = std::fs::read(&weights).unwrap();
    checkpoint::write(&weights, &other).unwrap();
    let changed = arguments("from", &[format!("models.DeiT.weights={}", weights.display())]);
    let message = "imagenet.safetensors has changed since";
    fail(&changed.iter().map(String::as_str).collect::<Vec<_>>(), 3, message);
    std::fs::write(&weights, kept).unwrap();
    // Each fold is one more epoch from there: a step of the learning rate away from it, everywhere.
    let wanted = checkpoint::read(&weights).unwrap();
    for fold in 0..2 {
        let path = folder.path().join(format!("from/checkpoints/DeiT-fold{fold}/best.safetensors"));
        let found = checkpoint::read(&path).unwrap();
        assert_eq!(found.len(), wanted.len());
        for ((name, a), (other, b)) in found.iter().zip(&wanted) {
            let difference = (a - b).abs().max().double_value(&[]);
            assert!(name == other && difference > 0.0 && difference < 1e-3, "{name}, {other}: {difference}");
        }
    }
}

#[test]
fn what_the_study_lacks_is_said_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out").to_string_lossy().into_owned();
    let check = |sets: &[&str], code: i32, message: &str| {
        let mut arguments = vec!["run", "study", "--device", "cpu", "--output", &output];
        sets.iter().for_each(|set| arguments.extend(["--set", set]));
        fail(&arguments, code, message);
        assert!(!folder.path().join("out/prepared").exists());
    };
    check(&["data.root=/no/node21"], 3, "/no/node21/metadata.csv");
    check(&["models.DeiT.weights=/no/deit.pth"], 3, "/no/deit.pth: no such checkpoint (model DeiT)");
    check(&["models.deit.weights=x"], 3, "no entry is named deit (known: DenseNet121, DeiT, PatchConvNet; * for all)");
    check(&["models.*.train.precision=mixed"], 3, "precision = \"mixed\" needs a CUDA device");
    check(&["models.DeiT.train.precision=half"], 3, "precision = \"half\": float32 or mixed expected");
    check(&["models.DeiT.train.optimizer=adam"], 3, "model DeiT: optimizer = \"adam\": adamw or sgd expected");
    check(&["models.DeiT.train.epochs=0"], 3, "model DeiT: training needs epochs of at least 1");
    check(&["models.DeiT.train.learning_rate=nan"], 3, "positive learning_rate and decay");
}
