//! Models, GradCAM and attention against torchvision 0.26, timm 1.0.31, facebookresearch/deit and pytorch-grad-cam 1.5.7,
//! through the command line. The weights and
//! the input are made from their names (see `lightbox_tests::fill`); the final ReLU of torchvision's model was out of place.

use lightbox_core::checkpoint;
use lightbox_sdk::tools::maps::{min_max, resize};
use lightbox_tests::{built, fill, input, lightbox, oracle, relative, succeed, texts, unit, weights};
use tch::Tensor;

#[test]
fn the_generator_gives_the_check_values() {
    assert_eq!(unit("input.coarse", 3), [0.9045958574633777, 0.761639495765872, 0.47211596085757535]);
    let close = |tensor: Tensor, wanted: [f64; 3]| {
        for (i, value) in wanted.into_iter().enumerate() {
            assert!((tensor.flatten(0, -1).double_value(&[i as i64]) - value).abs() < 1e-7);
        }
    };
    close(fill("features.conv0.weight", &[64, 3, 7, 7]), [0.0765522271, 0.170094877, -0.153866068]);
    close(input(), [1.68448484, 1.66032755, 1.66342032]);
}

/// Explains the goldens' input with the goldens' weights; compares each explainer's map with the golden's tensor.
fn check(model: &str, golden: &str, pairs: &[(&str, &str)]) {
    check_with(model, &[], golden, pairs);
}

/// The same with parameters of the model.
fn check_with(model: &str, parameters: &[&str], golden: &str, pairs: &[(&str, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (w, batch, raw) = (at("w.safetensors"), at("batch.safetensors"), at("raw.safetensors"));
    checkpoint::write(w.as_ref(), &weights(&oracle(&format!("{golden}.keys.json")))).unwrap();
    checkpoint::write(batch.as_ref(), &[("images".into(), input())]).unwrap();
    let mut arguments = vec!["explain", &batch, "--model", model, "--weights", &w, "--raw", &raw, "--device", "cpu"];
    parameters.iter().for_each(|p| arguments.extend(["--model-param", p]));
    pairs.iter().for_each(|(explainer, _)| arguments.extend(["--explainer", explainer]));
    succeed(&arguments);
    let found = checkpoint::read(raw.as_ref()).unwrap();
    let wanted = checkpoint::read(&oracle(&format!("{golden}.safetensors"))).unwrap();
    let get = |state: &checkpoint::State, name: &str| {
        state.iter().find(|(n, _)| n == name).map(|(_, t)| t.shallow_clone()).unwrap_or_else(|| panic!("no {name}"))
    };
    assert_eq!(get(&found, "target"), get(&wanted, "target"));
    for (ours, theirs) in [("logits", "logits")].iter().chain(pairs) {
        let error = relative(&get(&found, ours), &get(&wanted, theirs));
        eprintln!("{model} {ours}: {error:.2e}");
        assert!(error < 1e-3, "{model} {ours}: {error}");
    }
}

#[test]
fn densenet121_equals_torchvision_and_pytorch_grad_cam() {
    let pairs = [("gradcam", "gradcam.raw.relu"), ("gradcam:layer=features.norm5", "gradcam.raw.norm5")];
    check("densenet121", "densenet121", &pairs);
    check_with("densenet121", &["trunk=plain"], "densenet121", &pairs);
}

/// pytorch-grad-cam's eight methods at the same layer, its own final maps in [0, 1]: means over 16 x 16 pixels of the goldens'.
fn check_cams(model: &str, golden: &str, ending: &str, layer: &str) {
    let methods = [
        ("gradcam", "gradcam"),
        ("gradcampp", "gradcampp"),
        ("xgradcam", "xgradcam"),
        ("layercam", "layercam"),
        ("hirescam", "hirescam"),
        ("eigencam", "eigencam"),
        ("eigengradcam", "eigengradcam"),
        ("gradcam-elementwise", "gradcam_elementwise"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (w, batch, raw) = (at("w.safetensors"), at("batch.safetensors"), at("raw.safetensors"));
    checkpoint::write(w.as_ref(), &weights(&oracle(&format!("{golden}.keys.json")))).unwrap();
    checkpoint::write(batch.as_ref(), &[("images".into(), input())]).unwrap();
    let mut arguments = vec!["explain", &batch, "--model", model, "--weights", &w, "--raw", &raw, "--device", "cpu"];
    let names: Vec<String> = methods.iter().map(|(m, _)| format!("{m}:relu=false{layer}")).collect();
    names.iter().for_each(|name| arguments.extend(["--explainer", name]));
    succeed(&arguments);
    let found = checkpoint::read(raw.as_ref()).unwrap();
    let goldens = checkpoint::read(&oracle("pgc.safetensors")).unwrap();
    let mut seen = 0;
    let last = |map: &Tensor| {
        let map = min_max(&resize(&min_max(&map.relu()).unwrap(), &[224, 224]).unwrap()).unwrap();
        map.unsqueeze(1).avg_pool2d([16], [16], [0], false, true, None::<i64>).squeeze_dim(1)
    };
    for (name, (method, theirs)) in names.iter().zip(methods) {
        let map = &found.iter().find(|(n, _)| n == name).unwrap().1;
        // Of the layer before the ReLU there are not all.
        let Some((_, wanted)) = goldens.iter().find(|(n, _)| *n == format!("{golden}.{theirs}{ending}")) else {
            continue;
        };
        seen += 1;
        if (model, method) == ("patchconvnet_s60", "hirescam") {
            // A layer norm alone reads this layer, so its gradient is orthogonal to its value, and the peer's map is rounding.
            assert_eq!(map.abs().max().double_value(&[]), 0.0);
            continue;
        }
        // The peer leaves a singular vector's sign as it comes, an image each.
        let errors = |map: &Tensor| -> Vec<f64> {
            let map = last(map);
            let of = |b: i64| match wanted.get(b).abs().max().double_value(&[]) {
                // Nothing was positive: the peer's map is empty, and so must ours be.
                0.0 => map.get(b).abs().max().double_value(&[]),
                _ => relative(&map.get(b), &wanted.get(b)),
            };
            (0..2).map(of).collect()
        };
        let (plain, turned) = (errors(map), errors(&(-map)));
        let signless = method.starts_with("eigen");
        for b in 0..2 {
            let error = if signless && turned[b] < plain[b] { turned[b] } else { plain[b] };
            eprintln!("{model} {name}, image {b}: {error:.2e}");
            assert!(error < 2e-3, "{model} {name}, image {b}: {error}");
        }
    }
    assert_eq!(seen, if ending == ".norm5" { 3 } else { 8 }, "{golden}");
}

#[test]
fn eight_methods_are_pytorch_grad_cams_on_the_full_models() {
    check_cams("densenet121", "densenet121", ".relu", "");
    check_cams("densenet121", "densenet121", ".norm5", ",layer=features.norm5");
    check_cams("deit_tiny_patch16_224", "deit_tiny_patch16_224", "", "");
    check_cams("deit_small_patch16_224", "deit_small_patch16_224", "", "");
    check_cams("patchconvnet_s60", "S60", "", "");
}

/// The goldens' class token's rows of the last attention, each head, against the maps of every fusion of heads.
fn check_attention(model: &str, golden: &str) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (w, batch, raw) = (at("w.safetensors"), at("batch.safetensors"), at("raw.safetensors"));
    checkpoint::write(w.as_ref(), &weights(&oracle(&format!("{golden}.keys.json")))).unwrap();
    checkpoint::write(batch.as_ref(), &[("images".into(), input())]).unwrap();
    let wanted = checkpoint::read(&oracle(&format!("{golden}.safetensors"))).unwrap();
    let rows = wanted.iter().find(|(n, _)| n == "attention.weights").unwrap().1.shallow_clone();
    let [_, heads, tokens]: [i64; 3] = rows.size().try_into().unwrap();
    let grid = rows.narrow(2, tokens - 196, 196).reshape([2, heads, 14, 14]);
    let mut pairs: Vec<(String, Tensor)> = (0..heads)
        .map(|h| (format!("attention:fusion=index,head={h}"), grid.select(1, h)))
        .chain([
            ("attention:fusion=max".to_string(), grid.amax([1i64].as_slice(), false)),
            ("attention:fusion=min".to_string(), grid.amin([1i64].as_slice(), false)),
            ("attention:fusion=mean".to_string(), grid.mean_dim([1i64].as_slice(), false, tch::Kind::Float)),
        ])
        .collect();
    let mut arguments = vec!["explain", &batch, "--model", model, "--weights", &w, "--raw", &raw, "--device", "cpu"];
    let names: Vec<String> = pairs.iter().map(|(name, _)| name.clone()).collect();
    names.iter().for_each(|name| arguments.extend(["--explainer", name]));
    if tokens == 198 {
        arguments.extend(["--explainer", "attention:token=dist", "--explainer", "attention:token=both,fusion=mean"]);
    }
    succeed(&arguments);
    let found = checkpoint::read(raw.as_ref()).unwrap();
    let get = |name: &str| found.iter().find(|(n, _)| n == name).unwrap().1.shallow_clone();
    for (name, wanted) in pairs.drain(..) {
        let error = relative(&get(&name), &wanted);
        assert!(error < 1e-3, "{model} {name}: {error}");
    }
    if tokens == 198 {
        // The other token's row, by a run of the model itself.
        let plugin = lightbox_tests::built("plugins/liblightbox_deit.so");
        let options = lightbox_sdk::spec::ModelOptions::default();
        let (model, _) =
            lightbox::engine::load_model(&plugin, model, &options, Some(w.as_ref()), lightbox::engine::Missing::Random)
                .unwrap();
        let images = lightbox_sdk::Array::from_tensor(&input()).unwrap();
        let request =
            lightbox_sdk::Request { values: vec!["blocks.11.attn".into()], ..lightbox_sdk::Request::forward(images) };
        let all = model.run(&request).unwrap().values["blocks.11.attn"].share_tensor().unwrap();
        let row = |token: i64| all.select(2, token).narrow(2, 2, 196).reshape([2, heads, 14, 14]);
        let dist = row(1).amax([1i64].as_slice(), false);
        let both = ((row(0) + row(1)) / 2.0).mean_dim([1i64].as_slice(), false, tch::Kind::Float);
        assert!(relative(&get("attention:token=dist"), &dist) < 1e-5);
        assert!(relative(&get("attention:token=both,fusion=mean"), &both) < 1e-5);
        assert!(relative(&dist, &row(0).amax([1i64].as_slice(), false)) > 1e-2);
    }
}

#[test]
fn attention_of_every_head_equals_the_references() {
    for name in ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"] {
        check_attention(name, name);
    }
    check_attention("patchconvnet_s60", "S60");
    check_attention("patchconvnet_s60_multi", "S60_multi");
}

const BOTH: [(&str, &str); 2] = [("gradcam", "gradcam.raw"), ("attention", "attention.map")];

#[test]
fn deit_equals_timm_and_pytorch_grad_cam() {
    for name in ["deit_tiny_patch16_224", "deit_small_patch16_224", "deit_tiny_distilled_patch16_224"] {
        check(name, name, &BOTH);
        // Alone, where the last block is computed for the prefix tokens only.
        check(name, name, &BOTH[..1]);
    }
}

#[test]
fn patchconvnet_equals_the_reference_and_pytorch_grad_cam() {
    check("patchconvnet_s60", "S60", &BOTH);
    check("patchconvnet_s60_multi", "S60_multi", &BOTH);
}

#[test]
fn a_checkpoint_for_another_model_and_nan_weights_are_clear_errors() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (w, image) = (at("w.safetensors"), at("a.png"));
    lightbox_core::data::image::write_png(image.as_ref(), 40, 40, &[99; 1600]).unwrap();
    let mut state = weights(&oracle("densenet121.keys.json"));
    checkpoint::write(w.as_ref(), &state).unwrap();
    let explain = |model: &str| {
        let arguments = ["explain", &image, "--model", model, "--weights", &w, "--explainer", "gradcam", "--out"];
        texts(lightbox(&arguments).arg(at("out")).output().unwrap())
    };
    let (_, err, code) = explain("densenet169");
    assert_eq!(code, 3);
    assert!(
        err.contains("w.safetensors: model densenet169: not a checkpoint of this model: ")
            && err.contains("is missing"),
        "{err}"
    );
    for (name, tensor) in &mut state {
        if name == "features.conv0.weight" {
            *tensor = tensor.shallow_clone() * f64::NAN;
        }
    }
    checkpoint::write(w.as_ref(), &state).unwrap();
    let (_, err, code) = explain("densenet121");
    assert_eq!(code, 3);
    assert!(err.contains("features.conv0.weight holds values that are not finite; the checkpoint is broken"), "{err}");
}

/// Relevance under backward rules, summed over squares of 16 x 16 pixels, against `tests/oracle/rules.py`: Zennit's for the
/// DenseNet, a second derivation that propagates relevance in place of gradients for the others.
fn check_rules(model: &str, golden: &str, rules: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (w, batch, raw) = (at("w.safetensors"), at("batch.safetensors"), at("raw.safetensors"));
    checkpoint::write(w.as_ref(), &weights(&oracle(&format!("{golden}.keys.json")))).unwrap();
    checkpoint::write(batch.as_ref(), &[("images".into(), input())]).unwrap();
    let plugins = built("test-plugins/hard").to_string_lossy().into_owned();
    let mut arguments = vec!["explain", &batch, "--model", model, "--weights", &w, "--raw", &raw, "--device", "cpu"];
    arguments.extend(["--plugins", &plugins]);
    let name = |rule: &str| match rule.ends_with("product:uniform") || rule.ends_with("softmax:detach") {
        true => format!(
            "hard-relevance:rules={rule}+activation:identity+norm:detach{}",
            if golden == "S60" { "+gate:detach" } else { "" }
        ),
        false => format!("hard-relevance:rules={rule}"),
    };
    let names: Vec<String> = rules.iter().map(|r| name(r)).collect();
    names.iter().for_each(|name| arguments.extend(["--explainer", name]));
    succeed(&arguments);
    let found = checkpoint::read(raw.as_ref()).unwrap();
    let goldens = checkpoint::read(&oracle("rules.safetensors")).unwrap();
    for (rule, name) in rules.iter().zip(&names) {
        let map = &found.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1;
        let sums = map.unsqueeze(1).avg_pool2d([16], [16], [0], false, true, None::<i64>).squeeze_dim(1) * 256.0;
        let wanted = &goldens.iter().find(|(n, _)| *n == format!("{golden}.{rule}")).unwrap().1;
        let error = relative(&sums, wanted);
        eprintln!("{model} {rule}: {error:.2e}");
        assert!(error < 1e-3, "{model} {rule}: {error}");
    }
}

#[test]
fn rules_of_densenet_are_zennits() {
    let rules = ["linear:epsilon=0.1", "linear:gamma", "linear:zplus", "relu:guided", "relu:deconv"];
    check_rules("densenet121", "densenet121", &rules);
}

#[test]
fn rules_of_transformers_are_those_of_relevance_itself() {
    let rules = [
        "linear:epsilon+product:uniform",
        "linear:epsilon+softmax:detach",
        "linear:gamma+product:uniform",
        "linear:gamma+softmax:detach",
    ];
    check_rules("deit_tiny_patch16_224", "deit_tiny_patch16_224", &rules);
    check_rules("patchconvnet_s60", "S60", &rules);
}
