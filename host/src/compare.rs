//! `lightbox compare`: what changed between two runs, and whether it matters. Cells are matched by model, explainer, map and
//! metric; images by name. Only the runs' folders are read.

use crate::error::{Error, Result};
use crate::report::Run;
use crate::run::folder::{Environment, read_json};
use clap::Args;
use lightbox_core::metrics::{Better, Level, Status};
use lightbox_core::results::{self, Names};
use lightbox_core::stats::interval::Patients;
use lightbox_core::stats::mean;
use lightbox_core::stats::paired::{holm, wilcoxon};
use lightbox_core::stats::ranking::LEVEL;
use lightbox_core::summary::State;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

#[derive(Args)]
pub struct CompareArgs {
    /// The folder of a run that has ended
    before: PathBuf,
    /// Another, over the same images
    after: PathBuf,
    /// Only this metric, by its label [repeatable]
    #[arg(long)]
    metric: Vec<String>,
    /// Show cells whose values are all equal too
    #[arg(long)]
    all: bool,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// A cell of both runs.
#[derive(Debug, Clone, Serialize)]
struct Row {
    metric: String,
    better: Better,
    model: String,
    explainer: String,
    output: String,
    /// Failures count as the worst value; none where that has no end.
    before: Option<f64>,
    after: Option<f64>,
    /// After less before.
    difference: Option<f64>,
    /// 95 % over patients; none of metrics of sets.
    interval: Option<[f64; 2]>,
    /// Wilcoxon signed-rank (Pratt) over patients, Holm-corrected over the cells of the metric; none for metrics of sets.
    p: Option<f64>,
    images: usize,
    /// Images on which a map failed, before and after.
    failed: [usize; 2],
    /// better, worse, no difference found, equal; changed, of metrics of sets.
    verdict: &'static str,
    #[serde(skip)]
    percent: bool,
}

#[derive(Debug, Clone, Serialize)]
struct Comparison {
    before: PathBuf,
    after: PathBuf,
    /// How the runs differ in what made them.
    setup: Vec<String>,
    /// Cells that only one of them has.
    only_before: Vec<String>,
    only_after: Vec<String>,
    rows: Vec<Row>,
}

/// Model, explainer, output, metric.
type Key = (String, String, String, String);

/// By cell and image: the mean over folds and trainings; none where a map failed.
fn values(run: &Run) -> Result<BTreeMap<Key, BTreeMap<String, Option<f64>>>> {
    let (mut names, mut rows) = (Names::default(), Vec::new());
    results::read_scores(&run.folder.0.join("scores.parquet"), &mut names, &mut |row| rows.push(row))?;
    let mut sums: BTreeMap<(u32, u32, u32, u32), BTreeMap<u32, (f64, u32, bool)>> = BTreeMap::new();
    for row in rows {
        if row.status == Status::NotApplicable || names.name(row.image).is_empty() {
            continue;
        }
        let cell = sums.entry((row.model, row.explainer, row.output, row.metric)).or_default();
        let sum = cell.entry(row.image).or_default();
        match row.value {
            Some(value) if row.status == Status::Ok => *sum = (sum.0 + value, sum.1 + 1, sum.2),
            _ => sum.2 |= row.status == Status::Failed,
        }
    }
    let name = |n: u32| names.name(n).to_string();
    let cell = |images: BTreeMap<u32, (f64, u32, bool)>| {
        let value = |(sum, n, failed): (f64, u32, bool)| (!failed && n > 0).then(|| sum / f64::from(n));
        // A map that counts in a set alone has no value of its own.
        let kept = images.into_iter().filter(|(_, (_, n, failed))| *n > 0 || *failed);
        kept.map(|(image, sums)| (name(image), value(sums))).collect::<BTreeMap<_, _>>()
    };
    let key = |(m, e, o, k): (u32, u32, u32, u32)| (name(m), name(e), name(o), name(k));
    Ok(sums.into_iter().map(|(k, images)| (key(k), cell(images))).filter(|(_, c)| !c.is_empty()).collect())
}

/// What made the runs, where it differs.
fn setup(a: &Run, b: &Run) -> Result<Vec<String>> {
    let environment = |run: &Run| read_json::<Environment>(&run.folder.environment());
    let (before, after) = (environment(a)?, environment(b)?);
    let mut all = Vec::new();
    if before.data != after.data {
        all.push("the images, labels or boxes differ; images are matched by name".to_string());
    }
    if before.seed != after.seed {
        all.push(format!("seed {} -> {}", before.seed, after.seed));
    }
    let names: BTreeSet<&String> = before.plugins.keys().chain(after.plugins.keys()).collect();
    for name in names {
        match (before.plugins.get(name), after.plugins.get(name)) {
            (Some(x), Some(y)) if x.sha256 != y.sha256 => {
                let (v, w) = (&x.version, &y.version);
                all.push(format!(
                    "{name}: another build of the plugin ({v} -> {w}, {:.12} -> {:.12})",
                    x.sha256, y.sha256
                ));
            }
            _ => {}
        }
    }
    let paths: BTreeSet<&PathBuf> = before.files.keys().chain(after.files.keys()).collect();
    for path in paths {
        match (before.files.get(path), after.files.get(path)) {
            (Some(x), Some(y)) if x != y => {
                all.push(format!("{}: another content ({:.12} -> {:.12})", path.display(), x, y));
            }
            (Some(_), None) => all.push(format!("{}: only before", path.display())),
            (None, Some(_)) => all.push(format!("{}: only after", path.display())),
            _ => {}
        }
    }
    let machines = |e: &Environment| serde_json::to_string(&e.machines).unwrap_or_default();
    if machines(&before) != machines(&after) {
        all.push("computed on other machines, devices, threads or versions; see environment.json of both".into());
    }
    let spec = |run: &Run| -> Result<toml::Table> {
        let text = String::from_utf8_lossy(&lightbox_core::files::read(&run.folder.spec())?).into_owned();
        toml::from_str(&text).map_err(|e| Error::input(format!("{}: {e}", run.folder.spec().display())))
    };
    let (x, y) = (spec(a)?, spec(b)?);
    let keys: BTreeSet<&String> = x.keys().chain(y.keys()).collect();
    for key in keys.into_iter().filter(|k| !["name", "title", "output", "notes", "seed"].contains(&k.as_str())) {
        match (x.get(key), y.get(key)) {
            (Some(toml::Value::Array(p)), Some(toml::Value::Array(q))) => {
                // Entries by their label or name.
                let label = |v: &toml::Value| {
                    let of = |k: &str| v.get(k).and_then(toml::Value::as_str).unwrap_or_default().to_string();
                    if of("label").is_empty() { of("name") } else { of("label") }
                };
                let labels = |list: &[toml::Value]| list.iter().map(label).collect::<BTreeSet<String>>();
                let (had, has) = (labels(p), labels(q));
                had.difference(&has).for_each(|gone| all.push(format!("{key}.{gone}: only before")));
                has.difference(&had).for_each(|new| all.push(format!("{key}.{new}: only after")));
                for entry in q {
                    let old = p.iter().find(|o| label(o) == label(entry));
                    if old.is_some_and(|old| old != entry) {
                        all.push(format!("{key}.{} has other settings", label(entry)));
                    }
                }
            }
            (p, q) if p != q => all.push(format!("{key} differs")),
            _ => {}
        }
    }
    Ok(all)
}

/// A cell of two runs: the images that both have a value of, a patient's together.
fn row_of(
    metric: &lightbox_core::summary::ShownMetric,
    key: &Key,
    images: &[&String],
    (before, after): (&BTreeMap<String, Option<f64>>, &BTreeMap<String, Option<f64>>),
    patients: &BTreeMap<&str, &str>,
) -> Row {
    let percent = metric.unit == "share";
    let worst = lightbox_core::metrics::worst(metric.better, metric.range);
    let list =
        |of: &BTreeMap<String, Option<f64>>| -> Option<Vec<f64>> { images.iter().map(|i| of[*i].or(worst)).collect() };
    let (p, q) = (list(before), list(after));
    let failed = [before, after].map(|of| images.iter().filter(|i| of[**i].is_none()).count());
    let equal = images.iter().all(|i| before[*i] == after[*i]);
    let sign = if metric.better == Better::Higher { 1.0 } else { -1.0 };
    // A patient's images together; what failed is the worst.
    let mut groups: BTreeMap<&str, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    for image in images {
        let patient = patients.get(image.as_str()).copied().unwrap_or(image.as_str());
        let turned = |v: Option<f64>| v.map_or(f64::NEG_INFINITY, |v| v * sign);
        let group = groups.entry(patient).or_default();
        group.0.push(turned(before[*image]));
        group.1.push(turned(after[*image]));
    }
    let (s, t): (Vec<f64>, Vec<f64>) = groups.values().map(|(s, t)| (mean(s), mean(t))).unzip();
    let test = wilcoxon(&t, &s);
    let numbers: Vec<u32> = {
        let mut names = Names::default();
        images.iter().map(|i| names.number(patients.get(i.as_str()).copied().unwrap_or(i.as_str()))).collect()
    };
    let gaps: Option<Vec<f64>> = p.as_ref().zip(q.as_ref()).map(|(p, q)| p.iter().zip(q).map(|(p, q)| q - p).collect());
    let open = [f64::NEG_INFINITY, f64::INFINITY];
    let interval = gaps.as_deref().filter(|_| !equal);
    let interval = interval.and_then(|g| Patients::new(&numbers, &[]).mean(g, open));
    let (before, after) = (p.as_deref().map(mean), q.as_deref().map(mean));
    let (model, explainer, output, _) = key.clone();
    Row {
        metric: metric.label.clone(),
        better: metric.better,
        model,
        explainer,
        output,
        before,
        after,
        difference: gaps.as_deref().map(mean),
        interval,
        p: Some(test.p),
        images: images.len(),
        failed,
        verdict: if equal {
            "equal"
        } else if test.effect > 0.0 {
            "better"
        } else {
            "worse"
        },
        percent,
    }
}

fn compare_runs(args: &CompareArgs) -> Result<Comparison> {
    let (a, b) = (Run::open(&args.before)?, Run::open(&args.after)?);
    let (x, y) = (values(&a)?, values(&b)?);
    let wanted = |label: &String| args.metric.is_empty() || args.metric.contains(label);
    for label in &args.metric {
        if !a.summary().metrics.iter().any(|m| m.label == *label) {
            let known: Vec<&str> = a.summary().metrics.iter().map(|m| m.label.as_str()).collect();
            return Err(Error::input(format!("the run has no metric {label} (known: {})", known.join(", "))));
        }
    }
    let title = |(m, e, o, k): &Key| {
        let output = if o.is_empty() { String::new() } else { format!(" {o}") };
        format!("{m} x {e}{output}, {k}")
    };
    let only = |x: &BTreeMap<Key, _>, y: &BTreeMap<Key, _>| -> Vec<String> {
        x.keys().filter(|k| wanted(&k.3) && !y.contains_key(*k)).map(title).collect()
    };
    let patients: BTreeMap<&str, &str> = a.images().iter().map(|i| (i.image.as_str(), i.patient.as_str())).collect();
    let mut rows = Vec::new();
    for metric in a.summary().metrics.iter().filter(|m| wanted(&m.label)) {
        let percent = metric.unit == "share";
        let mut mine: Vec<Row> = Vec::new();
        for (key, before) in x.iter().filter(|(k, _)| k.3 == metric.label && metric.level == Level::Image) {
            let Some(after) = y.get(key) else { continue };
            let images: Vec<&String> = before.keys().filter(|i| after.contains_key(*i)).collect();
            if images.is_empty() {
                continue;
            }
            mine.push(row_of(metric, key, &images, (before, after), &patients));
        }
        let corrected = holm(&mine.iter().map(|r| r.p.unwrap_or(1.0)).collect::<Vec<_>>());
        for (row, p) in mine.iter_mut().zip(corrected) {
            row.p = Some(p);
            if row.verdict != "equal" && p >= LEVEL {
                row.verdict = "no difference found";
            }
        }
        rows.extend(mine);
        // A value of a set has no images to test over.
        for cell in a.summary().cells.iter().filter(|c| c.metric == metric.label && metric.level == Level::Set) {
            let same = |c: &&lightbox_core::summary::Cell| {
                (&c.model, &c.explainer, &c.output, &c.metric)
                    == (&cell.model, &cell.explainer, &cell.output, &cell.metric)
            };
            let other = b.summary().cells.iter().find(same).map(|c| &c.state);
            if let (State::Value { mean: before, .. }, Some(State::Value { mean: after, .. })) = (&cell.state, other) {
                rows.push(Row {
                    metric: metric.label.clone(),
                    better: metric.better,
                    model: cell.model.clone(),
                    explainer: cell.explainer.clone(),
                    output: cell.output.clone(),
                    before: Some(*before),
                    after: Some(*after),
                    difference: Some(after - before),
                    interval: None,
                    p: None,
                    images: 0,
                    failed: [0, 0],
                    verdict: if before == after { "equal" } else { "changed" },
                    percent,
                });
            }
        }
    }
    if rows.is_empty() {
        let (p, q) = (args.before.display(), args.after.display());
        return Err(Error::input(format!("{p} and {q} have no cell in common"))
            .hint("labels of models, explainers and metrics must agree"));
    }
    Ok(Comparison {
        before: args.before.clone(),
        after: args.after.clone(),
        setup: setup(&a, &b)?,
        only_before: only(&x, &y),
        only_after: only(&y, &x),
        rows,
    })
}

fn text(found: &Comparison, all: bool) -> String {
    let mut text = format!("{} -> {}\n", found.before.display(), found.after.display());
    let list = |text: &mut String, title: &str, items: &[String]| {
        if !items.is_empty() {
            let _ = writeln!(text, "\n{title}");
            items.iter().for_each(|i| text.push_str(&format!("  {i}\n")));
        }
    };
    list(&mut text, "set-up", &found.setup);
    list(&mut text, "only before", &found.only_before);
    list(&mut text, "only after", &found.only_after);
    let number = |r: &Row, v: f64| {
        let (v, digits) = if r.percent { (100.0 * v, 1) } else { (v, 3) };
        if !r.percent && v != 0.0 && v.abs() < 1e-3 { format!("{v:.1e}") } else { format!("{v:.digits$}") }
    };
    let mut lines: Vec<[String; 7]> =
        vec![["metric", "cell", "before", "after", "difference", "p", ""].map(str::to_string)];
    for r in found.rows.iter().filter(|r| all || r.verdict != "equal") {
        let cell = [&r.model, &r.explainer, &r.output].map(String::as_str).join(" ").trim_end().to_string();
        let interval = r.interval.map_or(String::new(), |[l, h]| format!(" [{}, {}]", number(r, l), number(r, h)));
        let p = r.p.map_or(String::new(), |p| if p < 0.001 { "< 0.001".into() } else { format!("{p:.3}") });
        let optional = |v: Option<f64>| v.map_or("failed".into(), |v| number(r, v));
        let sign = if r.difference.is_some_and(|d| d > 0.0) { "+" } else { "" };
        let difference = r.difference.map_or(String::new(), |d| format!("{sign}{}{interval}", number(r, d)));
        let verdict = match r.failed {
            [0, 0] => r.verdict.to_string(),
            [a, b] => format!("{}; failed on {a} and {b} of {} images", r.verdict, r.images),
        };
        lines.push([r.metric.clone(), cell, optional(r.before), optional(r.after), difference, p, verdict]);
    }
    let width = |i: usize| lines.iter().map(|l| l[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    text.push('\n');
    if lines.len() > 1 {
        for l in &lines {
            let mut line = format!("{:w$}  {:v$}", l[0], l[1], w = widths[0], v = widths[1]);
            (2..6).for_each(|i| line.push_str(&format!("  {:>w$}", l[i], w = widths[i])));
            text.push_str(format!("{line}  {}", l[6]).trim_end());
            text.push('\n');
        }
    }
    let count = |verdict: &str| found.rows.iter().filter(|r| r.verdict == verdict).count();
    let _ = writeln!(
        text,
        "\n{} cells: {} better, {} worse, {} without a difference found, {} equal, {} of sets changed.",
        found.rows.len(),
        count("better"),
        count("worse"),
        count("no difference found"),
        count("equal"),
        count("changed")
    );
    text.push_str(
        "Intervals: 95 % over patients. p: Wilcoxon signed-rank over patients, Holm-corrected over a metric's cells. Images are the \
         same in both runs; what another training would give is another question.\n",
    );
    text
}

/// The comparison, for stdout.
pub fn compare(args: &CompareArgs) -> Result<String> {
    let found = compare_runs(args)?;
    if args.json {
        let text = serde_json::to_string_pretty(&found).map_err(|e| Error::input(e.to_string()))?;
        return Ok(text + "\n");
    }
    Ok(text(&found, args.all))
}
