//! Concept maps learn from folders of images, in any format that a run reads.

use lightbox_core::checkpoint;
use lightbox_core::data::image::write_png;
use lightbox_tests::{relative, run, small_spec, succeed, values};
use std::path::Path;
use tch::{Kind, Tensor};

/// Six pictures of 40 x 50 pixels with a bright square somewhere, or without one.
fn pictures(folder: &Path, bright: bool) {
    std::fs::create_dir_all(folder).unwrap();
    for i in 0..6usize {
        let square = |x: usize, y: usize| bright && x.abs_diff(8 * i % 30) < 9 && y.abs_diff(5 * i + 5) < 9;
        let pixel = |k: usize| if square(k % 40, k / 40) { 230 } else { (40 + (k * 7 + i * 31) % 23) as u8 };
        let pixels: Vec<u8> = (0..40 * 50).map(pixel).collect();
        write_png(&folder.join(format!("{i}.png")), 40, 50, &pixels).unwrap();
    }
    // No image, and no part of the concept.
    std::fs::write(folder.join(".hidden"), "x").unwrap();
}

#[test]
fn a_concept_is_learned_from_folders() {
    let folder = tempfile::tempdir().unwrap();
    pictures(&folder.path().join("bright"), true);
    pictures(&folder.path().join("dark"), false);
    let entry = |label: &str, params: &str| {
        format!("[[explainers]]\nname = \"concept\"\nlabel = \"{label}\"\nparams = {{ {params} }}\n")
    };
    let extra = entry("there", "concept = \"bright\", against = \"dark\", classifier = \"difference\"")
        + &entry("back", "concept = \"dark\", against = \"bright\", classifier = \"difference\"")
        + &entry("ridge", "concept = \"bright\", against = \"dark\"")
        + &entry("class", "classifier = \"difference\"")
        + &entry("training", "concept = \"bright\"");
    let spec = small_spec(folder.path(), &extra);
    succeed(&["run", &spec.to_string_lossy()]);
    let out = folder.path().join("out");
    let fits: Vec<_> = std::fs::read_dir(out.join("fits")).unwrap().flatten().map(|e| e.path()).collect();
    let fit = |label: &str| {
        let is_it = |p: &&std::path::PathBuf| {
            let name = p.file_name().unwrap().to_string_lossy().into_owned();
            name.contains(label) && name.ends_with(".safetensors")
        };
        let state = checkpoint::read(fits.iter().find(is_it).unwrap_or_else(|| panic!("no fit of {label}"))).unwrap();
        let get = |name: &str| state.iter().find(|(n, _)| n == name).unwrap().1.shallow_clone();
        (get("direction"), Vec::<i64>::try_from(get("images")).unwrap())
    };
    let (there, back, ridge, class) = (fit("there"), fit("back"), fit("ridge"), fit("class"));
    for (direction, images) in [&there, &back, &ridge] {
        assert_eq!(*images, [6, 6]);
        assert!((direction.norm().double_value(&[]) - 1.0).abs() < 1e-5);
    }
    assert!(relative(&there.0, &(-&back.0)) < 1e-5, "what tells A from B tells B from A, the other way");
    // The two classifiers agree on the side and are not the same.
    let along = (&there.0 * &ridge.0).sum(Kind::Double).double_value(&[]);
    assert!(along > 0.0 && along < 0.999, "{along}");
    // Without folders: the training images of the class against the others.
    assert!(class.1[0] > 0 && class.1[1] > 0 && class.1.iter().sum::<i64>() > 12, "{:?}", class.1);
    let training = fit("training");
    assert!(training.1[0] == 6 && training.1[1] == class.1.iter().sum::<i64>());
    // The direction counts twice, so its sign does not show.
    let all = values(&out);
    let of = |label: &str| -> Vec<f64> {
        all.iter().filter(|(k, _)| k.3 == label && k.4 == "pixel-auprc").filter_map(|(_, v)| *v).collect()
    };
    assert!(!of("there").is_empty() && of("there") == of("back") && of("there") != of("class"));
}

/// The direction is the difference of the layer's means, of images as the model takes them.
#[test]
fn images_are_read_as_the_model_takes_them() {
    let folder = tempfile::tempdir().unwrap();
    pictures(&folder.path().join("bright"), true);
    pictures(&folder.path().join("dark"), false);
    let extra = "[[explainers]]\nname = \"concept\"\n\
        params = { concept = \"bright\", against = \"dark\", classifier = \"difference\", layer = \"input\" }\n";
    let spec = small_spec(folder.path(), extra);
    succeed(&["run", &spec.to_string_lossy()]);
    let fits: Vec<_> = std::fs::read_dir(folder.path().join("out/fits")).unwrap().flatten().map(|e| e.path()).collect();
    let file = fits.iter().find(|p| p.extension().is_some_and(|e| e == "safetensors")).unwrap();
    let state = checkpoint::read(file).unwrap();
    let found = state.iter().find(|(n, _)| n == "direction").unwrap().1.to_kind(Kind::Double);
    // Grey images: the same difference of means in each channel, over the channel's deviation.
    let wanted = Tensor::from_slice(&[1.0 / 0.229, 1.0 / 0.224, 1.0 / 0.225]);
    assert!(relative(&found, &(&wanted / wanted.norm())) < 1e-4);
}

#[test]
fn a_folder_without_images_costs_its_cell_and_one_that_is_not_there_the_run() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    let entry = |path: &str| {
        format!(
            "[[explainers]]\nname = \"gradcam\"\n[[explainers]]\nname = \"concept\"\nparams = {{ concept = \"{path}\" }}\n"
        )
    };
    let spec = small_spec(folder.path(), &entry("empty"));
    let (out, err, code) = run(&["run", &spec.to_string_lossy()]);
    assert_eq!(code, 5, "{err}");
    assert!(out.contains("holds no images") && out.contains("gradcam"), "{out}");
    let spec = small_spec(folder.path(), &entry("missing"));
    let (_, err, code) = run(&["run", &spec.to_string_lossy(), "--restart"]);
    assert!(code == 3 && err.contains("missing"), "{code} {err}");
}
