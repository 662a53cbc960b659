//! Metrics and statistics against the peers: `tests/oracle/metrics.py` made the file with Quantus, Captum, pytorch-grad-cam,
//! scikit-learn, scikit-image and SciPy.

use lightbox_core::checkpoint::{self, State};
use lightbox_core::maps;
use lightbox_core::metrics::batch_cache::BatchCache;
use lightbox_core::metrics::{self, Answer, Batch, Bench, Evaluation, Form, NoBench, Score};
use lightbox_core::stats::correlation::{pearson, spearman};
use lightbox_core::stats::paired::{mcnemar, wilcoxon};
use lightbox_core::stats::ranking::friedman;
use lightbox_core::{Error, Result};
use lightbox_tests::oracle;
use serde_json::Value;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

fn golden() -> State {
    checkpoint::read(&oracle("metrics.safetensors")).unwrap()
}

fn get(state: &State, name: &str) -> Tensor {
    state.iter().find(|(n, _)| n == name).map(|(_, t)| t.shallow_clone()).unwrap_or_else(|| panic!("no {name}"))
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(tensor.flatten(0, -1).to_kind(Kind::Double)).unwrap()
}

fn rows(tensor: &Tensor) -> Vec<Vec<f64>> {
    (0..tensor.size()[0]).map(|i| floats(&tensor.get(i))).collect()
}

fn close(name: &str, found: &[f64], wanted: &[f64], limit: f64) {
    assert_eq!(found.len(), wanted.len(), "{name}");
    for (i, (f, w)) in found.iter().zip(wanted).enumerate() {
        assert!((f - w).abs() <= limit, "{name} {i}: {f}, the peer {w}");
    }
}

fn start(name: &str, given: &[(&str, Value)]) -> Box<dyn Evaluation> {
    let metric = metrics::find(name).unwrap();
    let given: BTreeMap<String, Value> = given.iter().map(|(n, v)| (n.to_string(), v.clone())).collect();
    metric.start(&metric.spec().resolve(&given).unwrap(), 0).unwrap()
}

/// One batch of everything, through the metric as a run goes through it.
fn update(
    name: &str,
    evaluation: &mut dyn Evaluation,
    (images, raw, masks): (&Tensor, &Tensor, &Tensor),
    first: u64,
    bench: &mut dyn Bench,
) -> Vec<Score> {
    let n = raw.size()[0] as usize;
    let faults = maps::faults(raw).unwrap();
    let form = metrics::find(name).unwrap().needs().maps.unwrap().1;
    let formed = if form == Form::MinMax { maps::min_max(raw).unwrap() } else { raw.shallow_clone() };
    let batch = Batch {
        images,
        targets: &vec![1; n],
        ids: &(first..first + n as u64).collect::<Vec<_>>(),
        maps: Some(&formed),
        faults: &faults,
        masks: Some(masks),
        known: &vec![true; n],
        signed: true,
        scene: &BatchCache::default(),
        cell: &BatchCache::default(),
    };
    evaluation.update(&batch, bench).unwrap()
}

fn values(scores: &[Score]) -> Vec<f64> {
    scores.iter().map(|s| s.value.unwrap()).collect()
}

#[test]
fn metrics_of_one_map_equal_quantus_and_scikit_learn() {
    let golden = golden();
    let (maps, masks) = (get(&golden, "maps"), get(&golden, "masks"));
    let check = |name: &str, given: &[(&str, Value)], limit: f64| {
        let mut evaluation = start(name, given);
        let found = update(name, evaluation.as_mut(), (&maps, &maps, &masks), 0, &mut NoBench);
        close(name, &values(&found), &floats(&get(&golden, name)), limit);
    };
    check("hit", &[], 0.0);
    check("top-k", &[("share", Value::from(0.05))], 1e-12);
    for name in ["relevance-rank", "iou-otsu", "dice-otsu"] {
        check(name, &[], 1e-12);
    }
    // Quantus sums in float32; its Gini coefficient adds 1e-7 to every value.
    for name in ["relevance-mass", "pixel-auroc", "gini", "entropy"] {
        check(name, &[], 2e-6);
    }
    // Quantus asks for more than 0.25, not for more than a share of the largest: of maps scaled to 1 that is the same.
    let scaled = &maps / maps.amax([1i64, 2].as_slice(), true);
    let mut evaluation = start("effective-complexity", &[("limit", Value::from(0.25))]);
    let found = update("effective-complexity", evaluation.as_mut(), (&maps, &scaled, &masks), 0, &mut NoBench);
    let by_hand: Vec<f64> =
        rows(&scaled).iter().map(|m| m.iter().filter(|v| **v > 0.25).count() as f64 / 576.0).collect();
    close("effective-complexity", &values(&found), &by_hand, 1e-12);
    let mut evaluation = start("pixel-auroc-pooled", &[]);
    update("pixel-auroc-pooled", evaluation.as_mut(), (&maps, &maps, &masks), 0, &mut NoBench);
    let set = evaluation.finish().unwrap().unwrap().value.unwrap();
    close("pixel-auroc-pooled", &[set], &floats(&get(&golden, "pixel-auroc-pooled")), 1e-9);
}

#[test]
fn a_threshold_frozen_on_validation_is_scikit_learns() {
    let golden = golden();
    let (maps, masks) = (get(&golden, "maps"), get(&golden, "masks"));
    let half = |from: i64| (maps.narrow(0, from, 6), masks.narrow(0, from, 6));
    for name in ["dice", "iou"] {
        let ((va, vm), (ta, tm)) = (half(0), half(6));
        let (mut validation, mut test, mut end) = (start(name, &[]), start(name, &[]), start(name, &[]));
        update(name, validation.as_mut(), (&va, &va, &vm), 0, &mut NoBench);
        update(name, test.as_mut(), (&ta, &ta, &tm), 6, &mut NoBench);
        end.merge(&test.state().unwrap()).unwrap();
        end.tune(&validation.state().unwrap()).unwrap();
        let found: Vec<f64> = end.images().unwrap().iter().map(|(.., s)| s.value.unwrap()).collect();
        close(name, &found, &floats(&get(&golden, name)), 1e-12);
    }
}

/// The script's `Small`: a logit with interactions.
struct Small(Tensor);

impl Bench for Small {
    fn run(&mut self, images: &Tensor) -> Result<Answer> {
        let terms = images.select(1, 0).to_kind(Kind::Double) * &self.0;
        let sum = |t: &Tensor| t.sum_dim_intlist([1i64, 2].as_slice(), false, Kind::Double);
        let logit = sum(&terms.tanh()) + sum(&terms).square() * 0.05;
        let logits = Tensor::stack(&[logit.zeros_like(), logit], 1);
        Ok(Answer { scores: logits.softmax(1, Kind::Double), logits })
    }
    fn explain(&mut self, _: &Tensor, _: &[i64], _: &[u64]) -> Result<Tensor> {
        Err(Error::new("not asked for"))
    }
    fn parameters(&mut self) -> Result<Vec<(String, Tensor)>> {
        Ok(vec![])
    }
    fn fork(&mut self, _: &str, _: metrics::Edits<'_>, _: &mut dyn FnMut(&mut dyn Bench) -> Result<()>) -> Result<()> {
        Err(Error::new("not asked for"))
    }
    fn batch_size(&self) -> usize {
        5
    }
}

#[test]
fn deletion_equals_quantus_pixel_flipping_with_the_image_first() {
    let golden = golden();
    let (images, maps) = (get(&golden, "model.images"), get(&golden, "model.maps"));
    let mut small = Small(get(&golden, "model.weights").to_kind(Kind::Double));
    let given = [("steps", Value::from(8.0)), ("baseline", Value::from("zero"))];
    let mut evaluation = start("deletion", &given);
    let masks = maps.to_kind(Kind::Uint8);
    let found = update("deletion", evaluation.as_mut(), (&images, &maps, &masks), 0, &mut small);
    close("deletion", &values(&found), &floats(&get(&golden, "deletion")), 1e-6);
    // The mean curve has the image's own score first and the blank's last.
    let curve = evaluation.curve().unwrap().unwrap();
    assert_eq!((curve.points.len(), curve.points[0][0], curve.points[8][0]), (9, 0.0, 1.0));
    assert!((curve.points[8][1] - 0.5).abs() < 1e-9);
}

#[test]
fn an_insertion_curve_goes_from_the_baseline_to_the_image() {
    let golden = golden();
    let (images, maps) = (get(&golden, "model.images"), get(&golden, "model.maps"));
    let mut small = Small(get(&golden, "model.weights").to_kind(Kind::Double));
    let given = [("steps", Value::from(8.0)), ("baseline", Value::from("zero"))];
    let mut evaluation = start("insertion", &given);
    let masks = maps.to_kind(Kind::Uint8);
    update("insertion", evaluation.as_mut(), (&images, &maps, &masks), 0, &mut small);
    let points = evaluation.curve().unwrap().unwrap().points;
    let own = floats(&small.run(&images).unwrap().scores.select(1, 1));
    assert!((points[0][1] - 0.5).abs() < 1e-9, "{points:?}");
    assert!((points[8][1] - own.iter().sum::<f64>() / 4.0).abs() < 1e-9, "{points:?}");
}

#[test]
fn infidelity_equals_captum_on_the_same_squares() {
    use lightbox_core::metrics::infidelity::error;
    use lightbox_core::metrics::subsets::{Subset, sums};
    let golden = golden();
    let (images, maps) = (get(&golden, "model.images"), get(&golden, "model.maps"));
    let mut small = Small(get(&golden, "model.weights").to_kind(Kind::Double));
    let squares = get(&golden, "infidelity.squares");
    let mut found = Vec::new();
    for i in 0..4 {
        let corners = Vec::<i64>::try_from(squares.get(i).flatten(0, -1)).unwrap();
        let square =
            |c: &[i64]| -> Subset { vec![[c[0] as usize, c[0] as usize + 3, c[1] as usize, c[1] as usize + 3]] };
        let subsets: Vec<Subset> = corners.chunks(2).map(square).collect();
        let image = images.narrow(0, i, 1);
        let logit = |bench: &mut Small, image: &Tensor| bench.run(image).unwrap().logits.double_value(&[0, 1]);
        let before = logit(&mut small, &image);
        let drops: Vec<f64> = corners
            .chunks(2)
            .map(|c| {
                let without = image.copy();
                let _ = without.narrow(2, c[0], 3).narrow(3, c[1], 3).fill_(0.0);
                before - logit(&mut small, &without)
            })
            .collect();
        let map: Vec<f32> = floats(&maps.get(i)).iter().map(|v| *v as f32).collect();
        found.push(error(&sums(&map, 8, &subsets), &drops));
    }
    close("infidelity", &found, &floats(&get(&golden, "infidelity")), 1e-5);
}

#[test]
fn imputation_equals_pytorch_grad_cams() {
    use lightbox_core::metrics::impute::fill;
    let golden = golden();
    let (image, kept, wanted) =
        (get(&golden, "imputation.image"), get(&golden, "imputation.kept"), get(&golden, "imputation"));
    for m in 0..4 {
        let missing: Vec<bool> = floats(&kept.get(m)).iter().map(|k| *k == 0.0).collect();
        for c in 0..3 {
            let channel: Vec<f32> = floats(&image.get(c)).iter().map(|v| *v as f32).collect();
            let found: Vec<f64> = fill(&channel, &missing, (20, 26)).iter().map(|v| f64::from(*v)).collect();
            close(&format!("imputation {m} {c}"), &found, &floats(&wanted.get(m).get(c)), 1e-3);
        }
    }
}

#[test]
fn tests_of_differences_equal_scipys() {
    let golden = golden();
    let lists = rows(&get(&golden, "lists"));
    for (name, of) in [("spearman", spearman as fn(&[f64], &[f64]) -> Option<f64>), ("pearson", pearson)] {
        let found: Vec<f64> = lists.iter().flat_map(|a| lists.iter().map(|b| of(a, b).unwrap())).collect();
        close(name, &found, &floats(&get(&golden, name)), 1e-12);
    }
    for i in 0..8 {
        let pair = rows(&get(&golden, &format!("wilcoxon.{i}")));
        let found = wilcoxon(&pair[0], &pair[1]).p;
        close(&format!("wilcoxon {i}"), &[found], &floats(&get(&golden, &format!("wilcoxon.{i}.p"))), 1e-9);
    }
    let found = friedman(&rows(&get(&golden, "friedman.values"))).unwrap();
    close("friedman", &[found.chi_square, found.p], &floats(&get(&golden, "friedman")), 1e-9);
    close("friedman F", &[found.f, found.f_p], &floats(&get(&golden, "friedman.f")), 1e-9);
    let hits = rows(&get(&golden, "mcnemar.hits"));
    close("mcnemar", &[mcnemar(&hits[0], &hits[1]).p], &floats(&get(&golden, "mcnemar")), 1e-9);
}
