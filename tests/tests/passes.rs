//! Every explainer on a small model of each family: it makes the passes that it states, and gives an image the same map alone and
//! in a batch, with few and with many runs at a time.

use lightbox::choice::ExplainerChoice;
use lightbox::engine::{self, Engine, Settings};
use lightbox::watch::terminal;
use lightbox_sdk::spec::{ExplainerSpec, Family, ModelOptions, Passes, Plan};
use lightbox_tests::{built, input_of, relative, succeed};
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

/// Parameters with which methods of many passes are quick. All others have their defaults.
const QUICK: [(&str, &str); 18] = [
    ("beyondintuition", "steps=3"),
    ("extremal", "iterations=3"),
    ("gradientshap", "samples=4"),
    ("integratedgradients", "steps=5"),
    ("iscam", "steps=2"),
    ("kernelshap", "samples=60,grid=4"),
    ("lime", "samples=40,grid=4"),
    ("meaningful", "iterations=3,grid=8"),
    ("partitionshap", "evaluations=40"),
    ("rise", "masks=20"),
    ("smoothgrad", "samples=3"),
    ("smoothgradsq", "samples=3"),
    ("sscam", "samples=2"),
    ("tam", "steps=3"),
    ("tis", "masks=12,iterations=5"),
    ("vargrad", "samples=3"),
    ("vitcx", "most=6"),
    ("xrai", "steps=3"),
];

/// Those whose number of passes depends on the image: they state the most.
const AT_MOST: [&str; 3] = ["kernelshap", "partitionshap", "vitcx"];

/// One of each family, one with two prefix tokens, one with a token a class.
const MODELS: [(&str, &str); 5] = [
    ("densenet", "densenet-small"),
    ("deit", "deit-mini"),
    ("deit", "deit_tiny_distilled_patch16_224"),
    ("patchconvnet", "patchconvnet-mini"),
    ("patchconvnet", "patchconvnet-mini-multi"),
];

/// Other parameters, under which other passes are made.
const VARIANTS: [(&str, &str); 12] = [
    ("ablationcam", "aug_smooth=true"),
    ("beyondintuition", "variant=tokens,steps=2"),
    ("eigencam", "aug_smooth=true"),
    ("finercam", "weights=mean,references=1"),
    ("gradcam", "aug_smooth=true"),
    ("legrad", "layers=2"),
    ("meaningful", "score=logit,iterations=3,grid=8"),
    ("occlusion", "window=20,stride=9,fill=blur"),
    ("scorecam", "aug_smooth=true"),
    ("shapleycam", "aug_smooth=true"),
    ("lime", "segments=felzenszwalb,samples=30,regression=lasso"),
    ("gradientshap", "samples=3,sigma=0.1,baseline=blur"),
];

/// The quick parameters of an explainer.
fn quick(name: &str) -> &'static str {
    QUICK.iter().find(|(n, _)| *n == name).map_or("", |(_, p)| p)
}

/// An engine of a model with 64 px and three classes, and one explainer.
fn engine(plugin: &str, model: &str, explainer: &(PathBuf, ExplainerSpec), params: &str, at_once: usize) -> Engine {
    let file = built(&format!("plugins/liblightbox_{plugin}.so"));
    let mut options = ModelOptions { classes: 3, ..ModelOptions::default() };
    options.params.insert("size".into(), 64.into());
    let (model, _) = engine::load_model(&file, model, &options, None, engine::Missing::Random).unwrap();
    let mut engine = Engine::new(model, Settings { at_once, ..Settings::new(Device::Cpu, 5) }, terminal()).unwrap();
    engine.set_mean_mask((0..64 * 64).map(|i| (i % 64) as f32 / 64.0).collect()).unwrap();
    let choice = ExplainerChoice::parse(&format!("{}:{params}", explainer.1.name)).unwrap();
    engine.add(&explainer.0, &choice).unwrap();
    engine
}

/// All explainers with their plugins' files.
fn explainers() -> Vec<(PathBuf, ExplainerSpec)> {
    let text = succeed(&["list", "plugins", "--json"]);
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut found = Vec::new();
    for plugin in all["plugins"].as_array().unwrap() {
        let specs: Vec<ExplainerSpec> = serde_json::from_value(plugin["manifest"]["explainers"].clone()).unwrap();
        found.extend(specs.into_iter().map(|s| (PathBuf::from(plugin["file"].as_str().unwrap()), s)));
    }
    assert!(found.len() > 50);
    found
}

fn maps(engine: &Engine, images: &Tensor, targets: &[i64], ids: &[u64]) -> Result<Tensor, String> {
    let mut batch = engine.run(images, &engine::classes(targets), ids, &[0], &mut |_| {}).map_err(|e| e.message)?;
    assert!(batch.tampered.is_none());
    batch.maps.remove(0).1.map(|o| o.maps).map_err(|e| e.message)
}

/// The faults of an explainer on a model; a note where it does not apply.
fn check(
    plugin: &str,
    model: &str,
    explainer: &(PathBuf, ExplainerSpec),
    params: &str,
) -> Result<Option<String>, String> {
    let many = engine(plugin, model, explainer, params, 7);
    let needs = match &many.explainers[0].plan {
        Plan::Run(needs) => needs.clone(),
        Plan::NotApplicable { reason } => return Ok(Some(reason.clone())),
        Plan::Other => return Err("an answer of a newer SDK".into()),
    };
    if needs.fit.is_some() {
        return Ok(Some("it learns first".into()));
    }
    if needs.model != (needs.extra.forward + needs.extra.partial > 0) {
        return Err(format!("it asks for the model and states {} more passes", needs.extra));
    }
    let images = input_of(64);
    let both = maps(&many, &images, &[2, 0], &[11, 12])?;
    if both.isfinite().all().int64_value(&[]) == 0 {
        return Err("its maps are not finite".into());
    }
    let (made, stated) = (many.passes(0), needs.extra.times(2));
    let fewer = Passes { forward: stated.forward, ..made };
    let at_most =
        AT_MOST.contains(&explainer.1.name.as_str()) && (1..=stated.forward).contains(&made.forward) && fewer == stated;
    if made != stated && !at_most {
        return Err(format!("it states {stated}, and makes {made}"));
    }
    let mut some = false;
    let few = engine(plugin, model, explainer, params, 2);
    for (b, (target, id)) in [(2, 11), (0, 12)].into_iter().enumerate() {
        let alone = maps(&few, &images.narrow(0, b as i64, 1), &[target], &[id])?;
        let error = relative(&alone, &both.narrow(0, b as i64, 1));
        let (empty, other) = (both.narrow(0, b as i64, 1).abs().max(), alone.abs().max());
        if empty.double_value(&[]) == 0.0 && other.double_value(&[]) == 0.0 {
            // Nothing speaks for the class: right, if it is so alone too, and not everywhere.
            continue;
        }
        // A map that is the same everywhere says nothing of any place.
        let map = both.get(b as i64).to_kind(Kind::Double);
        let spread = (map.max() - map.min()) / map.abs().max();
        some |= spread.double_value(&[]) > 1e-5;
        // A ReLU whose input is about 0 may open under another rounding, which moves a gradient by up to a hundredth (seen with
        // libtorch's own layers); another draw moves it by its own size.
        let kinks = plugin == "densenet" && (needs.extra.backward > 0 || needs.gradients.iter().any(|s| s == "input"));
        if error.is_nan() || error > if kinks { 2e-2 } else { 1e-3 } {
            return Err(format!("image {b} alone, two runs at a time, is another by {error:.1e}"));
        }
    }
    if some { Ok(None) } else { Ok(Some("its maps are empty".into())) }
}

#[test]
fn explainers_make_the_passes_that_they_state_and_any_batch_gives_the_same_map() {
    let mut faults = Vec::new();
    let all = explainers();
    for explainer in &all {
        let (name, spec) = (&explainer.1.name, &explainer.1);
        let mut applies = 0;
        for (plugin, model) in MODELS {
            match check(plugin, model, explainer, quick(name)) {
                Ok(None) => applies += 1,
                Ok(Some(reason)) => eprintln!("{name} x {model}: {reason}"),
                Err(e) => faults.push(format!("{name} x {model}: {e}")),
            }
        }
        if applies == 0
            && !["concept", "probe", "given"].contains(&name.as_str())
            && !faults.iter().any(|f| f.starts_with(&format!("{name} x")))
        {
            faults.push(format!("{name} applies to no model"));
        }
        if spec.formula.is_empty() || spec.cost.is_empty() || spec.reference.is_empty() {
            faults.push(format!("{name} lacks its formula, cost or citation"));
        }
    }
    for (name, params) in VARIANTS {
        let explainer = all.iter().find(|e| e.1.name == name).unwrap_or_else(|| panic!("no {name}"));
        for (plugin, model) in MODELS.iter().filter(|(_, m)| !m.contains("distilled")) {
            if let Err(e) = check(plugin, model, explainer, params) {
                faults.push(format!("{name}:{params} x {model}: {e}"));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// A model whose head has only zeros: nothing speaks for a class, and a method whose map is evidence for one has none.
#[test]
fn a_constant_model_has_maps_of_zeros() {
    // The same map for every class, so that there is no class to speak for; scores that are all equal weigh all masks alike.
    let of_no_class = ["attention", "rollout", "eigencam", "kpcacam", "fem", "randomcam"];
    let of_scores = ["vitcx", "tis", "scorecam", "sscam", "iscam", "rise"];
    // The logit, 0, divides; the mask follows its area alone.
    let others = ["ablationcam", "extremal"];
    let mut faults = Vec::new();
    for explainer in explainers().iter().filter(|e| e.1.family != Family::Control) {
        let name = explainer.1.name.as_str();
        if of_no_class.contains(&name) || of_scores.contains(&name) || others.contains(&name) {
            continue;
        }
        {
            for (plugin, model) in MODELS {
                let plain = engine(plugin, model, explainer, quick(name), 4);
                if !matches!(&plain.explainers[0].plan, Plan::Run(needs) if needs.fit.is_none()) {
                    continue;
                }
                let head = |n: &str| ["classifier.", "head.", "head_dist."].iter().any(|h| n.starts_with(h));
                let parameters = plain.parameters().unwrap();
                let zero = |a: &lightbox_sdk::Array| {
                    lightbox_sdk::Array::from_tensor(&a.share_tensor().unwrap().zeros_like()).unwrap()
                };
                let edits: Vec<(String, lightbox_sdk::Array)> =
                    parameters.iter().filter(|(n, _)| head(n)).map(|(n, a)| (n.clone(), zero(a))).collect();
                let mut constant = plain.fork(&format!("{name} without a head"), || Ok(edits)).unwrap();
                constant.copy_explainer(&plain.explainers[0]).unwrap();
                match maps(&constant, &input_of(64), &[2, 0], &[1, 2]) {
                    Ok(map) => {
                        let largest = map.abs().max().double_value(&[]);
                        if largest.is_nan() || largest > 1e-6 {
                            faults.push(format!("{name} x {model}: {largest:.1e}"));
                        }
                    }
                    Err(e) => faults.push(format!("{name} x {model}: {e}")),
                }
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}
