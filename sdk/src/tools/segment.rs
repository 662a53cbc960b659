//! Superpixels: every pixel gets a number, from 0 without gaps.

use ndarray::{Array2, ArrayView3};

/// Squares: `rows` x `columns` parts as even as they come.
pub fn grid(height: usize, width: usize, rows: usize, columns: usize) -> Array2<u32> {
    let (rows, columns) = (rows.clamp(1, height.max(1)), columns.clamp(1, width.max(1)));
    // Edges are at `k size / parts`, rounded down, as those of the metrics' cells.
    let part = |at: usize, size: usize, parts: usize| ((at + 1) * parts - 1) / size.max(1);
    Array2::from_shape_fn((height, width), |(y, x)| (part(y, height, rows) * columns + part(x, width, columns)) as u32)
}

/// Felzenszwalb and Huttenlocher, "Efficient Graph-Based Image Segmentation", IJCV 2004, with scikit-image's conventions: a
/// Gaussian blur of `sigma` pixels, edges to eight neighbours that cost the Euclidean distance of the colours, `scale` as
/// the paper's k, parts under `min_size` pixels joined to the neighbour across the cheapest edge. `image` is [H, W, C] in
/// [0, 1]; `scale` is scikit-image's, which divides it by 255. Equal costs are taken in the order right, down, down right,
/// up right, row by row.
pub fn felzenszwalb(image: ArrayView3<'_, f32>, scale: f64, sigma: f64, min_size: usize) -> Array2<u32> {
    let (h, w, channels) = image.dim();
    let smooth = blurred(image, sigma);
    let scale = scale / 255.0;
    let at = |y: usize, x: usize| y * w + x;
    let cost = |a: usize, b: usize| {
        let of = |c: usize| smooth[a * channels + c] - smooth[b * channels + c];
        (0..channels).map(|c| of(c) * of(c)).sum::<f64>().sqrt()
    };
    let mut edges: Vec<(f64, usize, usize)> = Vec::with_capacity(4 * h * w);
    let mut add = |from: usize, to: usize| edges.push((cost(from, to), from, to));
    for y in 0..h {
        (1..w).for_each(|x| add(at(y, x - 1), at(y, x)));
    }
    for y in 1..h {
        (0..w).for_each(|x| add(at(y - 1, x), at(y, x)));
    }
    for y in 1..h {
        (1..w).for_each(|x| add(at(y - 1, x - 1), at(y, x)));
    }
    for y in 1..h {
        (1..w).for_each(|x| add(at(y, x - 1), at(y - 1, x)));
    }
    edges.sort_by(|a, b| a.0.total_cmp(&b.0));

    let mut forest = Forest::new(h * w);
    let mut inner = vec![0f64; h * w];
    for &(cost, a, b) in &edges {
        let (a, b) = (forest.root(a), forest.root(b));
        // Rounded as scikit-image does.
        let limit = |r: usize| (inner[r] + scale / forest.size[r] as f64) as f32;
        if a != b && cost < f64::from(limit(a).min(limit(b))) {
            let root = forest.join(a, b);
            inner[root] = cost;
        }
    }
    for &(_, a, b) in &edges {
        let (a, b) = (forest.root(a), forest.root(b));
        if a != b && (forest.size[a] < min_size || forest.size[b] < min_size) {
            forest.join(a, b);
        }
    }
    // Numbers in the order of the roots, as NumPy's `unique` gives them.
    let roots: Vec<usize> = (0..h * w).map(|i| forest.root(i)).collect();
    let mut known = roots.clone();
    known.sort_unstable();
    known.dedup();
    Array2::from_shape_fn((h, w), |(y, x)| known.partition_point(|r| *r < roots[at(y, x)]) as u32)
}

/// Row-major values [H, W, C] after a Gaussian blur over rows and columns, cut off at four sigmas, edges mirrored with
/// themselves (SciPy's mode `reflect`).
fn blurred(image: ArrayView3<'_, f32>, sigma: f64) -> Vec<f64> {
    let (h, w, channels) = image.dim();
    let mut values: Vec<f64> = image.iter().map(|v| f64::from(*v)).collect();
    if sigma <= 0.0 {
        return values;
    }
    let radius = (4.0 * sigma + 0.5) as i64;
    let kernel: Vec<f64> = (-radius..=radius).map(|i| (-0.5 * (i as f64 / sigma).powi(2)).exp()).collect();
    let total: f64 = kernel.iter().sum();
    let mirrored = |i: i64, n: usize| {
        let n = n as i64;
        let i = i.rem_euclid(2 * n);
        (if i < n { i } else { 2 * n - 1 - i }) as usize
    };
    for along_rows in [false, true] {
        let old = values.clone();
        for y in 0..h {
            for x in 0..w {
                for c in 0..channels {
                    let value = |d: i64| {
                        let (y, x) = match along_rows {
                            false => (mirrored(y as i64 + d, h), x),
                            true => (y, mirrored(x as i64 + d, w)),
                        };
                        old[(y * w + x) * channels + c]
                    };
                    let sum: f64 = kernel.iter().zip(-radius..=radius).map(|(k, d)| k * value(d)).sum();
                    values[(y * w + x) * channels + c] = sum / total;
                }
            }
        }
    }
    values
}

/// A union-find; the smaller number is the root.
struct Forest {
    parent: Vec<usize>,
    size: Vec<usize>,
}

impl Forest {
    fn new(n: usize) -> Self {
        Forest { parent: (0..n).collect(), size: vec![1; n] }
    }

    fn root(&mut self, mut i: usize) -> usize {
        while self.parent[i] != i {
            self.parent[i] = self.parent[self.parent[i]];
            i = self.parent[i];
        }
        i
    }

    fn join(&mut self, a: usize, b: usize) -> usize {
        let (root, child) = (a.min(b), a.max(b));
        self.parent[child] = root;
        self.size[root] += self.size[child];
        root
    }
}

/// The number of parts.
pub fn count(labels: &Array2<u32>) -> usize {
    labels.iter().max().map_or(0, |m| *m as usize + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array3;

    #[test]
    fn a_grid_covers_evenly() {
        let parts = grid(7, 5, 2, 2);
        assert_eq!(count(&parts), 4);
        assert_eq!((parts[[0, 0]], parts[[0, 4]], parts[[6, 0]], parts[[6, 4]]), (0, 1, 2, 3));
        let mut sizes = [0; 4];
        parts.iter().for_each(|p| sizes[*p as usize] += 1);
        assert_eq!(sizes.iter().sum::<i32>(), 35);
        assert!(sizes.iter().all(|s| (6..=12).contains(s)), "{sizes:?}");
        assert_eq!(count(&grid(3, 3, 9, 9)), 9);
    }

    #[test]
    fn two_halves_are_two_parts() {
        let image = Array3::from_shape_fn((10, 12, 1), |(_, x, _)| if x < 6 { 0.1 } else { 0.9 });
        let parts = felzenszwalb(image.view(), 10.0, 0.0, 3);
        assert_eq!(count(&parts), 2);
        assert!(parts.indexed_iter().all(|((_, x), p)| (*p == 0) == (x < 6)));
        // A single odd pixel is too small to be its own part.
        let mut odd = image.clone();
        odd[[2, 2, 0]] = 0.4;
        assert_eq!(count(&felzenszwalb(odd.view(), 10.0, 0.0, 3)), 2);
        assert_eq!(count(&felzenszwalb(odd.view(), 10.0, 0.0, 1)), 3);
    }
}
