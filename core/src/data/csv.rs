//! CSV files by their columns' names.

use super::mask::BBox;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The rows of a CSV under their columns' names.
pub(super) struct Rows {
    path: PathBuf,
    columns: Vec<String>,
    rows: Vec<(u64, ::csv::StringRecord)>,
}

/// One row.
pub(super) struct Row<'a> {
    rows: &'a Rows,
    line: u64,
    record: &'a ::csv::StringRecord,
}

impl Rows {
    /// Reads a table of at least one row.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let rows = Self::read_any(path)?;
        if rows.rows.is_empty() {
            return Err(Error::at(path, "the table has no rows"));
        }
        Ok(rows)
    }

    /// Reads a table, which may have columns alone.
    pub(super) fn read_any(path: &Path) -> Result<Self> {
        let bytes = crate::files::read(path)?;
        let mut reader = ::csv::ReaderBuilder::new().trim(::csv::Trim::All).from_reader(bytes.as_slice());
        let broken = |e: ::csv::Error| Error::at(path, format!("not a table: {e}"));
        let columns = reader.headers().map_err(broken)?.iter().map(|c| c.trim_start_matches('\u{feff}').to_string());
        let columns: Vec<String> = columns.collect();
        let mut rows = Vec::new();
        for record in reader.records() {
            let record = record.map_err(broken)?;
            rows.push((record.position().map_or(0, |p| p.line()), record));
        }
        Ok(Rows { path: path.to_path_buf(), columns, rows })
    }

    pub(super) fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|c| c == column)
    }

    pub(super) fn has_any(&self, columns: &[&str]) -> bool {
        columns.iter().any(|c| self.has(c))
    }

    /// Errors with all that are missing.
    pub(super) fn need(&self, columns: &[&str]) -> Result<()> {
        let missing: Vec<&str> = columns.iter().copied().filter(|c| !self.has(c)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let what = format!("the table has no column {}", missing.join(", "));
        Err(Error::at(&self.path, what).hint(format!("its columns are: {}", self.columns.join(", "))))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        self.rows.iter().map(|(line, record)| Row { rows: self, line: *line, record })
    }
}

impl Row<'_> {
    pub(super) fn text(&self, column: &str) -> &str {
        let index = self.rows.columns.iter().position(|c| c == column);
        index.and_then(|i| self.record.get(i)).unwrap_or_default()
    }

    /// The cells of columns other than these, by name.
    pub(super) fn others(&self, known: &[&str]) -> BTreeMap<String, String> {
        let cells = self.rows.columns.iter().zip(self.record.iter());
        let others = cells.filter(|(column, _)| !column.is_empty() && !known.contains(&column.as_str()));
        others.map(|(column, text)| (column.clone(), text.to_string())).collect()
    }

    pub(super) fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::at(&self.rows.path, format!("line {}: {what}", self.line))
    }

    pub(super) fn number(&self, column: &str) -> Result<f64> {
        let text = self.text(column);
        let number = text.parse::<f64>().map_err(|_| self.error(format!("{column} is `{text}`, not a number")))?;
        match number.is_finite() {
            true => Ok(number),
            false => Err(self.error(format!("{column} is {text}"))),
        }
    }

    /// 0 or 1, also written 0.0 and 1.0.
    pub(super) fn label(&self, column: &str) -> Result<u8> {
        match self.number(column)? {
            0.0 => Ok(0),
            1.0 => Ok(1),
            other => Err(self.error(format!("{column} is {other}; 0 or 1 was expected"))),
        }
    }

    pub(super) fn bbox(&self, [x, y, width, height]: [&str; 4]) -> Result<BBox> {
        let b = BBox::new(self.number(x)?, self.number(y)?, self.number(width)?, self.number(height)?);
        match b.fault(usize::MAX, usize::MAX) {
            Some(fault) => Err(self.error(fault)),
            None => Ok(BBox { line: self.line, ..b }),
        }
    }
}
