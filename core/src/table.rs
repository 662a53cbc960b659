//! A table and its five forms: terminal, JSON, CSV, Markdown, LaTeX. `tables.rs` makes those of a run.
//!
//! A value is a mean and, over folds or trainings, a sample standard deviation (divisor k - 1; none for one). Shares are
//! shown in percent. `!` marks a cell of which more than 1 % of the maps failed. Markdown and CSV have the interval over
//! images too.

use crate::summary::{MARKED, State};
use crate::text::plain;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// One cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "cell", rename_all = "kebab-case")]
pub enum Cell {
    /// A number.
    Value {
        /// Over folds and trainings.
        mean: f64,
        /// The mean over the maps that did not fail, where some did and it is another.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        without_failures: Option<f64>,
        /// Over folds, else over trainings.
        std: Option<f64>,
        /// Deviation over trainings.
        seed_std: Option<f64>,
        /// 95 % over images.
        interval: Option<[f64; 2]>,
        /// Values of folds and trainings.
        folds: Vec<f64>,
        /// How many maps there are.
        maps: usize,
        /// How many of them failed.
        failed: usize,
        /// How many of them were constant.
        constant: usize,
        /// Shown in percent.
        percent: bool,
    },
    /// The explainer or metric does not apply.
    NotApplicable {
        /// Why.
        reason: String,
    },
    /// The plugin failed: its error, crash or time-out.
    Failed {
        /// Why.
        reason: String,
    },
}

impl Cell {
    pub(crate) fn of(state: &State, percent: bool) -> Self {
        match state.clone() {
            State::Value {
                mean,
                without_failures,
                fold_std,
                seed_std,
                interval,
                folds,
                maps,
                failed,
                constant,
                ..
            } => {
                let std = fold_std.or(seed_std);
                let folds = folds.iter().map(|f| f.value).collect();
                Cell::Value { mean, without_failures, std, seed_std, interval, folds, maps, failed, constant, percent }
            }
            State::NotApplicable { reason } => Cell::NotApplicable { reason },
            State::Failed { reason } => Cell::Failed { reason },
        }
    }

    /// A plain number.
    pub(crate) fn number(mean: f64) -> Self {
        Cell::share(mean, false)
    }

    /// A number without a spread, shown in percent or as it is.
    pub(crate) fn share(mean: f64, percent: bool) -> Self {
        let (without_failures, std, seed_std, interval, folds) = (None, None, None, None, vec![]);
        let (maps, failed, constant) = (0, 0, 0);
        Cell::Value { mean, without_failures, std, seed_std, interval, folds, maps, failed, constant, percent }
    }

    /// True where more maps failed than may pass unmarked.
    fn is_marked(&self) -> bool {
        matches!(self, Cell::Value { maps, failed, .. } if *failed as f64 > MARKED * *maps as f64)
    }

    fn text(&self, pm: &str) -> String {
        let mark = if self.is_marked() { "!" } else { "" };
        match self {
            Cell::Value { mean, without_failures, std, percent, .. } => {
                let (factor, digits) = if *percent { (100.0, 1) } else { (1.0, 3) };
                let spread = std.map(|s| format!("{pm}{:.digits$}", s * factor)).unwrap_or_default();
                let other = without_failures.map(|m| format!(" ({:.digits$})", m * factor)).unwrap_or_default();
                format!("{:.digits$}{spread}{mark}{other}", mean * factor)
            }
            Cell::NotApplicable { .. } => "N/A".into(),
            Cell::Failed { .. } => "failed".into(),
        }
    }

    /// The text with the interval over images, where there is one.
    fn long(&self) -> String {
        match self {
            Cell::Value { interval: Some([low, high]), percent, .. } => {
                let (factor, digits) = if *percent { (100.0, 1) } else { (1.0, 3) };
                let text = self.text(" ± ");
                format!("{text} [{:.digits$}, {:.digits$}]", low * factor, high * factor)
            }
            _ => self.text(" ± "),
        }
    }
}

/// A table: a row a model, or an explainer where there are many; columns in groups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Table {
    /// Above the table.
    pub title: String,
    /// Columns that stand together.
    pub groups: Vec<Group>,
    /// A row each.
    pub rows: Vec<Row>,
    /// Rows are explainers, and columns models.
    #[serde(default)]
    pub by_explainer: bool,
    /// Rows are classes, of the model `of_model`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_class: bool,
    /// Rows are metrics, or classes, of this model; empty otherwise.
    #[serde(default)]
    pub of_model: String,
    /// Sentences below the table.
    pub notes: Vec<String>,
}

/// Neighbouring columns under one heading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Group {
    /// Above its columns.
    pub title: String,
    /// Their titles.
    pub columns: Vec<String>,
}

/// A model's row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Row {
    /// Of the row.
    pub title: String,
    /// As many as all groups' columns.
    pub cells: Vec<Cell>,
}

impl Table {
    /// What rows are.
    fn corner(&self) -> &'static str {
        match (self.by_explainer, self.of_model.is_empty()) {
            (true, _) => "explainer",
            (_, true) => "model",
            _ if self.by_class => "class",
            (_, false) => "metric",
        }
    }

    fn columns(&self) -> Vec<(&str, &str)> {
        self.groups.iter().flat_map(|g| g.columns.iter().map(|c| (g.title.as_str(), c.as_str()))).collect()
    }

    /// For a terminal, aligned.
    pub fn terminal(&self) -> String {
        let columns = self.columns();
        let cells: Vec<Vec<String>> =
            self.rows.iter().map(|r| r.cells.iter().map(|c| c.text(" ± ")).collect()).collect();
        let mut widths: Vec<usize> = columns.iter().map(|(_, c)| c.chars().count()).collect();
        for row in &cells {
            row.iter().zip(&mut widths).for_each(|(c, w)| *w = (*w).max(c.chars().count()));
        }
        // A group's heading must fit over its columns.
        let mut at = 0;
        for group in &self.groups {
            let n = group.columns.len();
            let room: usize = widths[at..at + n].iter().sum::<usize>() + 2 * (n - 1);
            widths[at + n - 1] += group.title.chars().count().saturating_sub(room);
            at += n;
        }
        let first = self.rows.iter().map(|r| r.title.chars().count()).chain([self.corner().len()]).max().unwrap_or(5);
        let mut text = format!("{}\n\n{:first$}", self.title, "");
        let mut at = 0;
        for group in &self.groups {
            let n = group.columns.len();
            let room: usize = widths[at..at + n].iter().sum::<usize>() + 2 * (n - 1);
            let _ = write!(text, "  {:<room$}", group.title);
            at += n;
        }
        let mut line = |name: &str, cells: &mut dyn Iterator<Item = &str>| {
            let start = text.len();
            let _ = write!(text, "\n{name:first$}");
            for (cell, width) in cells.zip(&widths) {
                let _ = write!(text, "  {cell:>width$}");
            }
            text.truncate(text.trim_end().len().max(start));
        };
        line(self.corner(), &mut columns.iter().map(|(_, c)| *c));
        for (row, cells) in self.rows.iter().zip(&cells) {
            line(&row.title, &mut cells.iter().map(String::as_str));
        }
        text.push('\n');
        for note in &self.notes {
            let _ = write!(text, "\n{note}");
        }
        text.push('\n');
        text
    }

    /// One table. What others have named is escaped where Markdown or HTML would read it as its own.
    pub fn markdown(&self) -> String {
        let escape = |s: &str| {
            let mut shown = plain(s).replace('\n', " ").replace('<', "&lt;");
            for special in ["|", "[", "`"] {
                shown = shown.replace(special, &format!("\\{special}"));
            }
            shown
        };
        let mut text = format!("{}\n\n| {} |", escape(&self.title), self.corner());
        for (group, column) in self.columns() {
            let _ = write!(text, " {}: {} |", escape(group), escape(column));
        }
        text.push_str("\n|---|");
        text.push_str(&"---:|".repeat(self.columns().len()));
        for row in &self.rows {
            let _ = write!(text, "\n| {} |", escape(&row.title));
            for cell in &row.cells {
                let _ = write!(text, " {} |", cell.long());
            }
        }
        text.push_str("\n\n");
        for note in &self.notes {
            let _ = writeln!(text, "{}  ", escape(note));
        }
        text
    }

    /// A `tabular` for the package booktabs; title and notes are comments.
    pub fn latex(&self) -> String {
        let one = |c: char| match c {
            '\\' => "\\textbackslash{}".into(),
            '^' => "\\textasciicircum{}".into(),
            '~' => "\\textasciitilde{}".into(),
            '_' | '%' | '&' | '#' | '$' | '{' | '}' => format!("\\{c}"),
            c => c.to_string(),
        };
        let escape = |s: &str| s.replace('\n', " ").chars().map(one).collect::<String>();
        let comment = |s: &str| s.replace('\n', "\n% ");
        let mut text = format!(
            "% {}\n% \\usepackage{{booktabs}}\n\\begin{{tabular}}{{l{}}}\n\\toprule\n",
            comment(&self.title),
            "r".repeat(self.columns().len())
        );
        for group in &self.groups {
            let _ = write!(text, " & \\multicolumn{{{}}}{{c}}{{{}}}", group.columns.len(), escape(&group.title));
        }
        let _ = write!(text, " \\\\\n{}", self.corner());
        for (_, column) in self.columns() {
            let _ = write!(text, " & {}", escape(column));
        }
        text.push_str(" \\\\\n\\midrule\n");
        for row in &self.rows {
            text.push_str(&escape(&row.title));
            for cell in &row.cells {
                let _ = match cell {
                    Cell::Value { .. } => write!(text, " & ${}$", cell.text(" \\pm ")),
                    _ => write!(text, " & {}", cell.text("")),
                };
            }
            text.push_str(" \\\\\n");
        }
        text.push_str("\\bottomrule\n\\end{tabular}\n");
        for note in &self.notes {
            let _ = writeln!(text, "% {}", comment(note));
        }
        text
    }
}

/// All tables as one CSV: a line a cell with its values in percent, then a line a note (status `note`, its text in
/// `reason`).
pub fn csv(tables: &[Table]) -> String {
    let mut out = csv::Writer::from_writer(Vec::new());
    let header = [
        "table",
        "model",
        "group",
        "column",
        "status",
        "unit",
        "mean",
        "std",
        "std over trainings",
        "low",
        "high",
        "folds",
        "maps",
        "failed",
        "constant",
        "mean without failures",
        "reason",
    ];
    let mut lines = vec![header.map(str::to_string)];
    for table in tables {
        for row in &table.rows {
            for ((group, column), cell) in table.columns().into_iter().zip(&row.cells) {
                let mut line = <[String; 17]>::default();
                let of_class;
                let (model, group, column) = match (table.by_explainer, table.of_model.as_str()) {
                    (true, _) => (column, group, row.title.as_str()),
                    (false, "") => (row.title.as_str(), group, column),
                    (false, model) if table.by_class => {
                        of_class = format!("{}: {group}", row.title);
                        (model, of_class.as_str(), column)
                    }
                    (false, model) => (model, row.title.as_str(), column),
                };
                (line[0], line[1], line[2], line[3]) = (table.title.clone(), model.into(), group.into(), column.into());
                match cell {
                    Cell::Value {
                        mean,
                        without_failures,
                        std,
                        seed_std,
                        interval,
                        folds,
                        maps,
                        failed,
                        constant,
                        percent,
                    } => {
                        let number = |v: f64| (if *percent { v * 100.0 } else { v }).to_string();
                        let optional = |v: Option<f64>| v.map(number).unwrap_or_default();
                        line[4] = "ok".into();
                        line[5] = if *percent { "%".into() } else { String::new() };
                        (line[6], line[7], line[8]) = (number(*mean), optional(*std), optional(*seed_std));
                        (line[9], line[10]) = (optional(interval.map(|i| i[0])), optional(interval.map(|i| i[1])));
                        line[11] = folds.iter().map(|v| number(*v)).collect::<Vec<_>>().join(" ");
                        (line[12], line[13], line[14]) = (maps.to_string(), failed.to_string(), constant.to_string());
                        line[15] = optional(*without_failures);
                    }
                    Cell::NotApplicable { reason } => (line[4], line[16]) = ("n/a".into(), reason.clone()),
                    Cell::Failed { reason } => (line[4], line[16]) = ("failed".into(), reason.clone()),
                }
                lines.push(line);
            }
        }
        for note in &table.notes {
            let mut line = <[String; 17]>::default();
            (line[0], line[4], line[16]) = (table.title.clone(), "note".into(), note.clone());
            lines.push(line);
        }
    }
    // A spreadsheet takes a text that begins so for a formula.
    let formula = |s: &String| s.starts_with(['=', '+', '-', '@', '\t', '\r']);
    for mut line in lines {
        for at in [0, 1, 2, 3, 16] {
            line[at] = plain(&line[at]).into_owned();
            if formula(&line[at]) {
                line[at].insert(0, '\'');
            }
        }
        // Writing to memory cannot fail.
        let _ = out.write_record(&line);
    }
    String::from_utf8(out.into_inner().unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(folds: &[f64], failed: usize) -> Cell {
        Cell::Value {
            mean: crate::stats::mean(folds),
            without_failures: None,
            std: crate::stats::deviation(folds),
            seed_std: None,
            interval: (failed == 0).then_some([0.25, 0.5]),
            folds: folds.to_vec(),
            maps: 20,
            failed,
            constant: 0,
            percent: true,
        }
    }

    fn table() -> Table {
        let group = |title: &str, columns: &[&str]| Group {
            title: title.into(),
            columns: columns.iter().map(|c| c.to_string()).collect(),
        };
        Table {
            title: "Table".into(),
            groups: vec![group("classification", &["AUPRC"]), group("pixel AUPRC", &["gradcam", "attention"])],
            rows: vec![Row {
                title: "densenet".into(),
                cells: vec![
                    value(&[0.9, 0.94], 0),
                    value(&[0.31], 1),
                    Cell::NotApplicable { reason: "no attention".into() },
                ],
            }],
            by_explainer: false,
            by_class: false,
            of_model: String::new(),
            notes: vec!["A note.".into()],
        }
    }

    #[test]
    fn the_forms_agree() {
        let t = table();
        assert_eq!(
            t.terminal(),
            "Table\n\n          classification  pixel AUPRC       \nmodel              AUPRC  gradcam  attention\n\
             densenet      92.0 ± 2.8    31.0!        N/A\n\nA note.\n"
        );
        assert!(t.markdown().contains("| densenet | 92.0 ± 2.8 [25.0, 50.0] | 31.0! | N/A |"));
        assert!(t.latex().contains("densenet & $92.0 \\pm 2.8$ & $31.0!$ & N/A \\\\"));
        let lines = csv(&[t.clone(), t.clone()]);
        assert_eq!(lines.lines().count(), 1 + 2 * (3 + 1));
        assert!(lines.contains("Table,densenet,pixel AUPRC,gradcam,ok,%,31,,,,,31,20,1,0,,\n"), "{lines}");
        assert!(lines.contains("Table,,,,note,,,,,,,,,,,,A note.\n"), "{lines}");
        assert!(lines.contains("Table,densenet,pixel AUPRC,attention,n/a,,,,,,,,,,,,no attention"));
        // A cell of which maps failed shows both means.
        let mut broken = value(&[0.31], 1);
        if let Cell::Value { without_failures, .. } = &mut broken {
            *without_failures = Some(0.4);
        }
        assert_eq!(broken.text(" ± "), "31.0! (40.0)");
        let mut odd = t.clone();
        odd.rows[0].title = "a_b|{50 %}^~\\$".into();
        odd.notes[0] = "two\nlines".into();
        assert!(odd.markdown().contains("| a_b\\|{50 %}^~\\$ |"), "{}", odd.markdown());
        let escaped = "a\\_b|\\{50 \\%\\}\\textasciicircum{}\\textasciitilde{}\\textbackslash{}\\$ &";
        assert!(odd.latex().contains(escaped) && odd.latex().contains("% two\n% lines\n"), "{}", odd.latex());
        let back: Table = serde_json::from_str(&serde_json::to_string(&t).unwrap()).unwrap();
        assert_eq!(back, t);
    }
}
