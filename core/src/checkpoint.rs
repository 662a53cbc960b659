//! Checkpoints as named tensors: `.safetensors`, and PyTorch's files (`torch.save`): zip files since 1.6, and the form before.
//!
//! A PyTorch file is a pickle, which can be told to run any code. Here it is interpreted by [`crate::pickle`], which calls
//! nothing. Wrappers are taken off: a dictionary under `state_dict`, `model` and whatever else training scripts call it, see
//! [`WRAPPERS`]. Names stay as they are; which prefix is a wrapper's, the model's own names say.

use crate::pickle::{Lazy, Pickle, Value};
use crate::{Error, Result, files};
use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::path::Path;
use tch::{Kind, Tensor};

/// Tensors by name, in the file's order.
pub type State = Vec<(String, Tensor)>;

/// Keys under which training scripts put a network's weights: the network that was trained before its moving averages.
pub const WRAPPERS: [&str; 14] = [
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "student",
    "teacher",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
];

/// Those of them that are not what was trained, but an average over training.
const AVERAGES: [&str; 5] = ["teacher", "state_dict_ema", "model_ema", "ema_state_dict", "ema"];

/// How much more than the file's length its tensors may take, which share storages where weights are tied.
const MOST: usize = 8;

/// What a checkpoint file holds.
#[derive(Debug)]
pub struct Checkpoint {
    /// Tensors, CPU.
    pub state: State,
    /// Sentences for the user.
    pub notes: Vec<String>,
}

/// Reads a checkpoint.
///
/// # Errors
/// The file is none, is broken, or holds no tensors; then its entries are named.
pub fn open(path: &Path) -> Result<Checkpoint> {
    let bytes = files::read(path)?;
    let found = if bytes.starts_with(b"PK\x03\x04") {
        zip(&bytes)
    // A header of 640 bytes begins as a pickle does; its ninth byte is the JSON's.
    } else if bytes.starts_with(b"\x80\x02") && bytes.get(8) != Some(&b'{') {
        legacy(&bytes)
    } else {
        safetensors(&bytes).map(|state| Checkpoint { state, notes: vec![] })
    };
    let found = found.map_err(|e| e.with_path(path))?;
    if found.state.is_empty() {
        return Err(Error::at(path, "the checkpoint holds no tensors"));
    }
    Ok(found)
}

/// The tensors of [`open()`].
///
/// # Errors
/// As [`open()`].
pub fn read(path: &Path) -> Result<State> {
    Ok(open(path)?.state)
}

/// Reads a `.safetensors` that [`write()`] wrote, under the names that it was given. It may be empty.
pub fn read_own(path: &Path) -> Result<State> {
    safetensors(&files::read(path)?).map_err(|e| e.with_path(path))
}

/// Those tensors of a `.safetensors` that have these names, in their order; `None` for one that is not there. No others are
/// read.
pub fn pick(path: &Path, names: &[&str]) -> Result<Vec<Option<Tensor>>> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, &e))?;
    // SAFETY: files of runs are written once, through another name; nobody writes to one that is there.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, &e))?;
    let broken = |e: &dyn std::fmt::Display| Error::at(path, format!("not a checkpoint that Lightbox reads: {e}"));
    let file = safetensors::SafeTensors::deserialize(&map).map_err(|e| broken(&e))?;
    let one = |name: &&str| file.tensor(name).ok().map(|view| tensor(name, &view)).transpose();
    names.iter().map(one).collect::<Result<_>>().map_err(|e| e.with_path(path))
}

/// Rows `first .. first + count` of a tensor of a `.safetensors`; no others are read.
pub fn rows(path: &Path, name: &str, first: usize, count: usize) -> Result<Tensor> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, &e))?;
    // SAFETY: files of runs are written once, through another name; nobody writes to one that is there.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, &e))?;
    let broken = |e: &dyn std::fmt::Display| Error::at(path, format!("not a checkpoint that Lightbox reads: {e}"));
    let file = safetensors::SafeTensors::deserialize(&map).map_err(|e| broken(&e))?;
    let view = file.tensor(name).map_err(|e| broken(&e))?;
    let kind = KINDS.iter().find(|(_, d, _)| *d == view.dtype()).map(|(k, ..)| *k);
    let kind = kind.ok_or_else(|| broken(&"a type that is not read"))?;
    let mut shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
    let all = shape.first().copied().unwrap_or(0) as usize;
    if first + count > all {
        return Err(broken(&format!("rows {first} to {} of {all}", first + count)));
    }
    let each = view.data().len() / all.max(1);
    shape[0] = count as i64;
    Ok(Tensor::f_from_data_size(&view.data()[first * each..][..count * each], &shape, kind)?)
}

/// Writes `.safetensors`, whole or not at all. Tensors are copied to the CPU.
pub fn write(path: &Path, state: &[(String, Tensor)]) -> Result<()> {
    let mut views: Vec<(String, Owned)> = Vec::new();
    for (name, tensor) in state {
        if views.iter().any(|(n, _)| n == name) {
            return Err(Error::at(path, format!("two tensors are called {name}")));
        }
        let tensor = tensor.f_detach()?.f_to_device(tch::Device::Cpu)?.f_contiguous()?;
        let kind = tensor.f_kind()?;
        let dtype = KINDS.iter().find(|(k, ..)| *k == kind).map(|(_, d, _)| *d);
        let dtype = dtype.ok_or_else(|| Error::new(format!("{name}: tensors of {kind:?} cannot be written")))?;
        let mut data = vec![0u8; tensor.numel() * kind.elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut data, tensor.numel())?;
        views.push((name.clone(), Owned { dtype, shape: tensor.size().iter().map(|&n| n as usize).collect(), data }));
    }
    let bytes = safetensors::serialize(views, None).map_err(|e| Error::at(path, e.to_string()))?;
    files::write_atomic(path, |w| w.write_all(&bytes))
}

struct Owned {
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl safetensors::View for Owned {
    fn dtype(&self) -> safetensors::Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.data.as_slice().into()
    }
    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// libtorch's kind, safetensors' type, PyTorch's storage class.
const KINDS: [(Kind, safetensors::Dtype, &str); 9] = {
    use safetensors::Dtype as D;
    [
        (Kind::Float, D::F32, "FloatStorage"),
        (Kind::Double, D::F64, "DoubleStorage"),
        (Kind::Half, D::F16, "HalfStorage"),
        (Kind::BFloat16, D::BF16, "BFloat16Storage"),
        (Kind::Int64, D::I64, "LongStorage"),
        (Kind::Int, D::I32, "IntStorage"),
        (Kind::Int16, D::I16, "ShortStorage"),
        (Kind::Uint8, D::U8, "ByteStorage"),
        (Kind::Bool, D::BOOL, "BoolStorage"),
    ]
};

/// Reads the bytes of a safetensors file.
pub fn safetensors(bytes: &[u8]) -> Result<State> {
    let broken = |e: &dyn std::fmt::Display| Error::new(format!("not a checkpoint that Lightbox reads: {e}"));
    let file = safetensors::SafeTensors::deserialize(bytes).map_err(|e| broken(&e))?;
    let mut state = Vec::new();
    for (name, view) in file.iter() {
        state.push((name.to_string(), tensor(name, &view)?));
    }
    state.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(state)
}

fn tensor(name: &str, view: &safetensors::tensor::TensorView<'_>) -> Result<Tensor> {
    let kind = KINDS.iter().find(|(_, d, _)| *d == view.dtype()).map(|(k, ..)| *k);
    let other = || Error::new(format!("{name} has type {:?}, which Lightbox does not read", view.dtype()));
    let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
    Ok(Tensor::f_from_data_size(view.data(), &shape, kind.ok_or_else(other)?)?)
}

/// Tensors of their storages' bytes. `length` is the file's.
fn build(tensors: Vec<(String, Lazy)>, storages: &HashMap<&str, &[u8]>, length: usize) -> Result<State> {
    let (mut state, mut bytes) = (Vec::new(), 0usize);
    for (name, tensor) in tensors {
        let wrong = |what: &str| broken(&format!("{name}: {what}"));
        let kind = KINDS.iter().find(|(.., class)| *class == tensor.class).map(|(kind, ..)| *kind);
        let Some(kind) = kind else {
            return Err(Error::new(format!("{name} has type {}, which Lightbox does not read", tensor.class)));
        };
        let storage = storages.get(tensor.storage.as_str()).ok_or_else(|| wrong("its values are not there"))?;
        let (each, held) = (kind.elt_size_in_bytes(), storage.len() / kind.elt_size_in_bytes());
        let count = tensor.shape.iter().try_fold(1i64, |n, &d| n.checked_mul(d).filter(|_| d >= 0));
        let reach = |last: i64, (&n, &stride): (&i64, &i64)| {
            last.checked_add(stride.checked_mul((n - 1).max(0)).filter(|_| stride >= 0)?)
        };
        let last = tensor.shape.iter().zip(&tensor.strides).try_fold(tensor.offset, reach);
        let (Some(count), Some(last)) = (count, last) else { return Err(wrong("a shape out of range")) };
        // PyTorch writes no expanded tensor: one has no more values than its storage.
        let fits = tensor.shape.len() == tensor.strides.len()
            && tensor.offset >= 0
            && (count == 0 || (last as usize) < held && count as usize <= held);
        if !fits {
            return Err(wrong(&format!("shape {:?} does not fit its {held} stored values", tensor.shape)));
        }
        bytes = bytes.saturating_add(count as usize * each);
        if bytes > length.saturating_mul(MOST) {
            return Err(wrong("the tensors together are larger than the file could hold"));
        }
        let values = if count == 0 {
            Tensor::f_zeros(&tensor.shape, (kind, tch::Device::Cpu))?
        } else {
            let (first, last) = (tensor.offset as usize, last as usize + 1);
            let flat = Tensor::f_from_data_size(&storage[first * each..last * each], &[(last - first) as i64], kind)?;
            flat.f_as_strided(&tensor.shape, &tensor.strides, 0)?.f_contiguous()?
        };
        state.push((name, values));
    }
    Ok(state)
}

// ------------------------------------------------------------------------------------------------ PyTorch's files

fn broken(e: &dyn std::fmt::Display) -> Error {
    Error::new(format!("the PyTorch checkpoint is broken: {e}"))
}

/// What PyTorch calls a class, as a user knows it: `torchvision.models.resnet.ResNet`.
fn class(name: &str) -> String {
    name.replace(' ', ".")
}

/// The tensors that a pickle holds, behind all wrappers, and notes.
fn weights(pickle: &Pickle) -> Result<(Vec<(String, Lazy)>, Vec<String>)> {
    let whole = |name: &str| {
        Error::new(format!("it holds a whole module ({}), not the module's weights", class(name)))
            .hint("save them in PyTorch: torch.save(model.state_dict(), FILE)")
    };
    let (mut at, mut notes) = (pickle.top, Vec::new());
    // More wrappers than anybody uses; a dictionary may hold itself.
    for _ in 0..8 {
        let entries = match &pickle.values[at] {
            Value::Object(name) => return Err(whole(name)),
            _ => pickle.entries(at).ok_or_else(|| Error::new("it is no dictionary of tensors"))?,
        };
        let inside = |name: &&str| {
            let is_dictionary = |id: usize| matches!(pickle.values[id], Value::Dict(_));
            entries.iter().find(|(key, id)| key == name && is_dictionary(*id)).copied()
        };
        let Some((name, id)) = WRAPPERS.iter().find_map(inside) else { break };
        if AVERAGES.contains(&name) {
            notes.push(format!("the weights are those of {name}, an average over training: the file has no others"));
        }
        at = id;
    }
    let entries = pickle.entries(at).unwrap_or_default();
    let tensors: Vec<(String, Lazy)> = entries
        .iter()
        .filter_map(|(name, id)| match &pickle.values[*id] {
            Value::Tensor(tensor) => Some((name.to_string(), tensor.clone())),
            _ => None,
        })
        .collect();
    if tensors.is_empty() {
        if let Some(Value::Object(name)) =
            WRAPPERS.iter().find_map(|w| entries.iter().find(|(key, _)| key == w)).map(|(_, id)| &pickle.values[*id])
        {
            return Err(whole(name));
        }
        let names: Vec<&str> = entries.iter().map(|(name, _)| *name).take(12).collect();
        return Err(Error::new(format!("the checkpoint holds no tensors; its entries are: {}", names.join(", ")))
            .hint(format!("weights are looked for at the top and under {}", WRAPPERS.join(", "))));
    }
    Ok((tensors, notes))
}

fn zip(bytes: &[u8]) -> Result<Checkpoint> {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|e| broken(&e))?;
    let names: Vec<String> = archive.file_names().map(str::to_string).collect();
    let pickle = names.iter().find(|n| n.ends_with("/data.pkl") || *n == "data.pkl");
    if pickle.is_none()
        && names.iter().any(|n| n.ends_with("serialized_exported_program.json") || n.ends_with("models/model.json"))
    {
        return Err(Error::new("it is an exported program (torch.export), not a checkpoint"));
    }
    let pickle = pickle.ok_or_else(|| broken(&"it has no data.pkl"))?;
    if names.iter().any(|n| n.ends_with("/constants.pkl") || n == "constants.pkl") {
        return Err(Error::new("it is a TorchScript program, not the weights of a model")
            .hint("save them in PyTorch: torch.save(model.state_dict(), FILE)"));
    }
    let root = pickle.trim_end_matches("data.pkl").to_string();
    let mut read = |name: &str| -> Result<Vec<u8>> {
        let mut entry = archive.by_name(name).map_err(|e| broken(&format!("{name}: {e}")))?;
        let mut data = Vec::new();
        entry.read_to_end(&mut data).map_err(|e| broken(&format!("{name}: {e}")))?;
        Ok(data)
    };
    if names.iter().any(|n| *n == format!("{root}byteorder"))
        && read(&format!("{root}byteorder"))?.trim_ascii() != b"little"
    {
        return Err(broken(&"its numbers are big-endian, which is not supported"));
    }
    let pickle = Pickle::read(&read(pickle)?).map_err(|e| broken(&e))?;
    let (tensors, notes) = weights(&pickle)?;
    let mut storages: HashMap<String, Vec<u8>> = HashMap::new();
    for (_, tensor) in &tensors {
        if !storages.contains_key(&tensor.storage) {
            storages.insert(tensor.storage.clone(), read(&format!("{root}data/{}", tensor.storage))?);
        }
    }
    let storages = storages.iter().map(|(key, data)| (key.as_str(), data.as_slice())).collect();
    Ok(Checkpoint { state: build(tensors, &storages, bytes.len())?, notes })
}

/// What the first pickle of a file before PyTorch 1.6 is: `torch.serialization.MAGIC_NUMBER`.
const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// The form before 1.6: pickles of a number, the protocol, the system, the object and the storages' keys; then each storage,
/// its number of values before it.
fn legacy(bytes: &[u8]) -> Result<Checkpoint> {
    if !bytes.starts_with(MAGIC) {
        return Err(Error::new("it is a pickle, but none that torch.save wrote")
            .hint("save the weights in PyTorch: torch.save(model.state_dict(), FILE)"));
    }
    let mut at = MAGIC.len();
    let mut next = || -> Result<Pickle> {
        let pickle = Pickle::read(bytes.get(at..).unwrap_or_default()).map_err(|e| broken(&e))?;
        at += pickle.length;
        Ok(pickle)
    };
    let (_protocol, _system, object, keys) = (next()?, next()?, next()?, next()?);
    let Value::List(ids) = &keys.values[keys.top] else { return Err(broken(&"its storages have no names")) };
    let keys: Vec<String> = ids.iter().filter_map(|id| keys.text(*id)).map(str::to_string).collect();
    let (tensors, notes) = weights(&object)?;
    let classes: HashMap<&str, &str> = object
        .values
        .iter()
        .filter_map(|v| if let Value::Storage(class, key) = v { Some((key.as_str(), class.as_str())) } else { None })
        .collect();
    let mut rest = bytes.get(at..).unwrap_or_default();
    let mut take = |n: usize| -> Result<&[u8]> {
        let (part, after) = rest.split_at_checked(n).ok_or_else(|| broken(&"it is truncated"))?;
        rest = after;
        Ok(part)
    };
    let mut storages: HashMap<&str, &[u8]> = HashMap::new();
    for key in &keys {
        let count = take(8)?.iter().rev().fold(0u64, |v, &b| v << 8 | u64::from(b));
        let kind = classes.get(key.as_str()).and_then(|class| KINDS.iter().find(|(.., c)| c == class));
        let Some((kind, ..)) = kind else { return Err(broken(&format!("storage {key} has no type"))) };
        let size = usize::try_from(count).ok().and_then(|n| n.checked_mul(kind.elt_size_in_bytes()));
        storages.insert(key, take(size.ok_or_else(|| broken(&"it is truncated"))?)?);
    }
    Ok(Checkpoint { state: build(tensors, &storages, bytes.len())?, notes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn safetensors_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let a = Tensor::arange(6, (Kind::Float, Device::Cpu)).reshape([2, 3]);
        let n = Tensor::from_slice(&[7i64]).reshape([] as [i64; 0]);
        write(&path, &[("module.a".into(), a.shallow_clone()), ("module.n".into(), n)]).unwrap();
        let state = read(&path).unwrap();
        assert_eq!(state[0].0, "module.a");
        assert_eq!(state[0].1, a);
        assert_eq!(state[1].1.int64_value(&[]), 7);
        assert_eq!(read_own(&path).unwrap()[0].0, "module.a");
        let picked = pick(&path, &["module.n", "b"]).unwrap();
        assert_eq!((picked[0].as_ref().map(|t| t.int64_value(&[])), picked[1].is_none()), (Some(7), true));
    }

    #[test]
    fn a_header_of_any_length_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let mut like_a_pickle = 0;
        for length in 1..800 {
            write(&path, &[("n".repeat(length), Tensor::from_slice(&[1i64]))]).unwrap();
            like_a_pickle += usize::from(std::fs::read(&path).unwrap().starts_with(b"\x80\x02"));
            assert_eq!(read(&path).unwrap().len(), 1, "{length}");
        }
        assert!(like_a_pickle > 0);
    }

    #[test]
    fn broken_files_say_so() {
        let folder = tempfile::tempdir().unwrap();
        let check = |bytes: &[u8], message: &str| {
            let path = folder.path().join("x.pth");
            std::fs::write(&path, bytes).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("x.pth") && error.contains(message), "{error}");
        };
        check(b"hello", "not a checkpoint that Lightbox reads");
        check(&[0xff; 64], "not a checkpoint that Lightbox reads");
        check(b"PK\x03\x04 cut", "the PyTorch checkpoint is broken");
        check(b"\x80\x02}q\x00.", "it is a pickle, but none that torch.save wrote");
        check(MAGIC, "the pickle is truncated");
    }
}
