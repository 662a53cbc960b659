//! Subsets of an image's pixels, drawn from the run's seed and the image's id alone, and what the explained class's logit
//! loses without each. They do not depend on the map: the model is run on them once for all explainers.

use super::removal::{Baseline, at_targets, blank, packed, plain, rows};
use super::{Batch, Bench};
use crate::{Result, seed};
use rand::seq::index;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::rc::Rc;
use tch::Tensor;

/// A rectangle of pixels: rows, then columns, each from and up to.
pub type Rect = [usize; 4];
/// Disjoint rectangles.
pub type Subset = Vec<Rect>;

/// By image: subsets, and the logit's fall without each.
pub struct Effects {
    /// By image: the sets of pixels.
    pub subsets: Vec<Vec<Subset>>,
    /// By image and set: what the score loses without it.
    pub drops: Vec<Vec<f64>>,
}

/// Cells of a grid over an image, row by row; the last ones are larger where the grid does not divide it.
fn cell(grid: usize, number: usize, (height, width): (usize, usize)) -> Rect {
    let (row, column) = (number / grid, number % grid);
    let edge = |k: usize, n: usize| k * n / grid;
    [edge(row, height), edge(row + 1, height), edge(column, width), edge(column + 1, width)]
}

/// `samples` subsets of `share` of the cells of a grid of `grid` x `grid`.
pub fn cells(rng: &mut ChaCha8Rng, grid: usize, count: usize, samples: usize, size: (usize, usize)) -> Vec<Subset> {
    let draw = |rng: &mut ChaCha8Rng| {
        let mut chosen = index::sample(rng, grid * grid, count.clamp(1, grid * grid)).into_vec();
        chosen.sort_unstable();
        chosen.into_iter().map(|number| cell(grid, number, size)).collect()
    };
    (0..samples).map(|_| draw(rng)).collect()
}

/// `samples` squares of this side, anywhere in the image.
pub fn squares(rng: &mut ChaCha8Rng, side: usize, samples: usize, (height, width): (usize, usize)) -> Vec<Subset> {
    let side = side.clamp(1, height.min(width));
    let draw = |rng: &mut ChaCha8Rng| {
        let (y, x) = (rng.random_range(0..=height - side), rng.random_range(0..=width - side));
        vec![[y, y + side, x, x + side]]
    };
    (0..samples).map(|_| draw(rng)).collect()
}

/// Draws subsets of each image by `draw` and runs the model without each. `name` says what is drawn.
pub fn effects(
    batch: &Batch<'_>,
    bench: &mut dyn Bench,
    baseline: Baseline,
    seed: u64,
    name: &str,
    draw: impl Fn(&mut ChaCha8Rng, (usize, usize)) -> Vec<Subset>,
) -> Result<Rc<Effects>> {
    let (plain, blank) = (plain(batch, bench)?, blank(batch, baseline)?);
    batch.scene.get(&format!("without {name} {baseline:?} {seed}"), || {
        let shape = batch.images.size();
        let size = (shape[2] as usize, shape[3] as usize);
        let one = |id: &u64| draw(&mut ChaCha8Rng::seed_from_u64(seed::derive(seed, name, &[*id])), size);
        let subsets: Vec<Vec<Subset>> = batch.ids.iter().map(one).collect();
        let work: Vec<(usize, usize)> =
            subsets.iter().enumerate().flat_map(|(i, s)| (0..s.len()).map(move |k| (i, k))).collect();
        let before = at_targets(&plain.logits, batch.targets)?;
        let mut drops: Vec<Vec<f64>> = subsets.iter().map(|s| vec![0.0; s.len()]).collect();
        let make = |part: &[(usize, usize)]| -> Result<Tensor> {
            let mut gone = vec![false; part.len() * size.0 * size.1];
            for (at, (i, k)) in part.iter().enumerate() {
                let mine = &mut gone[at * size.0 * size.1..][..size.0 * size.1];
                for [top, bottom, left, right] in &subsets[*i][*k] {
                    (*top..*bottom).for_each(|y| mine[y * size.1 + left..y * size.1 + right].fill(true));
                }
            }
            let gone = Tensor::f_from_slice(&gone)?.f_reshape([part.len() as i64, 1, shape[2], shape[3]])?;
            let own = rows(batch.images, part.iter().map(|w| w.0))?;
            let other = rows(&blank, part.iter().map(|w| w.0))?;
            Ok(other.f_where_self(&gone.f_to_device(own.device())?, &own)?)
        };
        packed(bench, &work, make, |part, answer| {
            let targets: Vec<i64> = part.iter().map(|w| batch.targets[w.0]).collect();
            let after = at_targets(&answer.logits, &targets)?;
            part.iter().zip(after).for_each(|((i, k), v)| drops[*i][*k] = before[*i] - v);
            Ok(())
        })?;
        Ok(Effects { subsets, drops })
    })
}

/// A map's sum over each subset of its image, by the map's integral image.
pub fn sums(map: &[f32], width: usize, subsets: &[Subset]) -> Vec<f64> {
    let height = map.len() / width.max(1);
    let stride = width + 1;
    let mut table = vec![0f64; (height + 1) * stride];
    for y in 0..height {
        let mut row = 0.0;
        for x in 0..width {
            row += f64::from(map[y * width + x]);
            table[(y + 1) * stride + x + 1] = table[y * stride + x + 1] + row;
        }
    }
    let rect = |&[top, bottom, left, right]: &Rect| {
        let at = |y: usize, x: usize| table[y * stride + x];
        at(bottom, right) - at(top, right) - at(bottom, left) + at(top, left)
    };
    subsets.iter().map(|s| s.iter().map(rect).sum()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_covers_the_image_once() {
        let mut seen = [0; 7 * 10];
        for number in 0..9 {
            let [top, bottom, left, right] = cell(3, number, (7, 10));
            (top..bottom).for_each(|y| (left..right).for_each(|x| seen[y * 10 + x] += 1));
        }
        assert_eq!(seen, [1; 70]);
    }

    #[test]
    fn sums_are_those_of_the_pixels() {
        let map: Vec<f32> = (0..70).map(|i| ((i * 37) % 11) as f32 - 4.0).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut subsets = cells(&mut rng, 3, 4, 5, (7, 10));
        subsets.extend(squares(&mut rng, 3, 5, (7, 10)));
        for (subset, found) in subsets.iter().zip(sums(&map, 10, &subsets)) {
            let inside = |i: &usize| {
                let (y, x) = (i / 10, i % 10);
                subset.iter().any(|r| (r[0]..r[1]).contains(&y) && (r[2]..r[3]).contains(&x))
            };
            let slow: f64 = (0..70).filter(inside).map(|i| f64::from(map[i])).sum();
            assert!((found - slow).abs() < 1e-9);
        }
        let four = |s: &Subset| s.len() == 4;
        assert!(subsets[..5].iter().all(four) && subsets[..5].windows(2).any(|w| w[0] != w[1]));
    }
}
