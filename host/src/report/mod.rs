//! `lightbox report` and `lightbox serve`: what a run found, as one HTML file that needs no network, or over loopback with
//! maps and images at their own size. Only the run's folder is read, no plugin and no data source.
//!
//! ```text
//! mod      what the page shows, from summary.json, comparisons.json, curves.jsonl and the tables
//! gallery  images and maps as compressed pictures
//! bibtex   citations
//! serve    the page and the pictures over HTTP
//! page.*   the page itself; charts by Plotly.js, which the crate `plotly` carries
//! ```

mod bibtex;
mod gallery;
mod http;
pub mod serve;

use crate::error::{Error, Result};
use crate::run::folder::{Environment, RunFolder, read_json, read_lines};
use crate::run::manifest::RunManifest;
use crate::run::summary::{ComparisonsFile, Curves, Stored, SummaryFile};
use crate::run::timings::Timings;
use lightbox_core::compare::Comparisons;
use lightbox_core::files;
use lightbox_core::metrics::Level;
use lightbox_core::results::{self, ImageRow, Names};
use lightbox_core::summary::{CHANCE, Column, Seconds, State, Summary};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// A finished run, as its folder has it.
pub struct Run {
    pub folder: RunFolder,
    summary: Summary,
    about: RunManifest,
    comparisons: Comparisons,
    curves: Vec<Curves>,
    images: Vec<ImageRow>,
    stored: Vec<Stored>,
    seconds: Vec<Seconds>,
}

impl Run {
    pub fn open(path: &Path) -> Result<Self> {
        let folder = RunFolder(path.to_path_buf());
        let shown = path.display();
        if !folder.environment().is_file() {
            return Err(Error::input(format!("{shown} is not the folder of a run")).hint("`lightbox run` makes them"));
        }
        let file = path.join("summary.json");
        if !file.is_file() {
            return Err(Error::input(format!("{shown}: the run has not ended")).hint("the same `lightbox run` goes on"));
        }
        let old = |e: Error| {
            Error::input(format!("{}: {}", file.display(), e.message))
                .hint("it is of another version; run the spec again")
        };
        let summary: SummaryFile = read_json(&file).map_err(old)?;
        if summary.schema != crate::run::summary::SCHEMA {
            let text = format!("its schema is {}, not {}", summary.schema, crate::run::summary::SCHEMA);
            return Err(old(Error::input(text)));
        }
        let comparisons: ComparisonsFile = read_json(&path.join("comparisons.json"))?;
        Ok(Run {
            summary: summary.summary,
            about: summary.about,
            comparisons: comparisons.comparisons,
            curves: read_lines(&path.join("curves.jsonl"))?,
            images: results::read_images(&path.join("images.parquet"))?,
            stored: read_json(&path.join("maps.json"))?,
            seconds: read_json(&path.join("timings.json"))?,
            folder,
        })
    }

    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Where the maps are.
    pub fn stored(&self) -> &[Stored] {
        &self.stored
    }

    /// The test images.
    pub fn images(&self) -> &[ImageRow] {
        &self.images
    }

    fn model(&self, label: &str) -> Option<usize> {
        self.summary.models.iter().position(|m| m == label)
    }

    fn metric(&self, label: &str) -> Option<usize> {
        self.summary.metrics.iter().position(|m| m.label == label)
    }

    /// The place of a column; -1 for chance, -2 for predictions.
    fn column(&self, explainer: &str, output: &str) -> Option<i64> {
        match explainer {
            "" => Some(-2),
            CHANCE => Some(-1),
            _ => {
                let is_mine = |c: &Column| c.explainer == explainer && c.output == output;
                self.summary.columns.iter().position(is_mine).map(|i| i as i64)
            }
        }
    }

    /// The metric by which single images are shown: `pixel-auprc`, else the first of localisation, else of maps; one that has
    /// a value.
    fn primary(&self) -> Option<usize> {
        let is = |label: &str, key: &str, value: &str| {
            self.about.metrics.iter().any(|m| m.label == label && m.spec[key].as_str() == Some(value))
        };
        let has_value = |label: &str| {
            let mine = |c: &&lightbox_core::summary::Cell| c.metric == label && c.explainer != CHANCE;
            self.summary.cells.iter().filter(mine).any(|c| matches!(c.state, State::Value { .. }))
        };
        let usable = |of: &dyn Fn(&str) -> bool| {
            self.summary
                .metrics
                .iter()
                .position(|m| m.of_maps && m.level == Level::Image && of(&m.label) && has_value(&m.label))
        };
        usable(&|label| is(label, "name", "pixel-auprc"))
            .or_else(|| usable(&|label| is(label, "family", "localisation")))
            .or_else(|| usable(&|_| true))
    }

    /// By model and column: the primary metric of each image, the mean over folds and trainings.
    fn values(&self, primary: Option<usize>) -> Result<Vec<Vec<Vec<Option<f64>>>>> {
        let (models, columns, images) = (self.summary.models.len(), self.summary.columns.len(), self.images.len());
        let mut sums = vec![(0.0, 0u32); models * columns * images];
        if let Some(primary) = primary {
            let label = &self.summary.metrics[primary].label;
            let place: HashMap<&str, usize> =
                self.images.iter().enumerate().map(|(i, r)| (r.image.as_str(), i)).collect();
            let (mut names, mut rows) = (Names::default(), Vec::new());
            let file = self.folder.0.join("scores.parquet");
            results::read_scores_where(&file, &mut names, Some(label), &mut |row| rows.push(row))?;
            for row in rows {
                let Some(value) = row.value else { continue };
                let column = self.column(names.name(row.explainer), names.name(row.output)).filter(|c| *c >= 0);
                let image = place.get(names.name(row.image));
                if let (Some(m), Some(c), Some(i)) = (self.model(names.name(row.model)), column, image) {
                    let sum = &mut sums[(m * columns + c as usize) * images + i];
                    *sum = (sum.0 + value, sum.1 + 1);
                }
            }
        }
        let mean = |(sum, n): &(f64, u32)| (*n > 0).then(|| round(sum / f64::from(*n)));
        let all: Vec<Option<f64>> = sums.iter().map(mean).collect();
        let of_model = |part: &[Option<f64>]| part.chunks(images.max(1)).map(<[_]>::to_vec).collect::<Vec<_>>();
        Ok(match columns * images {
            0 => vec![vec![]; models],
            size => all.chunks(size).map(of_model).collect(),
        })
    }

    fn shown_columns(&self) -> Vec<Value> {
        let about = |label: &str| self.about.explainers.iter().find(|e| e.label == label);
        self.summary
            .columns
            .iter()
            .map(|c| {
                let described = about(&c.explainer);
                let family = described.map(|d| d.family.clone()).unwrap_or_default();
                let name = described.map(|d| d.name.clone()).unwrap_or_default();
                json!({ "title": c.title(), "name": name, "control": family == "control", "family": family })
            })
            .collect()
    }

    fn shown_metrics(&self) -> Vec<Value> {
        let summary = &self.summary;
        summary
            .metrics
            .iter()
            .map(|m| {
                let described = self.about.metrics.iter().find(|d| d.label == m.label);
                let mut spec = described.map(|d| d.spec.clone()).unwrap_or_else(|| json!({}));
                spec["label"] = m.label.clone().into();
                spec["of_maps"] = m.of_maps.into();
                spec["chosen"] = json!(described.map(|d| d.parameters.clone()).unwrap_or_default());
                // The label tells two of one metric apart.
                if summary.metrics.iter().filter(|o| o.short == m.short).count() > 1 {
                    spec["short"] = m.label.clone().into();
                }
                spec
            })
            .collect()
    }

    fn shown_cells(&self) -> Vec<Value> {
        let mut cells = Vec::new();
        for cell in &self.summary.cells {
            let place = self.model(&cell.model).zip(self.metric(&cell.metric));
            let Some(((m, k), c)) = place.zip(self.column(&cell.explainer, &cell.output)) else { continue };
            cells.push(match &cell.state {
                State::Value {
                    mean,
                    without_failures,
                    fold_std,
                    seed_std,
                    interval,
                    images,
                    maps,
                    failed,
                    constant,
                    ..
                } => json!({
                    "m": m, "c": c, "k": k, "mean": round(*mean), "fold_std": fold_std.map(round),
                    "seed_std": seed_std.map(round), "interval": interval.map(|i| i.map(round)), "images": images,
                    "maps": maps, "failed": failed, "constant": constant, "without": without_failures.map(round)
                }),
                State::NotApplicable { reason } => json!({ "m": m, "c": c, "k": k, "state": "n/a", "reason": reason }),
                State::Failed { reason } => json!({ "m": m, "c": c, "k": k, "state": "failed", "reason": reason }),
            });
        }
        cells
    }

    fn shown_comparisons(&self) -> Vec<Value> {
        self
            .comparisons
            .comparisons
            .iter()
            .filter_map(|c| {
                let (m, k) = self.model(&c.model).zip(self.metric(&c.metric))?;
                let ranks: Vec<f64> = c.ranking.mean_ranks.iter().map(|r| round(*r)).collect();
                let differences: Vec<Value> = c
                    .differences
                    .iter()
                    .map(|d| {
                        let interval = d.interval.map(|i| i.map(round));
                        json!({
                            "mean": d.mean.map(round), "interval": interval, "p": round(d.p), "tied": d.tied,
                            "beats": d.beats_control
                        })
                    })
                    .collect();
                Some(json!({
                    "m": m, "k": k, "columns": c.columns, "patients": c.ranking.patients, "mean_ranks": ranks,
                    "friedman": c.ranking.friedman, "least_p": c.least_p, "cliques": c.ranking.cliques, "best": c.best, "hits": c.hits,
                    "control": c.control,
                    "differences": differences, "alpha": c.alpha
                }))
            })
            .collect()
    }

    /// All that the page shows.
    fn data(&self, served: bool) -> Result<Value> {
        let summary = &self.summary;
        let (columns, metrics, cells) = (self.shown_columns(), self.shown_metrics(), self.shown_cells());
        let comparisons = self.shown_comparisons();
        let strata: Vec<Value> = self
            .comparisons
            .strata
            .iter()
            .filter_map(|s| {
                let (m, k) = self.model(&s.model).zip(self.metric(&s.metric))?;
                let (mean, images) = (round(s.mean), s.images);
                Some(json!({ "m": m, "k": k, "c": s.column, "by": s.by, "name": s.name, "mean": mean, "images": images }))
            })
            .collect();
        let table = |t: &Vec<Vec<Option<f64>>>| -> Vec<Vec<Option<f64>>> {
            t.iter().map(|row| row.iter().map(|v| v.map(|v| (v * 1000.0).round() / 1000.0)).collect()).collect()
        };
        let shorts = |labels: &Vec<String>| -> Vec<String> {
            let short = |l: &String| self.metric(l).and_then(|k| metrics[k]["short"].as_str()).unwrap_or(l).to_string();
            labels.iter().map(short).collect()
        };
        let of_metrics: Vec<Value> = self
            .comparisons
            .metrics
            .iter()
            .map(|a| {
                let (names, correlation) = (shorts(&a.metrics), table(&a.correlation));
                json!({ "m": self.model(&a.model), "metrics": names, "correlation": correlation })
            })
            .collect();
        let of_maps: Vec<Value> = self
            .comparisons
            .maps
            .iter()
            .map(|a| {
                let (correlation, overlap) = (table(&a.correlation), table(&a.overlap));
                json!({
                    "m": self.model(&a.model), "columns": a.columns, "images": a.images, "correlation": correlation,
                    "overlap": overlap
                })
            })
            .collect();
        let mut seconds = vec![vec![None; summary.columns.len()]; summary.models.len()];
        for s in &self.seconds {
            for (at, _) in summary.columns.iter().enumerate().filter(|(_, c)| c.explainer == s.explainer) {
                if let Some(m) = self.model(&s.model) {
                    seconds[m][at] = Some(round(s.seconds));
                }
            }
        }
        let primary = self.primary();
        let environment: Environment = read_json(&self.folder.environment())?;
        let images: Vec<Value> = self
            .images
            .iter()
            .map(|i| {
                let (mask, shortcut) = (i.mask.map(round), i.shortcut.filter(|s| *s > 0.0).map(round));
                json!({ "id": i.image, "class": i.class, "mask": mask, "shortcut": shortcut })
            })
            .collect();
        Ok(json!({
            "name": summary.name, "folds": summary.folds, "seeds": summary.seeds, "notes": self.notes(),
            "explainers": self.about.explainers.len(), "patients": environment.patients_known,
            "models": summary.models, "columns": columns, "metrics": metrics, "cells": cells,
            "comparisons": comparisons, "strata": strata, "metric_agreement": of_metrics, "map_agreement": of_maps,
            "curves": self.shown_curves(), "seconds": seconds, "primary": primary, "images": images,
            "values": self.values(primary)?, "gallery": self.gallery(served)?, "served": served, "made": self.made()?
        }))
    }

    /// The sentences below the run's tables, each once.
    fn notes(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for note in lightbox_core::tables::tables(&self.summary).iter().flat_map(|t| t.notes.clone()) {
            if !all.contains(&note) {
                all.push(note);
            }
        }
        all
    }

    /// Curves by model, column and metric: of metrics of images the mean over folds, of others the first fold's.
    fn shown_curves(&self) -> Vec<Value> {
        let mut all: BTreeMap<(usize, i64, usize), Vec<&Curves>> = BTreeMap::new();
        for curve in &self.curves {
            let place = self.model(&curve.model).zip(self.metric(&curve.record.metric));
            if let Some(((m, k), c)) = place.zip(self.column(&curve.record.explainer, &curve.record.output)) {
                all.entry((m, c, k)).or_default().push(curve);
            }
        }
        all.into_iter()
            .map(|((m, c, k), list)| {
                let first = &list[0].record.curve;
                let points: Vec<[f64; 2]> = match self.summary.metrics[k].level {
                    Level::Set => first.points.clone(),
                    Level::Image => {
                        let same = |l: &&&Curves| l.record.curve.points.len() == first.points.len();
                        let list: Vec<&&Curves> = list.iter().filter(same).collect();
                        let y = |i: usize| list.iter().map(|l| l.record.curve.points[i][1]).sum::<f64>();
                        let mean = |i: usize| [first.points[i][0], y(i) / list.len() as f64];
                        (0..first.points.len()).map(mean).collect()
                    }
                };
                let points: Vec<[f64; 2]> = points.into_iter().map(|p| p.map(round)).collect();
                json!({ "m": m, "c": c, "k": k, "x": first.x, "y": first.y, "points": points })
            })
            .collect()
    }

    /// How the run was made.
    fn made(&self) -> Result<Value> {
        let mut environment: Environment = read_json(&self.folder.environment())?;
        let text = |path: PathBuf| -> Result<String> { Ok(String::from_utf8_lossy(&files::read(&path)?).into_owned()) };
        let short = |hash: &String| hash.chars().take(16).collect::<String>();
        let file = |path: &PathBuf| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let plugins: Vec<[String; 4]> = environment
            .plugins
            .iter()
            .map(|(name, p)| [name.clone(), p.version.clone(), file(&p.file), short(&p.sha256)])
            .collect();
        // A report is passed on: of paths the last part is enough.
        let name = |path: &PathBuf| PathBuf::from(file(path));
        environment.plugins.values_mut().for_each(|p| p.file = name(&p.file));
        environment.files = environment.files.iter().map(|(path, hash)| (name(path), hash.clone())).collect();
        let shown = serde_json::to_string_pretty(&environment).map_err(|e| Error::input(e.to_string()))?;
        let mut facts = vec![
            ["Seed".to_string(), environment.seed.to_string()],
            ["Rust compiler".into(), environment.rustc.clone()],
            ["Data".into(), format!("SHA-256 {} over names, classes, patients and boxes", short(&environment.data))],
        ];
        for machine in &environment.machines {
            let value = serde_json::to_value(machine).map_err(|e| Error::input(e.to_string()))?;
            let parts = value.as_object().into_iter().flatten().map(|(k, v)| format!("{k} {v}").replace('"', ""));
            facts.push(["Computed on".into(), parts.collect::<Vec<_>>().join(", ")]);
        }
        // A run of an earlier version has none.
        let spent = self.folder.0.join("spent.json");
        if spent.is_file() {
            facts.push(["Time of all workers".into(), read_json::<Timings>(&spent)?.shown()]);
        }
        Ok(json!({
            "facts": facts, "plugins": plugins, "explainers": self.about.explainers, "spec": text(self.folder.spec())?,
            "environment": shown, "bibtex": bibtex::all(&self.about)
        }))
    }

    /// The page.
    pub fn html(&self, served: bool) -> Result<String> {
        let data = serde_json::to_string(&self.data(served)?).map_err(|e| Error::input(e.to_string()))?;
        // Nothing in the data can end its element.
        let data = data.replace("</", "<\\/").replace("<!--", "<\\u0021--");
        let escape = |t: &str| t.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let title = escape(&self.summary.title);
        let plotly = plotly()?;
        let values = [
            ("title", title.as_str()),
            ("css", STYLE),
            ("version", env!("CARGO_PKG_VERSION")),
            ("script", SCRIPT),
            ("plotly", &plotly),
            ("data", &data),
        ];
        // In one pass: what a value holds is never a place.
        let mut page = String::with_capacity(PAGE.len() + data.len() + plotly.len());
        for part in PAGE.split("{{") {
            match part.split_once("}}") {
                Some((name, rest)) => {
                    page.push_str(values.iter().find(|(n, _)| *n == name).map_or("", |(_, v)| v));
                    page.push_str(rest);
                }
                None => page.push_str(part),
            }
        }
        Ok(page)
    }
}

/// Six significant digits, which is more than a page shows.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powi(5 - value.abs().log10().floor() as i32);
    if scale.is_finite() && scale > 0.0 { (value * scale).round() / scale } else { value }
}

/// Plotly.js, out of the two scripts that the crate hands out together.
fn plotly() -> Result<String> {
    let all = plotly::Plot::offline_js_sources();
    let body = all.split_once('>').and_then(|(_, rest)| rest.split_once("</script>")).map(|(body, _)| body.to_string());
    let body = body.filter(|b| b.contains("plotly.js"));
    body.ok_or_else(|| Error::new(crate::error::Exit::Other, "the crate plotly has no script".to_string()))
}

/// Writes the report of a run; where it is.
pub fn write(folder: &Path, output: Option<&Path>) -> Result<PathBuf> {
    let page = Run::open(folder)?.html(false)?;
    let path = output.map_or_else(|| folder.join("report.html"), Path::to_path_buf);
    files::write_text(&path, &page)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_six_digits() {
        assert_eq!(round(0.123456789), 0.123457);
        assert_eq!(round(-1234567.0), -1234570.0);
        assert_eq!(round(0.0), 0.0);
        assert_eq!(round(1e-300), 1e-300);
        assert!(round(f64::INFINITY).is_infinite());
    }

    #[test]
    fn the_charts_library_is_whole() {
        let script = plotly().unwrap();
        assert!(script.len() > 3_000_000 && !script.contains("</script"), "{}", script.len());
        assert!(!script.contains("MathJax.js"));
    }
}
