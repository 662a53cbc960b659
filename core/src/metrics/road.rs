//! ROAD: remove and debias. Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022,
//! arXiv:2202.00449. Pixels are replaced by [`super::impute`], so that the shape of what was removed tells the model little.
//! As pytorch-grad-cam's `ROADCombined`: half the difference of the target's score with the lowest and the highest pixels
//! removed, the mean over four shares. A smooth map gains by it (arXiv:2304.13836): read it beside the control `centre`.
//! Quantus 0.6 takes the first batch alone and fails on colour images.

use super::map_metric::{Ask, Asking, Found, share};
use super::removal::{Baseline, Order, scores};
use super::{Bench, Form, MetricSpec, Needs, Reference, Score, Size};
use crate::Result;

/// See the file's head.
pub static ROAD: Asking =
    Asking { spec, needs: Needs { model: true, ..Needs::of_maps(Size::Mask, Form::Raw) }, axes: None, score };

/// Shares that are removed, in percent.
const SHARES: [usize; 4] = [20, 40, 60, 80];

fn spec() -> MetricSpec {
    MetricSpec {
        short: "ROAD",
        title: "ROAD: score kept without the lowest pixels less that without the highest, by noisy linear imputation",
        formula: "mean over 20, 40, 60, 80 % of (s(lowest removed) - s(highest removed)) / 2, s the target's score",
        range: [-0.5, 0.5],
        unit: "",
        chance: "0",
        cost: "8 forward, and 8 sparse systems on the CPU",
        edge_cases: "a map that is not finite is a failure and counts as -0.5; of equal pixels the order is drawn, and a constant map is counted",
        reference: Reference::new(
            "Rong, Leemann, Borisov, Kasneci, Kasneci",
            "A Consistent and Efficient Evaluation Strategy for Attribution Methods",
            "ICML",
            2022,
            "arXiv:2202.00449",
        ),
        ..share("road", "faithfulness")
    }
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    let pixels = ask.batch.images.size()[2..].iter().product::<i64>() as usize;
    let counts = SHARES.map(|s| s * pixels / 100);
    let most = scores(ask.batch, bench, Baseline::Noisy, Order::Highest, &counts, ask.seed)?;
    let least = scores(ask.batch, bench, Baseline::Noisy, Order::Lowest, &counts, ask.seed)?;
    let one = |i: usize| least[i].iter().zip(&most[i]).map(|(l, m)| (l - m) / 2.0).sum::<f64>() / SHARES.len() as f64;
    Ok(ask.each(|i| Score::ok(one(i))))
}

#[cfg(test)]
mod tests {
    use super::super::removal::tests::{Linear, check};
    use super::*;

    #[test]
    fn what_matters_is_missed_first() {
        // A bright spot on a flat image: without it the rest is imputed, and the model, which reads it, sees nothing.
        let mut image = [0f32; 100];
        let mut weights = [0f32; 100];
        for i in [44, 45, 54, 55] {
            (image[i], weights[i]) = (1.0, 0.25);
        }
        let wrong: Vec<f32> = image.iter().map(|v| -v).collect();
        let found = check(&ROAD, &[], &[&image[..]; 2], &[&image[..], &wrong], 10, &mut Linear::new(&weights));
        let (right, wrong) = (found[0].value.unwrap(), found[1].value.unwrap());
        assert!(right > 0.4 && right < 0.55, "{right}");
        assert!((right + wrong).abs() < 0.05, "{right} {wrong}");
    }
}
