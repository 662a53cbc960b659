//! Weighted regressions of few variables, in double precision.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};

/// Coefficients of `min sum_i w_i (y_i - b - x_i beta)^2 + alpha |beta|^2`; the intercept b is free. `x` is row-major, `n` rows.
pub fn ridge(x: &[f64], y: &[f64], weights: &[f64], alpha: f64) -> Result<Vec<f64>> {
    let (x, y, w) = centred(x, y, weights)?;
    let d = x.size()[1];
    let xw = x.f_mul(&w)?;
    let gram = xw.f_transpose(0, 1)?.f_matmul(&x)?;
    let gram = gram.f_add(&Tensor::f_eye(d, (Kind::Double, x.device()))?.f_mul_scalar(alpha)?)?;
    solve(&gram, &xw.f_transpose(0, 1)?.f_matmul(&y)?)
}

/// The minimum-norm solution of a symmetric system, for what no row tells apart.
pub fn solve(gram: &Tensor, right: &Tensor) -> Result<Vec<f64>> {
    let inverse = gram.f_linalg_pinv(1e-12, true)?;
    Ok(Vec::try_from(inverse.f_matmul(right)?.f_flatten(0, -1)?)?)
}

/// Coefficients of `min 1 / (2 sum w) sum_i w_i (y_i - b - x_i beta)^2 + alpha sum |beta_j|`, scikit-learn's objective, by
/// coordinate descent.
pub fn lasso(x: &[f64], y: &[f64], weights: &[f64], alpha: f64) -> Result<Vec<f64>> {
    let (x, y, w) = centred(x, y, weights)?;
    let (n, d) = (x.size()[0] as usize, x.size()[1] as usize);
    let total: f64 = weights.iter().sum();
    let columns: Vec<f64> = Vec::try_from(x.f_transpose(0, 1)?.f_contiguous()?.f_flatten(0, -1)?)?;
    let (y, w): (Vec<f64>, Vec<f64>) = (Vec::try_from(y.f_flatten(0, -1)?)?, Vec::try_from(w.f_flatten(0, -1)?)?);
    let column = |j: usize| &columns[j * n..(j + 1) * n];
    let (mut beta, mut rest) = (vec![0f64; d], y);
    for _ in 0..10_000 {
        let mut moved = 0f64;
        for (j, coefficient) in beta.iter_mut().enumerate() {
            let c = column(j);
            let square: f64 = c.iter().zip(&w).map(|(x, w)| w * x * x).sum::<f64>() / total;
            if square <= 0.0 {
                continue;
            }
            let along: f64 = c.iter().zip(&w).zip(&rest).map(|((x, w), r)| w * x * r).sum::<f64>() / total;
            let free = along + square * *coefficient;
            let new = free.signum() * (free.abs() - alpha).max(0.0) / square;
            let step = new - *coefficient;
            if step != 0.0 {
                rest.iter_mut().zip(c).for_each(|(r, x)| *r -= step * x);
                *coefficient = new;
                moved = moved.max(step.abs());
            }
        }
        if moved < 1e-10 {
            break;
        }
    }
    Ok(beta)
}

/// Rows [n, d], [n, 1] less their weighted means, and weights [n, 1].
fn centred(x: &[f64], y: &[f64], weights: &[f64]) -> Result<(Tensor, Tensor, Tensor)> {
    let n = y.len() as i64;
    let x = Tensor::f_from_slice(x)?.f_reshape([n, -1])?;
    let (y, w) = (Tensor::f_from_slice(y)?.f_reshape([n, 1])?, Tensor::f_from_slice(weights)?.f_reshape([n, 1])?);
    let total = weights.iter().sum::<f64>();
    if total <= 0.0 {
        return Err(Error::invalid("a regression without weight: every sample is too far from the image"));
    }
    let mean = |t: &Tensor| -> Result<Tensor> {
        Ok(t.f_mul(&w)?.f_sum_dim_intlist([0i64].as_slice(), true, Kind::Double)?.f_div_scalar(total)?)
    };
    Ok((x.f_sub(&mean(&x)?)?, y.f_sub(&mean(&y)?)?, w))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let noise = |i: usize| ((i as f64 * 12.9898).sin() * 43758.5453).fract();
        let x: Vec<f64> = (0..60 * 5).map(noise).collect();
        let y = (0..60).map(|i| 2.0 * x[i * 5] - 0.7 * x[i * 5 + 3] + 0.3 * noise(1000 + i) + 4.0).collect();
        (x, y, (0..60).map(|i| noise(2000 + i).abs() + 0.1).collect())
    }

    /// The gradient of the squared error at the solution, a coefficient each, with the best intercept.
    fn slopes(x: &[f64], y: &[f64], w: &[f64], beta: &[f64]) -> Vec<f64> {
        let fit = |i: usize| (0..5).map(|j| x[i * 5 + j] * beta[j]).sum::<f64>();
        let total: f64 = w.iter().sum();
        let b = (0..60).map(|i| w[i] * (y[i] - fit(i))).sum::<f64>() / total;
        (0..5).map(|j| (0..60).map(|i| w[i] * (y[i] - b - fit(i)) * x[i * 5 + j]).sum()).collect()
    }

    #[test]
    fn solutions_satisfy_the_conditions_of_the_optimum() {
        let (x, y, w) = data();
        for alpha in [0.0, 0.5, 10.0] {
            let beta = ridge(&x, &y, &w, alpha).unwrap();
            slopes(&x, &y, &w, &beta).iter().zip(&beta).for_each(|(s, b)| assert!((s - alpha * b).abs() < 1e-8));
        }
        let total: f64 = w.iter().sum();
        for alpha in [0.001, 0.05] {
            let beta = lasso(&x, &y, &w, alpha).unwrap();
            for (s, b) in slopes(&x, &y, &w, &beta).iter().zip(&beta) {
                let s = s / total;
                let fine = if *b == 0.0 { s.abs() <= alpha + 1e-8 } else { (s - alpha * b.signum()).abs() < 1e-8 };
                assert!(fine, "{s} {b}");
            }
        }
        assert!(lasso(&x, &y, &w, 0.05).unwrap().contains(&0.0));
        assert!(ridge(&x, &y, &[0.0; 60], 1.0).is_err());
    }
}
