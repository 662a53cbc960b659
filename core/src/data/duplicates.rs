//! Images that are the same file under several names: they teach nothing twice, and in test and training they are a leak.

use super::split::Split;
use super::{Sample, Source};
use crate::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Groups of images with the same bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Duplicates {
    /// Images that have the bytes of another one.
    pub images: usize,
    /// Groups of them whose images have not all the same classes.
    pub contradicting: usize,
    /// Groups of them that are tested and seen in training or validation too.
    pub across: usize,
}

impl Duplicates {
    /// Looks at all images. Only files of one length are compared, by what `checksum` says of them.
    ///
    /// # Errors
    /// Those of `checksum`.
    pub fn find(source: &dyn Source, split: &Split, checksum: &dyn Fn(&Path) -> Result<String>) -> Result<Self> {
        let samples = source.samples();
        let test: BTreeSet<usize> = split.test.iter().copied().collect();
        let seen: BTreeSet<usize> =
            split.folds.iter().flat_map(|fold| fold.train.iter().chain(&fold.validation)).copied().collect();
        let mut found = Duplicates::default();
        for group in same_files(source, checksum)? {
            found.images += group.len();
            let other = |i: &usize| samples[*i].classes != samples[group[0]].classes;
            found.contradicting += usize::from(group.iter().any(other));
            let (tested, trained) = (group.iter().any(|i| test.contains(i)), group.iter().any(|i| seen.contains(i)));
            found.across += usize::from(tested && trained);
        }
        Ok(found)
    }

    /// A sentence for the user; none where no file is there twice.
    pub fn note(&self) -> Option<String> {
        let Duplicates { images, contradicting, across } = self;
        (*images > 0).then(|| {
            format!(
                "{images} images have the bytes of another image under its own name; of {contradicting} such files the labels \
                 contradict each other, and {across} are tested and trained on"
            )
        })
    }
}

/// Groups of images whose files have the same bytes, of two and more. Only files of one length are compared.
fn same_files(source: &dyn Source, checksum: &dyn Fn(&Path) -> Result<String>) -> Result<Vec<Vec<usize>>> {
    let mut lengths: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for i in 0..source.samples().len() {
        let file = source.files(i).into_iter().next();
        if let Some(length) = file.and_then(|file| std::fs::metadata(file).ok()).map(|meta| meta.len()) {
            lengths.entry(length).or_default().push(i);
        }
    }
    let mut groups = Vec::new();
    for group in lengths.values().filter(|group| group.len() > 1) {
        let mut same: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for &i in group {
            if let Some(file) = source.files(i).first() {
                same.entry(checksum(file)?).or_default().push(i);
            }
        }
        groups.extend(same.into_values().filter(|group| group.len() > 1));
    }
    Ok(groups)
}

/// The samples as a split takes them: where the source knows no patients, images with the same bytes are of one, so that they stay
/// on one side.
///
/// # Errors
/// Those of reading the files.
pub fn to_split(source: &dyn Source) -> Result<Vec<Sample>> {
    let mut samples = source.samples().to_vec();
    if !source.knows_patients() {
        for group in same_files(source, &crate::files::sha256)? {
            let patient = samples[group[0]].patient.clone();
            group.iter().for_each(|&i| samples[i].patient = patient.clone());
        }
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::image::write_png;
    use crate::data::{DataSpec, open, table::Table};
    use crate::task::Task;

    #[test]
    fn the_same_bytes_under_two_names_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let mut table = "image,label\n".to_string();
        for i in 0..6u8 {
            // d has a's bytes and another label, e has b's and the same.
            let level = [0, 1, 2, 0, 1, 5][usize::from(i)];
            write_png(&folder.path().join(format!("{i}.png")), 4, 4, &[level; 16]).unwrap();
            table += &format!("{i}.png,{}\n", [0, 1, 0, 1, 1, 0][usize::from(i)]);
        }
        std::fs::write(folder.path().join("t.csv"), table).unwrap();
        let data = DataSpec::Table(Table { csv: folder.path().join("t.csv"), ..Table::default() });
        let source = open(&data, &Task::default()).unwrap();
        let fold = crate::data::split::Fold { train: vec![1, 2], validation: vec![5] };
        let split = Split { test: vec![0, 3, 4], folds: vec![fold] };
        let found = Duplicates::find(source.as_ref(), &split, &crate::files::sha256).unwrap();
        assert_eq!(found, Duplicates { images: 4, contradicting: 1, across: 1 });
        assert!(found.note().unwrap().starts_with("4 images have the bytes of another image"));
        assert_eq!(Duplicates::default().note(), None);
        // A split keeps them on one side, whatever its seed.
        let samples = to_split(source.as_ref()).unwrap();
        assert_eq!((&samples[0].patient, &samples[1].patient), (&samples[3].patient, &samples[4].patient));
        assert_ne!(samples[0].patient, samples[1].patient);
    }
}
