//! Fourteen labels an image may have, as chest radiographs have: each positive one is explained for itself, with its own mask and
//! its own score.

use lightbox_core::data::image::write_png;
use lightbox_core::maps_file::MapsFile;
use lightbox_core::results::{Names, read_images, read_predictions, read_scores};
use lightbox_tests::succeed;
use std::collections::BTreeMap;
use tch::Kind;

const CLASSES: usize = 14;
const SIDE: u32 = 64;

fn class(k: usize) -> String {
    format!("c{k:02}")
}

/// The side of the box of a class: all differ, so that a mask says whose it is.
fn side(k: usize) -> u32 {
    8 + 2 * k as u32
}

#[test]
fn each_of_fourteen_labels_is_explained_for_itself() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut csv = String::from("image,label,x,y,width,height\n");
    for i in 0..42usize {
        let name = format!("{i:03}.png");
        let pixel = |p: u32| ((p * 37 + p * p % 29 + i as u32 * 11) % 200) as u8;
        write_png(&at(&name), SIDE as usize, SIDE as usize, &(0..SIDE * SIDE).map(pixel).collect::<Vec<u8>>()).unwrap();
        // Two labels, neither beside the other: low and high numbers together.
        for k in [i % CLASSES, (i + 7) % CLASSES] {
            let (x, y) = (2 + i as u32 % 20, 3 + i as u32 % 17);
            csv += &format!("{name},{},{x},{y},{},{}\n", class(k), side(k), side(k));
        }
    }
    std::fs::write(at("t.csv"), csv).unwrap();
    let spec = format!(
        "name = \"l\"\noutput = {:?}\nbatch_size = 8\n[data]\nsource = \"table\"\ncsv = \"t.csv\"\n[task]\nkind = \
         \"multi-label\"\n[split]\ntest = 14\nbalanced = false\nvalidation = 0.25\n[[models]]\nname = \"densenet-small\"\nweights = \"random\"\nparams = {{ size = 64 \
         }}\n[[explainers]]\nname = \"gradcam\"\n[[explainers]]\nname = \"rise\"\nparams = {{ masks = 3, keep = 1 \
         }}\n[[explainers]]\nname = \"lime\"\nparams = {{ samples = 30, grid = 4 }}\n[[explainers]]\nname = \
         \"occlusion\"\nparams = {{ window = 32, stride = 16 }}\n[[metrics]]\nname = \"auroc\"\n[[metrics]]\nname = \
         \"pixel-auprc\"\n[[metrics]]\nname = \"deletion\"\nparams = {{ steps = 2 }}\n[[metrics]]\nname = \"dice\"\n",
        at("out")
    );
    std::fs::write(at("s.toml"), spec).unwrap();
    let table = succeed(&["run", &at("s.toml").to_string_lossy()]);
    assert!(table.contains("14 test images, each explained for each of its classes."), "{table}");
    let head = table.lines().find(|l| l.contains("gradcam")).unwrap();
    assert!(["rise", "lime", "occlusion", "chance"].iter().all(|name| head.contains(name)), "{table}");

    // Scores, by image and class, are sigmoids of the logits.
    let mut names = Names::default();
    let mut scores: BTreeMap<(String, usize), f64> = BTreeMap::new();
    let (mut labels, units) = (Vec::new(), at("out/units"));
    for entry in std::fs::read_dir(&units).unwrap().flatten() {
        if entry.file_name().to_string_lossy().ends_with(".predictions.parquet") {
            let mut rows = Vec::new();
            read_predictions(&entry.path(), &mut names, &mut |r| rows.push(r)).unwrap();
            for r in rows {
                let (image, k) = (names.name(r.image).to_string(), names.name(r.class)[1..].parse().unwrap());
                assert!((r.score - 1.0 / (1.0 + (-r.logit).exp())).abs() < 1e-12);
                if r.label {
                    labels.push((image.clone(), k));
                }
                scores.insert((image, k), r.score);
            }
        }
    }
    assert_eq!((scores.len(), labels.len()), (14 * CLASSES, 28));
    labels.sort();

    // RISE that keeps every cell shows the score that it read: each class's own.
    let images = read_images(&at("out/images.parquet")).unwrap();
    // Dice has the validation images explained too, which are no rows.
    let name_of = |place: i64| images.iter().find(|i| i64::from(i.index) == place).map(|i| i.image.clone());
    let mut shown = Vec::new();
    for entry in std::fs::read_dir(&units).unwrap().flatten() {
        if !entry.file_name().to_string_lossy().ends_with(".maps.rise.safetensors") {
            continue;
        }
        let file = MapsFile::open(&entry.path()).unwrap();
        let maps = file.rows(0, file.images.len()).unwrap().to_kind(Kind::Double);
        for (row, (image, target)) in file.images.iter().zip(&file.targets).enumerate() {
            let Some(name) = name_of(*image) else { continue };
            let key = (name, *target as usize);
            let off = (maps.get(row as i64) - scores[&key]).abs().max().double_value(&[]);
            assert!(off < 1e-5, "{key:?}: RISE reads a score that is {off} from {}", scores[&key]);
            shown.push(key);
        }
    }
    shown.sort();
    assert_eq!(shown, labels, "an explanation for each label of each image");

    // What a constant map scores is the share of the explained class's mask: a circle of its box.
    let mut checked = 0;
    let mut rows = Vec::new();
    read_scores(&at("out/scores.parquet"), &mut names, &mut |r| rows.push(r)).unwrap();
    let per_explainer = |label: &str, metric: &str| {
        let same = |r: &&lightbox_core::results::Row| {
            names.name(r.explainer) == label && names.name(r.metric) == metric && !names.name(r.image).is_empty()
        };
        rows.iter().filter(same).map(|r| (names.name(r.image).to_string(), r.target as usize)).collect::<Vec<_>>()
    };
    for explainer in ["gradcam", "rise", "lime", "occlusion"] {
        // Dice chooses its threshold on the validation images, so that its values come in the end.
        for metric in ["pixel-auprc", "deletion", "dice"] {
            let mut found = per_explainer(explainer, metric);
            found.sort();
            assert_eq!(found, labels, "{explainer} {metric}");
        }
    }
    for r in rows.iter().filter(|r| names.name(r.explainer) == "chance" && !names.name(r.image).is_empty()) {
        let radius = f64::from(side(r.target as usize)) / 2.0;
        let share = std::f64::consts::PI * radius * radius / f64::from(SIDE * SIDE);
        let found = r.value.unwrap();
        assert!((found / share - 1.0).abs() < 0.12, "class {}: {found}, its circle {share}", r.target);
        checked += 1;
    }
    assert_eq!(checked, 28);

    by_class(&at("out/summary.json"), &scores, &labels, &rows, &names);
    assert!(table.contains("densenet-small, by class") && table.contains("c13, 2 images"), "{table}");
}

/// The tables by class: means of the rows, and AUROC as the share of ordered pairs, both found here once more.
fn by_class(
    summary: &std::path::Path,
    scores: &BTreeMap<(String, usize), f64>,
    labels: &[(String, usize)],
    rows: &[lightbox_core::results::Row],
    names: &Names,
) {
    let summary: serde_json::Value = serde_json::from_slice(&std::fs::read(summary).unwrap()).unwrap();
    let of = |key: &str| summary["summary"][key].as_array().unwrap().clone();
    let (values, means) = (of("class_values"), of("class_means"));
    assert_eq!((values.len(), means.len()), (CLASSES, 4 * 3 * CLASSES));
    for v in &values {
        let k: usize = v["class"].as_str().unwrap()[1..].parse().unwrap();
        let positive = |image: &String| labels.contains(&(image.clone(), k));
        let all: Vec<(&String, f64)> = scores.iter().filter(|((_, c), _)| *c == k).map(|((i, _), s)| (i, *s)).collect();
        let (mut sum, mut pairs) = (0.0, 0.0);
        for (_, p) in all.iter().filter(|(i, _)| positive(i)) {
            for (_, n) in all.iter().filter(|(i, _)| !positive(i)) {
                sum += if p > n { 1.0 } else { 0.5 * f64::from(u8::from(p == n)) };
                pairs += 1.0;
            }
        }
        assert!((v["value"].as_f64().unwrap() - sum / pairs).abs() < 1e-12, "{v}");
        assert_eq!(v["images"].as_u64(), Some(2));
    }
    let column = |m: &serde_json::Value| summary["summary"]["columns"][m["column"].as_u64().unwrap() as usize].clone();
    for m in &means {
        let k: i32 = m["class"].as_str().unwrap()[1..].parse().unwrap();
        let (explainer, metric) = (column(m)["explainer"].clone(), m["metric"].as_str().unwrap());
        let same = rows.iter().filter(|r| {
            r.target == k && names.name(r.metric) == metric && names.name(r.explainer) == explainer && r.value.is_some()
        });
        let found: Vec<f64> = same.filter_map(|r| r.value).collect();
        let mean = found.iter().sum::<f64>() / found.len() as f64;
        assert!((m["mean"].as_f64().unwrap() - mean).abs() < 1e-12, "{m} {found:?}");
    }
}
