//! A CSV of boxes beside a table of images: a row a box, with the image's name, what it marks and its place.

use super::csv::{Row, Rows};
use super::{Sample, Truth};
use crate::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// Names that a column may have, the first of them where the table has none.
pub(super) fn column<'a>(rows: &Rows, names: &[&'a str]) -> &'a str {
    names.iter().copied().find(|n| rows.has(n)).unwrap_or(names[0])
}

/// Puts the boxes of a file on the images that have what they mark, and says how many are not used. Columns as in ChestX-ray14's
/// file (`Image Index`, `Finding Label`, `Bbox [x`, `y`, `w`, `h]`) or plain (image, finding or label, x, y, width, height).
/// `class` tells which class a row marks; `image` gives a sample's name from the column's text.
///
/// # Errors
/// A file that is no such table, and a box without size, with its line.
pub(super) fn place(
    path: &Path,
    samples: &mut BTreeMap<String, Sample>,
    image: &dyn Fn(&str) -> String,
    class: &dyn Fn(&Row<'_>, &str) -> Option<usize>,
) -> Result<Option<String>> {
    let rows = Rows::read(path)?;
    let name = column(&rows, &["image", "Image Index", "Path"]);
    let finding = column(&rows, &["finding", "Finding Label", "label"]);
    // The release's header reads `Bbox [x,y,w,h]`, which a CSV reader splits in four.
    let columns = [
        column(&rows, &["x", "Bbox [x"]),
        column(&rows, &["y"]),
        column(&rows, &["width", "w"]),
        column(&rows, &["height", "h]"]),
    ];
    rows.need(&[name])?;
    rows.need(&columns)?;
    let (mut strangers, mut others) = (0, 0);
    for row in rows.iter() {
        let one = row.bbox(columns)?;
        let Some(sample) = samples.get_mut(&image(row.text(name))) else {
            strangers += 1;
            continue;
        };
        let Some(class) = class(&row, finding).filter(|c| sample.has(*c)) else {
            others += 1;
            continue;
        };
        match &mut sample.truth {
            Truth::Boxes(boxes) => boxes.push(one.of(class)),
            truth => *truth = Truth::Boxes(vec![one.of(class)]),
        }
    }
    Ok((strangers + others > 0).then(|| {
        format!(
            "{}: {strangers} boxes are of images that the table does not have, and {others} mark what their image is not \
             labelled with, or no class of the task; none of them is used",
            path.display()
        )
    }))
}
