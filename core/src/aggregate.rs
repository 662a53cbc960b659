//! From the rows of all units to a [`Summary`]: gathers them by cell, and makes means, intervals and comparisons of them.
//! Time is linear in the rows.

use crate::Result;
use crate::compare::{self, Comparisons, Values};
use crate::metrics::{Level, Predictions, Score, Status};
use crate::predictions::Table;
use crate::results::{self, Names, Prediction, Row};
use crate::stats::interval::{LEAST, Patients};
use crate::stats::ranking::LEVEL;
use crate::stats::{deviation, mean};
use crate::summary::{
    Absent, CHANCE, Cell, ClassMean, ClassValue, Column, FoldValue, MetricColumn, Plan, ShownMetric, State, Summary,
};
use crate::task::{Kind, Task};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

/// Between an image's name and its target's number, in the name of an explanation.
const OF_TARGET: char = '\u{1f}';

/// What names an explanation: the image, and the class where it is one of several.
fn explanation(image: &str, target: i32) -> String {
    format!("{image}{OF_TARGET}{target}")
}

/// The image of an explanation.
fn image_of(explanation: &str) -> &str {
    explanation.split(OF_TARGET).next().unwrap_or(explanation)
}

#[derive(Default)]
struct Group {
    /// Explanation (image and target) and value, failures as the worst value.
    images: Vec<(u32, f64)>,
    /// Explanations whose map failed.
    failed: Vec<u32>,
    set: Option<Score>,
    missing: &'static str,
}

#[derive(Default)]
struct Gathered {
    groups: BTreeMap<(i32, i32), Group>,
    maps: usize,
    failed: usize,
    constant: usize,
    reasons: BTreeMap<String, usize>,
}

/// Collects rows.
pub struct Gather<'a> {
    plan: &'a Plan,
    names: Names,
    cells: HashMap<(u32, u32, u32, u32), Gathered>,
    /// What a failed map counts as, where it counts in the mean.
    worst: HashMap<u32, Option<f64>>,
    /// Image and target: the number of the explanation's name.
    explanations: HashMap<(u32, i32), u32>,
    /// By model, fold and training: the predictions.
    predictions: BTreeMap<(u32, i32, i32), Vec<Prediction>>,
}

impl<'a> Gather<'a> {
    /// For a run that set out to do this.
    pub fn new(plan: &'a Plan) -> Self {
        let mut names = Names::default();
        names.number("");
        let worst = plan.metrics.iter().map(|m| (names.number(&m.label), m.spec.worst())).collect();
        let (cells, explanations, predictions) = Default::default();
        Gather { plan, names, cells, worst, explanations, predictions }
    }

    /// All predictions that were taken, and the names of their numbers.
    pub fn all_predictions(&self) -> (Vec<Prediction>, &Names) {
        (self.predictions.values().flatten().copied().collect(), &self.names)
    }

    /// Takes those rows of a file of scores that `wanted` says (explainer, metric), and hands them on to `sink`.
    pub fn scores(
        &mut self,
        path: &Path,
        wanted: &dyn Fn(&str, &str) -> bool,
        sink: Option<&mut results::ScoreWriter>,
    ) -> Result<()> {
        let mut names = std::mem::take(&mut self.names);
        let mut rows = Vec::new();
        let read = results::read_scores(path, &mut names, &mut |row| rows.push(row));
        let mut known: HashMap<(u32, u32), bool> = HashMap::new();
        let mut taken = Vec::new();
        for row in rows {
            let take = known.entry((row.explainer, row.metric));
            if *take.or_insert_with(|| wanted(names.name(row.explainer), names.name(row.metric))) {
                let constant = names.name(row.reason) == Score::CONSTANT;
                self.row(&row, constant, &mut names);
                taken.push(row);
            }
        }
        if let Some(sink) = sink {
            sink.add(&names, &taken)?;
        }
        self.names = names;
        read
    }

    fn row(&mut self, row: &Row, constant: bool, names: &mut Names) {
        let Some(worst) = self.worst.get(&row.metric).copied() else { return };
        let cell = self.cells.entry((row.model, row.explainer, row.output, row.metric)).or_default();
        let group = cell.groups.entry((row.fold, row.training)).or_default();
        if names.name(row.image).is_empty() {
            group.set = Some(Score { value: row.value, status: row.status, reason: "" });
            if row.status != Status::Ok {
                *cell.reasons.entry(names.name(row.reason).into()).or_default() += 1;
            }
            return;
        }
        let name = |names: &mut Names| {
            let text = explanation(names.name(row.image), row.target);
            names.number(&text)
        };
        let unit = *self.explanations.entry((row.image, row.target)).or_insert_with(|| name(names));
        match row.status {
            Status::NotApplicable => {
                group.missing = "n/a";
                *cell.reasons.entry(names.name(row.reason).into()).or_default() += 1;
            }
            status => {
                cell.maps += 1;
                cell.failed += usize::from(status == Status::Failed);
                cell.constant += usize::from(constant);
                group.images.extend(row.value.or(worst).map(|value| (unit, value)));
                if status == Status::Failed {
                    group.failed.push(unit);
                    *cell.reasons.entry(names.name(row.reason).into()).or_default() += 1;
                }
            }
        }
    }

    /// Takes a file of predictions.
    pub fn predictions(&mut self, path: &Path) -> Result<()> {
        let all = &mut self.predictions;
        results::read_predictions(path, &mut self.names, &mut |p| {
            all.entry((p.model, p.fold, p.training)).or_default().push(p);
        })
    }

    /// All cells, and how explainers compare.
    pub fn finish(self, absent: &[Absent]) -> Result<(Summary, Comparisons)> {
        let plan = self.plan;
        let mut outputs: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (_, explainer, output, _) in self.cells.keys() {
            let mine = outputs.entry(*explainer).or_default();
            if !mine.contains(output) {
                mine.push(*output);
            }
        }
        let mut columns = Vec::new();
        for (label, shown) in &plan.explainers {
            let found = self.names.find(label).and_then(|e| outputs.get(&e)).cloned().unwrap_or_default();
            let mut found: Vec<&str> = found.iter().map(|o| self.names.name(*o)).collect();
            // Digits by their number: head 2 before head 10.
            found.sort_by_key(|name| {
                let digits: String = name.chars().filter(char::is_ascii_digit).collect();
                (digits.parse::<u64>().unwrap_or(0), name.to_string())
            });
            found.retain(|o| shown.is_empty() || shown.iter().any(|s| s == o));
            if found.is_empty() {
                found.push("");
            }
            columns.extend(found.iter().map(|o| Column { explainer: label.clone(), output: o.to_string() }));
        }
        let mut wanted = Vec::new();
        for (model, shared) in &plan.models {
            for metric in &plan.metrics {
                if metric.metric.needs().maps.is_none() {
                    wanted.push((model, *shared, String::new(), String::new(), metric));
                    continue;
                }
                for column in &columns {
                    wanted.push((model, *shared, column.explainer.clone(), column.output.clone(), metric));
                }
                if metric.spec.chance_is_constant && !plan.explainers.is_empty() {
                    wanted.push((model, *shared, CHANCE.into(), String::new(), metric));
                }
            }
        }
        let cells = wanted.into_par_iter().map(|(model, shared, explainer, output, metric)| {
            let state = self.cell(model, shared, &explainer, &output, metric, absent)?;
            Ok(Cell { model: model.clone(), explainer, output, metric: metric.label.clone(), state })
        });
        let mut cells = cells.collect::<Result<Vec<Cell>>>()?;
        self.intervals(&mut cells);
        let comparisons = self.comparisons(&cells, &columns);
        let metrics = plan.metrics.iter().map(|m| ShownMetric {
            label: m.label.clone(),
            short: m.spec.short.into(),
            level: m.spec.level,
            better: m.spec.better,
            range: m.spec.range,
            unit: m.spec.unit.into(),
            family: m.spec.family.into(),
            of_maps: m.metric.needs().maps.is_some(),
            has_chance: m.spec.chance_is_constant,
        });
        let summary = Summary {
            name: plan.name.clone(),
            title: plan.title.clone(),
            folds: plan.folds,
            seeds: plan.seeds,
            models: plan.models.iter().map(|(m, _)| m.clone()).collect(),
            columns,
            metrics: metrics.collect(),
            cells,
            class_values: self.class_values()?,
            class_means: class_means(&comparisons, plan.task.classes.len()),
            interventions: vec![],
            seconds: vec![],
            notes: plan.notes.iter().cloned().chain(without_power(&comparisons)).collect(),
        };
        Ok((summary, comparisons))
    }

    /// What was gathered of a cell.
    fn found(&self, model: &str, explainer: &str, output: &str, metric: &str) -> Option<&Gathered> {
        let number = |name: &str| self.names.find(name);
        let key = number(model).zip(number(explainer)).zip(number(output)).zip(number(metric));
        key.and_then(|(((m, e), o), k)| self.cells.get(&(m, e, o, k)))
    }

    /// Fills in the intervals of metrics of images. Cells over the same images share their patients.
    fn intervals(&self, cells: &mut [Cell]) {
        let mut known: HashMap<Vec<u32>, Patients> = HashMap::new();
        for cell in cells {
            let Some(metric) = self.plan.metrics.iter().find(|m| m.label == cell.metric) else { continue };
            let State::Value { interval, patients, .. } = &mut cell.state else { continue };
            let Some(found) = self.found(&cell.model, &cell.explainer, &cell.output, &cell.metric) else { continue };
            if metric.spec.level != Level::Image {
                continue;
            }
            let mut sums: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
            for (image, value) in found.groups.values().flat_map(|g| &g.images) {
                let sum = sums.entry(*image).or_default();
                *sum = (sum.0 + value, sum.1 + 1.0);
            }
            let (images, values): (Vec<u32>, Vec<f64>) = sums.into_iter().map(|(i, (sum, n))| (i, sum / n)).unzip();
            let of = known.entry(images).or_insert_with_key(|images| self.grouped(images));
            *interval = of.mean(&values, metric.spec.range);
            *patients = of.count();
        }
    }

    /// How the explainers of each model compare by each metric of images, and the metrics with each other.
    fn comparisons(&self, cells: &[Cell], columns: &[Column]) -> Comparisons {
        let mut all = Comparisons::default();
        // Explanations by name: their places.
        let known = |n: &u32| self.plan.images.contains_key(image_of(self.names.name(*n)));
        let mut names: Vec<u32> = self.explanations.values().copied().filter(known).collect();
        names.sort_by_key(|i| self.names.name(*i));
        let place: HashMap<u32, usize> = names.iter().enumerate().map(|(at, i)| (*i, at)).collect();
        let facts = |at: usize| self.plan.images.get(image_of(self.names.name(names[at])));
        let patients = self.patients(&names);
        // Where an image has several explanations, each is of its own class; otherwise of the image's.
        let several = names.windows(2).any(|w| image_of(self.names.name(w[0])) == image_of(self.names.name(w[1])));
        let target = |at: usize| self.names.name(names[at]).split(OF_TARGET).nth(1).and_then(|t| t.parse().ok());
        let class = |at: usize| match facts(at).map_or("", |f| f.classes.as_str()) {
            _ if several => target(at).and_then(|t: usize| self.plan.task.classes.get(t)).cloned().unwrap_or_default(),
            "" => "no class".to_string(),
            some => some.to_string(),
        };
        let controls: Vec<usize> =
            (0..columns.len()).filter(|c| self.plan.controls.contains(&columns[*c].explainer)).collect();
        let of_images = |m: &&MetricColumn| m.spec.level == Level::Image && m.metric.needs().maps.is_some();
        let states: HashMap<(&str, &str, &str, &str), &State> = cells
            .iter()
            .map(|c| ((c.model.as_str(), c.explainer.as_str(), c.output.as_str(), c.metric.as_str()), &c.state))
            .collect();
        let state = |model: &str, column: &Column, metric: &str| {
            states.get(&(model, column.explainer.as_str(), column.output.as_str(), metric)).copied()
        };
        for (model, _) in &self.plan.models {
            for metric in self.plan.metrics.iter().filter(of_images) {
                let worst = metric.spec.worst();
                let mut values: Vec<Values> = Vec::new();
                for (column, c) in columns.iter().enumerate() {
                    let whole = state(model, c, &metric.label);
                    let found = self.found(model, &c.explainer, &c.output, &metric.label);
                    // A cell of which every map failed is compared; one that did not run is not.
                    let Some(found) =
                        found.filter(|f| f.maps > 0 && !matches!(whole, Some(State::NotApplicable { .. })))
                    else {
                        continue;
                    };
                    let mut sums: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
                    let mut mine = Values { column, ..Values::default() };
                    for group in found.groups.values() {
                        for (image, value) in &group.images {
                            let Some(at) = place.get(image) else { continue };
                            let sum = sums.entry(*at).or_default();
                            *sum = (sum.0 + value, sum.1 + 1.0);
                        }
                    }
                    mine.images = sums.iter().map(|(at, (sum, n))| (*at, Some(sum / n))).collect();
                    for image in found.groups.values().flat_map(|g| &g.failed) {
                        mine.images.extend(place.get(image).map(|at| (*at, None)));
                    }
                    values.push(mine);
                }
                // One cut for all explainers: over the images that any of them has a value of.
                let seen: std::collections::BTreeSet<usize> =
                    values.iter().flat_map(|v| v.images.keys().copied()).collect();
                // The size is that of one class's mask.
                let size = |i: usize| facts(i).filter(|_| !several)?.size;
                let limits = compare::terciles(seen.into_iter().filter_map(size));
                for mine in &values {
                    all.strata.extend(compare::strata(model, &metric.label, mine, worst, limits, &size, &class));
                }
                let grouped =
                    |images: &[usize]| self.grouped(&images.iter().map(|at| names[*at]).collect::<Vec<u32>>());
                let direction = (metric.spec.better, worst);
                let patient = |at: usize| patients[at];
                let found = compare::compare(model, &metric.label, direction, &values, &controls, &patient, &grouped);
                all.comparisons.extend(found);
            }
            let labels: Vec<String> =
                self.plan.metrics.iter().filter(|m| m.metric.needs().maps.is_some()).map(|m| m.label.clone()).collect();
            let mean_of = |c: &Column, label: &String| {
                let sign = self.plan.metrics.iter().find(|m| m.label == *label).map(|m| m.spec.better);
                let sign = if sign == Some(crate::metrics::Better::Lower) { -1.0 } else { 1.0 };
                match state(model, c, label) {
                    Some(State::Value { mean, .. }) => Some(mean * sign),
                    _ => None,
                }
            };
            let means: Vec<Vec<Option<f64>>> =
                labels.par_iter().map(|label| columns.iter().map(|c| mean_of(c, label)).collect()).collect();
            if labels.len() > 1 && columns.len() > 2 {
                all.metrics.push(compare::metric_agreement(model, &labels, &means));
            }
        }
        all
    }

    fn cell(
        &self,
        model: &str,
        shared: bool,
        explainer: &str,
        output: &str,
        metric: &MetricColumn,
        absent: &[Absent],
    ) -> Result<State> {
        let why = absent.iter().find(|a| {
            let whole = a.explainer.is_none();
            a.model == model && (whole || a.explainer.as_deref() == Some(explainer) && !explainer.is_empty())
        });
        if let Some(why) = why {
            let reason = why.reason.clone();
            return Ok(if why.failed { State::Failed { reason } } else { State::NotApplicable { reason } });
        }
        let Some(found) = self.found(model, explainer, output, &metric.label) else {
            return Ok(State::NotApplicable { reason: "nothing was computed".into() });
        };
        let reason = || {
            let most = found.reasons.iter().max_by_key(|(_, n)| **n).map(|(r, _)| r.as_str()).unwrap_or_default();
            match most {
                "no mask" | "empty mask" | "" => "no image of the test set has a mask".to_string(),
                other => other.to_string(),
            }
        };
        if found.maps > 0 && found.failed == found.maps {
            return Ok(State::Failed { reason: format!("all {} maps failed: {}", found.failed, reason()) });
        }
        let (mut folds, mut images) = (Vec::new(), 0);
        for (&(fold, training), group) in &found.groups {
            let value = match metric.spec.level {
                Level::Set => group.set.and_then(|s| s.value),
                Level::Image if group.images.is_empty() => None,
                Level::Image => {
                    images = images.max(group.images.len());
                    let values: Vec<f64> = group.images.iter().map(|(_, v)| *v).collect();
                    Some(mean(&values))
                }
            };
            folds.extend(value.map(|value| FoldValue { fold, training, value }));
        }
        if folds.is_empty() {
            return Ok(State::NotApplicable { reason: reason() });
        }
        let values: Vec<f64> = folds.iter().map(|f| f.value).collect();
        let mut by_fold: BTreeMap<i32, Vec<f64>> = BTreeMap::new();
        folds.iter().for_each(|f| by_fold.entry(f.fold).or_default().push(f.value));
        let means: Vec<f64> = by_fold.values().map(|v| mean(v)).collect();
        let fold_std = deviation(&means).filter(|s| !(shared && *s == 0.0));
        let spreads: Vec<f64> = by_fold.values().filter_map(|v| deviation(v)).collect();
        let seed_std = (!spreads.is_empty()).then(|| mean(&spreads));
        let all = mean(&values);
        let (interval, patients) = match metric.spec.level {
            Level::Set if metric.metric.needs().maps.is_none() => self.prediction_interval(model, metric, all)?,
            // Those of images come together: `intervals`.
            _ => (None, 0),
        };
        let (maps, failed, constant) = (found.maps, found.failed, found.constant);
        Ok(State::Value {
            mean: all,
            without_failures: found.without_failures().filter(|m| *m != all),
            fold_std,
            seed_std,
            interval,
            folds,
            images,
            patients,
            maps,
            failed,
            constant,
        })
    }

    fn patients(&self, images: &[u32]) -> Vec<u32> {
        let mut numbers = Names::default();
        let patient = |i: &u32| {
            let name = image_of(self.names.name(*i));
            self.plan.images.get(name).map_or(name, |f| f.patient.as_str())
        };
        images.iter().map(|i| numbers.number(patient(i))).collect()
    }

    /// Metrics of predictions by class, where there are several.
    fn class_values(&self) -> Result<Vec<ClassValue>> {
        let (task, mut found) = (&self.plan.task, Vec::new());
        let one = Task { kind: Kind::Binary, classes: vec![String::new(), String::new()], ..Task::default() };
        for (model, _) in self.plan.models.iter().filter(|_| task.classes.len() > 2) {
            let Some(number) = self.names.find(model) else { continue };
            let mine = self.predictions.iter().filter(|((m, ..), _)| *m == number);
            let sets: Vec<Table> = mine.map(|(_, p)| Table::new(p, task, &self.names)).collect();
            for metric in self.plan.metrics.iter().filter(|m| m.metric.needs().maps.is_none()) {
                for (at, class) in task.classes.iter().enumerate() {
                    let (mut values, mut images) = (Vec::new(), 0);
                    for set in &sets {
                        let (scores, labels) = set.of_class(at);
                        images = images.max(labels[1].iter().filter(|l| **l == 1).count());
                        let of = Predictions { task: &one, scores: &scores, labels: &labels };
                        values.extend(metric.metric.predictions(&of)?.value);
                    }
                    let value = (!values.is_empty() && values.len() == sets.len()).then(|| mean(&values));
                    let (model, metric, class) = (model.clone(), metric.label.clone(), class.clone());
                    found.push(ClassValue { model, metric, class, value, images });
                }
            }
        }
        Ok(found)
    }

    /// These images by patient and class.
    fn grouped(&self, images: &[u32]) -> Patients {
        let class = |i: &u32| self.plan.images.get(image_of(self.names.name(*i))).map_or(0, |f| f.class as u32);
        let strata: Vec<u32> = images.iter().map(class).collect();
        Patients::new(&self.patients(images), &strata)
    }

    /// The interval of a metric of predictions, whose mean over folds and trainings is `value`, and how many patients it is
    /// over.
    fn prediction_interval(&self, model: &str, metric: &MetricColumn, value: f64) -> Result<(Option<[f64; 2]>, usize)> {
        let Some(model) = self.names.find(model) else { return Ok((None, 0)) };
        let mut sets = Vec::new();
        for ((m, ..), predictions) in &self.predictions {
            if *m == model {
                sets.push(Table::new(predictions, &self.plan.task, &self.names));
            }
        }
        let Some(first) = sets.first() else { return Ok((None, 0)) };
        let grouped = self.grouped(&first.images);
        let (positives, negatives) = first.patients(&self.patients(&first.images), &self.plan.task);
        if grouped.count() < LEAST || positives.min(negatives) < 2 {
            return Ok((None, grouped.count()));
        }
        let of = |kept: &[u8]| {
            let values = sets.iter().map(|set| {
                metric.metric.predictions(&set.kept(kept, &self.plan.task).view(&self.plan.task)).ok()?.value
            });
            values.collect::<Option<Vec<f64>>>().map(|v| mean(&v))
        };
        let variance = grouped.jackknife(of);
        Ok((variance.map(|v| metric.metric.interval(value, v, positives, negatives)), grouped.count()))
    }
}

/// Means of metrics of maps by class; of two classes there is one that is explained.
fn class_means(all: &Comparisons, classes: usize) -> Vec<ClassMean> {
    let of_class = all.strata.iter().filter(|s| s.by == "class" && classes > 2);
    let mean = |s: &compare::Stratum| ClassMean {
        model: s.model.clone(),
        metric: s.metric.clone(),
        column: s.column,
        class: s.name.clone(),
        mean: s.mean,
    };
    of_class.map(mean).collect()
}

/// Says of which comparisons the test could not have found any difference.
fn without_power(all: &Comparisons) -> Vec<String> {
    let mut found: BTreeMap<(usize, usize), BTreeSet<&str>> = BTreeMap::new();
    for c in all.comparisons.iter().filter(|c| c.least_p >= LEVEL) {
        found.entry((c.ranking.patients, c.columns.len())).or_default().insert(&c.model);
    }
    let note = |((patients, columns), models): ((usize, usize), BTreeSet<&str>)| {
        let models = models.into_iter().collect::<Vec<_>>().join(", ");
        format!(
            "{models}: with {patients} patients and {columns} explainers no test could have found a difference, whatever the maps."
        )
    };
    found.into_iter().map(note).collect()
}

impl Gathered {
    /// The mean over folds and trainings of the mean over images whose map did not fail; none where there is none.
    fn without_failures(&self) -> Option<f64> {
        let fold = |group: &Group| {
            let failed: HashSet<u32> = group.failed.iter().copied().collect();
            let kept: Vec<f64> = group.images.iter().filter(|(i, _)| !failed.contains(i)).map(|(_, v)| *v).collect();
            (!kept.is_empty()).then(|| mean(&kept))
        };
        let means: Vec<f64> = self.groups.values().filter_map(fold).collect();
        (self.failed > 0 && !means.is_empty()).then(|| mean(&means))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics;

    fn plan(folds: usize, shared: bool) -> Plan {
        let column = |name: &str| {
            let metric = metrics::find(name).unwrap();
            MetricColumn { label: name.into(), metric, spec: metric.spec() }
        };
        Plan {
            name: "t".into(),
            title: "T".into(),
            task: Task::default().resolve(vec![]).unwrap(),
            seed: 0,
            folds,
            seeds: 1,
            models: vec![("m".into(), shared)],
            explainers: vec![("good".into(), vec![]), ("bad".into(), vec![])],
            metrics: vec![column("auroc"), column("pixel-auprc")],
            controls: vec![],
            images: HashMap::new(),
            notes: vec![],
        }
    }

    /// Rows of explainer, fold, image and score.
    fn gather(plan: &Plan, rows: &[(&str, i32, &str, Score)]) -> Summary {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.parquet");
        let mut names = Names::default();
        let rows: Vec<Row> = rows
            .iter()
            .map(|(explainer, fold, image, score)| {
                Row {
                    image: names.number(image),
                    model: names.number("m"),
                    fold: *fold,
                    training: 0,
                    explainer: names.number(explainer),
                    output: names.number(""),
                    metric: names.number(if explainer.is_empty() { "auroc" } else { "pixel-auprc" }),
                    target: 1,
                    value: None,
                    status: Status::Ok,
                    reason: 0,
                }
                .with(*score, &mut names)
            })
            .collect();
        results::write_scores(&path, &names, &rows).unwrap();
        let mut gather = Gather::new(plan);
        gather.scores(&path, &|_, _| true, None).unwrap();
        gather.finish(&[]).unwrap().0
    }

    fn cell<'a>(summary: &'a Summary, explainer: &str) -> &'a State {
        &summary.cells.iter().find(|c| c.explainer == explainer).unwrap().state
    }

    #[test]
    fn a_method_does_not_gain_by_failing_and_chance_has_the_same_images() {
        let failed = Score::failed("the map is not finite");
        let none = Score::not_applicable("empty mask");
        let constant = Score::of(0.1, crate::maps::Fault::Constant);
        let summary = gather(
            &plan(1, false),
            &[
                ("good", 0, "a", Score::ok(0.4)),
                ("good", 0, "b", Score::ok(0.2)),
                ("good", 0, "c", none),
                ("bad", 0, "a", Score::ok(0.4)),
                ("bad", 0, "b", failed),
                ("bad", 0, "c", none),
                ("chance", 0, "a", constant),
                ("chance", 0, "b", constant),
                ("chance", 0, "c", none),
            ],
        );
        let State::Value { mean, images, failed, .. } = cell(&summary, "good") else { panic!() };
        assert!((mean - 0.3).abs() < 1e-12 && *images == 2 && *failed == 0);
        let State::Value { mean, without_failures, images, failed, maps, .. } = cell(&summary, "bad") else { panic!() };
        assert_eq!((*mean, *without_failures, *images, *failed, *maps), (0.2, Some(0.4), 2, 1, 2));
        let State::Value { without_failures: None, interval: None, patients: 2, .. } = cell(&summary, "good") else {
            panic!()
        };
        let State::Value { mean, images, constant, .. } = cell(&summary, CHANCE) else { panic!() };
        assert_eq!((*mean, *images, *constant), (0.1, 2, 2));
    }

    #[test]
    fn shared_weights_have_no_spread_over_folds() {
        let rows = [("good", 0, "a", Score::ok(0.4)), ("good", 1, "a", Score::ok(0.4)), ("", 0, "", Score::ok(0.7))];
        let spread = |shared: bool| match cell(&gather(&plan(2, shared), &rows), "good") {
            State::Value { fold_std, .. } => *fold_std,
            other => panic!("{other:?}"),
        };
        assert_eq!((spread(true), spread(false)), (None, Some(0.0)));
    }

    #[test]
    fn sets_and_absent_cells() {
        let summary = gather(&plan(2, false), &[("", 0, "", Score::ok(0.7)), ("", 1, "", Score::ok(0.9))]);
        let State::Value { mean, fold_std, .. } = &summary.cells[0].state else { panic!() };
        assert!((mean - 0.8).abs() < 1e-12 && (fold_std.unwrap() - 0.02f64.sqrt()).abs() < 1e-12);
        assert_eq!(*cell(&summary, "bad"), State::NotApplicable { reason: "nothing was computed".into() });
    }
}
