//! Noisy linear imputation: what is removed from an image is replaced by what its surroundings suggest. Rong et al., "A
//! Consistent and Efficient Evaluation Strategy for Attribution Methods" (ROAD), ICML 2022, arXiv:2202.00449, section 5.
//!
//! Each missing pixel is the weighted mean of its eight neighbours in the image, 1/6 for those beside it and 1/12 for those
//! at its corners (the weights are scaled to sum to 1 at the border): a sparse linear system, solved by conjugate gradients
//! from a guess on a pyramid. Noise of deviation 0.01 (of the normalised image) is added to what was imputed. Where nothing is
//! left, the image's mean stands everywhere. Oracle: pytorch-grad-cam's `NoisyLinearImputer` without its noise.

const BESIDE: f32 = 1.0 / 6.0;
const CORNER: f32 = 1.0 / 12.0;
/// Residual, of that of zeros, at which the solution is taken.
const TOLERANCE: f64 = 1e-5;
const MOST: usize = 2000;

/// Fills one channel `values` [height, width] where `missing`; what is there stays.
pub fn fill(values: &[f32], missing: &[bool], (height, width): (usize, usize)) -> Vec<f32> {
    let mut x = values.to_vec();
    if !missing.contains(&true) {
        return x;
    }
    if !missing.contains(&false) {
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len().max(1) as f64;
        return vec![mean as f32; values.len()];
    }
    guess(&mut x, missing, (height, width));
    solve(&mut x, missing, (height, width));
    x
}

/// Missing values from the mean of what is known in ever larger squares.
fn guess(x: &mut [f32], missing: &[bool], (height, width): (usize, usize)) {
    struct Level {
        size: (usize, usize),
        sum: Vec<f32>,
        count: Vec<f32>,
    }
    let known: Vec<f32> = missing.iter().map(|m| f32::from(u8::from(!m))).collect();
    let sum = x.iter().zip(&known).map(|(v, k)| v * k).collect();
    let mut levels = vec![Level { size: (height, width), sum, count: known }];
    while levels[levels.len() - 1].count.contains(&0.0) {
        let last = &levels[levels.len() - 1];
        let (h, w) = last.size;
        let (hh, ww) = (h.div_ceil(2), w.div_ceil(2));
        let (mut sum, mut count) = (vec![0.0; hh * ww], vec![0.0; hh * ww]);
        for i in 0..h * w {
            let to = (i / w / 2) * ww + (i % w) / 2;
            sum[to] += last.sum[i];
            count[to] += last.count[i];
        }
        levels.push(Level { size: (hh, ww), sum, count });
    }
    let top = &levels[levels.len() - 1];
    let mut filled: Vec<f32> = top.sum.iter().zip(&top.count).map(|(s, c)| s / c).collect();
    for pair in levels.windows(2).rev() {
        let (fine, coarse) = (&pair[0], &pair[1]);
        let large = crate::data::resize::upsample(&filled, 1, coarse.size, (coarse.size.0 * 2, coarse.size.1 * 2));
        let ((h, w), stride) = (fine.size, coarse.size.1 * 2);
        let one = |i: usize| match fine.count[i] > 0.0 {
            true => fine.sum[i] / fine.count[i],
            false => large[(i / w) * stride + i % w],
        };
        filled = (0..h * w).map(one).collect();
    }
    x.iter_mut().zip(missing).zip(filled).filter(|((_, m), _)| **m).for_each(|((v, _), f)| *v = f);
}

/// The neighbours in the image of each missing pixel, and where among the missing they are.
struct System {
    /// By missing pixel: its place.
    places: Vec<usize>,
    /// By missing pixel and direction: place among all pixels, or `NONE`.
    neighbours: Vec<[u32; 8]>,
    /// Sum of weights.
    diagonal: Vec<f32>,
}

const NONE: u32 = u32::MAX;
const WEIGHTS: [f32; 8] = [CORNER, BESIDE, CORNER, BESIDE, BESIDE, CORNER, BESIDE, CORNER];

impl System {
    fn new(missing: &[bool], (height, width): (usize, usize)) -> Self {
        let places: Vec<usize> = (0..missing.len()).filter(|i| missing[*i]).collect();
        let steps: [(isize, isize); 8] = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)];
        let around = |i: &usize| {
            let (y, x) = ((i / width) as isize, (i % width) as isize);
            steps.map(|(dy, dx)| {
                let (v, u) = (y + dy, x + dx);
                let inside = v >= 0 && u >= 0 && v < height as isize && u < width as isize;
                if inside { v as u32 * width as u32 + u as u32 } else { NONE }
            })
        };
        let neighbours: Vec<[u32; 8]> = places.iter().map(around).collect();
        let weight = |n: &[u32; 8]| n.iter().zip(WEIGHTS).filter(|(q, _)| **q != NONE).map(|(_, w)| w).sum();
        let diagonal = neighbours.iter().map(weight).collect();
        System { places, neighbours, diagonal }
    }

    /// For each missing pixel: diagonal times itself less the weighted sum of its neighbours, in `field` [height * width].
    fn apply(&self, field: &[f32], out: &mut [f32]) {
        for (((o, p), n), d) in out.iter_mut().zip(&self.places).zip(&self.neighbours).zip(&self.diagonal) {
            let mut sum = 0.0;
            for (q, w) in n.iter().zip(WEIGHTS) {
                if *q != NONE {
                    sum += w * field[*q as usize];
                }
            }
            *o = d * field[*p] - sum;
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

/// Conjugate gradients, preconditioned by the diagonal.
fn solve(x: &mut [f32], missing: &[bool], size: (usize, usize)) {
    let system = System::new(missing, size);
    let n = system.places.len();
    // What is known, and zeros: the right hand side.
    let known: Vec<f32> = x.iter().zip(missing).map(|(v, m)| if *m { 0.0 } else { *v }).collect();
    let mut b = vec![0.0; n];
    system.apply(&known, &mut b);
    let goal = dot(&b, &b) * TOLERANCE * TOLERANCE;
    let mut residual = vec![0.0; n];
    system.apply(x, &mut residual);
    residual.iter_mut().for_each(|r| *r = -*r);
    let precondition = |r: &[f32]| -> Vec<f32> { r.iter().zip(&system.diagonal).map(|(r, d)| r / d).collect() };
    let mut z = precondition(&residual);
    // The direction, as a field that is zero where pixels are known.
    let mut field = vec![0.0; x.len()];
    system.places.iter().zip(&z).for_each(|(p, z)| field[*p] = *z);
    let mut rz = dot(&residual, &z);
    let mut ap = vec![0.0; n];
    for _ in 0..MOST {
        if dot(&residual, &residual) <= goal || rz == 0.0 {
            return;
        }
        system.apply(&field, &mut ap);
        let pap: f64 = system.places.iter().zip(&ap).map(|(p, a)| f64::from(field[*p]) * f64::from(*a)).sum();
        if pap <= 0.0 {
            return;
        }
        let alpha = (rz / pap) as f32;
        system.places.iter().for_each(|p| x[*p] += alpha * field[*p]);
        residual.iter_mut().zip(&ap).for_each(|(r, a)| *r -= alpha * a);
        z = precondition(&residual);
        let next = dot(&residual, &z);
        let beta = (next / rz) as f32;
        system.places.iter().zip(&z).for_each(|(p, z)| field[*p] = z + beta * field[*p]);
        rz = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    /// By sweeping until nothing moves.
    fn slow(values: &[f32], missing: &[bool], (height, width): (usize, usize)) -> Vec<f64> {
        let mut x: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
        for _ in 0..20000 {
            for i in (0..x.len()).filter(|i| missing[*i]) {
                let (y, u) = (i / width, i % width);
                let (mut sum, mut weights) = (0.0, 0.0);
                for v in y.saturating_sub(1)..=(y + 1).min(height - 1) {
                    for w in u.saturating_sub(1)..=(u + 1).min(width - 1) {
                        let weight = match (v != y, w != u) {
                            (false, false) => continue,
                            (true, true) => 1.0 / 12.0,
                            _ => 1.0 / 6.0,
                        };
                        sum += weight * x[v * width + w];
                        weights += weight;
                    }
                }
                x[i] = sum / weights;
            }
        }
        x
    }

    #[test]
    fn is_the_solution_of_the_system() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        for share in [0.1, 0.5, 0.95] {
            let size = (13, 17);
            let values: Vec<f32> = (0..size.0 * size.1).map(|_| rng.random::<f32>() * 4.0 - 2.0).collect();
            let missing: Vec<bool> = values.iter().map(|_| rng.random::<f64>() < share).collect();
            let (found, wanted) = (fill(&values, &missing, size), slow(&values, &missing, size));
            for i in 0..values.len() {
                assert!((f64::from(found[i]) - wanted[i]).abs() < 2e-4, "{share} {i}: {} {}", found[i], wanted[i]);
                assert!(missing[i] || found[i] == values[i]);
            }
        }
    }

    #[test]
    fn a_plane_comes_back_and_nothing_is_the_mean() {
        // A linear image solves the system away from the border.
        let plane: Vec<f32> = (0..400).map(|i| (i / 20) as f32 + 2.0 * (i % 20) as f32).collect();
        let hole: Vec<bool> = (0..400).map(|i| (4..16).contains(&(i / 20)) && (4..16).contains(&(i % 20))).collect();
        let found = fill(&plane, &hole, (20, 20));
        assert!(found.iter().zip(&plane).all(|(a, b)| (a - b).abs() < 1e-2));
        assert_eq!(fill(&[1.0, 3.0], &[true, true], (1, 2)), [2.0, 2.0]);
        assert_eq!(fill(&[1.0, 3.0], &[false, false], (1, 2)), [1.0, 3.0]);
    }
}
