//! Steps from 0 to 1 and their weights, for integrals along a path.

crate::choice! {
    /// of integration
    pub enum Rule {
        /// Exact for polynomials of degree 2n - 1; Captum's default.
        GaussLegendre = "gauss-legendre",
        /// Both ends count half. The weights sum to 1; Captum's `riemann_trapezoid` sums to (n - 1) / n.
        Trapezoid = "trapezoid",
        /// n equal parts, each by its left end.
        Left = "left",
        /// n equal parts, each by its right end.
        Right = "right",
        /// n equal parts, each by its middle.
        Middle = "middle",
    }
}

impl Rule {
    /// Position and weight of `n` steps, from 0 to 1. One step of the trapezoid is the middle's.
    pub fn steps(self, n: usize) -> Vec<(f64, f64)> {
        let count = n as f64;
        let even = |shift: f64| (0..n).map(|i| ((i as f64 + shift) / count, 1.0 / count)).collect();
        match self {
            Rule::Left => even(0.0),
            Rule::Right => even(1.0),
            Rule::Middle => even(0.5),
            Rule::Trapezoid if n < 2 => even(0.5),
            Rule::Trapezoid => {
                let weight = |i: usize| if i == 0 || i + 1 == n { 0.5 } else { 1.0 };
                (0..n).map(|i| (i as f64 / (count - 1.0), weight(i) / (count - 1.0))).collect()
            }
            Rule::GaussLegendre => gauss_legendre(n),
        }
    }
}

/// Roots of the Legendre polynomial of degree n by Newton's method, and their weights 2 / ((1 - x^2) P'(x)^2), moved to [0, 1].
fn gauss_legendre(n: usize) -> Vec<(f64, f64)> {
    let polynomial = |x: f64| {
        let (mut last, mut p) = (1.0, x);
        for k in 2..=n {
            let k = k as f64;
            (last, p) = (p, ((2.0 * k - 1.0) * x * p - (k - 1.0) * last) / k);
        }
        (p, n as f64 * (x * p - last) / (x * x - 1.0))
    };
    let root = |i: usize| {
        let mut x = -(std::f64::consts::PI * (i as f64 + 0.75) / (n as f64 + 0.5)).cos();
        for _ in 0..100 {
            let (p, slope) = polynomial(x);
            let step = p / slope;
            x -= step;
            if step.abs() < 1e-15 {
                break;
            }
        }
        let slope = polynomial(x).1;
        ((x + 1.0) / 2.0, 1.0 / ((1.0 - x * x) * slope * slope))
    };
    (0..n).map(root).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_integrate_what_they_can() {
        let check = |rule: &str, n: usize, power: i32, error: f64| {
            let place = Rule::WORDS.iter().position(|w| *w == rule).unwrap();
            let steps = Rule::ALL[place].steps(n);
            assert_eq!(steps.len(), n);
            let found: f64 = steps.iter().map(|(x, w)| w * x.powi(power)).sum();
            assert!((found - 1.0 / f64::from(power + 1)).abs() <= error, "{rule} {n} x^{power}: {found}");
        };
        for n in [1, 2, 3, 20, 50] {
            check("gauss-legendre", n, 0, 1e-13);
            check("gauss-legendre", n, 2 * n as i32 - 1, 1e-13);
        }
        for rule in Rule::WORDS.iter().copied() {
            check(rule, 7, 0, 1e-13);
            check(rule, 2000, 3, 1e-3);
        }
        check("trapezoid", 5, 1, 1e-13);
        check("trapezoid", 1, 1, 1e-13);
        check("middle", 5, 1, 1e-13);
        // Where they stand: worked values.
        assert_eq!(Rule::Left.steps(2), [(0.0, 0.5), (0.5, 0.5)]);
        assert_eq!(Rule::Trapezoid.steps(3), [(0.0, 0.25), (0.5, 0.5), (1.0, 0.25)]);
        assert!((Rule::GaussLegendre.steps(2)[0].0 - (0.5 - 1.0 / 12f64.sqrt())).abs() < 1e-15);
    }
}
