//! Models that compute in bfloat16: near float32, and a run that begins at a site is the rest of the whole run.

use lightbox::engine;
use lightbox_sdk::spec::{ModelOptions, Site};
use lightbox_sdk::{Array, ModelHandle, Objective, Patch, Request};
use lightbox_tests::{built, input_of};
use tch::{Kind, Tensor};

/// Of each family, of two prefix tokens and of a token a class; how far a gradient at the image may move, of its norm.
const MODELS: [(&str, &str, f64); 5] = [
    ("densenet", "densenet-small", 0.3),
    ("deit", "deit-mini", 0.1),
    ("deit", "deit_tiny_distilled_patch16_224", 0.1),
    ("patchconvnet", "patchconvnet-mini", 0.1),
    ("patchconvnet", "patchconvnet-mini-multi", 0.1),
];

fn model(plugin: &str, name: &str, precision: &str) -> ModelHandle {
    let file = built(&format!("plugins/liblightbox_{plugin}.so"));
    let mut options = ModelOptions { classes: 3, ..ModelOptions::default() };
    options.params.extend([("size".to_string(), 128.into()), ("precision".to_string(), precision.into())]);
    engine::load_model(&file, name, &options, None, engine::Missing::Random).unwrap().0
}

fn tensor(array: &Array) -> Tensor {
    array.share_tensor().unwrap().copy()
}

fn distance(found: &Tensor, wanted: &Tensor) -> f64 {
    ((found - wanted).norm() / wanted.norm()).double_value(&[])
}

#[test]
fn bfloat16_is_float32_up_to_its_digits() {
    for (plugin, name, at_image) in MODELS {
        let run = |precision: &str, rules: &[&str]| {
            let model = model(plugin, name, precision);
            let site = model.spec().unwrap().cam_site.unwrap();
            let targets = Array::from_vec(&[2], vec![1i64, 0]).unwrap();
            let grads = [site.clone(), "input".to_string()];
            let images = Array::from_tensor(&input_of(128)).unwrap();
            let mut request = Request::explain(images, Objective::Class(targets), &grads[..1], &grads);
            request.rules = rules.iter().map(|r| r.to_string()).collect();
            let response = model.run(&request).unwrap();
            let found = &response.grads[0];
            [&response.logits, &response.values[&site], &found[&site], &found["input"]].map(tensor)
        };
        let (full, low) = (run("float32", &[]), run("bfloat16", &[]));
        for (what, limit) in [0.05, 0.05, 0.05, at_image].into_iter().enumerate() {
            let error = distance(&low[what], &full[what]);
            assert!(low[what].kind() == Kind::Float && error < limit, "{name}, {what}: {error}");
        }
        assert!(low[0] != full[0], "{name}: computed in float32");
        // Rules divide by small numbers: they stay in float32.
        assert_eq!(run("float32", &["linear:epsilon"]), run("bfloat16", &["linear:epsilon"]), "{name}");
    }
}

#[test]
fn a_run_in_bfloat16_begins_anywhere() {
    for (plugin, name, _) in MODELS {
        let model = model(plugin, name, "bfloat16");
        let images = Array::from_tensor(&input_of(128)).unwrap();
        let logits = |request: &Request| tensor(&model.run(request).unwrap().logits);
        let starts: Vec<Site> = model.spec().unwrap().sites.into_iter().filter(|s| s.start).collect();
        assert!(starts.len() > 3, "{name}");
        for Site { name: site, .. } in starts {
            let whole = Request { values: vec![site.clone()], ..Request::forward(images.clone()) };
            let from = Request::from_site(&site, model.run(&whole).unwrap().values[&site].clone()).unwrap();
            let half = Array::from_vec(&[1], vec![0.5f32]).unwrap();
            let patches = vec![Patch { site: site.clone(), scale: Some(half), shift: None }];
            let patched = Request { patches: patches.clone(), ..Request::forward(images.clone()) };
            for (whole, rest) in [(&whole, &from), (&patched, &Request { patches, ..from.clone() })] {
                let error = distance(&logits(rest), &logits(whole));
                assert!(error < 1e-5, "{name} from {site}: {error}");
            }
        }
    }
}
