//! A run's own numbers, recomputed from its checkpoints, images and boxes in NumPy and scikit-learn: `oracle/recompute.py`.

use lightbox_tests::{skip, succeed};
use std::path::Path;
use std::process::Command;

#[test]
fn a_run_is_what_numpy_and_scikit_learn_make_of_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let python = root.join(".lightbox/recompute/bin/python");
    if !python.is_file() {
        skip("NumPy and scikit-learn are absent (`cargo xtask test` installs them with pip): a run was not recomputed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    // Nodules are ellipses of unequal sides, off the diagonal; a third of the images has one.
    let make = ["data", "make", &at("data"), "--count", "72", "--pixels", "64", "--nodules", "0.36", "--seed", "3"];
    succeed(&make);
    let spec = format!(
        "name = \"r\"\noutput = {:?}\nblock = 5\nbatch_size = 4\nseed = 11\n[data]\nsource = \"table\"\n\
         csv = \"data/table.csv\"\n[split]\ntest = 17\nbalanced = false\nfolds = 3\n[[models]]\nname = \"densenet-small\"\nweights = \"random\"\n\
         params = {{ size = 64 }}\n[models.train]\nepochs = 4\nbatch_size = 8\nlearning_rate = 4e-3\n\
         [[explainers]]\nname = \"gradcam\"\n[[explainers]]\nname = \"mean-mask\"\n[[explainers]]\nname = \"brightness\"\n\
         [[explainers]]\nname = \"noise\"\n",
        at("run")
    );
    std::fs::write(at("s.toml"), spec).unwrap();
    succeed(&["run", &at("s.toml")]);
    // The kept checkpoint must not be the last one of every fold, or the test could not tell them apart.
    let history = |fold: usize| -> Vec<serde_json::Value> {
        let path = format!("{}/checkpoints/densenet-small-fold{fold}/history.json", at("run"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let loss = |e: &serde_json::Value| e["validation_loss"].as_f64().unwrap();
    let early = |f: &i32| {
        let all = history(*f as usize);
        all[..all.len() - 1].iter().any(|e| loss(e) < loss(&all[all.len() - 1]))
    };
    assert!((0..3).any(|f| early(&f)), "in every fold the last epoch is the best");
    let script = root.join("tests/oracle/recompute.py");
    let output = Command::new(python).arg(script).arg(at("run")).arg(at("data/table.csv")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let count: usize = text.split_whitespace().next().unwrap().parse().unwrap();
    assert!(count > 50_000, "{text}");
    eprintln!("{text}");
}
