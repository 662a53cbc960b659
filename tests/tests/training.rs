//! Training against PyTorch: the losses and the trained models of `tests/oracle/make.py`, step by step.

use lightbox::engine;
use lightbox_core::checkpoint::{self, State};
use lightbox_sdk::Array;
use lightbox_sdk::spec::{ModelOptions, TrainerOptions};
use lightbox_tests::{built, oracle, relative, unit};
use tch::{Kind, Tensor};

fn get(state: &State, name: &str) -> Tensor {
    state.iter().find(|(n, _)| n == name).map(|(_, t)| t.shallow_clone()).unwrap_or_else(|| panic!("no {name}"))
}

fn images(name: &str, size: i64) -> Array {
    let shape = [5, 3, size, size];
    let values: Vec<f32> = unit(name, (5 * 3 * size * size) as usize).iter().map(|u| (2.0 * u - 1.0) as f32).collect();
    Array::from_tensor(&Tensor::from_slice(&values).reshape(shape)).unwrap()
}

/// Eight steps with a falling learning rate, decay and class weights.
fn check(key: &str, plugin: &str, model: &str, weights: &str, size: i64, class_weights: &[f64]) {
    let golden = checkpoint::read(&oracle("training.safetensors")).unwrap();
    let plugin = built(&format!("plugins/liblightbox_{plugin}.so"));
    let mut options = ModelOptions { classes: class_weights.len(), ..ModelOptions::default() };
    options.params.insert("size".into(), size.into());
    for optimizer in ["adamw", "sgd"] {
        let (model, _) =
            engine::load_model(&plugin, model, &options, Some(&oracle(weights)), engine::Missing::Random).unwrap();
        let mut trainer = model
            .trainer(&TrainerOptions {
                optimizer: optimizer.into(),
                learning_rate: 1e-3,
                weight_decay: 5.0,
                class_weights: class_weights.into(),
                ..TrainerOptions::default()
            })
            .unwrap();
        let name = format!("{key}.{optimizer}");
        let classes = class_weights.len() as i64;
        let targets = Array::from_vec(&[5], (0..5).map(|i| i % classes).collect::<Vec<i64>>()).unwrap();
        let losses = Vec::<f64>::try_from(get(&golden, &format!("{name}.losses"))).unwrap();
        for (step, wanted) in losses.iter().enumerate() {
            trainer.set_learning_rate(1e-3 * 0.9f64.powi(step as i32)).unwrap();
            let loss = trainer.step(&images(&format!("{name}.{step}"), size), &targets).unwrap();
            eprintln!("{name} step {step}: {:.1e}", (loss - wanted).abs());
            assert!((loss - wanted).abs() < 1e-5, "{name} step {step}: {loss}, {wanted}");
        }
        let logits = trainer.evaluate(&images(&format!("{name}.0"), size)).unwrap().share_tensor().unwrap();
        let error = relative(&logits.to_kind(Kind::Float), &get(&golden, &format!("{name}.logits")));
        eprintln!("{name} logits: {error:.1e}");
        assert!(error < 1e-3, "{name}: {error}");
    }
}

#[test]
fn a_densenet_trains_as_torchvisions_does_in_pytorch() {
    check("densenet", "densenet", "densenet-small", "plain.pth", 64, &[0.5, 2.0]);
}

#[test]
fn a_deit_trains_as_timms_does_in_pytorch() {
    check("deit", "deit", "deit-mini", "deit-facebook.pth", 128, &[0.5, 2.0, 1.0, 1.0, 3.0]);
}

#[test]
fn mixed_precision_without_cuda_and_unknown_words_are_errors() {
    let plugin = built("plugins/liblightbox_deit.so");
    let (model, _) =
        engine::load_model(&plugin, "deit-mini", &ModelOptions::default(), None, engine::Missing::Random).unwrap();
    let error = |options: TrainerOptions| match model.trainer(&options) {
        Ok(_) => panic!("a trainer was made"),
        Err(e) => e.to_string(),
    };
    let mixed = TrainerOptions { precision: "mixed".into(), ..TrainerOptions::default() };
    assert!(error(mixed).contains("mixed precision needs a CUDA device"));
    let half = TrainerOptions { precision: "half".into(), ..TrainerOptions::default() };
    assert!(error(half).contains("unknown precision half (known: float32, mixed)"));
    let adam = TrainerOptions { optimizer: "adam".into(), ..TrainerOptions::default() };
    assert!(error(adam).contains("unknown optimizer adam (known: adamw, sgd)"));
}
