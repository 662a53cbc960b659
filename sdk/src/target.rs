//! What is explained of an image: a class, a region's class, a box's class, or a number of an output.
//!
//! A target is a linear function of one of the model's outputs, its *logit*, and a score that follows from the logits by
//! the output's activation. Gradient methods differentiate the logit ([`objective`]), perturbation methods read the logit or
//! the score ([`Target::score`]), so that both explain the same quantity, and neither needs to know the task.

use crate::spec::{Meaning, ModelSpec, Output, TargetKind};
use crate::{Array, Error, Objective, Response, Result};

crate::choice! {
    /// what of the target is read
    pub enum Score { Logit = "logit", Probability = "probability" }
}

/// What is explained of one image.
#[derive(Debug, Clone)]
pub enum Target {
    /// The logit of a class of the first output.
    Class(usize),
    /// The mean logit of a class over a region, of the model's first output with a logit a place.
    Region {
        /// The class.
        class: usize,
        /// Float32 in [0, 1] at the size of the model's input, one dimension a spatial axis; CPU.
        mask: Array,
    },
    /// The logit of a class at the candidate of a detector that fits a box best.
    Box {
        /// The class.
        class: usize,
        /// Left, top, right, bottom in pixels of the model's input.
        area: [f64; 4],
        /// The candidate, once it is known: [`resolve`] finds it in the run on the image itself. It is the same for every
        /// changed image, so that what is explained stays one function. (D-RISE, arXiv:2006.03204, takes the best pair of
        /// candidate and class anew for each masked image, which has no gradient.)
        candidate: Option<usize>,
    },
    /// One number of an output.
    Output {
        /// The output.
        name: String,
        /// Its place, without the batch.
        index: Vec<usize>,
    },
}

impl Target {
    /// Which kind it is.
    pub fn kind(&self) -> TargetKind {
        match self {
            Target::Class(_) => TargetKind::Class,
            Target::Region { .. } => TargetKind::Region,
            Target::Box { .. } => TargetKind::Box,
            Target::Output { .. } => TargetKind::Output,
        }
    }

    /// The class that it is about; none for a number of an output.
    pub fn class(&self) -> Option<usize> {
        match self {
            Target::Class(class) | Target::Region { class, .. } | Target::Box { class, .. } => Some(*class),
            Target::Output { .. } => None,
        }
    }

    /// The output that it is read from; an error where the model has none of its kind.
    pub fn output<'m>(&self, model: &'m ModelSpec) -> Result<&'m Output> {
        let find = |what: &str, fits: &dyn Fn(&Output) -> bool| {
            let found = model.outputs.iter().find(|o| fits(o));
            found.ok_or_else(|| Error::unsupported(format!("model {} has no output of {what}", model.name)))
        };
        match self {
            Target::Class(_) => {
                let first = model.outputs.first().filter(|o| matches!(o.meaning, Meaning::Classes { .. }));
                first.ok_or_else(|| {
                    Error::unsupported(format!("the first output of model {} is not a logit a class", model.name))
                })
            }
            Target::Region { .. } => find("a logit a place", &|o| matches!(o.meaning, Meaning::ClassMap { .. })),
            Target::Box { .. } => find("boxes", &|o| matches!(o.meaning, Meaning::Boxes { .. })),
            Target::Output { name, .. } => find(name, &|o| o.name == *name),
        }
    }

    /// The places of the output's numbers (without the batch, row by row) that the logit is a weighted sum of.
    fn weights(&self, model: &ModelSpec) -> Result<Vec<(usize, f64)>> {
        let output = self.output(model)?;
        let shape = output.shape();
        if let (Some(class), Some(classes)) = (self.class(), output.class_count())
            && class >= classes
        {
            return Err(Error::invalid(format!("target class {class} of {classes} classes")));
        }
        match (self, &output.meaning) {
            (Target::Region { class, mask }, Meaning::ClassMap { grid, .. }) => {
                let cells = over_grid(mask, &model.input.size, grid)?;
                let places: usize = grid.iter().product();
                Ok(cells.into_iter().map(|(cell, share)| (class * places + cell, share)).collect())
            }
            (Target::Box { class, candidate, .. }, Meaning::Boxes { candidates, .. }) => {
                let n = candidate.ok_or_else(|| Error::invalid("the box's candidate is not known yet"))?;
                if n >= *candidates {
                    return Err(Error::invalid(format!("candidate {n} of {candidates}")));
                }
                Ok(vec![(n * shape[1] + 4 + class, 1.0)])
            }
            (Target::Output { name, index }, _) => {
                if index.len() != shape.len() || index.iter().zip(&shape).any(|(i, n)| i >= n) {
                    return Err(Error::invalid(format!("place {index:?} of output {name} of shape {shape:?}")));
                }
                Ok(vec![(index.iter().zip(&shape).fold(0, |at, (i, n)| at * n + i), 1.0)])
            }
            _ => Ok(vec![(self.class().unwrap_or_default(), 1.0)]),
        }
    }

    /// The logit or score of one image's answer: `values` are the output's, without the batch, row by row.
    pub fn score(&self, model: &ModelSpec, values: &[f32], score: Score) -> Result<f64> {
        let output = self.output(model)?;
        let wanted: usize = output.shape().iter().product();
        if values.len() != wanted {
            let (name, n) = (&output.name, values.len());
            return Err(Error::output(format!("output {name} has {n} values an image, expected {wanted}")));
        }
        let weights = self.weights(model)?;
        if score == Score::Logit {
            return Ok(weights.iter().map(|(i, w)| w * f64::from(values[*i])).sum());
        }
        let activation = output.activation();
        let classes = output.class_count().unwrap_or(0);
        let of = |logits: Vec<f64>, class: usize| activation.scores(&logits)[class];
        Ok(match (self, &output.meaning) {
            (Target::Region { class, .. }, Meaning::ClassMap { grid, .. }) => {
                let places: usize = grid.iter().product();
                let at = |cell: usize| (0..classes).map(|k| f64::from(values[k * places + cell])).collect();
                weights.iter().map(|(i, w)| w * of(at(i % places), *class)).sum()
            }
            (Target::Box { class, candidate: Some(n), .. }, _) => {
                let row = &values[n * (4 + classes) + 4..][..classes];
                of(row.iter().map(|v| f64::from(*v)).collect(), *class)
            }
            (Target::Class(class), _) => of(values.iter().map(|v| f64::from(*v)).collect(), *class),
            // A number of an output has no score but itself.
            _ => weights.iter().map(|(i, w)| w * f64::from(values[*i])).sum(),
        })
    }
}

/// The cells of a grid that a mask covers, with the share of the mask that lies in each; the shares sum to 1.
fn over_grid(mask: &Array, size: &[usize], grid: &[usize]) -> Result<Vec<(usize, f64)>> {
    if mask.shape() != size || grid.len() != size.len() {
        let shape = mask.shape();
        return Err(Error::invalid(format!("a region's mask of shape {shape:?}, expected the input's, {size:?}")));
    }
    let values = mask.to_vec::<f32>()?;
    let mut cells = vec![0f64; grid.iter().product()];
    if cells.is_empty() {
        return Err(Error::output(format!("the model describes a class map of {grid:?} places")));
    }
    for (at, value) in values.iter().enumerate().filter(|(_, v)| **v != 0.0) {
        let (mut rest, mut cell, mut scale) = (at, 0, 1);
        for (n, g) in size.iter().zip(grid).rev() {
            cell += (rest % n * g / n) * scale;
            (rest, scale) = (rest / n, scale * g);
        }
        cells[cell] += f64::from(*value);
    }
    let total: f64 = cells.iter().sum();
    if !total.is_finite() || total <= 0.0 {
        return Err(Error::invalid("a region's mask marks no pixel"));
    }
    Ok(cells.into_iter().enumerate().filter(|(_, v)| *v > 0.0).map(|(i, v)| (i, v / total)).collect())
}

/// The sum of the rows' logits as an objective: each row's gradient is that of its own target.
///
/// Errors: no rows, a class or place that the model does not have, targets of several outputs at once.
pub fn objective(model: &ModelSpec, rows: &[&Target]) -> Result<Objective> {
    let first = rows.first().ok_or_else(|| Error::invalid("there is no target"))?;
    let output = first.output(model)?;
    if rows.iter().all(|t| matches!(t, Target::Class(_))) {
        rows.iter().try_for_each(|t| t.weights(model).map(drop))?;
        let classes: Vec<i64> = rows.iter().filter_map(|t| t.class()).map(|c| c as i64).collect();
        return Ok(Objective::Class(Array::from_vec(&[rows.len()], classes)?));
    }
    let shape = output.shape();
    let each: usize = shape.iter().product();
    let mut values = vec![0f32; rows.len() * each];
    for (row, target) in rows.iter().enumerate() {
        let other = target.output(model)?;
        if other.name != output.name {
            let (a, b) = (&output.name, &other.name);
            return Err(Error::invalid(format!("targets of outputs {a} and {b} in one objective")));
        }
        for (at, weight) in target.weights(model)? {
            values[row * each + at] += weight as f32;
        }
    }
    let shape = [vec![rows.len()], shape].concat();
    Ok(Objective::Output(output.name.clone(), Array::from_vec(&shape, values)?))
}

/// The rows' logits or scores in a response.
///
/// Errors: a response of another number of rows, a class or place that the model does not have.
pub fn scores(model: &ModelSpec, rows: &[&Target], response: &Response, score: Score) -> Result<Vec<f64>> {
    let mut values: Vec<(String, Vec<f32>)> = Vec::new();
    let mut found = Vec::with_capacity(rows.len());
    for (row, target) in rows.iter().enumerate() {
        let output = target.output(model)?;
        if !values.iter().any(|(name, _)| *name == output.name) {
            let array = response.output(model, &output.name)?;
            #[cfg(feature = "tch")]
            let array = &array.to_cpu()?;
            if array.shape().first() != Some(&rows.len()) {
                let (name, shape, n) = (&output.name, array.shape(), rows.len());
                return Err(Error::invalid(format!("output {name} of shape {shape:?} for {n} rows")));
            }
            values.push((output.name.clone(), array.to_vec::<f32>()?));
        }
        let Some((_, all)) = values.iter().find(|(name, _)| *name == output.name) else { continue };
        let each = all.len() / rows.len();
        found.push(target.score(model, &all[row * each..][..each], score)?);
    }
    Ok(found)
}

/// The derivative of the rows' scores in their logits, at a response, as an objective: its gradient is that of the scores.
///
/// Errors: as [`objective`] and [`scores`].
pub fn score_objective(model: &ModelSpec, rows: &[&Target], response: &Response) -> Result<Objective> {
    let first = rows.first().ok_or_else(|| Error::invalid("there is no target"))?;
    let output = first.output(model)?;
    let (classes, activation) = (output.class_count().unwrap_or(0), output.activation());
    let array = response.output(model, &output.name)?;
    #[cfg(feature = "tch")]
    let array = &array.to_cpu()?;
    let (shape, values) = (array.shape(), array.to_vec::<f32>()?);
    let wanted = [vec![rows.len()], output.shape()].concat();
    if shape != wanted {
        return Err(Error::output(format!("output {} of shape {shape:?}, expected {wanted:?}", output.name)));
    }
    let each = values.len() / rows.len();
    let mut slopes = vec![0f32; values.len()];
    for (row, target) in rows.iter().enumerate() {
        if target.output(model)?.name != output.name {
            return Err(Error::invalid("targets of several outputs in one objective"));
        }
        // Where the logits of the classes stand beside that of the target, and how far they are apart.
        let stride = match &output.meaning {
            Meaning::ClassMap { grid, .. } => grid.iter().product(),
            _ => 1,
        };
        for (at, weight) in target.weights(model)? {
            let Some(class) = target.class() else {
                slopes[row * each + at] += weight as f32;
                continue;
            };
            let base = row * each + at - class * stride;
            let logits: Vec<f64> = (0..classes).map(|k| f64::from(values[base + k * stride])).collect();
            for (k, slope) in activation.slopes(&logits, class).into_iter().enumerate() {
                slopes[base + k * stride] += (weight * slope) as f32;
            }
        }
    }
    Ok(Objective::Output(output.name.clone(), Array::from_vec(&shape, slopes)?))
}

/// Finds the candidates of boxes in a response to the images themselves: that with the greatest intersection over union,
/// of equals the one with the higher logit of the class.
///
/// Errors: a model without boxes, a response of another number of rows, a class that there is not, a box without a candidate.
pub fn resolve(model: &ModelSpec, targets: &mut [Target], response: &Response) -> Result<()> {
    let Some(first) = targets.iter().find(|t| t.kind() == TargetKind::Box) else { return Ok(()) };
    let name = first.output(model)?.name.clone();
    let array = response.output(model, &name)?;
    #[cfg(feature = "tch")]
    let array = &array.to_cpu()?;
    let [b, n, width] = array.dims(&name)?;
    if b != targets.len() {
        return Err(Error::output(format!("output {name} of {b} rows for {} targets", targets.len())));
    }
    let values = array.to_vec::<f32>()?;
    for (row, target) in targets.iter_mut().enumerate() {
        let Target::Box { class, area, candidate } = target else { continue };
        if *class + 4 >= width {
            return Err(Error::invalid(format!("target class {class} of {} classes", width.saturating_sub(4))));
        }
        let key = |c: usize| {
            let line = &values[(row * n + c) * width..][..width];
            let found = [0, 1, 2, 3].map(|i| f64::from(line[i]));
            (overlap(*area, found), f64::from(line[4 + *class]))
        };
        let better = |a: &(f64, f64), b: &(f64, f64)| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1));
        let best = (0..n).max_by(|a, b| better(&key(*a), &key(*b)));
        match best.filter(|c| key(*c).0 > 0.0) {
            Some(found) => *candidate = Some(found),
            None => return Err(Error::invalid(format!("no candidate of the model overlaps the box {area:?}"))),
        }
    }
    Ok(())
}

/// Intersection over union of two boxes.
fn overlap(a: [f64; 4], b: [f64; 4]) -> f64 {
    let size = |b: [f64; 4]| (b[2] - b[0]).max(0.0) * (b[3] - b[1]).max(0.0);
    let both = size([a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    if both > 0.0 { both / (size(a) + size(b) - both) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Activation, InputSpec};

    fn model(outputs: Vec<Output>) -> ModelSpec {
        ModelSpec { outputs, ..ModelSpec::new("m", InputSpec::imagenet(4), 2) }
    }

    #[test]
    fn a_class_is_scored_as_the_output_says() {
        for (activation, wanted) in [
            (Activation::Softmax, 1.0 / (1.0 + (-1f64).exp())),
            (Activation::Sigmoid, 1.0 / (1.0 + (-2f64).exp())),
            (Activation::Linear, 2.0),
        ] {
            let model = model(vec![Output::classes("logits", 2, activation)]);
            let found = Target::Class(1).score(&model, &[1.0, 2.0], Score::Probability).unwrap();
            assert!((found - wanted).abs() < 1e-12, "{activation:?}");
            assert_eq!(Target::Class(1).score(&model, &[1.0, 2.0], Score::Logit).unwrap(), 2.0);
        }
        let model = model(vec![Output::classes("logits", 2, Activation::Softmax)]);
        assert!(objective(&model, &[&Target::Class(2)]).unwrap_err().message.contains("target class 2 of 2"));
    }

    #[test]
    fn a_region_is_the_mean_over_the_cells_it_covers() {
        let model = model(vec![Output::class_map("map", 2, Activation::Sigmoid, [2, 2])]);
        // Two pixels in the first cell, one in the last.
        let mut mask = vec![0f32; 16];
        (mask[0], mask[1], mask[15]) = (1.0, 1.0, 1.0);
        let target = Target::Region { class: 1, mask: Array::from_vec(&[4, 4], mask).unwrap() };
        let values = [0.0, 0.0, 0.0, 0.0, 3.0, 9.0, 9.0, -3.0];
        let logit = target.score(&model, &values, Score::Logit).unwrap();
        assert!((logit - (2.0 * 3.0 - 3.0) / 3.0).abs() < 1e-12);
        let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
        let score = target.score(&model, &values, Score::Probability).unwrap();
        assert!((score - (2.0 * sigmoid(3.0) + sigmoid(-3.0)) / 3.0).abs() < 1e-12);
        let Objective::Output(name, weights) = objective(&model, &[&target]).unwrap() else { panic!("an output") };
        assert_eq!((name.as_str(), weights.shape()), ("map", vec![1, 2, 2, 2]));
        let expected = [0.0, 0.0, 0.0, 0.0, 2.0 / 3.0, 0.0, 0.0, 1.0 / 3.0];
        assert!(weights.to_vec::<f32>().unwrap().iter().zip(expected).all(|(a, b)| (a - b as f32).abs() < 1e-6));
        let empty = Target::Region { class: 1, mask: Array::from_vec(&[4, 4], vec![0f32; 16]).unwrap() };
        assert!(objective(&model, &[&empty]).unwrap_err().message.contains("marks no pixel"));
    }

    #[test]
    fn a_box_is_its_best_candidate_for_every_image() {
        let model = model(vec![Output::boxes("boxes", 2, Activation::Softmax, 3)]);
        let rows = [[0.0, 0.0, 2.0, 2.0, 5.0, 1.0], [1.0, 1.0, 3.0, 3.0, 0.0, 2.0], [1.0, 1.0, 3.0, 3.0, 0.0, 4.0]];
        let boxes = Array::from_vec(&[1, 3, 6], rows.concat().into_iter().map(|v: f64| v as f32).collect()).unwrap();
        let response = Response::of(boxes);
        let mut targets = [Target::Box { class: 1, area: [1.0, 1.0, 3.5, 3.0], candidate: None }];
        resolve(&model, &mut targets, &response).unwrap();
        assert!(matches!(targets[0], Target::Box { candidate: Some(2), .. }));
        let found = scores(&model, &[&targets[0]], &response, Score::Logit).unwrap();
        assert_eq!(found, [4.0]);
        // The objective of the score is its derivative, by differences.
        let Objective::Output(_, slopes) = score_objective(&model, &[&targets[0]], &response).unwrap() else {
            panic!()
        };
        let slopes = slopes.to_vec::<f32>().unwrap();
        let values = response.logits.to_vec::<f32>().unwrap();
        for at in 0..values.len() {
            let moved = |step: f32| {
                let mut values = values.clone();
                values[at] += step;
                targets[0].score(&model, &values, Score::Probability).unwrap()
            };
            let wanted = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!((f64::from(slopes[at]) - wanted).abs() < 1e-4, "{at}: {} {wanted}", slopes[at]);
        }
        // Answers of other shapes are errors, never a panic.
        let three = [targets[0].clone(), targets[0].clone(), targets[0].clone()];
        assert!(resolve(&model, &mut three.clone(), &response).unwrap_err().message.contains("1 rows for 3 targets"));
        let short = Response::of(Array::from_vec(&[1, 2, 6], vec![0f32; 12]).unwrap());
        let error = score_objective(&model, &[&targets[0]], &short).unwrap_err();
        assert!(error.message.contains("shape [1, 2, 6], expected [1, 3, 6]"), "{error}");
        let mut nowhere = [Target::Box { class: 1, area: [8.0, 8.0, 9.0, 9.0], candidate: None }];
        assert!(resolve(&model, &mut nowhere, &response).unwrap_err().message.contains("no candidate"));
    }
}
