//! Reads a `.pt2` archive as `torch.export.save` of PyTorch 2.11 writes it: a zip of stored files, JSON and raw tensors.
//! Nothing in it is unpickled, and nothing it says is believed: positions and sizes are compared with the file's before anything
//! is read or allocated.
//!
//! Format: torch/export/pt2_archive/_package.py and constants.py of PyTorch 2.11.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Device, Kind, Tensor};
use serde_json::Value as Json;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

/// The largest program text: ten times that of the largest network that was tried.
const MOST_JSON: u64 = 64 << 20;

/// The largest tensor that shows few values many times, in bytes.
const MOST_REPEATED: u64 = 256 << 20;

/// How to write a file that can be read.
pub const HOW: &str = "write it by `lightbox.export(module, FILE, example)` of sdk/python, or by torch.export.save";

/// An open archive.
pub struct Archive {
    file: File,
    path: PathBuf,
    /// Where each file begins and how long it is, by its name without the archive's own folder.
    files: HashMap<String, (u64, u64)>,
}

/// Where and how a tensor is stored; checked against the file.
#[derive(Debug, Clone)]
pub struct Stored {
    pub kind: Kind,
    pub sizes: Vec<i64>,
    strides: Vec<i64>,
    offset: i64,
    /// The file in the archive that holds its storage.
    file: String,
    /// How many values that holds.
    held: i64,
}

/// A type by its number in the file's schema, which is not libtorch's (torch/_export/serde/schema.py, `ScalarType`).
pub fn kind(n: i64) -> Result<Kind> {
    use Kind::*;
    Ok(match n {
        1 => Uint8,
        2 => Int8,
        3 => Int16,
        4 => Int,
        5 => Int64,
        6 => Half,
        7 => Float,
        8 => Double,
        12 => Bool,
        13 => BFloat16,
        _ => return Err(Error::unsupported(format!("tensors of type {n} are not supported"))),
    })
}

impl Archive {
    /// Opens a file.
    ///
    /// # Errors
    /// It is no such archive; the error says what it is, where that can be told.
    pub fn open(path: &Path) -> Result<Archive> {
        let wrong = |what: String| Error::invalid(format!("{}: {what}", path.display()));
        let file = File::open(path).map_err(|e| wrong(e.to_string()))?;
        let meta = file.metadata().map_err(|e| wrong(e.to_string()))?;
        if !meta.is_file() {
            let what = if meta.file_type().is_fifo() { "a pipe" } else { "no regular file" };
            return Err(wrong(format!("{what}; a .pt2 archive is expected")));
        }
        let length = meta.len();
        let reader = BufReader::new(file.try_clone().map_err(|e| wrong(e.to_string()))?);
        let mut zip = zip::ZipArchive::new(reader)
            .map_err(|e| wrong(format!("not a .pt2 archive of torch.export.save ({e}); {HOW}")))?;
        let (mut files, mut compressed) = (HashMap::new(), None);
        for i in 0..zip.len() {
            let entry = zip.by_index_raw(i).map_err(|e| wrong(format!("the archive is broken: {e}")))?;
            let (name, start, size) = (entry.name().to_string(), entry.data_start(), entry.size());
            if name.ends_with('/') {
                continue;
            }
            if entry.compression() != zip::CompressionMethod::Stored || entry.encrypted() {
                compressed.get_or_insert_with(|| name.clone());
            }
            if start.checked_add(size).is_none_or(|end| end > length) {
                return Err(wrong(format!("{name} is said to end behind the file's end: it is truncated or broken")));
            }
            let own = name.split_once('/').map_or(name.as_str(), |(_, rest)| rest).to_string();
            if files.insert(own, (start, size)).is_some() {
                return Err(wrong(format!("the archive has {name} twice")));
            }
        }
        let archive = Archive { file, path: path.to_path_buf(), files };
        match (archive.what_else(), compressed) {
            (Some(what), _) => Err(wrong(format!("{what}; {HOW}"))),
            (None, Some(name)) => Err(wrong(format!("{name} is compressed; {HOW}"))),
            (None, None) => Ok(archive),
        }
    }

    /// What an archive is that is not ours.
    fn what_else(&self) -> Option<String> {
        let has = |name: &str| self.files.contains_key(name);
        let starts = |prefix: &str| self.files.keys().any(|k| k.starts_with(prefix));
        if has("archive_format") || has("models/model.json") {
            let format = self.bytes("archive_format").ok()?;
            return match format.as_slice() {
                b"pt2" if starts("data/aotinductor/") && !has("models/model.json") => {
                    Some("an AOTInductor package: compiled code, of which nothing can be read or differentiated".into())
                }
                b"pt2" => None,
                other => Some(format!("an archive of format {:?}", String::from_utf8_lossy(other))),
            };
        }
        Some(if starts("code/") {
            "a TorchScript file, which has no names of modules' outputs".into()
        } else if has("serialized_exported_program.json") || has("serialized_state_dict.pt") {
            "written by an older PyTorch, in another form: save it again with PyTorch 2.11".into()
        } else if has("data.pkl") {
            "a checkpoint (torch.save): it has weights and no network. Give it as weights of a model that is built in, or export \
             the network"
                .into()
        } else if starts("data/aotinductor/") {
            "an AOTInductor package: compiled code, of which nothing can be read or differentiated".into()
        } else {
            "a zip file, but no .pt2 archive of torch.export.save".into()
        })
    }

    /// An error at this file.
    pub fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::invalid(format!("{}: {what}", self.path.display()))
    }

    /// Whether there is a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    fn place(&self, name: &str) -> Result<(u64, u64)> {
        self.files.get(name).copied().ok_or_else(|| self.error(format!("the archive has no {name}")))
    }

    fn read_at(&self, bytes: &mut [u8], at: u64, name: &str) -> Result<()> {
        self.file.read_exact_at(bytes, at).map_err(|e| self.error(format!("{name}: {e}")))
    }

    /// A small file whole.
    fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let (at, size) = self.place(name)?;
        if size > MOST_JSON {
            return Err(self.error(format!("{name} has {size} bytes, more than {MOST_JSON}")));
        }
        let mut bytes = vec![0; size as usize];
        self.read_at(&mut bytes, at, name)?;
        Ok(bytes)
    }

    /// A file of JSON. serde_json refuses what is nested deeper than 128.
    pub fn json(&self, name: &str) -> Result<Json> {
        serde_json::from_slice(&self.bytes(name)?).map_err(|e| self.error(format!("{name} is broken: {e}")))
    }

    /// What is stored of `weights` or `constants`, by name; none of it is read yet.
    ///
    /// # Errors
    /// Sizes and strides that reach beyond the bytes, pickles, unknown types.
    pub fn stored(&self, folder: &str) -> Result<BTreeMap<String, Stored>> {
        let config = format!("data/{folder}/model_{folder}_config.json");
        let json = self.json(&config)?;
        let entries = json["config"].as_object().ok_or_else(|| self.error(format!("{config} has no config")))?;
        let one = |(name, entry): (&String, &Json)| {
            let stored = self.entry(folder, entry).map_err(|e| self.error(format!("{name}: {}", e.message)))?;
            Ok((name.clone(), stored))
        };
        entries.iter().map(one).collect()
    }

    fn entry(&self, folder: &str, entry: &Json) -> Result<Stored> {
        let meta = &entry["tensor_meta"];
        if entry["use_pickle"] == true || !meta.is_object() {
            return Err(Error::unsupported("stored as a pickle (a subclass of Tensor), which is not read"));
        }
        let broken = || Error::invalid("its entry does not say its type, sizes, strides and file");
        let kind = kind(meta["dtype"].as_i64().ok_or_else(broken)?)?;
        let ints = |key: &str| -> Option<Vec<i64>> {
            meta[key].as_array()?.iter().map(|s| s["as_int"].as_i64().filter(|n| *n >= 0)).collect()
        };
        let (sizes, strides) = (ints("sizes").ok_or_else(broken)?, ints("strides").ok_or_else(broken)?);
        let offset = meta["storage_offset"]["as_int"].as_i64().filter(|n| *n >= 0).ok_or_else(broken)?;
        let file = format!("data/{folder}/{}", entry["path_name"].as_str().ok_or_else(broken)?);
        let width = kind.elt_size_in_bytes() as u64;
        let held = (self.place(&file)?.1 / width) as i64;
        // The last element that the strides reach.
        let reach = |sum: i64, (n, stride): (&i64, &i64)| sum.checked_add((n - 1).max(0).checked_mul(*stride)?);
        let last = sizes.iter().zip(&strides).try_fold(offset, reach);
        let count = sizes.iter().try_fold(1i64, |product, n| product.checked_mul(*n));
        let beyond = !sizes.contains(&0) && last.is_none_or(|last| last >= held);
        if sizes.len() != strides.len() || count.is_none() || beyond {
            return Err(Error::invalid(format!(
                "sizes {sizes:?} and strides {strides:?} from {offset} on reach beyond its {held} values"
            )));
        }
        // Strides of 0 show a value many times; what a copy of it would take is bounded too.
        if count.is_none_or(|n| n > held && n as u64 > MOST_REPEATED / width) {
            return Err(Error::invalid(format!("sizes {sizes:?} repeat {held} values too often")));
        }
        Ok(Stored { kind, sizes, strides, offset, file, held })
    }

    /// Reads tensors; those that share a file (tied weights) share memory.
    pub fn read<'s>(&self, all: impl Iterator<Item = &'s Stored>, device: Device) -> Result<Vec<Tensor>> {
        let mut storages: HashMap<(&str, Kind), Tensor> = HashMap::new();
        let mut found = Vec::new();
        for stored in all {
            let Stored { kind, sizes, strides, offset, file, held } = stored;
            let storage = match storages.entry((file, *kind)) {
                Entry::Occupied(read) => read.into_mut(),
                Entry::Vacant(new) => {
                    let flat = Tensor::f_empty([*held], (*kind, Device::Cpu))?;
                    let bytes = *held as usize * kind.elt_size_in_bytes();
                    // SAFETY: the tensor is contiguous and new, and has so many bytes.
                    let memory = unsafe { std::slice::from_raw_parts_mut(flat.data_ptr().cast::<u8>(), bytes) };
                    if bytes > 0 {
                        self.read_at(memory, self.place(file)?.0, file)?;
                    }
                    new.insert(flat.f_to_device(device)?)
                }
            };
            found.push(match sizes.contains(&0) {
                true => Tensor::f_empty(sizes, (*kind, device))?,
                false => storage.f_as_strided(sizes, strides, *offset)?,
            });
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// An archive of these files, in a folder of its own as PyTorch writes it.
    fn open(files: &[(&str, &[u8])], method: zip::CompressionMethod) -> Result<Archive> {
        let path =
            std::env::temp_dir().join(format!("lightbox-{}-{:?}.pt2", std::process::id(), std::thread::current().id()));
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        for (name, bytes) in files {
            zip.start_file(format!("net/{name}"), options).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
        let opened = Archive::open(&path);
        // Its file stays open.
        std::fs::remove_file(&path).unwrap();
        opened
    }

    fn tensors(config: &str, bytes: &[u8]) -> Result<HashMap<String, Tensor>> {
        let text = format!("{{\"config\": {{\"w\": {config}}}}}");
        let files: [(&str, &[u8]); 3] = [
            ("archive_format", b"pt2"),
            ("data/weights/model_weights_config.json", text.as_bytes()),
            ("data/weights/weight_0", bytes),
        ];
        let archive = open(&files, zip::CompressionMethod::Stored)?;
        let stored = archive.stored("weights")?;
        Ok(stored.keys().cloned().zip(archive.read(stored.values(), Device::Cpu)?).collect())
    }

    /// Six float32 with these sizes, strides and offset.
    fn meta(sizes: &[i64], strides: &[i64], offset: i64) -> String {
        let ints = |all: &[i64]| all.iter().map(|n| format!("{{\"as_int\": {n}}}")).collect::<Vec<_>>().join(", ");
        format!(
            "{{\"path_name\": \"weight_0\", \"use_pickle\": false, \"tensor_meta\": {{\"dtype\": 7, \"sizes\": [{}], \"strides\": \
             [{}], \"storage_offset\": {{\"as_int\": {offset}}}}}}}",
            ints(sizes),
            ints(strides)
        )
    }

    #[test]
    fn a_tensor_is_what_its_strides_show_of_the_bytes() {
        let bytes: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let read = |sizes: &[i64], strides: &[i64], offset| {
            let found = tensors(&meta(sizes, strides, offset), &bytes)?.remove("w").unwrap();
            Ok::<_, Error>(Vec::<f32>::try_from(found.contiguous().flatten(0, -1)).unwrap())
        };
        assert_eq!(read(&[2, 3], &[3, 1], 0).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(read(&[2, 2], &[1, 2], 1).unwrap(), [1.0, 3.0, 2.0, 4.0]);
        assert_eq!(read(&[3], &[0], 5).unwrap(), [5.0, 5.0, 5.0]);
        assert!(read(&[0, 9], &[1, 1], 0).unwrap().is_empty());
        for (sizes, strides, offset, message) in [
            (&[7][..], &[1][..], 0, "reach beyond its 6 values"),
            (&[2], &[5], 1, "reach beyond its 6 values"),
            (&[1], &[1], 6, "reach beyond its 6 values"),
            (&[i64::MAX, 2], &[i64::MAX, 1], 0, "reach beyond its 6 values"),
            (&[2, 3], &[1], 0, "reach beyond its 6 values"),
            (&[1 << 40], &[0], 0, "repeat 6 values too often"),
            (&[2], &[-1], 1, "does not say its type, sizes, strides and file"),
            (&[-1], &[1], 0, "does not say its type, sizes, strides and file"),
        ] {
            let error = read(sizes, strides, offset).unwrap_err().to_string();
            assert!(error.contains(message), "{sizes:?} {strides:?} {offset}: {error}");
        }
    }

    #[test]
    fn what_is_no_tensor_is_refused() {
        let check = |from: &str, to: &str, message: &str| {
            let error = tensors(&meta(&[1], &[1], 0).replace(from, to), &[0; 24]).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check("\"use_pickle\": false", "\"use_pickle\": true", "stored as a pickle");
        check("\"dtype\": 7", "\"dtype\": 99", "tensors of type 99 are not supported");
        check("weight_0", "weight_1", "the archive has no data/weights/weight_1");
        check("weight_0", "../../../etc/passwd", "the archive has no data/weights/../../../etc/passwd");
    }

    #[test]
    fn another_file_is_named() {
        let check = |files: &[(&str, &[u8])], message: &str| {
            let error = open(files, zip::CompressionMethod::Stored).err().unwrap().to_string();
            assert!(error.contains(message), "{error}");
        };
        check(&[("data.pkl", b"")], "a checkpoint (torch.save)");
        check(&[("code/__torch__.py", b""), ("data.pkl", b"")], "a TorchScript file");
        check(&[("serialized_exported_program.json", b"{}")], "written by an older PyTorch");
        check(&[("archive_format", b"pt2"), ("data/aotinductor/model/x.so", b"")], "an AOTInductor package");
        check(&[("archive_format", b"pt3")], "an archive of format \"pt3\"");
        check(&[("readme.txt", b"")], "a zip file, but no .pt2 archive");
        let deep = "[".repeat(100_000);
        let files: [(&str, &[u8]); 2] = [("archive_format", b"pt2"), ("models/model.json", deep.as_bytes())];
        let error =
            open(&files, zip::CompressionMethod::Stored).unwrap().json("models/model.json").unwrap_err().to_string();
        assert!(error.contains("recursion limit"), "{error}");
    }
}
