//! The hard kinds of method, written against the public SDK alone (`tests/hard`): fit, rules, beginning at a site, several
//! maps.

use lightbox::choice::ExplainerChoice;
use lightbox::engine::{self, Engine, Settings};
use lightbox::watch::terminal;
use lightbox_core::checkpoint;
use lightbox_sdk::spec::ModelOptions;
use lightbox_tests::{built, relative, small_spec, succeed, unit, values};
use std::path::{Path, PathBuf};
use tch::Tensor;

/// The map of an explainer of `tests/hard` on two made images, and how many images it ran the model on beyond the shared run.
fn map(plugin: &str, model: &str, size: i64, choice: &str) -> (Tensor, u64) {
    let mut options = ModelOptions { classes: 2, seed: 7, ..ModelOptions::default() };
    options.params.insert("size".into(), size.into());
    let file = built(&format!("plugins/liblightbox_{plugin}.so"));
    let (model, _) = engine::load_model(&file, model, &options, None, engine::Missing::Random).unwrap();
    let mut engine = Engine::new(model, Settings::new(tch::Device::Cpu, 0), terminal()).unwrap();
    let hard = built("test-plugins/hard/liblightbox_hard.so");
    engine.add(&hard, &ExplainerChoice::parse(choice).unwrap()).unwrap();
    let values: Vec<f32> =
        unit("hard", (2 * 3 * size * size) as usize).iter().map(|u| (2.0 * u - 1.0) as f32).collect();
    let images = Tensor::from_slice(&values).reshape([2, 3, size, size]);
    let mut batch = engine.run(&images, &engine::classes(&[1, 0]), &[1, 2], &[0], &mut |_| {}).unwrap();
    let outputs = batch.maps.remove(0).1.unwrap();
    (outputs.maps, engine.runs(0))
}

/// The files of what explainers learned.
fn fits(out: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(out.join("fits")).unwrap().flatten().map(|e| e.path());
    all.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect()
}

#[test]
fn ablation_from_a_site_is_ablation_of_the_whole_model() {
    // densenet121 begins at the layer, DeiT at the block before it.
    for (plugin, model, size, channels) in
        [("densenet", "densenet121", 64, 1024), ("densenet", "densenet-small", 64, 69), ("deit", "deit-mini", 64, 64)]
    {
        let (found, runs) = map(plugin, model, size, "hard-ablation");
        assert!(runs >= 2 * channels as u64, "{model}: {runs}");
        // The whole model a thousand times is for the small ones.
        if model != "densenet121" {
            let (whole, _) = map(plugin, model, size, "hard-ablation:whole=true");
            let error = relative(&found, &whole);
            assert!(error < 1e-3, "{model}: {error}");
        }
        assert!(found.abs().max().double_value(&[]) > 0.0, "{model}");
        let (other, _) = map(plugin, model, size, "hard-ablation:batch=7");
        assert!(relative(&other, &found) < 1e-3, "{model}");
    }
}

#[test]
fn a_run_with_all_four() {
    let folder = tempfile::tempdir().unwrap();
    let extra = "[[models]]\nname = \"deit-mini\"\nweights = \"random\"\nparams = { size = 64 }\n\
        [[explainers]]\nname = \"hard-concept\"\n[[explainers]]\nname = \"hard-guided\"\n\
        [[explainers]]\nname = \"hard-ablation\"\n[[explainers]]\nname = \"hard-heads\"\nlabel = \"heads\"\n\
        [[explainers]]\nname = \"hard-heads\"\nlabel = \"one\"\nmaps = [\"head 2\"]\n\
        [[explainers]]\nname = \"attention\"\nparams = { fusion = \"index\", head = 2 }\n";
    let spec = small_spec(folder.path(), extra);
    let plugins = built("test-plugins/hard").to_string_lossy().into_owned();
    let run = || succeed(&["run", &spec.to_string_lossy(), "--plugins", &plugins]);
    let table = run();
    for part in [
        "heads head 0",
        "heads head 3",
        "one head 2",
        "densenet-small x heads: not applicable: densenet-small has no attention",
        "deit-mini x hard-guided: not applicable: deit-mini has no rule relu:guided",
        "deit-mini x hard-concept: not applicable: deit-mini has no feature map",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    assert!(!table.contains("one head 0"), "{table}");
    // Each map has its own scores, and a head's are those of the attention explainer's.
    let out = folder.path().join("out");
    let all = values(&out);
    let of = |explainer: &str| -> Vec<f64> {
        let mine = all.iter().filter(|(k, _)| k.0 == "deit-mini" && k.3 == explainer && k.4 == "pixel-auprc");
        mine.filter_map(|(_, v)| *v).collect()
    };
    assert_eq!(of("heads.head 2").len(), 6);
    assert_eq!(of("heads.head 2"), of("attention"));
    assert_ne!(of("heads.head 1"), of("attention"));
    // What was learned is a file of the run, and the training set is what it was learned from.
    let fits = fits(&out);
    assert_eq!(fits.len(), 1);
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fits[0].with_extension("json")).unwrap()).unwrap();
    let hash = lightbox_core::files::sha256(&fits[0]).unwrap();
    let build = lightbox_core::files::sha256(&built("test-plugins/hard/liblightbox_hard.so")).unwrap();
    assert_eq!(
        (record["sha256"].as_str(), record["plugin"]["sha256"].as_str()),
        (Some(hash.as_str()), Some(build.as_str()))
    );
    let learned = checkpoint::read(&fits[0]).unwrap();
    let images = learned.iter().find(|(n, _)| n == "images").map(|(_, t)| Vec::<f64>::try_from(t).unwrap()).unwrap();
    let train = std::fs::read_to_string(out.join("splits/train_fold0.csv")).unwrap();
    let count = |label: &str| train.lines().skip(1).filter(|l| l.split(',').nth(1) == Some(label)).count() as f64;
    assert_eq!(images, [count("0"), count("1")]);
    let direction = learned.iter().find(|(n, _)| n == "direction").map(|(_, t)| t.norm().double_value(&[])).unwrap();
    assert!((direction - 1.0).abs() < 1e-5);
    // Again: nothing is learned or computed anew.
    let state = || (std::fs::read(&fits[0]).unwrap(), std::fs::metadata(&fits[0]).unwrap().modified().unwrap());
    let before = state();
    let done = || std::fs::read_to_string(out.join("events.jsonl")).unwrap().matches("\"unit-finished\"").count();
    let units = done();
    assert_eq!(run(), table);
    assert!(state() == before && done() == units, "{units} units were done, now {}", done());
    // A file that is not what the fit handed back is made anew.
    let mut bytes = before.0.clone();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&fits[0], bytes).unwrap();
    assert_eq!(run(), table);
    assert!(std::fs::read(&fits[0]).unwrap() == before.0 && done() > units);
}

#[test]
fn the_hard_ones_pass_their_check() {
    let file = built("test-plugins/hard/liblightbox_hard.so").to_string_lossy().into_owned();
    for model in ["densenet-small", "deit-mini"] {
        let out = succeed(&["check", &file, "--model", model, "--param", "batch=32", "--only", "hard-ablation"]);
        assert!(out.contains(" 0 fail, 0 crash"), "{out}");
        let rest =
            ["--only", "hard-concept", "--only", "hard-guided", "--only", "hard-heads", "--only", "hard-relevance"];
        let out = succeed(&[&["check", &file, "--model", model], &rest[..]].concat());
        assert!(out.contains(" 0 fail, 0 crash"), "{out}");
        let folder = tempfile::tempdir().unwrap();
        let number = folder.path().join("n.txt");
        std::fs::write(&number, "2").unwrap();
        let params = ["file", "beside"].map(|name| format!("{name}={}", number.display()));
        let record =
            ["check", &file, "--model", model, "--only", "hard-record", "--param", &params[0], "--param", &params[1]];
        let out = succeed(&record);
        assert!(out.contains(" 0 fail, 0 crash"), "{out}");
    }
}

#[test]
fn an_explainer_sees_records_files_and_other_classes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    succeed(&["data", "make", &at("data").to_string_lossy(), "--count", "24", "--pixels", "64"]);
    // A column that the table source has no use for.
    let table = std::fs::read_to_string(at("data/table.csv")).unwrap();
    let aged = table.lines().enumerate().map(|(i, l)| if i == 0 { format!("{l},age\n") } else { format!("{l},{i}\n") });
    std::fs::write(at("data/table.csv"), aged.collect::<String>()).unwrap();
    std::fs::create_dir(at("plugins")).unwrap();
    std::fs::copy(built("test-plugins/hard/liblightbox_hard.so"), at("plugins/hard.so")).unwrap();
    std::fs::write(at("plugins/scale.txt"), "2").unwrap();
    std::fs::create_dir(at("specs")).unwrap();
    std::fs::write(at("specs/number.txt"), "3").unwrap();
    let spec = "name = \"x\"\n[data]\nsource = \"table\"\ncsv = \"../data/table.csv\"\n[split]\n\
                test = 6\n[[models]]\nname = \"densenet-small\"\nweights = \"random\"\nparams = { size = 64 }\n[[explainers]]\n\
                name = \"hard-record\"\nparams = { file = \"number.txt\" }\n";
    std::fs::write(at("specs/spec.toml"), spec).unwrap();
    let (spec, plugins) = (at("specs/spec.toml"), at("plugins"));
    let out = at("out");
    let arguments =
        [spec.as_path(), Path::new("--plugins"), &plugins, Path::new("--output"), &out].map(|a| a.to_string_lossy());
    let arguments: Vec<&str> = ["run"].into_iter().chain(arguments.iter().map(|a| a.as_ref())).collect();
    let run = || lightbox_tests::run(&arguments);
    let (_, err, code) = run();
    assert_eq!(code, 0, "{err}");
    let events = || std::fs::read_to_string(out.join("events.jsonl")).unwrap();
    let said = format!("factor 6, wrong 0, beside {}", at("plugins").display());
    assert!(events().contains(&said), "{said}\n{}", events());
    // Each image's own row, by its name.
    let log = events();
    let of = |line: &str| line.split("\"text\":\"").nth(1).and_then(|t| t.split('"').next()).map(String::from);
    let told: Vec<String> = log.lines().filter_map(of).filter(|t| t.contains(", age ")).collect();
    let header: Vec<&str> = table.lines().next().unwrap().split(',').collect();
    let column = |line: &str, name: &str| {
        line.split(',').nth(header.iter().position(|c| *c == name).unwrap()).unwrap().to_string()
    };
    let row = |name: &str| table.lines().enumerate().skip(1).find(|(_, l)| column(l, "image") == name).unwrap();
    for line in &told {
        let (number, found) = row(line.split(' ').next().unwrap());
        let wanted = format!("{} of {}, age {number}", column(found, "image"), column(found, "patient"));
        assert_eq!(line, &wanted);
    }
    assert!(!told.is_empty(), "{log}");
    // All of the training set had a record in the fit.
    let known = checkpoint::read(&fits(&out)[0]).unwrap()[0].1.int64_value(&[0]);
    let train = std::fs::read_to_string(out.join("splits/train_fold0.csv")).unwrap().lines().count() as i64 - 1;
    assert_eq!(known, train);
    // Another number in a file is another explainer: it is run anew. A file that is not there is said before.
    std::fs::write(at("plugins/scale.txt"), "4").unwrap();
    let (_, err, code) = run();
    assert!(code == 0 && events().contains("factor 12, "), "{err}");
    std::fs::remove_file(at("specs/number.txt")).unwrap();
    let (_, err, code) = run();
    let message = "explainer hard-record: parameter file: ";
    assert!(code == 3 && err.contains(message) && err.contains("specs/number.txt: no such file or folder"), "{err}");
}

/// The worker that has run the fit goes on to explain: with what was learned.
#[test]
fn a_fit_alone_and_a_rule_that_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let plugins = built("test-plugins/hard").to_string_lossy().into_owned();
    let spec = small_spec(folder.path(), "[[explainers]]\nname = \"hard-concept\"\n");
    let run = |spec: &Path| lightbox_tests::run(&["run", &spec.to_string_lossy(), "--plugins", &plugins]);
    let (out, err, code) = run(&spec);
    assert!(code == 0 && !out.contains("failed"), "{err}");
    let line = |folder: &Path| -> Vec<String> {
        let csv = std::fs::read_to_string(folder.join("out/summary.csv")).unwrap();
        csv.lines().filter(|l| l.contains(",hard-concept,")).map(String::from).collect()
    };
    let concept = line(folder.path());
    // Beside others the numbers are the same, and it can be added to a run that is done.
    let other = tempfile::tempdir().unwrap();
    let first = small_spec(other.path(), "[[explainers]]\nname = \"noise\"\n");
    assert_eq!(run(&first).2, 0);
    let both = small_spec(other.path(), "[[explainers]]\nname = \"noise\"\n[[explainers]]\nname = \"hard-concept\"\n");
    assert_eq!(run(&both).2, 0);
    assert!(!concept.is_empty());
    assert_eq!(line(other.path()), concept);
    // A wrong rule costs its own cell.
    let wrong = tempfile::tempdir().unwrap();
    let extra: String = ["linear:gamma=much", "linear:zplus=2", "linear:gamma+linear:epsilon", "linear:gamma=0.1"]
        .map(|rules| {
            format!(
                "[[explainers]]\nname = \"hard-relevance\"\nlabel = \"{rules}\"\nparams = {{ rules = \"{rules}\" }}\n"
            )
        })
        .concat();
    let spec = small_spec(wrong.path(), &format!("{extra}[[explainers]]\nname = \"gradcam\"\n"));
    let (out, err, code) = run(&spec);
    assert_eq!(code, 5, "{err}");
    for reason in [
        "rule linear:gamma=much: much is no number above 0",
        "rule linear:zplus takes no number",
        "linear has one rule, and linear:gamma and linear:epsilon are asked for",
    ] {
        assert!(out.contains(reason), "{reason}: {out}");
    }
    let found = values(&wrong.path().join("out"));
    let count = |name: &str| found.iter().filter(|(k, v)| k.3 == name && k.4 == "pixel-auprc" && v.is_some()).count();
    assert_eq!((count("gradcam"), count("linear:gamma=0.1"), count("linear:zplus=2")), (6, 6, 0));
}

/// An image that an explainer reads itself is what the run gives it, whatever the run does with intensities.
#[test]
fn an_image_that_is_read_is_prepared_as_the_runs_are() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut csv = String::from("image,label\n");
    for i in 0..24u32 {
        // Images of 16 bits and of 8, with a value that stands out.
        let value = |k: u32| (1000 + k * 37 % 900 + i * 11 + if k == 70 { 30_000 } else { 0 }) as u16;
        let name = format!("{i:02}.png");
        let deep = image::ImageBuffer::from_fn(40, 30, |x, y| image::Luma([value(x + 40 * y)]));
        let image = image::DynamicImage::ImageLuma16(deep);
        let image = if i % 3 == 0 { image::DynamicImage::ImageLuma8(image.to_luma8()) } else { image };
        image.save(at(&name)).unwrap();
        csv += &format!("{name},{}\n", i % 2);
    }
    std::fs::write(at("t.csv"), csv).unwrap();
    let mut first = Vec::new();
    for intensity in ["auto", "full", "percentile"] {
        let out = at(intensity);
        let spec = format!(
            "name = \"r\"\noutput = {out:?}\n[data]\nsource = \"table\"\ncsv = \"t.csv\"\nintensity = \"{intensity}\"\n[task]\n\
             select = \"all\"\n[split]\ntest = 8\n[[models]]\nname = \"densenet-small\"\nweights = \"random\"\nparams = {{ size = 64 \
             }}\n[[explainers]]\nname = \"hard-reader\"\nparams = {{ folder = \".\" }}\n[[explainers]]\nname = \
             \"brightness\"\n[[metrics]]\nname = \"gini\"\n"
        );
        std::fs::write(at("s.toml"), spec).unwrap();
        let plugins = built("test-plugins/hard");
        succeed(&["run", &at("s.toml").to_string_lossy(), "--plugins", &plugins.to_string_lossy()]);
        let maps = |explainer: &str| {
            let mut units = std::fs::read_dir(out.join("units")).unwrap().flatten().map(|e| e.path());
            let ending = format!(".maps.{explainer}.safetensors");
            let file = units.find(|p| p.to_string_lossy().ends_with(&ending)).unwrap();
            let file = lightbox_core::maps_file::MapsFile::open(&file).unwrap();
            file.rows(0, file.images.len()).unwrap()
        };
        let apart = maps("hard-reader").abs().max().double_value(&[]);
        assert!(apart < 1e-5, "{intensity}: an image that is read is {apart} from the one that is given");
        first.push(maps("brightness").mean(tch::Kind::Double).double_value(&[]));
    }
    // The three are not the same, or this says nothing.
    assert!((first[0] - first[1]).abs() > 1e-3 && (first[1] - first[2]).abs() > 1e-3, "{first:?}");
}
