//! Models that are no classifiers of flat images, and targets that are no classes: a region of a class map, a box of a detector, a
//! class of a volume. What explainers make of them is compared with slow second derivations.

use lightbox::choice::ExplainerChoice;
use lightbox::engine::{self, Batch, Engine, Settings};
use lightbox::watch::terminal;
use lightbox_sdk::spec::{ModelOptions, Plan, TargetKind};
use lightbox_sdk::{Array, ModelHandle, Patch, Request, Score, Target};
use lightbox_tests::{built, relative};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

const MODELS: [(&str, TargetKind); 3] =
    [("hard-segmenter", TargetKind::Region), ("hard-detector", TargetKind::Box), ("hard-volume", TargetKind::Class)];

fn hard() -> std::path::PathBuf {
    built("test-plugins/hard/liblightbox_hard.so")
}

fn model(name: &str) -> ModelHandle {
    engine::load_model(&hard(), name, &ModelOptions::default(), None, engine::Missing::Random).unwrap().0
}

/// Two images of noise that depends on the place.
fn images(name: &str) -> Tensor {
    let size: Vec<i64> = model(name).spec().unwrap().input.shape(2).into_iter().map(|n| n as i64).collect();
    let n: i64 = size.iter().product();
    let values: Vec<f32> = (0..n).map(|i| ((i * 37 + i * i % 29) % 101) as f32 / 50.0 - 1.0).collect();
    Tensor::from_slice(&values).reshape(size)
}

/// A target for each of two images, of two classes.
fn targets(kind: TargetKind) -> Vec<Target> {
    let one = |b: usize| match kind {
        TargetKind::Region => {
            // A rectangle that parts cells.
            let marked = |y: usize, x: usize| (2 + b..9).contains(&y) && (5..11 + b).contains(&x);
            let mask = (0..256).map(|i| f32::from(u8::from(marked(i / 16, i % 16)))).collect();
            Target::Region { class: 1 + b, mask: Array::from_vec(&[16, 16], mask).unwrap() }
        }
        TargetKind::Box => {
            let left = 4.0 + b as f64;
            Target::Box { class: 1 + b, area: [left, 5.0, left + 4.5, 9.0], candidate: None }
        }
        _ => Target::Class(1 + b),
    };
    vec![one(0), one(1)]
}

fn explain(name: &str, kind: TargetKind, explainer: &str) -> (Engine, Batch) {
    let settings = Settings { targets: vec![kind], ..Settings::new(Device::Cpu, 0) };
    let mut engine = Engine::new(model(name), settings, terminal()).unwrap();
    let plugin = |name: &str| match name {
        "gradcam" | "finercam" => "cam",
        "integratedgradients" => "gradient",
        _ => "perturbation",
    };
    let choice = ExplainerChoice::parse(explainer).unwrap();
    let file = built(&format!("plugins/liblightbox_{}.so", plugin(&choice.name)));
    engine.add(&file, &choice).unwrap();
    let wanted: Vec<Option<Target>> = targets(kind).into_iter().map(Some).collect();
    let batch = engine.run(&images(name), &wanted, &[7, 8], &[0], &mut |_| ()).unwrap();
    (engine, batch)
}

/// The map of one explainer, [2, size...].
fn map(name: &str, kind: TargetKind, explainer: &str) -> (Engine, Tensor, Vec<Target>) {
    let (engine, batch) = explain(name, kind, explainer);
    let outputs = batch.maps.into_iter().next().unwrap().1.unwrap();
    let maps = outputs.maps.squeeze_dim(1).to_kind(Kind::Double);
    assert!(maps.isfinite().all().int64_value(&[]) == 1, "{name} {explainer}");
    (engine, maps, batch.targets)
}

/// The targets' scores of a request by definition, each row from its own output's numbers.
fn scores(engine: &Engine, request: &Request, targets: &[Target], score: Score) -> Vec<f64> {
    let response = engine.request(request).unwrap();
    let output = response.logits.to_vec::<f32>().unwrap();
    let each = output.len() / targets.len();
    let rows = output.chunks(each).zip(targets);
    rows.map(|(row, target)| target.score(&engine.spec, row, score).unwrap()).collect()
}

#[test]
fn gradcam_is_the_mean_slope_by_differences() {
    for (name, kind) in MODELS {
        let (engine, found, targets) = map(name, kind, "gradcam");
        let images = Array::from_tensor(&images(name)).unwrap();
        let whole = Request { values: vec!["features".into()], ..Request::forward(images.clone()) };
        let values = engine.request(&whole).unwrap().values["features"].share_tensor().unwrap().copy();
        let size = values.size();
        let (channels, places) = (size[1], size[2..].iter().product::<i64>());
        let wanted = Tensor::zeros([&size[..1], &size[2..]].concat(), (Kind::Double, Device::Cpu));
        for c in 0..channels {
            // The mean of a channel's gradient is the slope of moving all of it, over the places.
            let moved = |step: f32| {
                let mut shift = vec![0f32; channels as usize];
                shift[c as usize] = step;
                let axes = [vec![channels as usize], vec![1; size.len() - 2]].concat();
                let shift = Some(Array::from_vec(&axes, shift).unwrap());
                let patches = vec![Patch { site: "features".into(), scale: None, shift }];
                scores(&engine, &Request { patches, ..Request::forward(images.clone()) }, &targets, Score::Logit)
            };
            let (up, down) = (moved(1e-2), moved(-1e-2));
            for b in 0..2 {
                let weight = (up[b] - down[b]) / 2e-2 / places as f64;
                let part = values.get(b as i64).get(c).to_kind(Kind::Double) * weight;
                let _ = wanted.get(b as i64).g_add_(&part);
            }
        }
        assert_eq!(found.size(), wanted.size(), "{name}");
        assert!(wanted.relu().max().double_value(&[]) > 0.0, "{name}: the map is zero by definition");
        let error = relative(&found, &wanted.relu());
        assert!(error < 2e-3, "{name}: {error}");
    }
}

#[test]
fn integrated_gradients_add_up_to_the_gain_of_the_score() {
    for (name, kind) in MODELS {
        let (engine, found, targets) = map(name, kind, "integratedgradients:steps=64");
        let images = images(name);
        assert_eq!(found.size(), [&[2], &images.size()[2..]].concat(), "{name}");
        let of = |images: &Tensor| {
            scores(&engine, &Request::forward(Array::from_tensor(images).unwrap()), &targets, Score::Logit)
        };
        // A box's candidate is that of the image itself, in the baseline too.
        let (with, without) = (of(&images), of(&images.zeros_like()));
        for b in 0..2 {
            let (sum, gain) = (found.get(b as i64).sum(Kind::Double).double_value(&[]), with[b] - without[b]);
            assert!(gain.abs() > 1e-2, "{name}: no gain to explain");
            assert!((sum - gain).abs() < 1e-3 * gain.abs().max(1.0), "{name}: {sum}, gain {gain}");
        }
    }
}

#[test]
fn rise_is_the_mean_score_of_masks() {
    for (name, kind) in MODELS {
        // With every cell kept, each pixel's value is the score.
        let (engine, all, targets) = map(name, kind, "rise:masks=5,keep=1");
        let request = Request::forward(Array::from_tensor(&images(name)).unwrap());
        let wanted = scores(&engine, &request, &targets, Score::Probability);
        for (b, wanted) in wanted.into_iter().enumerate() {
            let off = (all.get(b as i64) - wanted).abs().max().double_value(&[]);
            assert!(off < 1e-4, "{name}: {off} from {wanted}");
        }
        let (_, some, _) = map(name, kind, "rise:masks=60,cells=3");
        assert_eq!(some.size(), [&[2], &images(name).size()[2..]].concat());
        assert!(some.std(false).double_value(&[]) > 1e-4, "{name}: a constant map");
    }
}

#[test]
fn what_does_not_apply_says_why() {
    let reason = |name: &str, kind, explainer: &str| {
        let settings = Settings { targets: vec![kind], ..Settings::new(Device::Cpu, 0) };
        let mut engine = Engine::new(model(name), settings, terminal()).unwrap();
        let file = if explainer == "lime" { "perturbation" } else { "cam" };
        let choice = ExplainerChoice {
            name: explainer.into(),
            label: String::new(),
            params: BTreeMap::new(),
            models: vec![],
            maps: vec![],
        };
        engine.add(&built(&format!("plugins/liblightbox_{file}.so")), &choice).unwrap();
        match engine.explainers.remove(0).plan {
            Plan::NotApplicable { reason } => reason,
            plan => panic!("{plan:?}"),
        }
    };
    let volume = reason("hard-volume", TargetKind::Class, "lime");
    assert_eq!(volume, "it works on images of two axes, and hard-volume takes 3");
    let region = reason("hard-segmenter", TargetKind::Region, "finercam");
    assert_eq!(region, "it explains a class, and the target is a region");
}

#[test]
fn a_target_that_the_model_does_not_have_is_an_error() {
    let settings = Settings { targets: vec![TargetKind::Region], ..Settings::new(Device::Cpu, 0) };
    let mut engine = Engine::new(model("hard-volume"), settings, terminal()).unwrap();
    let choice = ExplainerChoice::parse("gradcam").unwrap();
    engine.add(&built("plugins/liblightbox_cam.so"), &choice).unwrap();
    let wanted: Vec<Option<Target>> = targets(TargetKind::Region).into_iter().map(Some).collect();
    let error = engine.run(&images("hard-volume"), &wanted, &[7, 8], &[0], &mut |_| ()).err().unwrap();
    assert!(error.message.contains("has no output of a logit a place"), "{}", error.message);
    // No candidate lies where the box is.
    let settings = Settings { targets: vec![TargetKind::Box], ..Settings::new(Device::Cpu, 0) };
    let mut engine = Engine::new(model("hard-detector"), settings, terminal()).unwrap();
    engine.add(&built("plugins/liblightbox_cam.so"), &choice).unwrap();
    let far = Some(Target::Box { class: 1, area: [90.0, 90.0, 95.0, 95.0], candidate: None });
    let error = engine.run(&images("hard-detector"), &[far.clone(), far], &[7, 8], &[0], &mut |_| ()).err().unwrap();
    assert!(error.message.contains("no candidate of the model overlaps the box"), "{}", error.message);
}
