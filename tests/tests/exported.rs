//! Programs of `torch.export`, against what PyTorch computes: `oracle/exported_small.py` made the files and the numbers.

use lightbox_core::checkpoint::{self, State};
use lightbox_sdk::spec::{AttentionPart, Meaning, ModelOptions, ModelSpec, Role, TrainerOptions};
use lightbox_sdk::{Array, ModelHandle, Objective, Request};
use lightbox_tests::{built, fail, lightbox, oracle, relative, run, succeed, texts};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

fn options(file: &str, params: &[(&str, &str)]) -> ModelOptions {
    let file = oracle(file).to_string_lossy().into_owned();
    let mut all: BTreeMap<String, serde_json::Value> = [("file".to_string(), file.into())].into();
    all.extend(params.iter().map(|(k, v)| (k.to_string(), (*v).into())));
    ModelOptions { params: all, ..ModelOptions::default() }
}

fn model_with(name: &str, params: &[(&str, &str)]) -> ModelHandle {
    let plugin = lightbox::registry::open(&built("plugins/liblightbox_exported.so")).unwrap();
    plugin.make_model("exported", &options(&format!("exported-{name}.pt2"), params)).unwrap()
}

fn golden() -> State {
    checkpoint::read(&oracle("exported.safetensors")).unwrap()
}

fn get(golden: &State, name: &str) -> Tensor {
    golden.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1.shallow_clone()
}

fn names(golden: &State, prefix: &str) -> Vec<String> {
    golden.iter().filter_map(|(n, _)| n.strip_prefix(prefix).map(str::to_string)).collect()
}

fn zeros(n: usize) -> Array {
    Array::from_vec(&[n], vec![0i64; n]).unwrap()
}

fn tensor(array: &Array) -> Tensor {
    array.share_tensor().unwrap().copy()
}

/// The sum of a class's numbers: of logits [B, K], or of a class map [B, K, places].
fn objective(spec: &ModelSpec, logits: &Tensor) -> Objective {
    match spec.outputs[0].meaning {
        Meaning::ClassMap { .. } => {
            let ones = logits.zeros_like();
            let _ = ones.select(1, 0).fill_(1.0);
            Objective::Output("logits".into(), Array::from_tensor(&ones).unwrap())
        }
        _ => Objective::Class(zeros(logits.size()[0] as usize)),
    }
}

/// Values and gradients of all modules at once are PyTorch's, each under the module's name; B H W C is handed on as B C H W.
fn check(name: &str, params: &[(&str, &str)], sites_at_least: usize) {
    let (golden, model) = (golden(), model_with(name, params));
    let spec = model.spec().unwrap();
    let images = get(&golden, &format!("{name}.value.input"));
    let sites: Vec<String> = names(&golden, &format!("{name}.grad."));
    let sites: Vec<String> = sites.into_iter().filter(|s| spec.sites.iter().any(|known| known.name == *s)).collect();
    assert!(
        sites.len() >= sites_at_least,
        "{name}: {} sites of {:?}",
        sites.len(),
        spec.sites.iter().map(|s| &s.name).collect::<Vec<_>>()
    );
    let wanted = get(&golden, &format!("{name}.logits"));
    let images = Array::from_tensor(&images).unwrap();
    let mut request = Request::forward(images.clone());
    let alone = model.run(&request).unwrap();
    assert!(relative(&tensor(&alone.logits), &wanted) < 1e-5, "{name}");
    (request.values, request.grads) = (sites.clone(), sites.clone());
    request.objectives = vec![vec![objective(&spec, &wanted)]];
    let found = model.run(&request).unwrap();
    assert!(relative(&tensor(&found.logits), &wanted) < 1e-5, "{name}");
    for site in &sites {
        let layout = spec.site(site).unwrap();
        let first = |t: Tensor| if layout.text.contains("channels come last") { t.movedim_int(-1, 1) } else { t };
        for (what, found) in [("value", &found.values[site]), ("grad", &found.grads[0][site])] {
            let wanted = first(get(&golden, &format!("{name}.{what}.{site}")));
            let off = relative(&tensor(found), &wanted);
            assert!(off < 2e-5, "{name}: {what} of {site} is {off:.1e} off");
        }
        // A run that begins there is the rest of the whole.
        if layout.start {
            let value = Array::from_tensor(&tensor(&found.values[site])).unwrap();
            let begun = model.run(&Request::from_site(site, value).unwrap()).unwrap();
            assert!(relative(&tensor(&begun.logits), &wanted) < 1e-5, "{name}: begun at {site}");
        }
    }
    // What was handed in and out is as it was: no operator in place has written to it.
    assert_eq!(tensor(&images), get(&golden, &format!("{name}.value.input")), "{name}");
    let again = model.run(&request).unwrap();
    for site in &sites {
        assert_eq!(tensor(&again.values[site]), tensor(&found.values[site]), "{name}: {site}");
    }
}

#[test]
fn modules_values_and_gradients_are_pytorchs() {
    for way in ["fast", "plain"] {
        check("cnn", &[("way", way)], 25);
        check("vit", &[("way", way)], 25);
        check("spelled", &[("way", way)], 25);
        check("swin", &[("way", way)], 14);
        check("volume", &[("way", way)], 6);
        check("segment", &[("way", way)], 2);
    }
}

#[test]
fn roles_are_found_in_the_graph() {
    let spec = |name: &str| model_with(name, &[]).spec().unwrap();
    let cnn = spec("cnn");
    assert_eq!((cnn.cam_site.as_deref(), cnn.classes()), (Some("layers"), 5));
    assert_eq!(cnn.outputs[0].activation().name(), "sigmoid");
    for rule in ["relu:guided", "pool:rescale", "conv:zplus", "input:zbox", "activation:identity", "gate:detach"] {
        assert!(cnn.has_rule(rule), "{rule}");
    }
    assert!(!cnn.has_rule("softmax:detach") && !cnn.has_rule("norm:detach"));
    for name in ["vit", "spelled"] {
        let vit = spec(name);
        assert_eq!(vit.cam_site.as_deref(), Some("blocks.2.norm1"), "{name}");
        let blocks = vit.attention_blocks();
        assert_eq!(blocks.len(), 3, "{name}");
        for (i, block) in blocks.iter().enumerate() {
            let site =
                |s: &Option<lightbox_sdk::spec::Site>| s.as_ref().unwrap_or_else(|| panic!("{name} {i}")).clone();
            assert_eq!((block.weights.channels, block.weights.grid.as_slice()), (2, &[3, 4][..]));
            assert_eq!(block.weights.prefix, ["cls"]);
            assert_eq!(site(&block.end).name, format!("blocks.{i}"));
            assert_eq!(site(&block.output).weight, format!("blocks.{i}.attn.proj.weight"));
            assert_eq!(site(&block.output).role, Role::Attention(AttentionPart::Output));
            assert!(block.query.is_some() && block.key.is_some() && block.value.is_some() && block.logits.is_some());
            let enters = site(&block.input);
            match i {
                0 => assert_eq!(enters.role, Role::Embedding),
                i => assert_eq!(enters.name, format!("blocks.{}", i - 1)),
            }
        }
    }
    // The mean of that map is what the head reads, so that CAM's closed form applies; a class token is no mean.
    let pooled = |spec: &ModelSpec| spec.site_of(Role::Pooled).map(|s| (s.name.clone(), s.channels));
    assert_eq!(pooled(&cnn), Some(("drop".into(), 12)));
    assert_eq!(pooled(&spec("vit")), None);
    let swin = spec("swin");
    assert_eq!(pooled(&swin).map(|p| p.1), Some(16));
    assert_eq!(swin.cam_site.as_deref(), Some("norm"));
    assert!(swin.sites.iter().any(|s| s.name == "stage.1" && s.is_map() && s.grid == [8, 8]));
    assert!(!swin.sites.iter().any(|s| s.is_attention()), "windows are no attention over the grid");
    assert!(
        swin.sites.iter().any(|s| s.name == "stage.1" && s.window == 16 && s.text.contains("windows of 16 tokens"))
    );
    assert!(
        swin.without_attention().ends_with("a token asks the 16 of its window alone"),
        "{}",
        swin.without_attention()
    );
    let volume = spec("volume");
    assert_eq!((volume.input.size.as_slice(), volume.cam_site.as_deref()), (&[8, 10, 12][..], Some("features")));
    let segment = spec("segment");
    assert!(matches!(segment.outputs[0].meaning, Meaning::ClassMap { classes: 3, .. }));
    assert_eq!((segment.outputs.len(), segment.outputs[1].name.as_str()), (2, "output1"));
}

/// The fused attention's weights, when somebody asks for them, are those of the attention that is spelled out.
#[test]
fn a_fused_attention_is_the_one_spelled_out() {
    let (golden, fused, spelled) = (golden(), model_with("vit", &[]), model_with("spelled", &[]));
    let images = Array::from_tensor(&get(&golden, "vit.value.input")).unwrap();
    // Queries are scaled before the product where it is spelled out, and after it otherwise.
    let sites: Vec<String> = ["weights", "logits", "key", "value"].map(|p| format!("blocks.1.attn.{p}")).to_vec();
    let objective = || Objective::Class(zeros(3));
    let ask = |model: &ModelHandle| model.run(&Request::explain(images.clone(), objective(), &sites, &sites)).unwrap();
    let (a, b) = (ask(&fused), ask(&spelled));
    for site in &sites {
        let (x, y) = (tensor(&a.values[site]), tensor(&b.values[site]));
        assert!(relative(&x, &y) < 1e-5, "{site}");
        assert!(relative(&tensor(&a.grads[0][site]), &tensor(&b.grads[0][site])) < 1e-5, "{site}");
    }
    let weights = tensor(&a.values[&sites[0]]);
    assert_eq!(weights.size(), [3, 2, 13, 13]);
    assert!(
        relative(
            &weights.sum_dim_intlist([-1i64].as_slice(), false, Kind::Float),
            &Tensor::ones([3, 2, 13], (Kind::Float, tch::Device::Cpu))
        ) < 1e-5
    );
    // Rules go through it, too: the fused one is spelled out where a rule is asked for.
    for rules in [vec!["softmax:detach"], vec!["product:uniform", "norm:detach"], vec!["attention:detach"]] {
        // No gradient comes through detached attentions to the images, since the head reads the class token alone.
        let site = if rules == ["attention:detach"] { &sites[0] } else { "input" };
        let at = vec![site.to_string()];
        let ask = |model: &ModelHandle| {
            let rules = rules.iter().map(|r| r.to_string()).collect();
            let request = Request { rules, ..Request::explain(images.clone(), objective(), &[], &at) };
            tensor(&model.run(&request).unwrap().grads[0][site])
        };
        let plain =
            tensor(&fused.run(&Request::explain(images.clone(), objective(), &[], &at)).unwrap().grads[0][site]);
        let (a, b) = (ask(&fused), ask(&spelled));
        let (same, other) = (relative(&a, &b), relative(&a, &plain));
        assert!(
            same < 1e-5 && other > 1e-3,
            "{rules:?}: {same:.1e} from the other, {other:.1e} from the plain gradient"
        );
    }
}

/// One step of AdamW in training mode: batch norms use the batch and keep its statistics, to the last bit as PyTorch's.
#[test]
fn an_export_in_evaluation_mode_is_trained() {
    let (golden, model) = (golden(), model_with("cnn", &[("way", "plain")]));
    let options = TrainerOptions { learning_rate: 1e-3, weight_decay: 0.0, ..TrainerOptions::default() };
    let trainer = model.trainer(&options).unwrap();
    let mut trainer = trainer;
    let images = {
        // As `example(shape, 4, 12)` of the script: kept there as nothing but the loss, so drawn again by torch's generator.
        tch::manual_seed(12);
        Tensor::randn([4, 3, 32, 32], (Kind::Float, tch::Device::Cpu))
    };
    let targets = Array::from_vec(&[4], vec![0i64, 1, 2, 1]).unwrap();
    let loss = trainer.step(&Array::from_tensor(&images).unwrap(), &targets).unwrap();
    let wanted = get(&golden, "cnn.train.loss").double_value(&[]);
    assert!((loss - wanted).abs() < 1e-6, "{loss} {wanted}");
    let after: BTreeMap<String, Array> = trainer.parameters().unwrap().into_iter().collect();
    let keys = names(&golden, "cnn.train.");
    assert!(keys.len() > 30 && after.len() == keys.len() - 1);
    for key in keys.iter().filter(|k| *k != "loss") {
        let (found, wanted) = (tensor(&after[key]), get(&golden, &format!("cnn.train.{key}")));
        if key.contains("running_") || key.contains("num_batches") {
            assert_eq!(found, wanted, "{key}");
        } else {
            let off = (found - &wanted).abs().max().double_value(&[]);
            assert!(off < 2e-6, "{key}: {off}");
        }
    }
    // The model itself is as it was.
    let x = Array::from_tensor(&get(&golden, "cnn.value.input")).unwrap();
    assert!(relative(&tensor(&model.run(&Request::forward(x)).unwrap().logits), &get(&golden, "cnn.logits")) < 1e-5);
}

#[test]
fn what_cannot_be_run_is_refused_with_what_to_do() {
    let file = |name: &str| oracle(&format!("refused-{name}.pt2")).to_string_lossy().into_owned();
    let check = |name: &str, message: &str| fail(&["info", &file(name)], 3, message);
    check("fixed", "exported for a fixed number of images. Export it with dynamic_shapes");
    check("training", "export");
    check("cond", "chooses by the data what is computed");
    check("autocast", "the network uses torch.autocast");
    check("two-inputs", "the network takes 2 tensors, one is expected: wrap it in a module");
    check("custom", "this libtorch has no operator mine::double: a custom operator");
    check("half", "export the network in float32");
    check("torchscript", "a TorchScript file");
    check("checkpoint", "a checkpoint (torch.save): it has weights and no network");
    fail(&["info", "nowhere.pt2"], 3, "nowhere.pt2: no such file");
    // Nobody has said how images become what the network takes: it can be described, and not run.
    succeed(&["info", &file("unsaid")]);
    let explain = |more: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("a.png");
        lightbox_core::data::image::write_png(&image, 8, 8, &(0..64u8).collect::<Vec<_>>()).unwrap();
        let (image, out) = (image.to_string_lossy().into_owned(), folder.path().to_string_lossy().into_owned());
        let unsaid = file("unsaid");
        let all = [&["explain", &image, "--model", &unsaid, "--explainer", "gradcam", "--out", &out], more].concat();
        run(&all)
    };
    let (_, error, code) = explain(&[]);
    assert!(code == 3 && error.contains("set input = \"imagenet\""), "{code} {error}");
    assert_eq!(explain(&["--model-param", "input=imagenet"]).2, 0);
    // A path from where one stands is as good.
    let here = std::path::Path::new(&file("unsaid")).parent().unwrap().to_path_buf();
    let mut command = lightbox(&["check", "refused-unsaid.pt2", "--json"]);
    let (found, error, code) = texts(command.current_dir(here).output().unwrap());
    assert_eq!(code, 0, "{found} {error}");
    let (_, error, code) = explain(&["--model-param", "mean=0.5,0.5"]);
    assert!(code == 3 && error.contains("mean and std are given together"), "{code} {error}");
    let (_, error, code) = explain(&["--model-param", "input=unit", "--model-param", "cam_site=nothing"]);
    assert!(code == 3 && error.contains("no site has this name"), "{code} {error}");
}

/// A spec with programs beside a built-in model: labels are the files' names, and the run is what `explain` gives.
#[test]
fn a_run_takes_any_number_of_programs() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    std::fs::copy(oracle("exported-swin.pt2"), at("swin.pt2")).unwrap();
    let spec = format!(
        "name = \"p\"\noutput = {:?}\nbatch_size = 4\n[data]\nsource = \"phantom\"\ncount = 24\npixels = 32\n[split]\ntest = 8\n\
         [[models]]\nfile = \"swin.pt2\"\nclasses = 3\n[[models]]\nfile = {:?}\nlabel = \"other\"\nclasses = 3\nparams = {{ way = \
         \"plain\" }}\n[[explainers]]\nname = \"gradcam\"\n[[explainers]]\nname = \"rollout\"\n[[metrics]]\nname = \
         \"pixel-auprc\"\n",
        at("out"),
        oracle("exported-swin.pt2").to_string_lossy()
    );
    std::fs::write(at("s.toml"), spec).unwrap();
    let (table, error, code) = texts(lightbox(&["run", &at("s.toml")]).output().unwrap());
    assert_eq!(code, 0, "{error}");
    assert!(table.lines().any(|l| l.starts_with("swin ")) && table.lines().any(|l| l.starts_with("other ")), "{table}");
    assert!(!table.to_lowercase().contains("random"), "{table}");
    assert!(table.contains("swin: an exported program with its own weights, "), "{table}");
    // The same command again computes nothing; another file under the same name does.
    let (_, error, _) = texts(lightbox(&["run", &at("s.toml")]).output().unwrap());
    assert!(error.contains("units, 5 of them done before"), "{error}");
    std::fs::copy(oracle("exported-cnn.pt2"), at("swin.pt2")).unwrap();
    let text = std::fs::read_to_string(at("s.toml")).unwrap().replacen("classes = 3", "classes = 5", 1);
    std::fs::write(at("s.toml"), text).unwrap();
    let (_, error, code) = texts(lightbox(&["run", &at("s.toml")]).output().unwrap());
    assert!(code == 0 && !error.contains("5 of them done before"), "{code} {error}");
}

/// Writes a golden's images as a batch file, explains them, and gives what `--raw` wrote.
fn explain_raw(name: &str, more: &[&str]) -> State {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let images = get(&golden(), &format!("{name}.value.input"));
    checkpoint::write(at("x.safetensors").as_ref(), &[("images".to_string(), images)]).unwrap();
    let file = oracle(&format!("exported-{name}.pt2")).to_string_lossy().into_owned();
    let (images, raw) = (at("x.safetensors"), at("raw.safetensors"));
    let all = ["explain", &images, "--model", &file, "--explainer", "gradcam", "--raw", &raw];
    succeed(&[&all[..], more].concat());
    checkpoint::read(raw.as_ref()).unwrap()
}

#[test]
fn another_checkpoint_with_the_same_names_takes_the_weights_place() {
    let (golden, folder) = (golden(), tempfile::tempdir().unwrap());
    let file = folder.path().join("w.safetensors");
    let state: State = names(&golden, "cnn.train.")
        .into_iter()
        .filter(|key| key != "loss")
        .map(|key| (format!("module.{key}"), get(&golden, &format!("cnn.train.{key}"))))
        .collect();
    checkpoint::write(&file, &state).unwrap();
    let found = explain_raw("cnn", &["--weights", &file.to_string_lossy()]);
    let edits = state.iter().map(|(k, t)| (k["module.".len()..].to_string(), Array::from_tensor(t).unwrap())).collect();
    let other = model_with("cnn", &[]).fork_with(&edits).unwrap();
    let x = Array::from_tensor(&get(&golden, "cnn.value.input")).unwrap();
    let wanted = tensor(&other.run(&Request::forward(x)).unwrap().logits);
    assert!(relative(&get(&found, "logits"), &wanted) < 1e-5);
    assert!(relative(&wanted, &get(&golden, "cnn.logits")) > 1e-3);
}

/// Of a class map the largest region is explained: GradCAM is the mean slope of the class's mean logit there.
#[test]
fn segmentations_and_volumes_are_explained_on_the_command_line() {
    let found = explain_raw("segment", &["--explainer", "saliency:channels=sum"]);
    let logits = get(&golden(), "segment.logits");
    let highest = logits.argmax(1, false);
    let classes = Vec::<i64>::try_from(get(&found, "target")).unwrap();
    let seed = logits.zeros_like();
    for (row, class) in classes.iter().enumerate() {
        let count = |k: i64| highest.get(row as i64).eq(k).sum(Kind::Int64).int64_value(&[]);
        assert_eq!(*class, (0..3).max_by_key(|k| (count(*k), -k)).unwrap());
        let region = highest.get(row as i64).eq(*class).to_kind(Kind::Float);
        seed.get(row as i64).get(*class).copy_(&(&region / region.sum(Kind::Float)));
    }
    let model = model_with("segment", &[]);
    let x = Array::from_tensor(&get(&golden(), "segment.value.input")).unwrap();
    let objective = Objective::Output("logits".into(), Array::from_tensor(&seed).unwrap());
    let input = vec!["input".to_string()];
    let wanted = tensor(&model.run(&Request::explain(x, objective, &[], &input)).unwrap().grads[0]["input"]);
    let wanted = wanted.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
    let (_, map) = found.iter().find(|(name, _)| name.starts_with("saliency")).unwrap();
    assert!(relative(&map.reshape(wanted.size()), &wanted) < 1e-4);

    let found = explain_raw("volume", &[]);
    assert!(relative(&get(&found, "logits"), &get(&golden(), "volume.logits")) < 1e-5);
    assert_eq!(get(&found, "gradcam").size(), [3, 4, 5, 6]);
}
