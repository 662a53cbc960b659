//! Checkpoints as people bring them: wrapped, renamed, of another model, without a head, of another form. Cases from public bug
//! reports (CheXNet, torch.compile, Lightning, Hugging Face), made by renaming a model's own parameters.

use lightbox::engine::{self, Missing};
use lightbox_core::checkpoint;
use lightbox_sdk::spec::ModelOptions;
use lightbox_sdk::{Array, ModelHandle, Request};
use lightbox_tests::{built, fail, lightbox, oracle, run, small_spec, texts};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn plugin(family: &str) -> PathBuf {
    built(&format!("plugins/liblightbox_{family}.so"))
}

fn options(classes: usize, seed: u64) -> ModelOptions {
    ModelOptions { classes, seed, params: [("size".to_string(), 64.into())].into(), ..ModelOptions::default() }
}

fn fresh(family: &str, model: &str, classes: usize) -> ModelHandle {
    engine::load_model(&plugin(family), model, &options(classes, 7), None, Missing::Random).unwrap().0
}

/// A model's parameters, heads away from zero.
fn parameters(model: &ModelHandle) -> Vec<(String, Tensor)> {
    let of = |(name, array): (String, Array)| (name, array.share_tensor().unwrap().copy());
    model.parameters().unwrap().into_iter().map(of).collect()
}

fn logits(model: &ModelHandle) -> Tensor {
    let values: Vec<f32> = (0..2 * 3 * 64 * 64).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
    let images = Array::from_vec(&[2, 3, 64, 64], values).unwrap();
    model.run(&Request::forward(images)).unwrap().logits.share_tensor().unwrap().copy()
}

/// A file of these names is the model, and what was done is said.
fn check(family: &str, model: &str, rename: impl Fn(&str) -> String, note: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w.safetensors");
    let given = fresh(family, model, 3);
    let state: Vec<(String, Tensor)> = parameters(&given).into_iter().map(|(n, t)| (rename(&n), t)).collect();
    checkpoint::write(&file, &state).unwrap();
    let loaded = engine::load_model(&plugin(family), model, &options(3, 1), Some(&file), Missing::Refused);
    let (found, notes) = loaded.unwrap_or_else(|e| panic!("{note}: {e}"));
    assert_eq!(logits(&found), logits(&given), "{note}");
    assert!(notes.join("; ").contains(note) && notes.is_empty() == note.is_empty(), "{notes:?}");
}

#[test]
fn whatever_a_network_was_wrapped_in_is_taken_off() {
    let small = |rename: &dyn Fn(&str) -> String, note: &str| check("densenet", "densenet-small", rename, note);
    small(&|n| n.into(), "");
    small(&|n| format!("module.{n}"), "names are read without what the network was wrapped in, as module.");
    small(&|n| format!("_orig_mod.{n}"), "as _orig_mod.");
    small(&|n| format!("model._orig_mod.{n}"), "names are read without model.");
    small(&|n| format!("net.backbone.{n}"), "names are read without net.backbone.");
    // CheXNet: DataParallel, the attribute, and a head in a sequence.
    let chexnet = |n: &str| {
        let mut name = n.replace("classifier.", "classifier.0.");
        for (new, old) in [("norm1.", "norm.1."), ("norm2.", "norm.2."), ("conv1.", "conv.1."), ("conv2.", "conv.2.")] {
            if name.contains("denselayer") {
                name = name.replace(new, old);
            }
        }
        format!("module.densenet121.{name}")
    };
    small(&chexnet, "classifier.0.weight is read as classifier.weight");
}

#[test]
fn transformers_of_hugging_face_are_read() {
    let theirs = |name: &str, query: &str| -> String {
        let block = |rest: &str| {
            let (number, rest) = rest.split_once('.').unwrap();
            let rest = match rest {
                r if r.starts_with("attn.qkv.") => r.replace("attn.qkv.", &format!("attention.attention.{query}.")),
                r => r
                    .replace("norm1.", "layernorm_before.")
                    .replace("norm2.", "layernorm_after.")
                    .replace("attn.proj.", "attention.output.dense.")
                    .replace("mlp.fc1.", "intermediate.dense.")
                    .replace("mlp.fc2.", "output.dense."),
            };
            format!("vit.encoder.layer.{number}.{rest}")
        };
        match name {
            "cls_token" => "vit.embeddings.cls_token".into(),
            "pos_embed" => "vit.embeddings.position_embeddings".into(),
            n if n.starts_with("patch_embed.proj.") => {
                n.replace("patch_embed.proj.", "vit.embeddings.patch_embeddings.projection.")
            }
            n if n.starts_with("blocks.") => block(&n["blocks.".len()..]),
            n if n.starts_with("norm.") => n.replace("norm.", "vit.layernorm."),
            n => n.replace("head.", "classifier."),
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w.safetensors");
    let given = fresh("deit", "deit-mini", 2);
    let mut state = Vec::new();
    for (name, tensor) in parameters(&given) {
        match name.contains("attn.qkv.") {
            true => {
                for (part, query) in tensor.chunk(3, 0).into_iter().zip(["query", "key", "value"]) {
                    state.push((theirs(&name, query), part.contiguous()));
                }
            }
            false => state.push((theirs(&name, ""), tensor)),
        }
    }
    checkpoint::write(&file, &state).unwrap();
    let loaded = engine::load_model(&plugin("deit"), "deit-mini", &options(2, 1), Some(&file), Missing::Refused);
    let (found, notes) = loaded.unwrap();
    assert_eq!((logits(&found), notes), (logits(&given), vec![]));
}

#[test]
fn a_file_that_does_not_fit_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w.safetensors");
    let check = |state: &[(&str, Vec<i64>)], family: &str, model: &str, parts: &[&str]| {
        let made = |(name, shape): &(&str, Vec<i64>)| {
            (name.to_string(), Tensor::zeros(shape, (Kind::Float, tch::Device::Cpu)))
        };
        checkpoint::write(&file, &state.iter().map(made).collect::<Vec<_>>()).unwrap();
        let loaded = engine::load_model(&plugin(family), model, &options(2, 1), Some(&file), Missing::Refused);
        let error = loaded.err().unwrap().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    let resnet = [
        ("conv1.weight", vec![64, 3, 7, 7]),
        ("layer1.0.conv1.weight", vec![1]),
        ("layer1.0.conv3.weight", vec![1]),
        ("layer3.5.conv1.weight", vec![1]),
    ];
    check(&resnet, "densenet", "densenet121", &["it looks like a ResNet-50", "it has 4 entries, as conv1.weight, "]);
    // A distilled model's file given to the plain one: the variant that it fits is named.
    let given = engine::load_model(
        &plugin("deit"),
        "deit_tiny_distilled_patch16_224",
        &ModelOptions { classes: 2, ..ModelOptions::default() },
        None,
        Missing::Random,
    );
    checkpoint::write(&file, &parameters(&given.unwrap().0)).unwrap();
    let plain = ModelOptions { classes: 2, ..ModelOptions::default() };
    let loaded = engine::load_model(&plugin("deit"), "deit_tiny_patch16_224", &plain, Some(&file), Missing::Refused);
    let error = loaded.err().unwrap().to_string();
    assert!(error.contains("(hint: it fits deit_tiny_distilled_patch16_224)"), "{error}");
}

#[test]
fn a_head_that_does_not_fit_is_an_error_unless_it_is_to_be_random() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    checkpoint::write(&at("five.safetensors"), &parameters(&fresh("densenet", "densenet-small", 5))).unwrap();
    let file = text(&at("five.safetensors"));
    let said = "five.safetensors: its head does not fit: the checkpoint's classifier.weight has shape [5, ";
    // In a run: said before anything is computed, and the same command goes on when it is mended.
    let spec = small_spec(folder.path(), "[[explainers]]\nname = \"gradcam\"\n");
    let with = |lines: &str| {
        let spec = std::fs::read_to_string(&spec).unwrap().replace("weights = \"random\"", lines);
        std::fs::write(at("s.toml"), spec).unwrap();
        text(&at("s.toml"))
    };
    fail(&["run", &with(&format!("weights = {file:?}"))], 3, said);
    assert!(!at("out/prepared").exists());
    let (out, err, code) = run(&["run", &with(&format!("weights = {file:?}\nrandom_head = true"))]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("weights of five.safetensors, but a RANDOM head"), "{out}");
    fail(&["run", &with("")], 3, "model densenet-small: it has neither weights nor training (hint: weights = \"FILE\"");
    // In explain.
    let image = at("a.png");
    lightbox_core::data::image::write_png(&image, 64, 64, &[9; 4096]).unwrap();
    let (image, out) = (text(&image), text(&at("o")));
    let explain =
        ["explain", &image, "--model", "densenet-small", "--weights", &file, "--explainer", "gradcam", "--out", &out];
    let two = [&explain[..], &["--classes", "2"]].concat();
    fail(&two, 3, said);
    let (_, err, code) = texts(lightbox(&two).arg("--random-weights").output().unwrap());
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("densenet-small has random values"), "{err}");
}

#[test]
fn files_of_torch_save_in_every_form() {
    let wanted = checkpoint::read(&oracle("forms.pth")).unwrap();
    let same = |name: &str| {
        let found = checkpoint::open(&oracle(name)).unwrap();
        assert_eq!(found.state.len(), wanted.len(), "{name}");
        for ((a, x), (b, y)) in found.state.iter().zip(&wanted) {
            assert_eq!((a, x.kind(), x), (b, y.kind(), y), "{name}");
        }
        found.notes
    };
    assert!(same("forms-legacy.pth").is_empty());
    assert!(same("forms-ema.pth")[0].contains("model_ema, an average over training"));
    let error = |name: &str| checkpoint::open(&oracle(name)).unwrap_err().to_string();
    let whole = error("forms-module.pth");
    assert!(whole.contains("it holds a whole module (torch.nn.modules.linear.Linear)"), "{whole}");
    assert!(whole.contains("(hint: save them in PyTorch: torch.save(model.state_dict(), FILE))"), "{whole}");
    let none = error("forms-none.pth");
    assert!(none.contains("the checkpoint holds no tensors; its entries are: epoch, best"), "{none}");
}

#[test]
fn small_files_that_claim_much_are_refused() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/cases");
    if !cases.is_dir() {
        eprintln!("skipped: ../shared/cases is not there");
        return;
    }
    let check = |name: &str, message: &str| {
        let error = checkpoint::read(&cases.join(name)).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains(name), "{error}");
    };
    check("memo.pth", "memo.pth: ");
    check("stride0_16g.pth", "does not fit its");
    let check = |name: &str, message: &str| {
        let error = lightbox_core::data::reader::read(&cases.join(name), false).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains(name), "{error}");
    };
    check("tib.png", "pixels are more than");
    check("bigl.jpg", "pixels are more than");
    check("jpgbig.dcm", "it says 20 x 24 pixels, its code stream 65500 x 65500");
    check("length.dcm", "the DICOM file is truncated");
    check("offset-table.dcm", "the DICOM file is truncated");
    for name in ["gzip.mha", "ascii.mha", "local_lower.mha", "colon.mha"] {
        let image = lightbox_core::data::reader::read(&cases.join(name), false).unwrap();
        let wanted = lightbox_core::data::image::Pixels::U16((1..7).collect());
        assert_eq!((image.width, image.height, image.pixels), (3, 2, wanted), "{name}");
    }
}
