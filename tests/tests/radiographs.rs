//! ChestX-ray14 as it is: fourteen labels, boxes of some findings, a checkpoint in CheXNet's layout, each positive label explained
//! for itself; all of it recomputed from the files by `oracle/recompute_nih.py`.

use lightbox_core::checkpoint;
use lightbox_sdk::spec::ModelOptions;
use lightbox_tests::{built, fill, shared, skip, succeed};
use std::path::{Path, PathBuf};
use std::process::Command;

const SIDE: i64 = 128;
const WINDOW: i64 = 64;
const STRIDE: i64 = 48;

/// CheXNet's name of a parameter of torchvision's: DataParallel, the attribute, torchvision before 0.2, a head in a sequence.
fn chexnet(name: &str) -> String {
    let mut name = name.replace("classifier.", "classifier.0.");
    if name.contains("denselayer") {
        for part in ["norm1.", "norm2.", "conv1.", "conv2."] {
            name = name.replace(part, &format!("{}.{}", &part[..4], &part[4..]));
        }
    }
    format!("module.densenet121.{name}")
}

/// A file whose every value follows from its name.
fn write_checkpoint(file: &Path) {
    let options = ModelOptions { classes: 14, ..ModelOptions::default() };
    let plugin: PathBuf = built("plugins/liblightbox_densenet.so");
    let missing = lightbox::engine::Missing::Random;
    let (model, _) = lightbox::engine::load_model(&plugin, "densenet121", &options, None, missing).unwrap();
    let state = model.parameters().unwrap().into_iter().map(|(name, array)| {
        let name = chexnet(&name);
        let tensor = fill(&name, &array.share_tensor().unwrap().size());
        (name, tensor)
    });
    checkpoint::write(file, &state.collect::<Vec<_>>()).unwrap();
}

/// The images with boxes, and every fortieth of the others.
fn write_labels(data: &Path, file: &Path) -> usize {
    let read = |name: &str| std::fs::read_to_string(data.join(name)).unwrap();
    let (labels, boxes) = (read("labels.csv"), read("boxes.csv"));
    let boxed = |line: &str| boxes.lines().skip(1).any(|b| b.split(',').next() == line.split(',').next());
    let kept = labels.lines().enumerate().filter(|(i, line)| *i == 0 || i % 40 == 0 || boxed(line));
    let kept: Vec<&str> = kept.map(|(_, line)| line).collect();
    std::fs::write(file, kept.join("\n") + "\n").unwrap();
    kept.len() - 1
}

#[test]
fn fourteen_labels_of_real_radiographs_are_what_numpy_makes_of_them() {
    let Some(data) = shared("data/nih-cxr") else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let python = root.join(".lightbox/recompute/bin/python");
    if !python.is_file() {
        skip(
            "NumPy, Pillow and scikit-learn are absent (`cargo xtask test` installs them with pip): a run was not recomputed",
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let inside = |name: &str| data.join(name).to_string_lossy().into_owned();
    write_checkpoint(Path::new(&at("chexnet.safetensors")));
    let count = write_labels(&data, Path::new(&at("labels.csv")));
    let spec = format!(
        "name = \"r\"\noutput = {:?}\nbatch_size = 8\nchunk = 10\n[data]\nsource = \"nih\"\nlabels = \"labels.csv\"\nimages = \
         {:?}\nboxes = {:?}\n[task]\nkind = \"multi-label\"\nexplain = \"each-positive\"\nselect = \"all\"\n[split]\ntest = \
         \"all\"\n[[models]]\nname = \"densenet121\"\nweights = \"chexnet.safetensors\"\nparams = {{ size = {SIDE} \
         }}\n[[explainers]]\nname = \"gradcam\"\n[[explainers]]\nname = \"layercam\"\n[[explainers]]\nname = \
         \"occlusion\"\nparams = {{ window = {WINDOW}, stride = {STRIDE} }}\n[[metrics]]\nname = \"auroc\"\n[[metrics]]\nname = \
         \"pixel-auprc\"\n",
        at("run"),
        inside("images"),
        inside("boxes.csv"),
    );
    std::fs::write(at("s.toml"), spec).unwrap();
    let table = succeed(&["run", &at("s.toml")]);
    eprintln!("{table}");
    assert!(table.contains("Cardiomegaly, 4 images") && table.contains("densenet121, by class"), "{table}");
    assert!(table.contains("AUROC: a mean over all classes, so N/A where") && table.contains("(Hernia);"), "{table}");
    let script = root.join("tests/oracle/recompute_nih.py");
    let arguments = [at("run"), at("labels.csv"), inside("boxes.csv"), inside("images")];
    let sizes = [SIDE, WINDOW, STRIDE].map(|n| n.to_string());
    let output = Command::new(python).arg(script).args(arguments).args(sizes).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains(&format!("{count} images")), "{text}");
    let compared: usize = text.split_whitespace().next().unwrap().parse().unwrap();
    assert!(compared > 500_000, "{text}");
    eprintln!("{text}");
}
