//! The summary of a large run: 400 images, 40 metrics, 3 models, 5 folds and 8 to 64 explainers (14.4 million rows at 60),
//! from the tables of its units to all cells with their intervals. Time must be linear in the explainers.

use crate::table::Table;
use crate::{Bench, Result};
use lightbox_core::aggregate::Gather;
use lightbox_core::metrics::{self, Score, Status};
use lightbox_core::results::{self, Names, Row};
use lightbox_core::summary::{MetricColumn, Plan};
use lightbox_core::task::Task;
use std::time::Instant;

const IMAGES: usize = 400;
const METRICS: usize = 40;
const MODELS: usize = 3;
const FOLDS: usize = 5;

/// The most memory that this process has held, MiB.
pub fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or_default().to_string();
    line.split_whitespace().nth(1).and_then(|n| n.parse::<usize>().ok()).unwrap_or(0) >> 10
}

/// One number of explainers, in this process; its line.
pub fn part(explainers: usize) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("lightbox-summary-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let mut files = Vec::new();
    for model in 0..MODELS {
        for fold in 0..FOLDS {
            let mut names = Names::default();
            let mut rows = Vec::with_capacity(IMAGES * explainers * METRICS);
            for e in 0..explainers {
                for m in 0..METRICS {
                    for i in 0..IMAGES {
                        let row = Row {
                            image: names.number(&format!("image-{i:04}.mha")),
                            model: names.number(&format!("model {model}")),
                            fold: fold as i32,
                            training: 0,
                            explainer: names.number(&format!("explainer {e}")),
                            output: names.number(""),
                            metric: names.number(&format!("metric {m}")),
                            target: 1,
                            value: None,
                            status: Status::Ok,
                            reason: 0,
                        };
                        let value = ((i * 7919 + e * 31 + m * 17 + fold) % 1009) as f64 / 1009.0;
                        rows.push(row.with(Score::ok(value), &mut names));
                    }
                }
            }
            let file = folder.join(format!("{model}-{fold}.parquet"));
            results::write_scores(&file, &names, &rows)?;
            files.push(file);
        }
    }
    let metric = metrics::find("pixel-auprc")?;
    let plan = Plan {
        name: "large".into(),
        title: "large".into(),
        task: Task::default().resolve(vec![])?,
        seed: 0,
        folds: FOLDS,
        seeds: 1,
        models: (0..MODELS).map(|m| (format!("model {m}"), false)).collect(),
        explainers: (0..explainers).map(|e| (format!("explainer {e}"), vec![])).collect(),
        metrics: (0..METRICS)
            .map(|m| MetricColumn { label: format!("metric {m}"), metric, spec: metric.spec() })
            .collect(),
        controls: vec![],
        images: Default::default(),
        notes: vec![],
    };
    let started = Instant::now();
    let mut gather = Gather::new(&plan);
    for file in &files {
        gather.scores(file, &|_, _| true, None)?;
    }
    let read = started.elapsed().as_secs_f64();
    let (summary, _) = gather.finish(&[])?;
    let all = started.elapsed().as_secs_f64();
    let rows = IMAGES * explainers * METRICS * MODELS * FOLDS;
    let cells = summary.cells.len();
    println!("{:.1} {cells} {read:.2} {all:.2} {}", rows as f64 / 1e6, peak());
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// A process each, so that the peak is its own.
pub fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    let mut text = format!(
        "The summary of {IMAGES} images, {METRICS} metrics, {MODELS} models, {FOLDS} folds, from the units' tables.\n\n\
         | explainers | million rows | cells | seconds to read | seconds in all | MiB at most |\n|---:|---:|---:|---:|---:|---:|\n"
    );
    let counts: &[usize] = if bench.quick { &[8] } else { &[8, 16, 32, 60] };
    for n in counts {
        let found = crate::part("summary", *n)?;
        text += &format!("| {n} | {found} |\n");
    }
    table.text(text);
    Ok(())
}
