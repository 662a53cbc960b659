//! Results of a run, one file a unit: Parquet, one row an image x explainer x metric.

use crate::{Error, Result, files};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int32Type};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::record::RowAccessor;
use parquet::schema::parser::parse_message_type;
use std::path::Path;
use std::sync::Arc;

/// How a value came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ok,
    /// The metric does not apply to the image: no mask, or an empty one.
    NotApplicable,
    /// The map was not finite.
    Failed,
}

impl Status {
    const ALL: [(Status, &'static str); 3] =
        [(Status::Ok, "ok"), (Status::NotApplicable, "n/a"), (Status::Failed, "failed")];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(s, _)| *s == self).map_or("ok", |(_, n)| n)
    }
}

/// One value. Rows of the classification have an empty explainer and the metric `score`: the probability of class 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub image: String,
    pub patient: String,
    pub label: i32,
    pub model: String,
    pub fold: i32,
    pub explainer: String,
    pub metric: String,
    /// Present when the status is ok.
    pub value: Option<f64>,
    pub status: Status,
}

const SCHEMA: &str = "message unit {
    required binary image (STRING); required binary patient (STRING); required int32 label;
    required binary model (STRING); required int32 fold; required binary explainer (STRING);
    required binary metric (STRING); optional double value; required binary status (STRING);
}";

/// Writes rows, whole or not at all.
pub fn write(path: &Path, rows: &[Row]) -> Result<()> {
    let mut bytes = Vec::new();
    encode(&mut bytes, rows).map_err(|e| Error::at(path, format!("cannot encode: {e}")))?;
    files::write_atomic(path, |w| w.write_all(&bytes))
}

fn encode(out: &mut Vec<u8>, rows: &[Row]) -> parquet::errors::Result<()> {
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let properties = Arc::new(WriterProperties::builder().set_compression(Compression::SNAPPY).build());
    let mut writer = SerializedFileWriter::new(out, schema, properties)?;
    let mut group = writer.next_row_group()?;
    let text = |f: &dyn Fn(&Row) -> &str| rows.iter().map(|r| ByteArray::from(f(r))).collect::<Vec<_>>();
    let mut index = 0;
    while let Some(mut column) = group.next_column()? {
        match index {
            2 | 4 => {
                let values: Vec<i32> = rows.iter().map(|r| if index == 2 { r.label } else { r.fold }).collect();
                column.typed::<Int32Type>().write_batch(&values, None, None)?;
            }
            7 => {
                let values: Vec<f64> = rows.iter().filter_map(|r| r.value).collect();
                let levels: Vec<i16> = rows.iter().map(|r| i16::from(r.value.is_some())).collect();
                column.typed::<DoubleType>().write_batch(&values, Some(&levels), None)?;
            }
            _ => {
                let values = match index {
                    0 => text(&|r| &r.image),
                    1 => text(&|r| &r.patient),
                    3 => text(&|r| &r.model),
                    5 => text(&|r| &r.explainer),
                    6 => text(&|r| &r.metric),
                    _ => text(&|r| r.status.name()),
                };
                column.typed::<ByteArrayType>().write_batch(&values, None, None)?;
            }
        }
        column.close()?;
        index += 1;
    }
    group.close()?;
    writer.close()?;
    Ok(())
}

/// Reads what [`write`] wrote.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    let broken = |e: &dyn std::fmt::Display| {
        Error::at(path, format!("the results are broken: {e}")).hint("delete the file; the unit is computed anew")
    };
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, &e))?;
    let reader = SerializedFileReader::new(file).map_err(|e| broken(&e))?;
    let mut rows = Vec::new();
    for record in reader.get_row_iter(None).map_err(|e| broken(&e))? {
        let r = record.map_err(|e| broken(&e))?;
        let text = |i: usize| r.get_string(i).cloned().map_err(|e| broken(&e));
        let status = text(8)?;
        let status = Status::ALL.iter().find(|(_, n)| *n == status).map(|(s, _)| *s);
        rows.push(Row {
            image: text(0)?,
            patient: text(1)?,
            label: r.get_int(2).map_err(|e| broken(&e))?,
            model: text(3)?,
            fold: r.get_int(4).map_err(|e| broken(&e))?,
            explainer: text(5)?,
            metric: text(6)?,
            value: r.get_double(7).ok(),
            status: status.ok_or_else(|| broken(&"unknown status"))?,
        });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("u.parquet");
        let row = |value: Option<f64>, status| Row {
            image: "n0001.mha".into(),
            patient: "p".into(),
            label: 1,
            model: "densenet121".into(),
            fold: 2,
            explainer: "gradcam".into(),
            metric: "pixel-auprc".into(),
            value,
            status,
        };
        let rows = vec![row(Some(0.25), Status::Ok), row(None, Status::NotApplicable), row(None, Status::Failed)];
        write(&path, &rows).unwrap();
        assert_eq!(read(&path).unwrap(), rows);
        std::fs::write(&path, b"PAR1 no").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("delete the file"));
    }
}
