//! Every explainer that draws no random numbers against the peers, through the command line: `tests/oracle/explainers.py` made the
//! goldens on two small models with weights made from their names.

use lightbox_core::checkpoint::{self, State};
use lightbox_sdk::ndarray::Array3;
use lightbox_sdk::spec::ModelOptions;
use lightbox_sdk::tools::maps::{min_max, resize};
use lightbox_sdk::tools::segment;
use lightbox_sdk::{Array, Patch, Request};
use lightbox_tests::{built, input_of, oracle, relative, succeed, weights};
use tch::Tensor;

const SIDE: i64 = 128;

fn get(state: &State, name: &str) -> Tensor {
    state.iter().find(|(n, _)| n == name).map(|(_, t)| t.shallow_clone()).unwrap_or_else(|| panic!("no {name}"))
}

/// How a peer's map came about from one of ours.
#[derive(Clone, Copy, PartialEq)]
enum As {
    /// As it is.
    Raw,
    /// Up to a sign, which is free.
    Signless,
    /// pytorch-grad-cam's last steps: ReLU, [0, 1], scaled to the image, [0, 1].
    Final,
    /// Brought to [0, 1].
    Scaled,
    /// So many times.
    Times(f64),
}
use As::{Final, Raw, Scaled, Signless, Times};

/// The maps of explainers, by their specs, on one of the goldens' models.
fn explain(model: &str, golden: &str, explainers: &[&str]) -> State {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (w, raw) = (at("w.safetensors"), at("raw.safetensors"));
    checkpoint::write(w.as_ref(), &weights(&oracle(&format!("explainers-{golden}.keys.json")))).unwrap();
    let mut found = State::new();
    // The two images have targets of their own.
    for (b, target) in [3, 1].iter().enumerate() {
        let batch = at(&format!("{b}.safetensors"));
        let image = input_of(SIDE).narrow(0, b as i64, 1);
        checkpoint::write(batch.as_ref(), &[("images".into(), image)]).unwrap();
        let target = target.to_string();
        let mut arguments = vec!["explain", &batch, "--model", model, "--weights", &w, "--raw", &raw];
        arguments.extend(["--device", "cpu", "--target", &target]);
        explainers.iter().for_each(|e| arguments.extend(["--explainer", e]));
        succeed(&arguments);
        let one = checkpoint::read(raw.as_ref()).unwrap();
        found = match b {
            0 => one,
            _ => found.iter().map(|(n, t)| (n.clone(), Tensor::cat(&[t, &get(&one, n)], 0))).collect(),
        };
    }
    found
}

/// Each explainer's map equals the golden's within `limit` of its largest value.
fn check(model: &str, golden: &str, limit: f64, cases: &[(&str, &str, As)]) {
    let names: Vec<&str> = cases.iter().map(|(e, ..)| *e).collect();
    let found = explain(model, golden, &names);
    let wanted = checkpoint::read(&oracle("explainers.safetensors")).unwrap();
    let error = relative(&get(&found, "logits"), &get(&wanted, &format!("{golden}.logits")));
    assert!(error < 1e-4, "{model} is not the golden's model: {error}");
    let mut bad = Vec::new();
    for (explainer, key, how) in cases {
        let (map, wanted) = (get(&found, explainer), get(&wanted, &format!("{golden}.{key}")));
        let spread = (wanted.max() - wanted.min()) / wanted.abs().max();
        assert!(spread.double_value(&[]) > 0.05, "{key} is next to constant");
        // Maps of the image's size are kept as means over 8 x 8 pixels.
        let relative = |a: &Tensor, w: &Tensor| match a.size().last() {
            Some(&SIDE) => {
                relative(&a.unsqueeze(1).avg_pool2d([8], [8], [0], false, true, None::<i64>).squeeze_dim(1), w)
            }
            _ => relative(a, w),
        };
        let error = match how {
            Raw => relative(&map, &wanted),
            // Each image has a sign of its own.
            Signless => (0..2)
                .map(|b| {
                    let (a, w) = (map.get(b), wanted.get(b));
                    relative(&a, &w).min(relative(&(-a), &w))
                })
                // A NaN stays one.
                .fold(0.0, |worst, e: f64| if e.is_nan() || e > worst { e } else { worst }),
            Final => {
                let map = min_max(&map.relu()).unwrap();
                let map = if map.size()[1] == SIDE { map } else { resize(&map, &[SIDE, SIDE]).unwrap() };
                relative(&min_max(&map).unwrap(), &wanted)
            }
            Times(factor) => relative(&map, &(wanted * *factor)),
            Scaled => relative(&min_max(&map).unwrap(), &wanted),
        };
        eprintln!("{model} {explainer}: {error:.1e}");
        if error.is_nan() || error > limit {
            bad.push(format!("{model} {explainer}: {error:.1e}"));
        }
    }
    assert!(bad.is_empty(), "{bad:#?}");
}

const CAMS: [(&str, &str, As); 19] = [
    ("gradcam:relu=false", "pgc.gradcam", Raw),
    ("hirescam:relu=false", "pgc.hirescam", Raw),
    ("gradcam-elementwise:relu=false", "pgc.elementwise", Raw),
    ("gradcampp:relu=false", "pgc.gradcampp", Raw),
    ("xgradcam:relu=false", "pgc.xgradcam", Raw),
    ("layercam:relu=false", "pgc.layercam", Raw),
    ("eigencam:relu=false", "pgc.eigencam", Signless),
    ("eigengradcam:relu=false", "pgc.eigengradcam", Signless),
    ("segeigencam:relu=false", "pgc.segeigencam", Raw),
    ("kpcacam:relu=false", "pgc.kpcacam", Raw),
    ("fem:relu=false,form=channels", "pgc.fem", Raw),
    ("scorecam:relu=false,mask=aligned", "pgc.scorecam", Raw),
    ("gradcam:relu=false,eigen_smooth=true", "pgc.gradcam.eigen", Signless),
    ("layercam:relu=false,eigen_smooth=true", "pgc.layercam.eigen", Signless),
    ("gradcam:aug_smooth=true", "pgc.gradcam.aug", Raw),
    ("layercam:aug_smooth=true", "pgc.layercam.aug", Raw),
    ("finercam:alpha=0.6", "pgc.finercam", Final),
    ("finercam:alpha=0.6,weights=mean", "finercam.mean", Raw),
    ("refinecam", "pgc.refinecam", Scaled),
];

fn cams(model: &str, golden: &str, own: &[(&str, &str, As)]) {
    let cases: Vec<_> = CAMS.iter().chain(own).copied().collect();
    check(model, golden, 1e-3, &cases);
}

#[test]
fn class_activation_maps_of_densenet_are_the_peers() {
    cams(
        "densenet-small",
        "densenet",
        &[
            ("gradcam:layer=features.denseblock1+features.denseblock2+features.relu5", "pgc.gradcam.layers", Scaled),
            ("shapleycam", "pgc.shapleycam", Final),
            ("ablationcam", "pgc.ablationcam", Final),
            ("fullgrad", "pgc.fullgrad", Scaled),
            ("cam", "torchcam.cam", Raw),
            ("scorecam:mask=normalised", "torchcam.scorecam", Raw),
            ("iscam:mask=normalised,accumulate=true", "torchcam.iscam", Raw),
        ],
    );
}

/// Attributions at pixels of either model.
const PIXELS: [(&str, &str, As); 7] = [
    ("saliency", "captum.saliency", Raw),
    ("inputxgradient", "captum.inputxgradient", Raw),
    ("occlusion:window=48,stride=20", "captum.occlusion", Raw),
    ("integratedgradients:steps=12", "captum.ig.gausslegendre", Raw),
    ("integratedgradients:steps=12,rule=left", "captum.ig.riemann_left", Raw),
    ("integratedgradients:steps=12,rule=middle", "captum.ig.riemann_middle", Raw),
    // Captum's weights sum to 11 / 12.
    ("integratedgradients:steps=12,rule=trapezoid", "captum.ig.riemann_trapezoid", Times(12.0 / 11.0)),
];

#[test]
fn attributions_of_densenet_are_the_peers() {
    let own = [
        ("deeplift", "deeplift", Raw),
        ("guidedbackprop", "captum.guided", Raw),
        ("deconvolution", "captum.deconv", Raw),
        ("guidedgradcam:scaling=nearest", "captum.guidedgradcam", Raw),
        ("lrp:composite=epsilon-plus", "zennit.epsilon-plus", Raw),
        ("lrp:composite=epsilon-gamma-box", "zennit.epsilon-gamma-box", Raw),
    ];
    check("densenet-small", "densenet", 1e-3, &[&PIXELS[..], &own].concat());
}

#[test]
fn attributions_of_deit_are_captums() {
    check("deit-mini", "deit", 1e-3, &PIXELS);
}

#[test]
fn attention_methods_of_deit_are_those_of_their_papers() {
    let cases = [
        ("rollout", "rollout", Raw),
        ("rollout:fusion=max,discard=0.9", "rollout.max", Raw),
        ("rollout:fusion=min,discard=0.5,normalise=columns", "rollout.columns", Raw),
        ("gradrollout", "gradrollout", Raw),
        ("gradrollout:discard=0.9,paired=reversed", "gradrollout.reversed", Raw),
        ("attentiongradcam", "attentiongradcam", Raw),
        ("gae", "gae", Raw),
        ("tam:start=1", "tam", Raw),
        ("beyondintuition:start=1", "beyondintuition.heads", Raw),
        ("beyondintuition:start=1,variant=tokens", "beyondintuition.tokens", Raw),
        ("tokentm", "tokentm", Raw),
        ("legrad", "legrad", Raw),
        ("agcam", "agcam", Raw),
        ("attnlrp", "attnlrp", Raw),
        ("cplrp", "cplrp", Raw),
        ("libragrad", "libragrad", Raw),
        ("vitcx:sigma=0", "vitcx", Raw),
        ("meaningful:iterations=12,fill=zero", "meaningful", Raw),
    ];
    check("deit-mini", "deit", 1e-3, &cases);
}

/// What a method is without its noise.
#[test]
fn methods_without_noise_are_their_plain_ones() {
    let pairs = [
        ("smoothgradcampp:sigma=0,samples=2,relu=false", "gradcampp:relu=false"),
        ("sscam:sigma=0,samples=2", "scorecam"),
        ("iscam:steps=1", "scorecam"),
        ("smoothgrad:sigma=0,samples=2,channels=max-abs", "saliency"),
    ];
    let mut names: Vec<&str> = pairs.iter().flat_map(|(a, b)| [*a, *b]).collect();
    names.sort_unstable();
    names.dedup();
    for (model, golden) in [("densenet-small", "densenet"), ("deit-mini", "deit")] {
        let found = explain(model, golden, &names);
        for (noisy, plain) in pairs {
            let error = relative(&get(&found, noisy), &get(&found, plain));
            assert!(error < 1e-3, "{model} {noisy}: {error}");
        }
    }
}

/// TIS leaves patches out as keys of every attention: the model then says what it says without them.
#[test]
fn tokens_left_out_as_keys_are_tokens_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let w = folder.path().join("w.safetensors");
    checkpoint::write(&w, &weights(&oracle("explainers-deit.keys.json"))).unwrap();
    let options = ModelOptions { classes: 5, ..ModelOptions::default() };
    let plugin = built("plugins/liblightbox_deit.so");
    let (model, _) =
        lightbox::engine::load_model(&plugin, "deit-mini", &options, Some(&w), lightbox::engine::Missing::Random)
            .unwrap();
    let gone: Vec<f32> = (0..65).map(|i| if i > 0 && i % 3 == 0 { -1e9 } else { 0.0 }).collect();
    let gone = Array::from_vec(&[1, 1, 1, 65], gone).unwrap();
    let patch = |i: usize| Patch { site: format!("blocks.{i}.attn.logits"), scale: None, shift: Some(gone.clone()) };
    let images = Array::from_tensor(&input_of(SIDE)).unwrap();
    let request = Request { patches: (0..4).map(patch).collect(), ..Request::forward(images) };
    let found = model.run(&request).unwrap().logits.share_tensor().unwrap();
    let golden = checkpoint::read(&oracle("explainers.safetensors")).unwrap();
    let error = relative(&found, &get(&golden, "deit.dropped"));
    assert!(error < 1e-5, "{error}");
    assert!(relative(&found, &get(&golden, "deit.logits")) > 1e-2);
}

#[test]
fn superpixels_are_scikit_images() {
    let golden = checkpoint::read(&oracle("explainers.safetensors")).unwrap();
    let image = get(&golden, "superpixels.image");
    let [h, w, c]: [i64; 3] = image.size().try_into().unwrap();
    let values = Vec::<f32>::try_from(image.flatten(0, -1)).unwrap();
    let image = Array3::from_shape_vec((h as usize, w as usize, c as usize), values).unwrap();
    for (scale, sigma, size, least) in [(50.0, 0.8, 20, 10), (300.0, 0.5, 5, 10)] {
        let found: Vec<i64> =
            segment::felzenszwalb(image.view(), scale, sigma, size).iter().map(|l| i64::from(*l)).collect();
        let wanted = Vec::<i64>::try_from(get(&golden, &format!("superpixels.{scale}")).flatten(0, -1)).unwrap();
        assert!(*wanted.iter().max().unwrap() > least);
        let other = found.iter().zip(&wanted).filter(|(a, b)| a != b).count();
        assert_eq!(other, 0, "scale {scale}: {other} pixels are in other superpixels");
    }
}

/// The sum of each map is what the target's logit has more than that of the baseline, the mean colour.
fn complete(model: &str, golden: &str, limit: f64, explainers: &[&str]) {
    let found = explain(model, golden, explainers);
    let zero = get(&checkpoint::read(&oracle("explainers.safetensors")).unwrap(), &format!("{golden}.logits.zero"));
    let gap = get(&found, "logits") - zero;
    for explainer in explainers {
        let map = get(&found, explainer);
        let sums = map.flatten(1, -1).sum_dim_intlist([1i64].as_slice(), false, tch::Kind::Double);
        for (b, target) in [3, 1].iter().enumerate() {
            let (sum, gap) = (sums.double_value(&[b as i64]), gap.double_value(&[b as i64, *target]));
            eprintln!("{model} {explainer}: {sum:.5}, the difference of logits is {gap:.5}");
            assert!((sum - gap).abs() < limit * gap.abs(), "{model} {explainer}: {sum}, not {gap}");
        }
    }
}

#[test]
fn methods_that_claim_completeness_are_complete() {
    // The path crosses many kinks of ReLUs, so the integral's error falls slowly.
    complete("densenet-small", "densenet", 5e-3, &["integratedgradients:steps=150"]);
    complete("densenet-small", "densenet", 1e-4, &["deeplift"]);
    complete("deit-mini", "deit", 1e-4, &["integratedgradients:steps=100"]);
}

/// Behind an inner layer of a DenseNet everything is piecewise linear, so the Hessian is 0 and ShapleyCAM is GradCAM, as
/// pytorch-grad-cam has it to 1.2e-6; on a transformer the golden is another map.
#[test]
fn shapleycam_of_a_piecewise_linear_part_is_gradcam() {
    for layer in ["features.denseblock2", "features.relu5"] {
        let pair = ["gradcam", "shapleycam"].map(|name| format!("{name}:relu=false,layer={layer}"));
        let found = explain("densenet-small", "densenet", &[&pair[0], &pair[1]]);
        let (plain, second) = (get(&found, &pair[0]), get(&found, &pair[1]));
        let off = relative(&second, &plain);
        assert!(plain.std(false).double_value(&[]) > 0.0 && off < 1e-5, "{layer}: {off}");
    }
}

#[test]
fn class_activation_maps_of_deit_are_the_peers() {
    cams(
        "deit-mini",
        "deit",
        &[
            ("gradcam:layer=blocks.0+blocks.1+blocks.2+blocks.3.norm1", "pgc.gradcam.layers", Scaled),
            ("shapleycam:relu=false", "shapleycam", Raw),
        ],
    );
}
