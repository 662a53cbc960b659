//! The table of a run, and its five forms: terminal, JSON, CSV, Markdown, LaTeX.
//!
//! A value over folds is mean and sample standard deviation (divisor k - 1; none for one fold), in percent.

use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// One cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "cell", rename_all = "kebab-case")]
pub enum Cell {
    /// Values of the folds, as fractions.
    Value {
        mean: f64,
        std: Option<f64>,
        folds: Vec<f64>,
        failed: usize,
        missing: usize,
    },
    NotApplicable {
        reason: String,
    },
    /// The plugin failed: its error, crash or time-out.
    Failed {
        reason: String,
    },
}

impl Cell {
    /// Mean and sample standard deviation of the folds' values. `failed` counts maps that were not finite, `missing`
    /// images without a mask.
    pub fn over_folds(folds: Vec<f64>, failed: usize, missing: usize) -> Self {
        let n = folds.len() as f64;
        let mean = folds.iter().sum::<f64>() / n;
        let square = folds.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
        let std = (folds.len() > 1).then(|| (square / (n - 1.0)).sqrt());
        Cell::Value { mean, std, folds, failed, missing }
    }

    fn text(&self, pm: &str) -> String {
        match self {
            Cell::Value { mean, std: Some(std), .. } => format!("{:.1}{pm}{:.1}", mean * 100.0, std * 100.0),
            Cell::Value { mean, .. } => format!("{:.1}", mean * 100.0),
            Cell::NotApplicable { .. } => "N/A".into(),
            Cell::Failed { .. } => "failed".into(),
        }
    }
}

/// A table: a row a model, columns in groups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Table {
    pub title: String,
    pub groups: Vec<Group>,
    pub rows: Vec<Row>,
    /// Sentences below the table.
    pub notes: Vec<String>,
}

/// Neighbouring columns under one heading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    pub title: String,
    pub columns: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub title: String,
    /// As many as all groups' columns.
    pub cells: Vec<Cell>,
}

impl Table {
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
        let first = self.rows.iter().map(|r| r.title.chars().count()).chain([5]).max().unwrap_or(5);
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
        line("model", &mut columns.iter().map(|(_, c)| *c));
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

    /// One table; titles' `|` are escaped.
    pub fn markdown(&self) -> String {
        let escape = |s: &str| s.replace('\n', " ").replace('|', "\\|");
        let mut text = format!("{}\n\n| model |", self.title);
        for (group, column) in self.columns() {
            let _ = write!(text, " {}: {} |", escape(group), escape(column));
        }
        text.push_str("\n|---|");
        text.push_str(&"---:|".repeat(self.columns().len()));
        for row in &self.rows {
            let _ = write!(text, "\n| {} |", escape(&row.title));
            for cell in &row.cells {
                let _ = write!(text, " {} |", cell.text(" ± "));
            }
        }
        text.push_str("\n\n");
        for note in &self.notes {
            let _ = writeln!(text, "{note}  ");
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
        text.push_str(" \\\\\nmodel");
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
    let header =
        ["table", "model", "group", "column", "status", "mean %", "std %", "folds %", "failed", "missing", "reason"];
    let percent = |v: &f64| (v * 100.0).to_string();
    let mut lines = vec![header.map(str::to_string)];
    for table in tables {
        for row in &table.rows {
            for ((group, column), cell) in table.columns().into_iter().zip(&row.cells) {
                let s = String::from;
                let rest: [String; 7] = match cell {
                    Cell::Value { mean, std, folds, failed, missing } => [
                        s("ok"),
                        percent(mean),
                        std.as_ref().map(percent).unwrap_or_default(),
                        folds.iter().map(percent).collect::<Vec<_>>().join(" "),
                        failed.to_string(),
                        missing.to_string(),
                        s(""),
                    ],
                    Cell::NotApplicable { reason } => [s("n/a"), s(""), s(""), s(""), s(""), s(""), reason.clone()],
                    Cell::Failed { reason } => [s("failed"), s(""), s(""), s(""), s(""), s(""), reason.clone()],
                };
                let [a, b, c, d, e, f, g] = rest;
                lines.push([table.title.clone(), row.title.clone(), s(group), s(column), a, b, c, d, e, f, g]);
            }
        }
        for note in &table.notes {
            let mut line = <[String; 11]>::default();
            (line[0], line[4], line[10]) = (table.title.clone(), "note".into(), note.clone());
            lines.push(line);
        }
    }
    for line in lines {
        // Writing to memory cannot fail.
        let _ = out.write_record(&line);
    }
    String::from_utf8(out.into_inner().unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

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
                    Cell::over_folds(vec![0.9, 0.94], 0, 0),
                    Cell::over_folds(vec![0.31], 1, 2),
                    Cell::NotApplicable { reason: "no attention".into() },
                ],
            }],
            notes: vec!["A note.".into()],
        }
    }

    #[test]
    fn the_forms_agree() {
        let t = table();
        assert_eq!(
            t.terminal(),
            "Table\n\n          classification  pixel AUPRC       \nmodel              AUPRC  gradcam  attention\n\
             densenet      92.0 ± 2.8     31.0        N/A\n\nA note.\n"
        );
        assert!(t.markdown().contains("| densenet | 92.0 ± 2.8 | 31.0 | N/A |"));
        assert!(t.latex().contains("densenet & $92.0 \\pm 2.8$ & $31.0$ & N/A \\\\"));
        let lines = csv(&[t.clone(), t.clone()]);
        assert_eq!(lines.lines().count(), 1 + 2 * (3 + 1));
        assert!(lines.contains("Table,densenet,pixel AUPRC,gradcam,ok,31,,31,1,2,\n"), "{lines}");
        assert!(lines.contains("Table,,,,note,,,,,,A note.\n"), "{lines}");
        assert!(lines.contains("Table,densenet,pixel AUPRC,attention,n/a,,,,,,no attention"));
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
