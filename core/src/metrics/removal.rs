//! The target's score as pixels are removed from an image in the order of a map: what deletion, insertion, SRG and ROAD read.
//!
//! A map is ranked once; each curve (a baseline, an order, how many pixels) is made once a map, whatever the number of
//! metrics that read it; the images of several maps' steps fill the model's batches; the endpoints, the image itself and the
//! baseline alone, are shared by all explainers. Inserting the highest pixels into a baseline is removing the lowest ones
//! first, read backwards.

use super::{Answer, Batch, Bench, impute};
use crate::maps::{self, Fault};
use crate::{Error, Result, seed};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

lightbox_sdk::choice! {
    /// what stands in a removed pixel's place: the image's mean a channel, the blurred image, 0, or noisy linear imputation
    pub enum Baseline {
        /// The image's mean a channel.
        Mean = "mean",
        /// The image, blurred by a Gaussian of a twentieth of its width.
        Blur = "blur",
        /// 0 of the normalised image: the mean of the model's training images.
        Zero = "zero",
        /// [`impute`]: what the surroundings suggest.
        Noisy = "noisy",
    }
}

lightbox_sdk::choice! {
    /// what stands in a removed pixel's place: the image's mean a channel, the blurred image, or 0
    pub enum SetBaseline {
        /// [`Baseline::Mean`].
        Mean = "mean",
        /// [`Baseline::Blur`].
        Blur = "blur",
        /// [`Baseline::Zero`].
        Zero = "zero",
    }
}

/// The same baseline among all.
impl From<SetBaseline> for Baseline {
    fn from(baseline: SetBaseline) -> Self {
        match baseline {
            SetBaseline::Mean => Baseline::Mean,
            SetBaseline::Blur => Baseline::Blur,
            SetBaseline::Zero => Baseline::Zero,
        }
    }
}

/// Which pixels go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Highest,
    Lowest,
}

/// For each pixel, how many come before it: highest first, equal ones by a draw.
fn ranks(map: &[f32], seed: u64) -> Vec<i64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<(f32, u64, usize)> = map.iter().enumerate().map(|(i, v)| (v + 0.0, rng.next_u64(), i)).collect();
    order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut ranks = vec![0; map.len()];
    order.iter().enumerate().for_each(|(rank, (.., i))| ranks[*i] = rank as i64);
    ranks
}

/// As [`ranks`], [h, w] on the map's device: a stable sort of what the draws have shuffled.
fn ranks_there(map: &Tensor, seed: u64) -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Signed numbers of the same order.
    let draws: Vec<i64> = (0..map.numel()).map(|_| (rng.next_u64() ^ (1 << 63)) as i64).collect();
    let shuffled = Tensor::f_from_slice(&draws)?.f_to_device(map.device())?.f_argsort(0, false)?;
    let values = map.f_flatten(0, -1)?.f_add_scalar(0.0)?.f_index_select(0, &shuffled)?;
    let order = shuffled.f_index_select(0, &values.f_argsort_stable(true, 0, true)?)?;
    let places = Tensor::f_arange(map.numel() as i64, (Kind::Int64, map.device()))?;
    Ok(order.f_zeros_like()?.f_scatter(0, &order, &places)?.f_reshape(map.size())?)
}

/// The ranks of a batch's maps [n, H, W] int64, on the images' device.
fn all_ranks(batch: &Batch<'_>, seed: u64) -> Result<Rc<Tensor>> {
    batch.cell.get(&format!("ranks {seed}"), || {
        let maps = batch.maps.ok_or_else(|| Error::new("this metric was given no maps"))?;
        let seeds: Vec<u64> = batch.ids.iter().map(|id| seed::derive(seed, "deletion", &[*id])).collect();
        let found = match maps.device() {
            Device::Cpu => {
                let values = maps::values(maps)?;
                let pixels = values.len() / seeds.len().max(1);
                let parts: Vec<Vec<i64>> = seeds
                    .par_iter()
                    .enumerate()
                    .map(|(i, seed)| ranks(&values[i * pixels..][..pixels], *seed))
                    .collect();
                Tensor::f_from_slice(&parts.concat())?.f_reshape(maps.size())?
            }
            _ => {
                let one = |(i, seed): (usize, &u64)| ranks_there(&maps.f_get(i as i64)?, *seed);
                let parts = seeds.iter().enumerate().map(one).collect::<Result<Vec<Tensor>>>()?;
                Tensor::f_stack(&parts, 0)?
            }
        };
        Ok(found.f_to_device(batch.images.device())?)
    })
}

/// Standard normal draws of an image's shape.
fn noise(shape: &[i64], seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let n = shape.iter().product::<i64>() as usize;
    let one = |_| {
        let (u, v) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    };
    (0..n).map(one).collect()
}

/// Each channel blurred; the border's pixels go on beyond it.
fn blurred(images: &Tensor) -> Result<Tensor> {
    let width = *images.size().last().unwrap_or(&1);
    let sigma = width as f64 / 20.0;
    let reach = ((3.0 * sigma).ceil() as i64).clamp(1, width.max(2) - 1);
    let taps: Vec<f32> = (-reach..=reach).map(|d| (-(d * d) as f64 / (2.0 * sigma * sigma)).exp() as f32).collect();
    let sum: f32 = taps.iter().sum();
    let channels = images.size()[1];
    let kernel = Tensor::f_from_slice(&taps)?.f_div_scalar(f64::from(sum))?.f_to_device(images.device())?;
    let along = |x: &Tensor, vertical: bool| -> Result<Tensor> {
        let (pad, shape) = match vertical {
            true => ([0, 0, reach, reach], [channels, 1, 2 * reach + 1, 1]),
            false => ([reach, reach, 0, 0], [channels, 1, 1, 2 * reach + 1]),
        };
        let weight = kernel.f_repeat([channels])?.f_reshape(shape)?;
        let padded = x.f_replication_pad2d(pad)?;
        Ok(padded.f_conv2d(&weight, None::<&Tensor>, [1, 1], [0, 0], [1, 1], channels)?)
    };
    along(&along(images, true)?, false)
}

/// The whole baseline of a batch's images, [n, C, H, W].
pub fn blank(batch: &Batch<'_>, baseline: Baseline) -> Result<Rc<Tensor>> {
    // Of nothing, noisy imputation knows the mean alone.
    let baseline = if baseline == Baseline::Noisy { Baseline::Mean } else { baseline };
    batch.scene.get(&format!("blank {baseline:?}"), || match baseline {
        Baseline::Blur => blurred(batch.images),
        Baseline::Zero => Ok(batch.images.f_zeros_like()?),
        Baseline::Mean | Baseline::Noisy => {
            let mean = batch.images.f_mean_dim([2i64, 3].as_slice(), true, Kind::Float)?;
            Ok(mean.f_expand_as(batch.images)?.f_contiguous()?)
        }
    })
}

/// Under which name a scene keeps [`plain`].
pub const PLAIN: &str = "plain";

/// What the model says of the batch's own images.
pub fn plain(batch: &Batch<'_>, bench: &mut dyn Bench) -> Result<Rc<Answer>> {
    batch.scene.get(PLAIN, || bench.run(batch.images))
}

/// What the model says of the baselines.
pub fn of_blank(batch: &Batch<'_>, bench: &mut dyn Bench, baseline: Baseline) -> Result<Rc<Answer>> {
    let images = blank(batch, baseline)?;
    batch.scene.get(&format!("answer to {baseline:?}"), || bench.run(&images))
}

/// The targets' values of [n, classes].
pub fn at_targets(values: &Tensor, targets: &[i64]) -> Result<Vec<f64>> {
    let targets = Tensor::f_from_slice(targets)?.f_unsqueeze(1)?;
    Ok(Vec::<f64>::try_from(values.f_gather(1, &targets, false)?.f_squeeze_dim(1)?)?)
}

/// Images that can be scored.
pub fn usable(batch: &Batch<'_>) -> Vec<usize> {
    (0..batch.faults.len()).filter(|i| batch.faults[*i] != Fault::NotFinite).collect()
}

/// Runs the model on what `make` builds of parts of `work`, as many at once as it takes, and hands `take` each answer.
pub fn packed<T>(
    bench: &mut dyn Bench,
    work: &[T],
    make: impl Fn(&[T]) -> Result<Tensor>,
    mut take: impl FnMut(&[T], &Answer) -> Result<()>,
) -> Result<()> {
    for part in work.chunks(bench.batch_size().max(1)) {
        bench.check()?;
        let answer = bench.run(&make(part)?)?;
        take(part, &answer)?;
    }
    Ok(())
}

/// Rows of [n, ...] by number.
pub fn rows(of: &Tensor, numbers: impl Iterator<Item = usize>) -> Result<Tensor> {
    let numbers: Vec<i64> = numbers.map(|i| i as i64).collect();
    Ok(of.f_index_select(0, &Tensor::f_from_slice(&numbers)?.f_to_device(of.device())?)?)
}

/// The target's score of each image with `counts` of its pixels removed; empty for images that cannot be scored.
pub fn scores(
    batch: &Batch<'_>,
    bench: &mut dyn Bench,
    baseline: Baseline,
    order: Order,
    counts: &[usize],
    seed: u64,
) -> Result<Rc<Vec<Vec<f64>>>> {
    let name = format!("removed {baseline:?} {order:?} {counts:?} {seed}");
    batch.cell.get(&name, || {
        let images = batch.images;
        let pixels = images.size()[2..].iter().product::<i64>() as usize;
        let mut found = vec![Vec::new(); batch.targets.len()];
        let usable = usable(batch);
        if usable.is_empty() {
            return Ok(found);
        }
        usable.iter().for_each(|i| found[*i] = vec![f64::NAN; counts.len()]);
        let (mut work, (mut at_start, mut at_end)) = (Vec::new(), (vec![], vec![]));
        for (at, count) in counts.iter().enumerate() {
            match *count {
                0 => at_start.push(at),
                count if count >= pixels => at_end.push(at),
                count => work.extend(usable.iter().map(|i| (*i, at, count as i64))),
            }
        }
        // An image's steps follow each other.
        work.sort_unstable();
        for (places, is_start) in [(at_start, true), (at_end, false)] {
            if places.is_empty() {
                continue;
            }
            let answer = if is_start { plain(batch, bench)? } else { of_blank(batch, bench, baseline)? };
            let values = at_targets(&answer.scores, batch.targets)?;
            for (i, at) in usable.iter().flat_map(|i| places.iter().map(move |at| (*i, *at))) {
                found[i][at] = values[i];
            }
        }
        if work.is_empty() {
            return Ok(found);
        }
        let ranks = all_ranks(batch, seed)?;
        let blank = blank(batch, baseline)?;
        let make = |part: &[(usize, usize, i64)]| -> Result<Tensor> {
            let counts: Vec<i64> = part.iter().map(|w| w.2).collect();
            let counts = Tensor::f_from_slice(&counts)?.f_reshape([-1, 1, 1])?.f_to_device(images.device())?;
            let mine = rows(&ranks, part.iter().map(|w| w.0))?;
            let gone = match order {
                Order::Highest => mine.f_lt_tensor(&counts)?,
                Order::Lowest => mine.f_ge_tensor(&counts.f_neg()?.f_add_scalar(pixels as i64)?)?,
            };
            let own = rows(images, part.iter().map(|w| w.0))?;
            if baseline == Baseline::Noisy {
                let ids: Vec<u64> = part.iter().map(|w| batch.ids[w.0]).collect();
                return imputed(&own, &gone, &ids, seed);
            }
            Ok(rows(&blank, part.iter().map(|w| w.0))?.f_where_self(&gone.f_unsqueeze(1)?, &own)?)
        };
        packed(bench, &work, make, |part, answer| {
            let targets: Vec<i64> = part.iter().map(|w| batch.targets[w.0]).collect();
            let values = at_targets(&answer.scores, &targets)?;
            part.iter().zip(values).for_each(|((i, at, _), v)| found[*i][*at] = v);
            Ok(())
        })?;
        Ok(found)
    })
}

/// Images with noisy linear imputation where `gone` [n, H, W]. The noise is the image's own, whatever is removed.
fn imputed(images: &Tensor, gone: &Tensor, ids: &[u64], seed: u64) -> Result<Tensor> {
    let shape = images.size();
    let (channels, height, width) = (shape[1] as usize, shape[2] as usize, shape[3] as usize);
    let pixels = height * width;
    let values = maps::values(images)?;
    let gone = Vec::<bool>::try_from(gone.f_to_device(Device::Cpu)?.f_flatten(0, -1)?)?;
    let one = |i: usize| {
        let missing = &gone[i * pixels..][..pixels];
        let noise = noise(&shape[1..], seed::derive(seed, "imputation", &[ids[i]]));
        let channel = |c: usize| &values[(i * channels + c) * pixels..][..pixels];
        let first = impute::fill(channel(0), missing, (height, width));
        (0..channels)
            .into_par_iter()
            .flat_map_iter(|c| {
                // Grey images have one channel, scaled otherwise: so is what is imputed.
                let filled = match line(channel(0), channel(c)) {
                    Some((scale, shift)) => {
                        let one = |p: usize| if missing[p] { scale * first[p] + shift } else { channel(c)[p] };
                        (0..pixels).map(one).collect()
                    }
                    None => impute::fill(channel(c), missing, (height, width)),
                };
                let noise = &noise[c * pixels..][..pixels];
                let add = |p: usize| if missing[p] { filled[p] + 0.01 * noise[p] } else { filled[p] };
                (0..pixels).map(add).collect::<Vec<f32>>()
            })
            .collect::<Vec<f32>>()
    };
    let all: Vec<Vec<f32>> = (0..ids.len()).into_par_iter().map(one).collect();
    Ok(Tensor::f_from_slice(&all.concat())?.f_reshape(shape)?.f_to_device(images.device())?)
}

/// `(scale, shift)` such that every `b = scale * a + shift`, within rounding; none where there are none.
fn line(a: &[f32], b: &[f32]) -> Option<(f32, f32)> {
    let (low, high) =
        (0..a.len()).fold((0, 0), |(l, h), i| (if a[i] < a[l] { i } else { l }, if a[i] > a[h] { i } else { h }));
    if a.is_empty() || a[low] == a[high] {
        return None;
    }
    let scale = (b[high] - b[low]) / (a[high] - a[low]);
    let shift = b[low] - scale * a[low];
    let size = b[low].abs().max(b[high].abs()).max(1.0);
    a.iter().zip(b).all(|(a, b)| (scale * a + shift - b).abs() <= 1e-5 * size).then_some((scale, shift))
}

/// How many pixels are removed at each of `steps` equal shares, both ends included.
pub fn even(batch: &Batch<'_>, steps: usize) -> Vec<usize> {
    let pixels = batch.images.size()[2..].iter().product::<i64>() as usize;
    (0..=steps).map(|k| k * pixels / steps).collect()
}

/// The area under values at equal distances from 0 to 1, by trapezoids.
pub fn area(curve: &[f64]) -> f64 {
    let steps = curve.len().saturating_sub(1).max(1) as f64;
    curve.windows(2).map(|s| (s[0] + s[1]) / 2.0).sum::<f64>() / steps
}

#[cfg(test)]
pub mod tests {
    use super::super::batch_cache::BatchCache;
    use super::super::{Bench, Edits, Metric, Score};
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeMap;

    /// A linear model: the logit of class 1 is `weights` times the first channel, that of class 0 is 0; scores are logits.
    /// It explains by `weights` times the image, and counts what it is asked.
    pub struct Linear {
        pub weights: Vec<f32>,
        pub runs: usize,
        pub explained: usize,
    }

    impl Linear {
        pub fn new(weights: &[f32]) -> Self {
            Linear { weights: weights.to_vec(), runs: 0, explained: 0 }
        }
    }

    impl Bench for Linear {
        fn run(&mut self, images: &Tensor) -> Result<Answer> {
            let n = images.size()[0];
            self.runs += n as usize;
            let flat = images.f_select(1, 0)?.f_reshape([n, -1])?.f_to_kind(Kind::Double)?;
            let weights = Tensor::f_from_slice(&self.weights)?.f_to_kind(Kind::Double)?;
            let one = flat.f_matmul(&weights)?;
            let logits = Tensor::f_stack(&[one.f_zeros_like()?, one], 1)?;
            Ok(Answer { scores: logits.shallow_clone(), logits })
        }
        fn explain(&mut self, images: &Tensor, targets: &[i64], _: &[u64]) -> Result<Tensor> {
            self.explained += targets.len();
            let size = images.size();
            let weights = Tensor::f_from_slice(&self.weights)?.f_reshape([1, size[2], size[3]])?;
            let signs: Vec<f32> = targets.iter().map(|t| if *t == 1 { 1.0 } else { -1.0 }).collect();
            let signs = Tensor::f_from_slice(&signs)?.f_reshape([-1, 1, 1])?;
            Ok(images.f_select(1, 0)?.f_mul(&weights)?.f_mul(&signs)?)
        }
        fn parameters(&mut self) -> Result<Vec<(String, Tensor)>> {
            Ok(vec![("head.weight".into(), Tensor::f_from_slice(&self.weights)?)])
        }
        fn fork(&mut self, _: &str, edits: Edits<'_>, f: &mut dyn FnMut(&mut dyn Bench) -> Result<()>) -> Result<()> {
            let mut other = Linear::new(&Vec::<f32>::try_from(&edits()?[0].1)?);
            f(&mut other)?;
            self.explained += other.explained;
            Ok(())
        }
        fn batch_size(&self) -> usize {
            3
        }
    }

    /// Scores of maps of one channel's images [h, w], target 1, ids from 7. Rows of images and maps are flat.
    pub fn check(
        metric: &dyn Metric,
        given: &[(&str, Value)],
        images: &[&[f32]],
        maps: &[&[f32]],
        width: usize,
        bench: &mut dyn Bench,
    ) -> Vec<Score> {
        check_with(metric, given, images, maps, width, bench, true)
    }

    pub fn check_with(
        metric: &dyn Metric,
        given: &[(&str, Value)],
        images: &[&[f32]],
        maps: &[&[f32]],
        width: usize,
        bench: &mut dyn Bench,
        signed: bool,
    ) -> Vec<Score> {
        let given: BTreeMap<String, Value> = given.iter().map(|(n, v)| (n.to_string(), v.clone())).collect();
        let parameters = metric.spec().resolve(&given).unwrap();
        let (n, height) = (images.len() as i64, (images[0].len() / width) as i64);
        let raw = Tensor::from_slice(&maps.concat()).reshape([n, height, width as i64]);
        let faults = maps::faults(&raw).unwrap();
        let raw = raw.nan_to_num(0.0, 0.0, 0.0);
        let is_scaled = metric.needs().maps.is_some_and(|(_, form)| form == super::super::Form::MinMax);
        let raw = if is_scaled { maps::min_max(&raw).unwrap() } else { raw };
        let batch = Batch {
            images: &Tensor::from_slice(&images.concat()).reshape([n, 1, height, width as i64]),
            targets: &vec![1; images.len()],
            ids: &(7..7 + images.len() as u64).collect::<Vec<_>>(),
            maps: Some(&raw),
            faults: &faults,
            masks: None,
            known: &vec![false; images.len()],
            signed,
            scene: &BatchCache::default(),
            cell: &BatchCache::default(),
        };
        let mut evaluation = metric.start(&parameters, 0).unwrap();
        evaluation.update(&batch, bench).unwrap()
    }

    #[test]
    fn what_is_known_of_the_images_is_not_asked_again() {
        let mut bench = Linear::new(&[1.0; 4]);
        let images = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).reshape([1, 1, 2, 2]);
        let (scene, cell) = (BatchCache::default(), BatchCache::default());
        let known = Answer { logits: Tensor::from_slice(&[7.0, 8.0]), scores: Tensor::from_slice(&[0.7, 0.8]) };
        super::super::remember(&scene, || Ok(known)).unwrap();
        let batch = Batch {
            images: &images,
            targets: &[1],
            ids: &[1],
            maps: None,
            faults: &[],
            masks: None,
            known: &[],
            signed: true,
            scene: &scene,
            cell: &cell,
        };
        assert_eq!(plain(&batch, &mut bench).unwrap().logits, Tensor::from_slice(&[7.0, 8.0]));
        assert_eq!(bench.runs, 0);
    }

    #[test]
    fn the_devices_ranks_are_the_cpus() {
        let maps =
            [vec![0.5f32; 120], (0..120).map(|i| ((i * 7) % 11) as f32 - 5.0).collect(), vec![0.0, -0.0, 1.0, -0.0]];
        for (seed, map) in maps.iter().enumerate() {
            let there = ranks_there(&Tensor::from_slice(map).reshape([2, -1]), seed as u64).unwrap();
            assert_eq!(Vec::<i64>::try_from(there.flatten(0, -1)).unwrap(), ranks(map, seed as u64));
        }
    }

    #[test]
    fn ties_are_drawn_from_the_seed() {
        let flat = [0.5; 100];
        assert_eq!(ranks(&flat, 1), ranks(&flat, 1));
        assert_ne!(ranks(&flat, 1), ranks(&flat, 2));
        assert_eq!(ranks(&[0.0, -0.0, 1.0], 3)[2], 0);
        let first = (0..400).filter(|s| ranks(&[0.0, -0.0], *s)[0] == 0).count();
        assert!((150..250).contains(&first), "-0 and 0 are equal: {first}");
    }

    #[test]
    fn a_blur_keeps_a_flat_image_and_spreads_a_point() {
        let flat = Tensor::full([1, 2, 40, 40], 0.7, (Kind::Float, Device::Cpu));
        assert!((blurred(&flat).unwrap() - 0.7).abs().max().double_value(&[]) < 1e-6);
        let point = Tensor::zeros([1, 1, 41, 41], (Kind::Float, Device::Cpu));
        let _ = point.get(0).get(0).get(20).get(20).fill_(1.0);
        let found = blurred(&point).unwrap();
        assert!((found.sum(Kind::Double).double_value(&[]) - 1.0).abs() < 1e-5);
        // A Gaussian of deviation 2.05: its height, 1 / (2 pi 2.05^2).
        assert!((found.double_value(&[0, 0, 20, 20]) - 0.03787).abs() < 1e-3);
    }

    #[test]
    fn channels_that_are_one_are_imputed_as_one() {
        let a: Vec<f32> = (0..400).map(|i| ((i * 29) % 17) as f32 - 8.0).collect();
        let b: Vec<f32> = a.iter().map(|v| 0.7 * v - 3.0).collect();
        let mut c = b.clone();
        c[5] += 0.1;
        assert!(line(&a, &b).is_some() && line(&a, &c).is_none() && line(&[1.0; 4], &[2.0; 4]).is_none());
        let missing: Vec<bool> = (0..400).map(|i| (i * 7) % 5 < 3).collect();
        let own = impute::fill(&b, &missing, (20, 20));
        let (scale, shift) = line(&a, &b).unwrap();
        for (x, y) in impute::fill(&a, &missing, (20, 20)).iter().zip(own) {
            assert!((scale * x + shift - y).abs() < 1e-3);
        }
    }

    #[test]
    fn imputation_keeps_what_is_there_and_its_noise_is_small() {
        let image = Tensor::from_slice(&(0..64).map(|v| v as f32 / 8.0).collect::<Vec<_>>()).reshape([1, 1, 8, 8]);
        let gone = Tensor::zeros([1, 8, 8], (Kind::Bool, Device::Cpu));
        let _ = gone.get(0).get(3).get(3).fill_(1.0);
        let change = (imputed(&image, &gone, &[4], 1).unwrap() - &image).abs();
        let at = change.double_value(&[0, 0, 3, 3]);
        assert!(at > 0.0 && at < 0.05, "{at}");
        assert_eq!(change.sum(Kind::Double).double_value(&[]), at);
    }
}
