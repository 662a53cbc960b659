//! `lightbox explain` and `lightbox data` on image files.

use lightbox_core::data::image::write_png;
use lightbox_tests::{fail, run, shared, succeed};
use std::path::Path;

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[test]
fn overlays_and_their_sidecar() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("chest.png");
    write_png(&image, 100, 80, &(0..8000).map(|i| (i / 40) as u8).collect::<Vec<_>>()).unwrap();
    std::fs::create_dir(folder.path().join("other")).unwrap();
    let same = folder.path().join("other/chest.png");
    std::fs::copy(&image, &same).unwrap();
    let out = folder.path().join("o");
    let printed = succeed(&[
        "explain",
        &text(&image),
        &text(&same),
        "--model",
        "densenet-small",
        "--random-weights",
        "--explainer",
        "gradcam",
        "--explainer",
        "centre:sigma=0.1",
        "--target",
        "1",
        "--out",
        &text(&out),
    ]);
    assert_eq!(printed.lines().count(), 4);
    for name in ["chest.gradcam.png", "chest.centre_sigma=0.1.png", "chest-1.gradcam.png"] {
        let picture = image::open(out.join(name)).unwrap();
        assert_eq!((picture.width(), picture.height()), (128, 128), "{name}");
    }
    let side: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("chest.json")).unwrap()).unwrap();
    assert_eq!((side["class"].as_i64(), side["model"].as_str()), (Some(1), Some("densenet-small")));
    assert!(side["probability"].as_f64().unwrap() > 0.0);
    // Who sees the picture sees that the weights are random.
    assert_eq!(side["random_weights"], true);
    let picture = image::open(out.join("chest.gradcam.png")).unwrap().to_rgb8();
    assert_eq!(picture.get_pixel(0, 0).0, [255, 220, 0]);
}

#[test]
fn mistakes_are_clear_errors() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    write_png(at("a.png").as_ref(), 40, 40, &[9; 1600]).unwrap();
    let bytes = std::fs::read(at("a.png")).unwrap();
    std::fs::write(at("cut.png"), &bytes[..bytes.len() - 30]).unwrap();
    std::fs::write(at("a.npy"), "no").unwrap();
    let check = |arguments: &[&str], code: i32, message: &str| {
        fail(&[&["explain"], arguments, &["--random-weights", "--out", &at("o")]].concat(), code, message);
    };
    let (a, model) = (at("a.png"), "densenet-small");
    check(&[&at("none.png"), "--model", model, "--explainer", "gradcam"], 3, "none.png: no such file or folder");
    check(&[&at("cut.png"), "--model", model, "--explainer", "gradcam"], 3, "cut.png: the image is broken");
    check(&[&a, "--model", "resnet", "--explainer", "gradcam"], 4, "no model is named resnet (known: ");
    check(&[&a, "--model", model, "--explainer", "camel"], 4, "no explainer is named camel (known: ");
    check(
        &[&a, "--model", model, "--explainer", "gradcam:layer"],
        3,
        "`layer` is not param=value (example: gradcam:layer=",
    );
    check(
        &[&a, "--model", model, "--explainer", "gradcam:layer=x"],
        3,
        "nothing to draw: none of the explainers applies to densenet-small (gradcam:layer=x: densenet-small has no layer x)",
    );
    check(&[&a, "--model", model, "--explainer", "centre:sigma=-1"], 3, "parameter sigma: \"-1\" is not a number from");
    check(
        &[&a, "--model", model, "--explainer", "gradcam", "--target", "2"],
        3,
        "--target 2: densenet-small has classes 0 to 1",
    );
    check(
        &[&a, "--model", model, "--weights", &at("w.pth"), "--explainer", "gradcam"],
        3,
        "w.pth: no such file or folder",
    );
    check(
        &[&a, "--model", model, "--weights", &a, "--explainer", "gradcam"],
        3,
        "a.png: not a checkpoint that Lightbox reads",
    );
    check(&[&at("a.npy"), "--model", model, "--explainer", "gradcam"], 3, "a batch file needs --raw FILE.safetensors");
    check(
        &[&at("a.npy"), "--model", model, "--explainer", "gradcam", "--raw", &at("r.safetensors")],
        3,
        "a.npy: not a NumPy file",
    );
    check(&[&a, "--model", model, "--explainer", "gradcam", "--device", "cuda:77"], 3, "device cuda:77 was asked for");
    check(&["--model", model, "--explainer", "gradcam"], 2, "required");
    let bare = ["explain", &a, "--model", model, "--explainer", "gradcam", "--out", &at("o")];
    fail(&bare, 3, "densenet-small has no weights: a map of random values says nothing (hint: --weights FILE, or");
    // Without a training set there is no mean mask; that is an answer, not a failure. Where nothing else is asked for there
    // is nothing to draw.
    let none = ["explain", &a, "--model", model, "--random-weights", "--explainer", "mean-mask", "--out", &at("o")];
    fail(&none, 3, "nothing to draw: none of the explainers applies to densenet-small (mean-mask: it needs the mean");
    let both = [&none[..], &["--explainer", "noise"]].concat();
    let (_, err, code) = run(&both);
    assert_eq!(code, 0);
    assert!(
        err.contains("not applicable: densenet-small x mean-mask: it needs the mean of the training set's masks, and there is none"),
        "{err}"
    );
}

#[test]
fn made_phantoms_are_a_data_source_in_both_forms() {
    let folder = tempfile::tempdir().unwrap();
    for (format, section) in
        [("table", "source = \"table\"\ncsv = \"out/table.csv\""), ("node21", "source = \"node21\"\nroot = \"out\"")]
    {
        let here = folder.path().join(format);
        std::fs::create_dir(&here).unwrap();
        let out = text(&here.join("out"));
        let make = ["data", "make", &out, "--count", "30", "--pixels", "64", "--format", format];
        assert!(succeed(&make).starts_with("30 images, "));
        fail(&make, 3, "out: the folder is not empty");
        let spec = here.join("s.toml");
        std::fs::write(
            &spec,
            format!("name = \"x\"\noutput = {:?}\n[data]\n{section}\n[[models]]\nname = \"densenet-small\"\nweights = \"random\"\nparams = {{ size = 64 }}\n\
                     [[explainers]]\nname = \"brightness\"\n", here.join("run")),
        )
        .unwrap();
        let shown = succeed(&["data", "inspect", &text(&spec)]);
        let patients = if format == "table" { "30 patients" } else { "unknown patients" };
        assert!(
            shown.contains(&format!("images    30 (15 with the finding) of {patients}\nsizes     64x64")),
            "{shown}"
        );
        assert!(shown.contains("test      6 (3 with the finding)"), "{shown}");
        let table = succeed(&["run", &text(&spec)]);
        assert!(table.contains("brightness"), "{table}");
    }
}

/// Real radiographs: nodules inserted into those without, and the images as they are with NIH's own labels and boxes.
#[test]
fn real_radiographs_run_through_both_sources() {
    let Some(nih) = shared("data/nih-cxr") else { return };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, data: String, test: &str, explainers: &str| {
        let spec = folder.path().join(format!("{name}.toml"));
        let output = folder.path().join(name);
        std::fs::write(
            &spec,
            format!(
                "name = \"{name}\"\noutput = {output:?}\n[data]\n{data}\n[split]\ntest = {test}\n[[models]]\nname = \"densenet-small\"\nweights = \"random\"\n\
                 {explainers}"
            ),
        )
        .unwrap();
        text(&spec)
    };
    let check = |name: &str, data: String, test: &str, explainers: &str, expected: &[&str]| {
        let output = folder.path().join(name);
        let table = succeed(&["run", &write(name, data, test, explainers)]);
        expected.iter().for_each(|e| assert!(table.contains(e), "{name}: {e}\n{table}"));
        assert!(output.join("sheet.png").is_file());
    };
    let at = |name: &str| nih.join(name);
    let both = "[[explainers]]\nname = \"gradcam\"\n[[explainers]]\nname = \"edges\"\n";
    let nih_keys = format!(
        "source = \"nih\"\nlabels = {:?}\nimages = {:?}\nnegatives = \"no-finding\"\n",
        at("labels.csv"),
        at("images")
    );
    let inserted = format!("source = \"phantom\"\ncount = 80\n[data.backgrounds]\n{nih_keys}");
    check("inserted", inserted, "24", both, &["24 test images, 12 with the finding, 12 of them with a mask", "edges"]);
    let boxes = format!("{nih_keys}boxes = {:?}\n", at("boxes.csv"));
    check(
        "labels",
        boxes.clone(),
        "\"all\"",
        both,
        &["with the finding, ", "images of the explained class have no mask"],
    );
    // Of a small part drawn without regard to boxes none can be scored: said before anything is computed.
    let none = "none of the 24 test images has a box or mask of what is explained: no map could be scored";
    fail(&["run", &write("few", boxes, "24", both)], 3, none);
    let table = format!(
        "source = \"table\"\ncsv = {:?}\nimages = {:?}\nlabel = \"nodule\"\npatient = \"patient_id\"\n",
        at("labels.csv"),
        at("images")
    );
    fail(&["run", &write("table", table.clone(), "24", both)], 3, none);
    // Without explainers there is nothing to score but the classification.
    check("table", table, "24", "", &["24 test images, 12 with the finding"]);
}

/// A folder of NODE21's shape with the real annotation: made .mha images under the real names, real boxes, real splits.
#[test]
fn the_real_node21_annotation_runs_on_made_images() {
    let Some(splits) = shared("data/node21-splits") else { return };
    let folder = tempfile::tempdir().unwrap();
    // A part of the set, whole images of each split file, so that the test stays short.
    let (mut kept, parts) = (std::collections::BTreeSet::new(), folder.path().join("splits"));
    std::fs::create_dir(&parts).unwrap();
    let read = |name: &str| std::fs::read_to_string(splits.join(name)).unwrap();
    let names = |text: &str, keep: &dyn Fn(&str) -> bool| -> Vec<String> {
        text.lines().skip(1).filter(|l| keep(l.split(',').nth(1).unwrap())).map(str::to_string).collect()
    };
    let mut metadata = Vec::new();
    for file in ["test.csv", "train_fold0.csv", "val_fold0.csv"] {
        let text = read(file);
        let mut some: [Vec<String>; 2] = Default::default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split(',').collect();
            let class = &mut some[usize::from(fields[2] == "1")];
            if class.len() < 8 && !class.contains(&fields[1].to_string()) {
                class.push(fields[1].to_string());
            }
        }
        let some = some.concat();
        let lines = names(&text, &|n| some.iter().any(|s| s == n));
        std::fs::write(parts.join(file), format!("height,img_name,label,width,x,y\n{}\n", lines.join("\n"))).unwrap();
        metadata.extend(lines);
        kept.extend(some);
    }
    let root = folder.path().join("node21");
    for (i, name) in kept.iter().enumerate() {
        let pixels: Vec<u16> =
            (0..1024 * 1024usize).map(|p| ((p / 1024 + p % 1024 * 3 + i * 97) % 4096) as u16).collect();
        lightbox_core::data::mha::write_u16(&root.join("images").join(name), 1024, 1024, &pixels).unwrap();
    }
    std::fs::write(root.join("metadata.csv"), format!("height,img_name,label,width,x,y\n{}\n", metadata.join("\n")))
        .unwrap();
    let spec = folder.path().join("s.toml");
    std::fs::write(
        &spec,
        format!(
            "name = \"x\"\noutput = {:?}\n[data]\nsource = \"node21\"\nroot = \"node21\"\n[split]\nfiles = \"splits\"\n\
             [[models]]\nname = \"densenet-small\"\nweights = \"random\"\n[[explainers]]\nname = \"gradcam\"\n[[explainers]]\nname = \"mean-mask\"\n",
            folder.path().join("run")
        ),
    )
    .unwrap();
    let shown = succeed(&["data", "inspect", &text(&spec)]);
    assert!(
        shown.contains("sizes     1024x1024 (of 8 read)") && shown.contains("test      16 (8 with the finding)"),
        "{shown}"
    );
    let table = succeed(&["run", &text(&spec)]);
    assert!(table.contains("16 test images, 8 with the finding, 8 of them with a mask"), "{table}");
}

#[test]
fn colour_is_kept_where_it_is_asked_for() {
    use lightbox_core::checkpoint;
    use lightbox_core::data::image::write_png_rgb;
    use tch::Tensor;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    let side = 64;
    let level = |p: usize, c: usize| ((p * (3 + 4 * c) / 7) % 256) as u8;
    let bytes: Vec<u8> = (0..side * side).flat_map(|p| (0..3).map(move |c| level(p, c))).collect();
    write_png_rgb(at("a.png").as_ref(), side, side, &bytes).unwrap();
    let logits = |arguments: &[&str]| -> Vec<f32> {
        let fixed = [
            "--model",
            "densenet-small",
            "--model-param",
            "size=64",
            "--random-weights",
            "--explainer",
            "centre",
            "--raw",
        ];
        let raw = at("raw.safetensors");
        succeed(&[&["explain"], arguments, &fixed, &[&raw]].concat());
        let state = checkpoint::read(raw.as_ref()).unwrap();
        Vec::try_from(state.iter().find(|(n, _)| n == "logits").unwrap().1.flatten(0, -1)).unwrap()
    };
    // The batch by hand: channels first, ImageNet's mean and deviation.
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    let one = |c: usize, p: usize| ((f64::from(level(p, c)) / 255.0 - mean[c]) / std[c]) as f32;
    let values: Vec<f32> = (0..3).flat_map(|c| (0..side * side).map(move |p| (c, p))).map(|(c, p)| one(c, p)).collect();
    let batch = Tensor::from_slice(&values).reshape([1, 3, side as i64, side as i64]);
    checkpoint::write(at("b.safetensors").as_ref(), &[("images".into(), batch)]).unwrap();
    let (wanted, found) = (logits(&[&at("b.safetensors")]), logits(&[&at("a.png"), "--colour"]));
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(close(&found, &wanted), "{found:?} {wanted:?}");
    assert!(!close(&logits(&[&at("a.png")]), &wanted));
}
