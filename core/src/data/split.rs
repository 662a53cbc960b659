//! Who is trained on, who validates, who is tested: by patient, stratified by label, seeded, or read from files.

use super::{Sample, Truth, csv::Rows};
use crate::{Error, Result, files};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// The `[split]` section of a spec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SplitSpec {
    /// Images held out for the test: a number, or a share under 1; infinite (`"all"` in a spec) for all of them, where nothing is
    /// trained.
    #[serde(with = "test_size")]
    pub test: f64,
    /// As many test images of each class (half of them with the finding); otherwise the set's own shares. Where it is not said,
    /// true, but where images have several classes or none, of which there cannot be as many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balanced: Option<bool>,
    /// Folds of the rest. With 1, a share `validation` of the rest validates.
    pub folds: usize,
    /// The share of the rest that validates, where there is one fold.
    pub validation: f64,
    /// Of the draw.
    pub seed: u64,
    /// A folder with test.csv, train_foldN.csv and val_foldN.csv (column img_name); the keys above do nothing then.
    pub files: Option<PathBuf>,
}

impl Default for SplitSpec {
    fn default() -> Self {
        SplitSpec { test: 0.2, balanced: None, folds: 1, validation: 0.2, seed: 0, files: None }
    }
}

/// `"all"`, or a number.
mod test_size {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Number(f64),
        Text(String),
    }

    pub fn serialize<S: Serializer>(size: &f64, s: S) -> Result<S::Ok, S::Error> {
        if size.is_infinite() { s.serialize_str("all") } else { s.serialize_f64(*size) }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
        match Size::deserialize(d)
            .map_err(|_| D::Error::custom("test: a number, a share under 1, or \"all\" expected"))?
        {
            Size::Number(n) => Ok(n),
            Size::Text(text) if text == "all" => Ok(f64::INFINITY),
            Size::Text(text) => {
                Err(D::Error::custom(format!("test = \"{text}\": a number, a share under 1, or \"all\" expected")))
            }
        }
    }
}

/// Indices of samples. Test and folds share no patient, training and validation of a fold neither.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// Who is tested.
    pub test: Vec<usize>,
    /// Who trains and validates, a fold each.
    pub folds: Vec<Fold>,
}

/// The images that a model of one fold sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fold {
    /// What it is fitted to.
    pub train: Vec<usize>,
    /// What chooses the epoch, and thresholds of metrics.
    pub validation: Vec<usize>,
}

impl SplitSpec {
    /// Splits the samples. A part with one class only is an error.
    pub fn split(&self, samples: &[Sample]) -> Result<Split> {
        let split = match &self.files {
            Some(folder) => read(folder, samples)?,
            None => self.draw(samples)?,
        };
        let classes = samples.iter().map(Sample::stratum).max().unwrap_or(0) + 1;
        let check = |part: &str, indices: &[usize]| {
            let n = indices.len();
            // Of two classes both are needed; of several a small part may lack one.
            let count = |class: usize| indices.iter().filter(|&&i| samples[i].stratum() == class).count();
            let present = (0..classes).filter(|c| count(*c) > 0).count();
            if present < 2 {
                return Err(Error::new(match classes {
                    0..=2 => format!(
                        "{part} has {n} images of which {} are positive; both classes are needed",
                        indices.iter().filter(|&&i| samples[i].has(1)).count()
                    ),
                    _ => format!("{part} has {n} images of {present} classes; at least two are needed"),
                })
                .hint("use more images, fewer folds or another share of test images"));
            }
            Ok(())
        };
        check("the test set", &split.test)?;
        // Where all images are tested, nothing is trained.
        for (k, fold) in split.folds.iter().enumerate().filter(|_| self.test.is_finite()) {
            check(&format!("the training set of fold {k}"), &fold.train)?;
            check(&format!("the validation set of fold {k}"), &fold.validation)?;
        }
        Ok(split)
    }

    /// Whether the test set has as many images of each class: see [`SplitSpec::balanced`].
    pub fn is_balanced(&self, samples: &[Sample]) -> bool {
        self.balanced.unwrap_or_else(|| samples.iter().all(|s| s.classes.len() == 1))
    }

    fn draw(&self, samples: &[Sample]) -> Result<Split> {
        let n = samples.len();
        let balanced = self.is_balanced(samples);
        if balanced && samples.iter().any(|s| s.classes.len() != 1) && self.test.is_finite() {
            return Err(Error::new(
                "balanced = true: images have several classes or none, of which there cannot be as many",
            )
            .hint("balanced = false"));
        }
        if self.test == f64::INFINITY {
            if self.folds != 1 {
                return Err(
                    Error::new(format!("test = \"all\" leaves nothing for folds = {}", self.folds)).hint("folds = 1")
                );
            }
            let nobody = Fold { train: vec![], validation: vec![] };
            return Ok(Split { test: (0..n).collect(), folds: vec![nobody] });
        }
        if !(self.test > 0.0 && self.test < n as f64) {
            return Err(Error::new(format!("test = {}: a share under 1 or a number under {n} expected", self.test)));
        }
        if self.folds == 0 || !(self.validation > 0.0 && self.validation < 1.0) {
            return Err(Error::new("folds must be at least 1 and validation a share between 0 and 1"));
        }
        let mut patients: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, sample) in samples.iter().enumerate() {
            patients.entry(&sample.patient).or_default().push(i);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut groups: Vec<Vec<usize>> = patients.into_values().collect();
        groups.shuffle(&mut rng);

        let count = if self.test < 1.0 { (self.test * n as f64).round() as usize } else { self.test as usize };
        let classes = (samples.iter().map(Sample::stratum).max().unwrap_or(0) + 1).max(2);
        let strata = Strata::of(samples, classes);
        let share = |class: usize| match balanced {
            true => 1.0 / classes as f64,
            false => strata.of_class(class).map(|s| strata.sizes[s]).sum::<usize>() as f64 / n as f64,
        };
        // Patients with an image of a class's rarer kind come first, before its other kind has filled the set.
        let rare: Vec<usize> = (0..classes)
            .filter(|c| strata.of_class(*c).count() > 1)
            .filter_map(|c| strata.of_class(c).min_by_key(|s| strata.sizes[*s]))
            .collect();
        groups.sort_by_key(|group| !group.iter().any(|&i| rare.contains(&strata.of_sample[i])));
        // Of a class's test images those with a mask are as many as in the whole set.
        let mut want = vec![0; strata.classes.len()];
        for class in 0..classes {
            let whole = (count as f64 * share(class)).round() as usize;
            let all: usize = strata.of_class(class).map(|s| strata.sizes[s]).sum();
            let mut left = whole;
            for s in strata.of_class(class).skip(1) {
                want[s] = ((whole * strata.sizes[s]) as f64 / all.max(1) as f64).round() as usize;
                left -= want[s];
            }
            want[strata.of_class(class).next().unwrap_or(0)] = left;
        }
        want[0] = count.saturating_sub(want[1..].iter().sum());
        let (mut have, mut test, mut rest) = (vec![0; want.len()], vec![], vec![]);
        let largest = groups.iter().map(Vec::len).max().unwrap_or(1);
        for group in groups {
            let of = |stratum: usize| group.iter().filter(|&&i| strata.of_sample[i] == stratum).count();
            let add: Vec<usize> = (0..want.len()).map(of).collect();
            if (0..want.len()).all(|s| have[s] + add[s] <= want[s]) {
                (0..want.len()).for_each(|s| have[s] += add[s]);
                test.extend(group);
            } else {
                rest.push(group);
            }
        }
        // Patients are not divided, so a set may fall short by less than one patient's images, of each kind.
        let by_class =
            |of: &[usize]| -> Vec<usize> { (0..classes).map(|c| strata.of_class(c).map(|s| of[s]).sum()).collect() };
        let (wanted, found) = (by_class(&want), by_class(&have));
        if (0..classes).any(|c| wanted[c] - found[c] >= largest * strata.of_class(c).count()) {
            return Err(Error::new(match classes {
                2 => format!(
                    "a test set of {} images without and {} with the finding was asked for; whole patients give {} and {}",
                    wanted[0], wanted[1], found[0], found[1]
                ),
                _ => format!("a test set of {wanted:?} images a class was asked for; whole patients give {found:?}"),
            })
            .hint("ask for fewer test images, or set balanced = false"));
        }

        // Patients with and without the finding are dealt out in turn, each to the part that is furthest behind.
        let shares: Vec<f64> = match self.folds {
            1 => vec![self.validation, 1.0 - self.validation],
            k => vec![1.0 / k as f64; k],
        };
        let mut parts: Vec<Vec<usize>> = vec![vec![]; shares.len()];
        let last = |group: &[usize]| group.iter().map(|&i| strata.of_sample[i]).max().unwrap_or(0);
        for stratum in (0..strata.classes.len()).rev() {
            let mut dealt = vec![0.0; shares.len()];
            for group in rest.iter().filter(|g| last(g) == stratum) {
                let next = (0..shares.len()).min_by(|&a, &b| (dealt[a] / shares[a]).total_cmp(&(dealt[b] / shares[b])));
                let next = next.unwrap_or(0);
                dealt[next] += group.len() as f64;
                parts[next].extend(group);
            }
        }
        test.sort_unstable();
        parts.iter_mut().for_each(|p| p.sort_unstable());
        let fold = |k: usize| {
            let mut train: Vec<usize> = (0..parts.len()).filter(|&p| p != k).flat_map(|p| parts[p].clone()).collect();
            train.sort_unstable();
            Fold { train, validation: parts[k].clone() }
        };
        Ok(Split { test, folds: (0..self.folds).map(fold).collect() })
    }
}

/// What a drawn split keeps the shares of: classes, and within a class the images with and without a mask or box.
struct Strata {
    /// The class of each stratum, rising.
    classes: Vec<usize>,
    /// How many images it has.
    sizes: Vec<usize>,
    /// By sample.
    of_sample: Vec<usize>,
}

impl Strata {
    fn of(samples: &[Sample], classes: usize) -> Self {
        let marked = |s: &Sample| match &s.truth {
            Truth::Unknown => false,
            Truth::Boxes(boxes) => !boxes.is_empty(),
            Truth::MaskFile(_) => true,
        };
        let key = |s: &Sample| (s.stratum(), marked(s));
        let mut all: BTreeMap<(usize, bool), usize> = BTreeMap::new();
        samples.iter().for_each(|s| *all.entry(key(s)).or_default() += 1);
        for class in 0..classes {
            // A class without images is missed where it is wanted.
            if !all.contains_key(&(class, true)) {
                all.entry((class, false)).or_default();
            }
        }
        let places: BTreeMap<(usize, bool), usize> = all.keys().enumerate().map(|(at, key)| (*key, at)).collect();
        Strata {
            classes: all.keys().map(|(class, _)| *class).collect(),
            sizes: all.into_values().collect(),
            of_sample: samples.iter().map(|s| places[&key(s)]).collect(),
        }
    }

    fn of_class(&self, class: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.classes.len()).filter(move |s| self.classes[*s] == class)
    }
}

/// Reads the published form: names in the column img_name; an image with several rows is one image.
fn read(folder: &Path, samples: &[Sample]) -> Result<Split> {
    let stem = |name: &str| name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_string();
    let known: HashMap<&str, usize> = samples.iter().enumerate().map(|(i, s)| (s.id.as_str(), i)).collect();
    // Converted images have another ending; the stem tells, where only one image has it.
    let mut stems: HashMap<String, Option<usize>> = HashMap::new();
    for (i, sample) in samples.iter().enumerate() {
        stems.entry(stem(&sample.id)).and_modify(|at| *at = None).or_insert(Some(i));
    }
    let part = |file: &str| -> Result<Option<Vec<usize>>> {
        let path = folder.join(file);
        if !path.is_file() {
            return Ok(None);
        }
        // Nobody trains where all are tested.
        let rows = if file == "test.csv" { Rows::read(&path)? } else { Rows::read_any(&path)? };
        rows.need(&["img_name"])?;
        let mut found = HashSet::new();
        for row in rows.iter() {
            let name = row.text("img_name");
            let index = known.get(name).copied().or_else(|| stems.get(&stem(name)).copied().flatten());
            found.insert(index.ok_or_else(|| row.error(format!("image {name} is not in the data source")))?);
        }
        let mut found: Vec<usize> = found.into_iter().collect();
        found.sort_unstable();
        Ok(Some(found))
    };
    let missing = |file: &str| Error::at(&folder.join(file), "no such file").hint("a split folder needs it");
    let test = part("test.csv")?.ok_or_else(|| missing("test.csv"))?;
    let mut folds = Vec::new();
    while let Some(train) = part(&format!("train_fold{}.csv", folds.len()))? {
        let name = format!("val_fold{}.csv", folds.len());
        folds.push(Fold { train, validation: part(&name)?.ok_or_else(|| missing(&name))? });
    }
    if folds.is_empty() {
        return Err(missing("train_fold0.csv"));
    }
    for (k, fold) in folds.iter().enumerate() {
        let train: HashSet<&str> = fold.train.iter().map(|&i| samples[i].patient.as_str()).collect();
        let seen: HashSet<&str> =
            fold.train.iter().chain(&fold.validation).map(|&i| samples[i].patient.as_str()).collect();
        let shared = fold.validation.iter().find(|&&i| train.contains(samples[i].patient.as_str()));
        let tested = test.iter().find(|&&i| seen.contains(samples[i].patient.as_str()));
        for (index, where_) in [(shared, "validation"), (tested, "test")] {
            if let Some(&i) = index {
                let patient = &samples[i].patient;
                let what = format!("patient {patient} is in the {where_} part and in another part of fold {k}");
                return Err(Error::at(folder, what));
            }
        }
    }
    Ok(Split { test, folds })
}

impl Split {
    /// Writes the parts in the form that [`SplitSpec::files`] reads.
    pub fn write(&self, folder: &Path, samples: &[Sample]) -> Result<()> {
        let write = |file: String, indices: &[usize]| {
            let path = folder.join(file);
            let mut out = csv::Writer::from_writer(Vec::new());
            let bad = |e: csv::Error| Error::at(&path, e.to_string());
            out.write_record(["img_name", "label", "patient"]).map_err(bad)?;
            for &i in indices {
                let s = &samples[i];
                out.write_record([
                    s.id.as_str(),
                    &s.classes.iter().map(usize::to_string).collect::<Vec<_>>().join("|"),
                    &s.patient,
                ])
                .map_err(bad)?;
            }
            let bytes = out.into_inner().map_err(|e| Error::at(&path, e.to_string()))?;
            files::write_atomic(&path, |w| w.write_all(&bytes))
        };
        write("test.csv".into(), &self.test)?;
        for (k, fold) in self.folds.iter().enumerate() {
            write(format!("train_fold{k}.csv"), &fold.train)?;
            write(format!("val_fold{k}.csv"), &fold.validation)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Truth;

    /// `n` images, two a patient, every fifth patient with the finding.
    fn samples(n: usize) -> Vec<Sample> {
        let one = |i: usize| Sample {
            id: format!("i{i:04}.png"),
            patient: format!("p{}", i / 2),
            classes: vec![usize::from((i / 2).is_multiple_of(5))],
            truth: Truth::Unknown,
            columns: Default::default(),
        };
        (0..n).map(one).collect()
    }

    fn check(spec: &SplitSpec, samples: &[Sample]) -> Split {
        let split = spec.split(samples).unwrap();
        for fold in &split.folds {
            let mut all: Vec<usize> =
                [&split.test, &fold.train, &fold.validation].into_iter().flatten().copied().collect();
            all.sort_unstable();
            assert_eq!(all, (0..samples.len()).collect::<Vec<_>>(), "every image once");
            let patients = |p: &[usize]| p.iter().map(|&i| samples[i].patient.clone()).collect::<HashSet<_>>();
            let (a, b, c) = (patients(&split.test), patients(&fold.train), patients(&fold.validation));
            assert!(a.is_disjoint(&b) && a.is_disjoint(&c) && b.is_disjoint(&c), "a patient is in two parts");
        }
        split
    }

    #[test]
    fn folds_are_stratified_and_the_test_set_is_balanced() {
        let samples = samples(1000);
        let spec = SplitSpec { test: 100.0, folds: 5, ..SplitSpec::default() };
        let split = check(&spec, &samples);
        let positive = |p: &[usize]| p.iter().filter(|&&i| samples[i].has(1)).count();
        assert_eq!((split.test.len(), positive(&split.test)), (100, 50));
        for fold in &split.folds {
            assert_eq!((fold.validation.len(), positive(&fold.validation)), (180, 30));
        }
        assert_eq!(spec.split(&samples).unwrap(), split, "same seed, same split");
        assert_ne!(SplitSpec { seed: 1, ..spec }.split(&samples).unwrap(), split);
    }

    #[test]
    fn all_images_are_tested_where_nothing_is_trained() {
        let samples = samples(40);
        let spec: SplitSpec = serde_json::from_str("{\"test\": \"all\"}").unwrap();
        let split = spec.split(&samples).unwrap();
        assert_eq!((split.test.len(), split.folds.len(), split.folds[0].train.len()), (40, 1, 0));
        assert!(serde_json::to_string(&spec).unwrap().contains("\"test\":\"all\""));
        let folder = tempfile::tempdir().unwrap();
        split.write(folder.path(), &samples).unwrap();
        let again = SplitSpec { files: Some(folder.path().into()), ..spec.clone() };
        assert_eq!(again.split(&samples).unwrap(), split);
        assert!(SplitSpec { folds: 2, ..spec }.split(&samples).unwrap_err().to_string().contains("leaves nothing"));
        assert!(serde_json::from_str::<SplitSpec>("{\"test\": \"some\"}").is_err());
    }

    #[test]
    fn one_fold_takes_a_share() {
        let samples = samples(1000);
        let split = check(&SplitSpec { balanced: Some(false), ..SplitSpec::default() }, &samples);
        assert_eq!((split.test.len(), split.folds.len(), split.folds[0].validation.len()), (200, 1, 160));
    }

    #[test]
    fn the_test_set_keeps_the_share_of_images_with_a_box() {
        // Of 200 positive images ten have a box: a tenth of the test set's does.
        let mut samples = samples(1000);
        let positive: Vec<usize> = (0..1000).filter(|&i| samples[i].has(1)).collect();
        for &i in positive.iter().step_by(20) {
            samples[i].truth = Truth::Boxes(vec![crate::data::BBox::new(1.0, 1.0, 2.0, 2.0)]);
        }
        let boxed = |p: &[usize]| p.iter().filter(|&&i| matches!(samples[i].truth, Truth::Boxes(_))).count();
        for seed in 0..5 {
            let split = check(&SplitSpec { seed, balanced: Some(false), test: 0.5, ..SplitSpec::default() }, &samples);
            assert!((4..=6).contains(&boxed(&split.test)), "{}", boxed(&split.test));
        }
    }

    #[test]
    fn several_labels_have_no_balance() {
        let mut samples = samples(100);
        samples.iter_mut().step_by(3).for_each(|s| s.classes = vec![0, 1, 2]);
        let spec = SplitSpec { test: 0.3, ..SplitSpec::default() };
        assert!(!spec.is_balanced(&samples) && spec.split(&samples).is_ok());
        let error = SplitSpec { balanced: Some(true), ..spec }.split(&samples).unwrap_err().to_string();
        assert!(error.contains("several classes or none"), "{error}");
    }

    #[test]
    fn one_class_and_too_many_are_errors() {
        let mut one = samples(40);
        one.iter_mut().for_each(|s| s.classes = vec![0]);
        let spec = SplitSpec { balanced: Some(false), ..SplitSpec::default() };
        let error = spec.split(&one).unwrap_err().to_string();
        assert!(
            error.starts_with("the test set has 8 images of which 0 are positive; both classes are needed"),
            "{error}"
        );
        let error = SplitSpec { test: 600.0, ..SplitSpec::default() }.split(&samples(1000)).unwrap_err().to_string();
        assert!(error.contains("300 with the finding was asked for; whole patients give 300 and 200"), "{error}");
    }

    #[test]
    fn written_splits_are_read_back_and_leaks_are_found() {
        let samples = samples(200);
        let split = SplitSpec { folds: 2, ..SplitSpec::default() }.split(&samples).unwrap();
        let folder = tempfile::tempdir().unwrap();
        split.write(folder.path(), &samples).unwrap();
        let spec = SplitSpec { files: Some(folder.path().into()), ..SplitSpec::default() };
        assert_eq!(spec.split(&samples).unwrap(), split);
        std::fs::copy(folder.path().join("train_fold1.csv"), folder.path().join("val_fold1.csv")).unwrap();
        assert!(
            spec.split(&samples).unwrap_err().to_string().contains("validation part and in another part of fold 1")
        );
        std::fs::write(folder.path().join("test.csv"), "img_name\nzzz.png\n").unwrap();
        assert!(
            spec.split(&samples).unwrap_err().to_string().contains("line 2: image zzz.png is not in the data source")
        );
    }

    #[test]
    fn the_published_splits_hold() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/node21-splits");
        if !folder.is_dir() {
            let _ = std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("skipped: {} is absent\n", folder.display()),
            );
            return;
        }
        let samples = crate::data::node21::annotations(&folder).unwrap().0;
        let split = check(&SplitSpec { files: Some(folder), ..SplitSpec::default() }, &samples);
        assert_eq!(split.folds.len(), 5);
        // The same shape drawn by ourselves: 400 held out, half with nodules, five folds of the rest.
        let own = check(&SplitSpec { test: 400.0, folds: 5, ..SplitSpec::default() }, &samples);
        assert_eq!(own.test.iter().filter(|&&i| samples[i].has(1)).count(), 200);
    }
}
