//! Results of a run's units: tables in Parquet, text columns dictionary-encoded (Arrow), so that pandas, polars and DuckDB
//! read them as they are. The schemas are versioned: the key `lightbox.schema` of a file says which it has.
//!
//! **scores** (`scores-2`): one value of a metric. A row is an image and what is explained of it: an image with several
//! targets has a row each. `image` (none for a whole set), `model`, `fold`, `training` (the number of the
//! training, from 0), `explainer` (`chance` for the map that says nothing; none for predictions), `output` (the name of one
//! of several maps; none otherwise), `metric`, `target` (the class that was explained; none for a set), `value`, `status`
//! (`ok`, `n/a`, `failed`), `reason`.
//!
//! **images** (`images-1`): `index` (its place in the prepared images), `image`, `patient`, `class` (its classes, joined by `|`; empty for none), `explained` (whether maps of it are
//! scored), `mask` and `shortcut` (shares of the pixels that the finding of the explained class, or where that differs by image of
//! the image's last class, and a planted shortcut take at the model's size; none where unknown), `findings` (8-connected regions of the mask).
//!
//! A run's folder has one file of each for all units; the units' own files are of the same schemas.
//!
//! **predictions** (`predictions-2`): `image`, `model`, `fold`, `training`, `class`, `label` (whether the class holds), `score`
//! (softmax or sigmoid, [0, 1]), `logit`.

use crate::metrics::{Score, Status};
use crate::{Error, Result, files, thrift_walk};
use arrow_array::types::Int32Type;
use arrow_array::{Array, ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int32Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Numbers of names: rows refer to names by number.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Names {
    list: Vec<String>,
    index: HashMap<String, u32>,
}

impl Names {
    /// The number of a name, a new one where it has none.
    pub fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.index.get(name) {
            return *number;
        }
        let number = self.list.len() as u32;
        self.list.push(name.into());
        self.index.insert(name.into(), number);
        number
    }

    /// The number of a name that has one.
    pub fn find(&self, name: &str) -> Option<u32> {
        self.index.get(name).copied()
    }

    /// The name of a number.
    pub fn name(&self, number: u32) -> &str {
        self.list.get(number as usize).map_or("", String::as_str)
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// A value of a metric. Names are numbers of some [`Names`]; the empty name stands for none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// The number of a name; [`Names`] has the text. The empty name for a value of a set.
    pub image: u32,
    /// The number of its label.
    pub model: u32,
    /// From 0.
    pub fold: i32,
    /// The number of the training, from 0.
    pub training: i32,
    /// The number of its label; of the empty name for a metric of predictions.
    pub explainer: u32,
    /// The number of the map's name; of the empty name where there is one map.
    pub output: u32,
    /// The number of its label.
    pub metric: u32,
    /// -1 for none.
    pub target: i32,
    /// None where there is none, see `status`.
    pub value: Option<f64>,
    /// Whether there is a value, or why not.
    pub status: Status,
    /// The number of the reason's text; of the empty text where there is a value.
    pub reason: u32,
}

/// A prediction for an image and class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// The number of the image's name.
    pub image: u32,
    /// The number of the model's label.
    pub model: u32,
    /// From 0.
    pub fold: i32,
    /// The number of the training, from 0.
    pub training: i32,
    /// The number of the class's name.
    pub class: u32,
    /// Whether the image has the class.
    pub label: bool,
    /// Softmax or sigmoid, 0 to 1.
    pub score: f64,
    /// The model's output.
    pub logit: f64,
}

impl Row {
    /// The columns of a score.
    pub fn with(self, score: Score, names: &mut Names) -> Row {
        Row { value: score.value, status: score.status, reason: names.number(score.reason), ..self }
    }
}

const STATUS: [(Status, &str); 3] = [(Status::Ok, "ok"), (Status::NotApplicable, "n/a"), (Status::Failed, "failed")];

fn dictionary() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

fn schema(version: &str, fields: Vec<Field>) -> Arc<Schema> {
    Arc::new(Schema::new_with_metadata(fields, HashMap::from([("lightbox.schema".to_string(), version.to_string())])))
}

/// The schema of scores.
pub fn score_schema() -> Arc<Schema> {
    let text = |name: &str, nullable| Field::new(name, dictionary(), nullable);
    let number = |name: &str, nullable| Field::new(name, DataType::Int32, nullable);
    schema(
        "scores-2",
        vec![
            text("image", true),
            text("model", false),
            number("fold", false),
            number("training", false),
            text("explainer", true),
            text("output", true),
            text("metric", false),
            number("target", true),
            Field::new("value", DataType::Float64, true),
            text("status", false),
            text("reason", true),
        ],
    )
}

/// The schema of predictions.
pub fn prediction_schema() -> Arc<Schema> {
    let text = |name: &str| Field::new(name, dictionary(), false);
    let number = |name: &str| Field::new(name, DataType::Int32, false);
    schema(
        "predictions-2",
        vec![
            text("image"),
            text("model"),
            number("fold"),
            number("training"),
            text("class"),
            Field::new("label", DataType::Boolean, false),
            Field::new("score", DataType::Float64, false),
            Field::new("logit", DataType::Float64, false),
        ],
    )
}

/// What a run's folder says of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageRow {
    /// Of the data source.
    pub index: i32,
    /// Its name.
    pub image: String,
    /// Its patient, as the source names it.
    pub patient: String,
    /// Its classes in words.
    pub class: String,
    /// Whether it is explained.
    pub explained: bool,
    /// The finding's share of its pixels, where the mask is known.
    pub mask: Option<f64>,
    /// The planted shortcut's share of its pixels, where there is one.
    pub shortcut: Option<f64>,
    /// How many findings there are, where the mask is known.
    pub findings: Option<i32>,
}

/// The schema of images.
pub fn image_schema() -> Arc<Schema> {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    schema(
        "images-1",
        vec![
            Field::new("index", DataType::Int32, false),
            text("image"),
            text("patient"),
            text("class"),
            Field::new("explained", DataType::Boolean, false),
            Field::new("mask", DataType::Float64, true),
            Field::new("shortcut", DataType::Float64, true),
            Field::new("findings", DataType::Int32, true),
        ],
    )
}

/// Writes images, whole or not at all.
pub fn write_images(path: &Path, rows: &[ImageRow]) -> Result<()> {
    let text = |f: &dyn Fn(&ImageRow) -> &str| Arc::new(StringArray::from_iter_values(rows.iter().map(f))) as ArrayRef;
    let number = |f: &dyn Fn(&ImageRow) -> Option<f64>| Arc::new(rows.iter().map(f).collect::<Float64Array>());
    write(
        path,
        image_schema(),
        vec![
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.index))),
            text(&|r| &r.image),
            text(&|r| &r.patient),
            text(&|r| &r.class),
            Arc::new(BooleanArray::from(rows.iter().map(|r| r.explained).collect::<Vec<_>>())),
            number(&|r| r.mask),
            number(&|r| r.shortcut),
            Arc::new(rows.iter().map(|r| r.findings).collect::<Int32Array>()),
        ],
    )
}

/// Reads what [`write_images`] wrote.
pub fn read_images(path: &Path) -> Result<Vec<ImageRow>> {
    let mut rows = Vec::new();
    read(path, "images-1", &mut |columns| {
        let text = |name: &str| columns.get::<StringArray>(name);
        let (image, patient, class) = (text("image")?, text("patient")?, text("class")?);
        let explained: &BooleanArray = columns.get("explained")?;
        let (mask, shortcut): (&Float64Array, &Float64Array) = (columns.get("mask")?, columns.get("shortcut")?);
        let (index, findings): (&Int32Array, &Int32Array) = (columns.get("index")?, columns.get("findings")?);
        let number = |of: &Float64Array, i: usize| (!of.is_null(i)).then(|| of.value(i));
        rows.extend((0..columns.batch.num_rows()).map(|i| ImageRow {
            index: index.value(i),
            image: image.value(i).into(),
            patient: patient.value(i).into(),
            class: class.value(i).into(),
            explained: explained.value(i),
            mask: number(mask, i),
            shortcut: number(shortcut, i),
            findings: (!findings.is_null(i)).then(|| findings.value(i)),
        }));
        Ok(())
    })?;
    Ok(rows)
}

/// Writes scores in parts into one file, which takes its name when it is finished.
pub struct ScoreWriter {
    path: PathBuf,
    temporary: tempfile::NamedTempFile,
    writer: ArrowWriter<std::fs::File>,
}

impl ScoreWriter {
    /// Begins a file.
    pub fn new(path: &Path) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let at = |e: std::io::Error| Error::io(path, &e);
        let temporary = tempfile::Builder::new().prefix(files::HALF).tempfile_in(folder).map_err(at)?;
        let file = temporary.as_file().try_clone().map_err(at)?;
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let writer = ArrowWriter::try_new(file, score_schema(), Some(properties));
        let writer = writer.map_err(|e| Error::at(path, format!("cannot encode: {e}")))?;
        Ok(ScoreWriter { path: path.into(), temporary, writer })
    }

    /// Appends rows.
    pub fn add(&mut self, names: &Names, rows: &[Row]) -> Result<()> {
        let batch = RecordBatch::try_new(score_schema(), score_columns(names, rows)?);
        let encode = |e: &dyn std::fmt::Display| Error::at(&self.path, format!("cannot encode: {e}"));
        let batch = batch.map_err(|e| encode(&e))?;
        self.writer.write(&batch).map_err(|e| encode(&e))
    }

    /// Closes the file, which is whole from then on.
    pub fn finish(self) -> Result<()> {
        let encode = |e: parquet::errors::ParquetError| Error::at(&self.path, format!("cannot encode: {e}"));
        self.writer.close().map_err(encode)?;
        files::persist(self.temporary, &self.path)
    }
}

/// Names as a dictionary column; the empty name is null where the field may be.
fn column(names: &Names, numbers: impl Iterator<Item = u32>, nullable: bool) -> Result<ArrayRef> {
    let empty = names.find("").filter(|_| nullable);
    let mut used = Names::default();
    let keys: Int32Array = numbers.map(|n| (Some(n) != empty).then(|| used.number(names.name(n)) as i32)).collect();
    let values = StringArray::from_iter_values(used.list.iter());
    let array = DictionaryArray::<Int32Type>::try_new(keys, Arc::new(values));
    Ok(Arc::new(array.map_err(|e| Error::new(e.to_string()))?))
}

fn write(path: &Path, schema: Arc<Schema>, columns: Vec<ArrayRef>) -> Result<()> {
    let encode = || -> std::result::Result<Vec<u8>, String> {
        let batch = RecordBatch::try_new(schema.clone(), columns).map_err(|e| e.to_string())?;
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, schema, Some(properties)).map_err(|e| e.to_string())?;
        writer.write(&batch).map_err(|e| e.to_string())?;
        writer.close().map_err(|e| e.to_string())?;
        Ok(bytes)
    };
    let bytes = encode().map_err(|e| Error::at(path, format!("cannot encode: {e}")))?;
    files::write_atomic(path, |w| w.write_all(&bytes))
}

/// Writes scores, whole or not at all.
pub fn write_scores(path: &Path, names: &Names, rows: &[Row]) -> Result<()> {
    write(path, score_schema(), score_columns(names, rows)?)
}

fn score_columns(names: &Names, rows: &[Row]) -> Result<Vec<ArrayRef>> {
    let text = |f: &dyn Fn(&Row) -> u32, nullable| column(names, rows.iter().map(f), nullable);
    let mut status = Names::default();
    let numbers: Vec<u32> = rows
        .iter()
        .map(|r| status.number(STATUS.iter().find(|(s, _)| *s == r.status).map_or("ok", |(_, n)| n)))
        .collect();
    Ok(vec![
        text(&|r| r.image, true)?,
        text(&|r| r.model, false)?,
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.fold))),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.training))),
        text(&|r| r.explainer, true)?,
        text(&|r| r.output, true)?,
        text(&|r| r.metric, false)?,
        Arc::new(rows.iter().map(|r| (r.target >= 0).then_some(r.target)).collect::<Int32Array>()),
        Arc::new(rows.iter().map(|r| r.value).collect::<Float64Array>()),
        column(&status, numbers.into_iter(), false)?,
        text(&|r| r.reason, true)?,
    ])
}

/// Writes predictions, whole or not at all.
pub fn write_predictions(path: &Path, names: &Names, rows: &[Prediction]) -> Result<()> {
    let text = |f: &dyn Fn(&Prediction) -> u32| column(names, rows.iter().map(f), false);
    write(
        path,
        prediction_schema(),
        vec![
            text(&|r| r.image)?,
            text(&|r| r.model)?,
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.fold))),
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.training))),
            text(&|r| r.class)?,
            Arc::new(BooleanArray::from(rows.iter().map(|r| r.label).collect::<Vec<_>>())),
            Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| r.score))),
            Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| r.logit))),
        ],
    )
}

/// One batch of a file, its columns by name.
struct Columns<'a> {
    path: &'a Path,
    batch: RecordBatch,
}

fn broken(path: &Path, e: &dyn std::fmt::Display) -> Error {
    Error::at(path, format!("the results are broken: {e}")).hint("delete the file; the unit is computed anew")
}

impl Columns<'_> {
    fn get<T: 'static>(&self, name: &str) -> Result<&T> {
        let column = self.batch.column_by_name(name).and_then(|c| c.as_any().downcast_ref::<T>());
        column.ok_or_else(|| broken(self.path, &format!("no column {name} of the expected type")))
    }

    /// The numbers that `names` gives to a text column's values; the empty name's for null.
    fn text(&self, name: &str, names: &mut Names) -> Result<Vec<u32>> {
        let column: &DictionaryArray<Int32Type> = self.get(name)?;
        let values = column.values().as_any().downcast_ref::<StringArray>();
        let values = values.ok_or_else(|| broken(self.path, &format!("column {name} holds no text")))?;
        let numbers: Vec<u32> = (0..values.len()).map(|i| names.number(values.value(i))).collect();
        let none = if column.null_count() > 0 { names.number("") } else { 0 };
        let number = |key: Option<i32>| match key {
            None => Ok(none),
            Some(k) => numbers.get(k as usize).copied().ok_or_else(|| broken(self.path, &format!("{name} is damaged"))),
        };
        column.keys().iter().map(number).collect()
    }
}

/// The reader of Parquet panics on some damaged files; what it left is dropped.
fn unwinding<T>(path: &Path, f: impl FnOnce() -> T) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).map_err(|_| broken(path, &"it is damaged"))
}

/// Looks through a file's footer before the reader makes room for what it claims.
fn check_footer(file: &std::fs::File, path: &Path) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let io = |e: std::io::Error| Error::io(path, &e);
    let length = file.metadata().map_err(io)?.len();
    let mut end = [0u8; 8];
    if length < 8 {
        return thrift_walk::check_parquet(&[]).map_err(|e| broken(path, &e));
    }
    file.read_exact_at(&mut end, length - 8).map_err(io)?;
    let claimed = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]])) + 8;
    let size = claimed.min(length);
    let mut tail = vec![0u8; size as usize];
    file.read_exact_at(&mut tail, length - size).map_err(io)?;
    thrift_walk::check_parquet(&tail).map_err(|e| broken(path, &e))
}

fn read(path: &Path, version: &str, see: &mut dyn FnMut(&Columns<'_>) -> Result<()>) -> Result<()> {
    let file = files::open_regular(path)?;
    check_footer(&file, path)?;
    let opened = unwinding(path, || ParquetRecordBatchReaderBuilder::try_new(file))?;
    let reader = opened.map_err(|e| broken(path, &e))?;
    let found = reader.schema().metadata().get("lightbox.schema").cloned().unwrap_or_default();
    if found != version {
        return Err(broken(path, &format!("its schema is `{found}`, not `{version}`")));
    }
    let built = unwinding(path, || reader.with_batch_size(1 << 16).build())?;
    let mut reader = built.map_err(|e| broken(path, &e))?;
    while let Some(batch) = unwinding(path, || reader.next())? {
        see(&Columns { path, batch: batch.map_err(|e| broken(path, &e))? })?;
    }
    Ok(())
}

/// Reads what [`write_scores`] wrote, a row at a time.
pub fn read_scores(path: &Path, names: &mut Names, see: &mut dyn FnMut(Row)) -> Result<()> {
    read_scores_where(path, names, None, see)
}

/// As [`read_scores`], of one metric alone where it is named.
pub fn read_scores_where(path: &Path, names: &mut Names, only: Option<&str>, see: &mut dyn FnMut(Row)) -> Result<()> {
    let only = only.map(|name| names.number(name));
    read(path, "scores-2", &mut |columns| {
        let image = columns.text("image", names)?;
        let model = columns.text("model", names)?;
        let explainer = columns.text("explainer", names)?;
        let output = columns.text("output", names)?;
        let metric = columns.text("metric", names)?;
        let status = columns.text("status", names)?;
        let reason = columns.text("reason", names)?;
        let statuses: Vec<(u32, Status)> = STATUS.iter().map(|(s, n)| (names.number(n), *s)).collect();
        let (fold, training): (&Int32Array, &Int32Array) = (columns.get("fold")?, columns.get("training")?);
        let (target, value): (&Int32Array, &Float64Array) = (columns.get("target")?, columns.get("value")?);
        for i in (0..columns.batch.num_rows()).filter(|i| only.is_none_or(|o| metric[*i] == o)) {
            let known = statuses.iter().find(|(n, _)| *n == status[i]).map(|(_, s)| *s);
            see(Row {
                image: image[i],
                model: model[i],
                fold: fold.value(i),
                training: training.value(i),
                explainer: explainer[i],
                output: output[i],
                metric: metric[i],
                target: if target.is_null(i) { -1 } else { target.value(i) },
                value: (!value.is_null(i)).then(|| value.value(i)),
                status: known.ok_or_else(|| broken(columns.path, &"unknown status"))?,
                reason: reason[i],
            });
        }
        Ok(())
    })
}

/// Reads what [`write_predictions`] wrote, a row at a time.
pub fn read_predictions(path: &Path, names: &mut Names, see: &mut dyn FnMut(Prediction)) -> Result<()> {
    read(path, "predictions-2", &mut |columns| {
        let image = columns.text("image", names)?;
        let model = columns.text("model", names)?;
        let class = columns.text("class", names)?;
        let (fold, training): (&Int32Array, &Int32Array) = (columns.get("fold")?, columns.get("training")?);
        let (score, logit): (&Float64Array, &Float64Array) = (columns.get("score")?, columns.get("logit")?);
        let label: &BooleanArray = columns.get("label")?;
        for i in 0..columns.batch.num_rows() {
            see(Prediction {
                image: image[i],
                model: model[i],
                fold: fold.value(i),
                training: training.value(i),
                class: class[i],
                label: label.value(i),
                score: score.value(i),
                logit: logit.value(i),
            });
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip_whatever_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("u.parquet");
        let mut names = Names::default();
        names.number("something else");
        let row = |names: &mut Names, score: Score| {
            Row {
                image: names.number("n0001.mha"),
                model: names.number("densenet121"),
                fold: 2,
                training: 1,
                explainer: names.number("gradcam"),
                output: names.number(""),
                metric: names.number("pixel-auprc"),
                target: 1,
                value: None,
                status: Status::Ok,
                reason: 0,
            }
            .with(score, names)
        };
        let scores = [Score::ok(0.25), Score::not_applicable("no mask"), Score::failed("the map is not finite")];
        let mut rows: Vec<Row> = scores.into_iter().map(|s| row(&mut names, s)).collect();
        rows.push(Row { image: names.number(""), target: -1, ..rows[0] });
        write_scores(&path, &names, &rows).unwrap();
        let (mut other, mut found) = (Names::default(), Vec::new());
        read_scores(&path, &mut other, &mut |r| found.push(r)).unwrap();
        assert_eq!(found.len(), 4);
        for (a, b) in found.iter().zip(&rows) {
            assert_eq!(
                (a.value, a.status, a.fold, a.training, a.target),
                (b.value, b.status, b.fold, b.training, b.target)
            );
            for (x, y) in [(a.image, b.image), (a.reason, b.reason), (a.output, b.output), (a.metric, b.metric)] {
                assert_eq!(other.name(x), names.name(y));
            }
        }
        let prediction = Prediction {
            image: rows[0].image,
            model: rows[0].model,
            fold: 0,
            training: 0,
            class: names.number("positive"),
            label: true,
            score: 0.75,
            logit: -1.5,
        };
        write_predictions(&path, &names, &[prediction]).unwrap();
        let mut found = Vec::new();
        read_predictions(&path, &mut names, &mut |r| found.push(r)).unwrap();
        assert_eq!(found, [prediction]);
        assert!(
            read_scores(&path, &mut names, &mut |_| {})
                .unwrap_err()
                .to_string()
                .contains("its schema is `predictions-2`")
        );
        std::fs::write(&path, b"PAR1 no").unwrap();
        assert!(read_predictions(&path, &mut names, &mut |_| {}).unwrap_err().to_string().contains("delete the file"));
    }
}
