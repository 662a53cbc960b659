//! Partition SHAP: Owen values of a tree of halves, the `shap` package's `PartitionExplainer` with its image masker; Owen, "Values
//! of Games with a Priori Unions", 1977.
//!
//! The image is halved along its longer side, the halves again, down to pixels. A node's difference, with and without it, is
//! shared between its two children in both orders: `phi(L) = ((f(L) - f(0)) + (f(LR) - f(R))) / 2`, in every context that its
//! ancestors' siblings make. Nodes are opened in the order of how much is at stake until `evaluations` is used up; what a
//! node that was not opened has is spread evenly over its pixels. The values sum to `S(x) - S(all covered)`.
//!
//! The package opens nodes by batches and breaks ties at random; here so many at a time, whatever the batch size, and ties by
//! age. Its masks number leaves from the end, so that its tree is the mirror image; colours are leaves of their own there.

use crate::cover::{blend, bound};
use lightbox_sdk::ndarray::Array3;
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::fill::{Fill, fill};
use std::rc::Rc;

register_explainer!(PartitionShap);

struct PartitionShap;

/// Rows and columns of a part of the image.
#[derive(Clone, Copy, PartialEq)]
struct Part {
    top: usize,
    left: usize,
    height: usize,
    width: usize,
}

impl Part {
    /// Its halves, along the longer side; `None` for a pixel.
    fn halves(self) -> Option<[Part; 2]> {
        let Part { top, left, height, width } = self;
        if height >= width && height > 1 {
            let half = height / 2;
            Some([Part { height: half, ..self }, Part { top: top + half, height: height - half, ..self }])
        } else if width > 1 {
            let half = width / 2;
            Some([Part { width: half, ..self }, Part { left: left + half, width: width - half, ..self }])
        } else {
            None
        }
    }
}

/// A part in a context: what of the image shows besides, without it and with it.
struct Node {
    part: Part,
    shown: Rc<Vec<bool>>,
    without: f64,
    with: f64,
    weight: f64,
    age: usize,
}

impl Node {
    fn stake(&self) -> f64 {
        (self.with - self.without).abs() * self.weight
    }
}

/// The image's values so far: each node that was closed spreads its difference.
fn spread(values: &mut [f64], width: usize, node: &Node) {
    let Part { top, left, height, width: wide } = node.part;
    let each = (node.with - node.without) * node.weight / (height * wide) as f64;
    for y in top..top + height {
        values[y * width + left..y * width + left + wide].iter_mut().for_each(|v| *v += each);
    }
}

fn shown(base: &[bool], width: usize, part: Part) -> Vec<bool> {
    let mut shown = base.to_vec();
    for y in part.top..part.top + part.height {
        shown[y * width + part.left..y * width + part.left + part.width].fill(true);
    }
    shown
}

/// Values of an image of `height` x `width` from scores of masks, `run` for some at a time.
fn owen(
    [height, width]: [usize; 2],
    (none, all): (f64, f64),
    evaluations: usize,
    round: usize,
    mut run: impl FnMut(&[Rc<Vec<bool>>]) -> Result<Vec<f64>>,
) -> Result<Vec<f64>> {
    let mut values = vec![0f64; height * width];
    let whole = Part { top: 0, left: 0, height, width };
    let root = Node {
        part: whole,
        shown: Rc::new(vec![false; height * width]),
        without: none,
        with: all,
        weight: 1.0,
        age: 0,
    };
    let (mut open, mut used, mut age) = (vec![root], 0, 0);
    while !open.is_empty() {
        open.sort_by(|a, b| b.stake().total_cmp(&a.stake()).then(a.age.cmp(&b.age)));
        let (mut chosen, mut rest) = (Vec::new(), Vec::new());
        for node in open.drain(..) {
            match node.part.halves() {
                None => spread(&mut values, width, &node),
                Some(halves) if chosen.len() < round && used + 2 * (chosen.len() + 1) <= evaluations => {
                    chosen.push((node, halves));
                }
                Some(_) => rest.push(node),
            }
        }
        if chosen.is_empty() {
            rest.iter().for_each(|node| spread(&mut values, width, node));
            break;
        }
        let masks: Vec<Rc<Vec<bool>>> = chosen
            .iter()
            .flat_map(|(node, halves)| halves.map(|half| Rc::new(shown(&node.shown, width, half))))
            .collect();
        used += masks.len();
        let scores = run(&masks)?;
        open = rest;
        for (((node, [a, b]), masks), scores) in chosen.into_iter().zip(masks.chunks(2)).zip(scores.chunks(2)) {
            let (with_a, with_b) = (scores[0], scores[1]);
            let mut add = |part, shown: &Rc<Vec<bool>>, without, with| {
                age += 1;
                open.push(Node { part, shown: shown.clone(), without, with, weight: node.weight / 2.0, age });
            };
            add(a, &node.shown, node.without, with_a);
            add(b, &node.shown, node.without, with_b);
            add(b, &masks[0], with_a, node.with);
            add(a, &masks[1], with_b, node.with);
        }
    }
    Ok(values)
}

#[derive(Params)]
struct Settings {
    /// images at most
    #[param(default = 500, range = (2, 20_000))]
    evaluations: usize,
    /// that are opened at a time
    #[param(default = 8, range = (1, 4096), unit = "nodes")]
    round: usize,
    #[param(default = Fill::Blur)]
    fill: Fill,
    #[param(default = Score::Logit)]
    score: Score,
}

impl Explainer for PartitionShap {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Lundberg and contributors",
            "shap, PartitionExplainer, after Owen: Values of Games with a Priori Unions, 1977",
            "",
            2017,
            "arXiv:1705.07874",
        );
        ExplainerSpec::new("partitionshap", "Partition SHAP", Family::Perturbation, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("Owen values of the tree of halves: phi(L) = ((f(L) - f(0)) + (f(LR) - f(R))) / 2 in each context")
            .cost("1 F, then at most evaluations + 1 F")
            .notes("Sums to S(x) - S(all covered). Ties are broken by age, in the shap package at random.")
            .signed()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let extra = Passes::forward(params.evaluations as u64 + 1);
        Ok(bound(model, extra, move |context| explain(context, &params)))
    }
}

fn explain(context: &Context<'_>, params: &Settings) -> Result<Maps> {
    let [b, h, w] = context.size()?;
    let (evaluations, round) = (params.evaluations, params.round);
    let (fill, score) = (fill(context, params.fill)?, params.score);
    let model = context.run_model()?;
    let whole = context.scores_now(score)?;
    let mut maps = Array3::<f32>::zeros((b, h, w));
    for i in 0..b {
        let mut done = 0;
        let mut run = |masks: &[Rc<Vec<bool>>]| {
            let mut scores = Vec::new();
            for some in masks.chunks(context.at_once()) {
                context.check_cancelled()?;
                context.progress((i * evaluations + done) as u64, (b * evaluations) as u64);
                done += some.len();
                let values: Vec<f32> = some.iter().flat_map(|m| m.iter()).map(|on| f32::from(u8::from(*on))).collect();
                let mask = Tensor::f_from_slice(&values)?.f_to_device(fill.device())?;
                let mask = mask.f_reshape([some.len() as i64, 1, h as i64, w as i64])?;
                let pairs: Vec<(usize, usize)> = (0..some.len()).map(|k| (i, k)).collect();
                let images = blend(context, &fill, &pairs, &mask)?;
                let response = model.run(&Request::forward(Array::from_tensor(&images.f_contiguous()?)?))?;
                scores.extend(context.score_of(&response, &pairs, score)?);
            }
            Ok(scores)
        };
        let none = run(&[Rc::new(vec![false; h * w])])?[0];
        let values = owen([h, w], (none, whole[i]), evaluations, round, run)?;
        for (k, v) in values.into_iter().enumerate() {
            maps[[i, k / w, k % w]] = v as f32;
        }
    }
    Ok(Array::from_ndarray(maps)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cover::tests::{MEANS, maps, product};

    /// Owen's values by their definition: the mean, over the orders in which a tree's halves may come, of what a pixel adds.
    fn slow(
        part: Part,
        width: usize,
        shown_before: &[bool],
        f: &dyn Fn(&[bool]) -> f64,
        weight: f64,
        values: &mut [f64],
    ) {
        match part.halves() {
            None => {
                values[part.top * width + part.left] +=
                    weight * (f(&shown(shown_before, width, part)) - f(shown_before));
            }
            Some([a, b]) => {
                for (first, second) in [(a, b), (b, a)] {
                    slow(first, width, shown_before, f, weight / 2.0, values);
                    slow(second, width, &shown(shown_before, width, first), f, weight / 2.0, values);
                }
            }
        }
    }

    #[test]
    fn with_enough_runs_they_are_owens_values() {
        let f = |on: &[bool]| {
            let x: Vec<f64> =
                on.iter().enumerate().map(|(i, on)| f64::from(u8::from(*on)) * (i as f64 + 1.0)).collect();
            x[0] * x[1] + x[2] * x[5] - x[3] + 0.1 * x[0] * x[4] * x[5] + 2.0
        };
        let (none, all) = (f(&[false; 6]), f(&[true; 6]));
        let mut wanted = vec![0.0; 6];
        slow(Part { top: 0, left: 0, height: 2, width: 3 }, 3, &[false; 6], &f, 1.0, &mut wanted);
        for round in [1, 4] {
            let run = |masks: &[Rc<Vec<bool>>]| Ok(masks.iter().map(|m| f(m)).collect());
            let found = owen([2, 3], (none, all), 10_000, round, run).unwrap();
            assert!(found.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?} {wanted:?}");
            let mut runs = 0;
            let few = owen([2, 3], (none, all), 7, round, |masks| {
                runs += masks.len();
                Ok(masks.iter().map(|m| f(m)).collect())
            });
            assert!(runs == 6 && (few.unwrap().iter().sum::<f64>() - (all - none)).abs() < 1e-9);
        }
    }

    #[test]
    fn an_image_is_explained_completely() {
        for evaluations in [2, 30, 2000] {
            let params = [("evaluations", evaluations.into()), ("fill", "zero".into())];
            let map = maps(&PartitionShap, product, &params, 3);
            for (b, map) in map.outer_iter().enumerate() {
                assert!((f64::from(map.sum()) - (product(MEANS[b]) - 0.5)).abs() < 1e-4);
            }
        }
    }
}
