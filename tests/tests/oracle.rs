//! Against the peers: files that `tests/oracle/make.py` made with scikit-learn, torchvision, PyTorch, SimpleITK, pydicom.

use lightbox::engine;
use lightbox_core::checkpoint::{self, State};
use lightbox_core::data::image::Pixels;
use lightbox_core::data::reader;
use lightbox_core::data::resize::resize;
use lightbox_core::metrics::auroc::auroc;
use lightbox_core::metrics::average_precision::{Score, average_precision, pixel_average_precision};
use lightbox_sdk::spec::ModelOptions;
use lightbox_sdk::{Array, Request};
use lightbox_tests::{built, oracle, relative, run, succeed, unit, weights};
use tch::{Kind, Tensor};

fn state(name: &str) -> State {
    checkpoint::read(&oracle(name)).unwrap()
}

fn get(state: &State, name: &str) -> Tensor {
    state.iter().find(|(n, _)| n == name).map(|(_, t)| t.shallow_clone()).unwrap_or_else(|| panic!("no {name}"))
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(tensor.flatten(0, -1).to_kind(Kind::Double)).unwrap()
}

#[test]
fn average_precision_and_auroc_equal_scikit_learn() {
    let golden = state("ap.safetensors");
    let (maps, masks) = (get(&golden, "maps"), get(&golden, "masks"));
    let (ap, roc) = (floats(&get(&golden, "ap")), floats(&get(&golden, "auroc")));
    let all = |t: &Tensor| Vec::<f32>::try_from(t.flatten(0, -1).to_kind(Kind::Float)).unwrap();
    let bytes = |t: &Tensor| Vec::<u8>::try_from(t.flatten(0, -1)).unwrap();
    assert_eq!(ap.len(), 24);
    for (i, wanted) in ap.iter().enumerate() {
        let (map, mask) = (all(&maps.get(i as i64)), bytes(&masks.get(i as i64)));
        let Score::Value(found) = pixel_average_precision(&map, &mask) else { panic!("map {i}") };
        assert!((found - wanted).abs() < 1e-9, "map {i}: {found} {wanted}");
        let scores: Vec<f64> = map.iter().map(|&v| f64::from(v)).collect();
        assert!((average_precision(&scores, &mask).unwrap() - wanted).abs() < 1e-9, "map {i}");
        assert!((auroc(&scores, &mask).unwrap() - roc[i]).abs() < 1e-9, "map {i}");
    }
    let (map, mask) = (all(&maps), bytes(&masks));
    let positives = map.iter().zip(&mask).filter(|(_, m)| **m == 1).map(|(v, _)| *v);
    let mut pooled = lightbox_core::metrics::pixels::Pixels::new(positives).unwrap();
    map.chunks(4096).for_each(|image| assert!(pooled.count(image)));
    assert!((pooled.average_precision() - floats(&get(&golden, "pooled"))[0]).abs() < 1e-9);
}

/// The metric of maps, not its kernel alone.
#[test]
fn pixel_auroc_equals_scikit_learn() {
    use lightbox_core::metrics::{Batch, NoBench, find};
    let golden = state("ap.safetensors");
    let (maps, masks) = (get(&golden, "maps"), get(&golden, "masks"));
    let n = maps.size()[0] as usize;
    let metric = find("pixel-auroc").unwrap();
    let mut evaluation = metric.start(&metric.spec().resolve(&Default::default()).unwrap(), 0).unwrap();
    let batch = Batch {
        images: &Tensor::zeros([n as i64, 3, 1, 1], (Kind::Float, tch::Device::Cpu)),
        targets: &vec![1; n],
        ids: &(0..n as u64).collect::<Vec<_>>(),
        maps: Some(&maps),
        faults: &lightbox_core::maps::faults(&maps).unwrap(),
        masks: Some(&masks),
        known: &vec![true; n],
        signed: false,
        scene: &Default::default(),
        cell: &Default::default(),
    };
    let scores = evaluation.update(&batch, &mut NoBench).unwrap();
    for (i, (score, wanted)) in scores.iter().zip(floats(&get(&golden, "auroc"))).enumerate() {
        assert!((score.value.unwrap() - wanted).abs() < 1e-9, "map {i}: {score:?} {wanted}");
    }
    assert!(scores.len() == 24 && scores.iter().any(|s| !s.reason.is_empty()));
}

#[test]
fn resizing_equals_torchvision_within_one_grey_level() {
    let golden = state("resize.safetensors");
    for k in 0..4 {
        let image = get(&golden, &format!("{k}.image"));
        let (h, w) = (image.size()[0] as usize, image.size()[1] as usize);
        let unit: Vec<f32> = floats(&image).iter().map(|v| (v / 255.0) as f32).collect();
        for path in ["pil", "tensor"] {
            let wanted = get(&golden, &format!("{k}.{path}"));
            let size = wanted.size()[0] as usize;
            let found = resize(&unit, (w, h), (size, size));
            let worst = found
                .iter()
                .zip(floats(&wanted))
                .map(|(f, w)| (f64::from((f.clamp(0.0, 1.0) * 255.0).round()) - w).abs())
                .fold(0.0, f64::max);
            assert!(worst <= 1.0, "{h}x{w} -> {size}, {path}: {worst}");
        }
    }
}

#[test]
fn every_form_of_pytorch_file_loads_and_gives_torchvisions_logits() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw.safetensors").to_string_lossy().into_owned();
    let batch = oracle("checkpoint.safetensors").to_string_lossy().into_owned();
    let wanted = get(&state("checkpoint.safetensors"), "logits");
    for (name, most) in [
        ("plain.pth", 1e-5),
        ("old-keys.pth", 1e-5),
        ("wrapped.pth", 1e-5),
        ("parameters.pth", 1e-5),
        ("half.pth", 5e-3),
    ] {
        let file = oracle(name).to_string_lossy().into_owned();
        succeed(&[
            "explain",
            &batch,
            "--model",
            "densenet-small",
            "--model-param",
            "size=64",
            "--weights",
            &file,
            "--explainer",
            "gradcam",
            "--raw",
            &raw,
            "--device",
            "cpu",
        ]);
        let error = relative(&get(&checkpoint::read(raw.as_ref()).unwrap(), "logits"), &wanted);
        assert!(error < most, "{name}: {error}");
    }
}

#[test]
fn another_number_of_classes_keeps_the_trunk_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw.safetensors").to_string_lossy().into_owned();
    let batch = oracle("checkpoint.safetensors").to_string_lossy().into_owned();
    let file = oracle("five-classes.pth").to_string_lossy().into_owned();
    let with = |classes: &[&str]| {
        let arguments = [
            "explain",
            &batch,
            "--model",
            "densenet-small",
            "--model-param",
            "size=64",
            "--weights",
            &file,
            "--explainer",
            "gradcam",
            "--raw",
            &raw,
        ];
        let (_, err, code) = run(&[&arguments, classes].concat());
        assert_eq!(code, 0, "{err}");
        (err, get(&checkpoint::read(raw.as_ref()).unwrap(), "logits").size()[1])
    };
    let (err, classes) = with(&[]);
    assert!(classes == 5 && !err.contains("head is new"), "{err}");
    let (err, classes) = with(&["--classes", "2", "--random-weights"]);
    assert_eq!(classes, 2);
    assert!(
        err.contains(
            "note: the head is new: the checkpoint's classifier.weight has shape [5, 87], the model's [2, 87]"
        ),
        "{err}"
    );
}

/// Logits and attention of a batch made from a name, and what the program said.
fn explain(model: &str, weights: &str, batch: (&str, i64), more: &[&str]) -> (State, String) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (name, side) = batch;
    let values = unit(name, (2 * 3 * side * side) as usize);
    let values: Vec<f32> = values.into_iter().map(|u| (2.0 * u - 1.0) as f32).collect();
    let images = Tensor::from_slice(&values).reshape([2, 3, side, side]);
    checkpoint::write(at("batch.safetensors").as_ref(), &[("images".into(), images)]).unwrap();
    let (batch, raw, size) = (at("batch.safetensors"), at("raw.safetensors"), format!("size={side}"));
    let arguments = ["explain", &batch, "--model", model, "--weights", weights, "--raw", &raw, "--device", "cpu"];
    let rest = ["--explainer", "attention", "--model-param", &size];
    let (out, err, code) = run(&[&arguments[..], &rest[..], more].concat());
    assert_eq!(code, 0, "{out}{err}");
    (checkpoint::read(raw.as_ref()).unwrap(), err)
}

#[test]
fn deits_files_load_at_their_own_and_at_another_input_size() {
    let golden = state("deit.safetensors");
    for name in ["deit-facebook.pth", "deit-timm.safetensors"] {
        let file = oracle(name).to_string_lossy().into_owned();
        let explain = |batch, more: &[&str]| explain("deit-mini", &file, batch, more);
        let (own, err) = explain(("deit.128", 128), &[]);
        let error = relative(&get(&own, "logits"), &get(&golden, "logits.128"));
        assert!(error < 1e-5 && !err.contains("note"), "{name}: {error}, {err}");
        let (larger, err) = explain(("deit.192", 192), &[]);
        let error = relative(&get(&larger, "logits"), &get(&golden, "logits.192"));
        assert!(error < 1e-5, "{name}: {error}");
        assert!(err.contains("note: position embeddings were resized from 65 to 145 tokens"), "{err}");
        let (other, err) = explain(("deit.128", 128), &["--classes", "2", "--random-weights"]);
        assert_eq!((get(&other, "logits").size(), get(&other, "attention")), (vec![2, 2], get(&own, "attention")));
        let note = "note: the head is new: the checkpoint's head.weight has shape [5, 64], the model's [2, 64]";
        assert!(err.contains(note), "{err}");
    }
}

#[test]
fn patchconvnets_files_load_and_take_other_classes() {
    let folder = tempfile::tempdir().unwrap();
    let same = folder.path().join("same.safetensors").to_string_lossy().into_owned();
    let logits = |model: &str, file: &str| {
        let (found, err) = explain(model, file, ("pcn", 128), &[]);
        assert!(!err.contains("note"), "{err}");
        get(&found, "logits")
    };
    for (model, name) in [("patchconvnet-mini", "patchconvnet"), ("patchconvnet-mini-multi", "patchconvnet-multi")] {
        checkpoint::write(same.as_ref(), &weights(&oracle(&format!("{name}.keys.json")))).unwrap();
        let wanted = logits(model, &same);
        assert_eq!(wanted.size(), [2, 5]);
        assert_eq!(logits(model, &oracle(&format!("{name}.pth")).to_string_lossy()), wanted, "{name}");
    }
    let file = oracle("patchconvnet-multi.pth");
    // Three classes: new tokens and heads on the same trunk.
    let trunk = |classes: usize| {
        let options = ModelOptions { classes, ..ModelOptions::default() };
        let plugin = built("plugins/liblightbox_patchconvnet.so");
        let (model, notes) =
            engine::load_model(&plugin, "patchconvnet-mini-multi", &options, Some(&file), engine::Missing::Random)
                .unwrap();
        let images = Array::from_tensor(&Tensor::ones([1, 3, 128, 128], (Kind::Float, tch::Device::Cpu))).unwrap();
        let request = Request { values: vec!["blocks.5".into()], ..Request::forward(images) };
        let response = model.run(&request).unwrap();
        (response.logits.shape().to_vec(), response.values["blocks.5"].share_tensor().unwrap(), notes)
    };
    let (own, other) = (trunk(5), trunk(3));
    assert_eq!((own.0, own.2), (vec![1, 5], vec![]));
    assert_eq!((other.0, other.1), (vec![1, 3], own.1));
    let note = "the class tokens and heads are new: the checkpoint has 5 classes, the model 3";
    assert_eq!(other.2, [note]);
}

#[test]
fn medical_files_hold_their_picture() {
    let wanted = floats(&get(&state("medical.safetensors"), "image"));
    let values = |name: &str| -> Vec<f64> {
        let grey = reader::read(&oracle(name), false).unwrap();
        assert_eq!((grey.width, grey.height), (20, 24), "{name}");
        match grey.pixels {
            Pixels::U8(v) => v.into_iter().map(f64::from).collect(),
            Pixels::U16(v) => v.into_iter().map(f64::from).collect(),
            Pixels::F32(v) | Pixels::Unit(v) => v.into_iter().map(f64::from).collect(),
        }
    };
    for name in ["u16.mha", "u16-zlib.mha", "f32.mhd", "i16-slice.mha", "u16.png"] {
        assert_eq!(values(name), wanted, "{name}");
    }
    // Without a window: from the least to the greatest. MONOCHROME1: white is zero, bright must be bright again.
    let (low, high) = wanted.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    for name in ["mono2.dcm", "mono1.dcm"] {
        let found = values(name);
        assert!(found.iter().zip(&wanted).all(|(f, w)| (f - (w - low) / (high - low)).abs() < 1e-6), "{name}");
    }
    let cut = std::fs::read(oracle("mono2.dcm")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.dcm");
    std::fs::write(&path, &cut[..cut.len() - 300]).unwrap();
    let error = reader::read(&path, false).unwrap_err().to_string();
    assert!(error.contains("cut.dcm: "), "{error}");
}

#[test]
fn dicom_files_look_as_pydicom_shows_them() {
    let golden = state("dicom.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let (mut count, mut refused) = (0, Vec::new());
    for (key, bytes) in golden.iter().filter(|(name, _)| name.ends_with(".file")) {
        let name = key.trim_end_matches(".file");
        let path = folder.path().join(format!("{name}.dcm"));
        std::fs::write(&path, Vec::<u8>::try_from(bytes).unwrap()).unwrap();
        let image = match reader::read(&path, false) {
            Ok(image) => image,
            Err(e) => {
                refused.push(format!("{name}: {}", e.what));
                continue;
            }
        };
        let eight = ["eight-bits", "eight-bits-monochrome1", "rle-8", "jpeg-baseline"];
        assert_eq!(image.is_8_bit(), eight.contains(&name), "{name}");
        let wanted = floats(&get(&golden, &format!("{name}.unit")));
        let found = image.unit().unwrap();
        let worst = found.iter().zip(&wanted).map(|(f, w)| (f64::from(*f) - w).abs()).fold(0.0, f64::max);
        // Decoders of lossy JPEG round on their own: a level of 255.
        let tolerance = if name == "jpeg-baseline" { 1.01 / 255.0 } else { 1e-5 };
        assert!(worst < tolerance, "{name}: {worst}");
        count += 1;
    }
    assert_eq!(count, 23);
    assert!(refused.len() == 1 && refused[0].starts_with("jpeg-ls: the pixels cannot be decoded"), "{refused:?}");
}

#[test]
fn the_choice_of_range_is_what_it_says() {
    use lightbox_core::data::image::{Image, Intensity};
    let deep = Image::grey(1000, 1, Pixels::U16((0..1000).chain([60000]).skip(1).collect())).unwrap();
    let at = |i: Intensity, p: usize| deep.unit_by(i).unwrap()[p];
    // One hot pixel leaves little of the full range; the percentiles pass it over.
    assert!(at(Intensity::Full, 500) < 0.01 && at(Intensity::Auto, 500) < 0.01);
    assert!((at(Intensity::Percentile, 500) - 0.5).abs() < 0.01 && at(Intensity::Percentile, 999) == 1.0);
    let eight = Image::grey(2, 1, Pixels::U8(vec![10, 20])).unwrap();
    assert_eq!(eight.unit_by(Intensity::Full).unwrap(), [0.0, 1.0]);
}
