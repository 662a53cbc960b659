//! Checkpoints as named tensors: `.safetensors`, and PyTorch's zip files (`torch.save` since 1.6).
//!
//! A PyTorch file is a pickle, which can be told to run any code. Here it is interpreted by a small machine that knows
//! containers, numbers, strings and tensors; every other object becomes an opaque value and nothing is ever called.
//! Wrappers are taken off: a dictionary under `state_dict`, `model`, `model_state_dict`, `net` or `teacher`, and the
//! prefixes `module.` and `model.` when every key has them.

use crate::{Error, Result, files};
use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::path::Path;
use tch::{Kind, Tensor};

/// Tensors by name, in the file's order.
pub type State = Vec<(String, Tensor)>;

/// Reads a checkpoint, CPU.
pub fn read(path: &Path) -> Result<State> {
    let bytes = files::read(path)?;
    let state = if bytes.starts_with(b"PK\x03\x04") {
        zip(&bytes).map(unwrap_prefix)
    // A header of 640 bytes begins as a pickle does; its ninth byte is the JSON's.
    } else if bytes.starts_with(b"\x80\x02") && bytes.get(8) != Some(&b'{') {
        Err(Error::new("a PyTorch checkpoint of the form before 1.6").hint("load it in PyTorch and save it again"))
    } else {
        safetensors(&bytes).map(unwrap_prefix)
    };
    let state = state.map_err(|e| e.with_path(path))?;
    if state.is_empty() {
        return Err(Error::at(path, "the checkpoint holds no tensors"));
    }
    Ok(state)
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

fn unwrap_prefix(mut state: State) -> State {
    while let Some(prefix) = ["module.", "model."].into_iter().find(|p| state.iter().all(|(k, _)| k.starts_with(p)))
        && !state.is_empty()
    {
        state.iter_mut().for_each(|(k, _)| *k = k[prefix.len()..].to_string());
    }
    state
}

// ------------------------------------------------------------------------------------------------ PyTorch's zip

fn zip(bytes: &[u8]) -> Result<State> {
    let broken = |e: &dyn std::fmt::Display| Error::new(format!("the PyTorch checkpoint is broken: {e}"));
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|e| broken(&e))?;
    let names: Vec<String> = archive.file_names().map(str::to_string).collect();
    let pickle = names.iter().find(|n| n.ends_with("/data.pkl") || *n == "data.pkl");
    let pickle = pickle.ok_or_else(|| broken(&"it has no data.pkl"))?;
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
    let top = Machine::run(&read(pickle)?).map_err(|e| broken(&e))?;
    let Value::Dict(mut entries) = top else { return Err(broken(&"its top is not a dictionary")) };
    // Take off wrappers: the first known key that holds a dictionary.
    while let Some(i) = entries.iter().position(|(k, v)| {
        let known = ["state_dict", "model", "model_state_dict", "net", "teacher"];
        matches!((k, v), (Value::Text(k), Value::Dict(_)) if known.contains(&k.as_str()))
    }) {
        let (_, Value::Dict(inner)) = entries.swap_remove(i) else { break };
        entries = inner;
    }
    let mut storages: HashMap<String, Vec<u8>> = HashMap::new();
    let mut state = Vec::new();
    for (name, value) in entries {
        let (Value::Text(name), Value::Tensor(t)) = (name, value) else { continue };
        if !storages.contains_key(&t.storage) {
            storages.insert(t.storage.clone(), read(&format!("{root}data/{}", t.storage))?);
        }
        state.push((name.clone(), t.build(&storages[&t.storage]).map_err(|e| broken(&format!("{name}: {}", e.what)))?));
    }
    Ok(state)
}

#[derive(Debug, Clone)]
struct Lazy {
    kind: Kind,
    storage: String,
    offset: i64,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

impl Lazy {
    fn build(&self, storage: &[u8]) -> Result<Tensor> {
        let each = self.kind.elt_size_in_bytes() as i64;
        let held = storage.len() as i64 / each;
        let mut last = self.offset;
        for (&n, &stride) in self.shape.iter().zip(&self.strides) {
            let reach = stride.checked_mul((n - 1).max(0)).filter(|_| n >= 0 && stride >= 0);
            last = reach.and_then(|r| last.checked_add(r)).ok_or_else(|| Error::new("a shape out of range"))?;
        }
        let empty = self.shape.contains(&0);
        if self.offset < 0 || self.shape.len() != self.strides.len() || (last >= held && !empty) {
            return Err(Error::new(format!("shape {:?} does not fit its {held} stored values", self.shape)));
        }
        if empty {
            return Ok(Tensor::f_zeros(&self.shape, (self.kind, tch::Device::Cpu))?);
        }
        let flat = Tensor::f_from_data_size(&storage[..(held * each) as usize], &[held], self.kind)?;
        Ok(flat.f_as_strided(&self.shape, &self.strides, self.offset)?.f_contiguous()?)
    }
}

/// What the machine can hold.
#[derive(Debug, Clone)]
enum Value {
    None,
    Bool,
    Int(i64),
    Text(String),
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    Global(String),
    /// A storage: its class and key.
    Storage(String, String),
    Tensor(Lazy),
    /// Anything else: known to be there, and nothing more.
    Opaque,
    Mark,
}

struct Machine<'a> {
    code: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
}

type Step<T> = std::result::Result<T, String>;

impl<'a> Machine<'a> {
    fn run(code: &'a [u8]) -> Step<Value> {
        let mut machine = Machine { code, at: 0, stack: vec![], memo: HashMap::new() };
        loop {
            if let Some(value) = machine.step()? {
                return Ok(value);
            }
        }
    }

    fn take(&mut self, n: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&e| e <= self.code.len()).ok_or("the pickle is truncated")?;
        let bytes = &self.code[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn number(&mut self, n: usize) -> Step<u64> {
        Ok(self.take(n)?.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b)))
    }

    fn text(&mut self, n: usize) -> Step<Value> {
        Ok(Value::Text(String::from_utf8_lossy(self.take(n)?).into_owned()))
    }

    fn line(&mut self) -> Step<String> {
        let end = self.code[self.at..].iter().position(|&b| b == b'\n').ok_or("the pickle is truncated")?;
        let line = String::from_utf8_lossy(self.take(end)?).into_owned();
        self.at += 1;
        Ok(line)
    }

    fn pop(&mut self) -> Step<Value> {
        self.stack.pop().ok_or_else(|| "the pickle takes from an empty stack".into())
    }

    fn pop_mark(&mut self) -> Step<Vec<Value>> {
        let mark = self.stack.iter().rposition(|v| matches!(v, Value::Mark)).ok_or("the pickle has no mark")?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn set_items(&mut self, items: Vec<Value>) {
        if let Some(Value::Dict(dict)) = self.stack.last_mut() {
            let mut items = items.into_iter();
            while let (Some(key), Some(value)) = (items.next(), items.next()) {
                dict.push((key, value));
            }
        }
    }

    fn append(&mut self, items: Vec<Value>) {
        if let Some(Value::List(list)) = self.stack.last_mut() {
            list.extend(items);
        }
    }

    fn memoize(&mut self, slot: u32) -> Step<()> {
        let top = self.stack.last().cloned().ok_or("the pickle stores an empty stack")?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Step<()> {
        let value = self.memo.get(&slot).cloned().ok_or("the pickle recalls what was not stored")?;
        self.stack.push(value);
        Ok(())
    }

    /// "Calls" what PyTorch's files call. Nothing runs; what is not known is opaque.
    fn reduce(callee: &Value, arguments: &Value) -> Value {
        let (Value::Global(name), Value::List(args)) = (callee, arguments) else { return Value::Opaque };
        let ints = |v: &Value| match v {
            Value::List(l) => l.iter().map(|v| if let Value::Int(n) = v { Some(*n) } else { None }).collect(),
            _ => None,
        };
        match (name.as_str(), args.as_slice()) {
            ("collections OrderedDict", _) => Value::Dict(vec![]),
            (
                "torch._utils _rebuild_tensor_v2",
                [Value::Storage(class, key), Value::Int(offset), shape, strides, ..],
            ) => {
                let kind = KINDS.iter().find(|(.., c)| c == class).map(|(k, ..)| *k);
                match (kind, ints(shape), ints(strides)) {
                    (Some(kind), Some(shape), Some(strides)) => {
                        Value::Tensor(Lazy { kind, storage: key.clone(), offset: *offset, shape, strides })
                    }
                    _ => Value::Opaque,
                }
            }
            ("torch._utils _rebuild_parameter", [Value::Tensor(tensor), ..]) => Value::Tensor(tensor.clone()),
            _ => Value::Opaque,
        }
    }

    fn step(&mut self) -> Step<Option<Value>> {
        let op = self.take(1)?[0];
        match op {
            0x80 => drop(self.take(1)?), // PROTO
            0x95 => drop(self.take(8)?), // FRAME
            b'.' => return self.pop().map(Some),
            b'(' => self.stack.push(Value::Mark),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.stack.last().cloned().ok_or("the pickle doubles an empty stack")?;
                self.stack.push(top);
            }
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Bool),
            b'K' => {
                let n = self.number(1)? as i64;
                self.stack.push(Value::Int(n));
            }
            b'M' => {
                let n = self.number(2)? as i64;
                self.stack.push(Value::Int(n));
            }
            b'J' => {
                let n = self.number(4)? as u32 as i32;
                self.stack.push(Value::Int(n.into()));
            }
            0x8a => {
                let n = self.number(1)? as usize;
                let bytes = self.take(n)?;
                let mut wide = [if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 }; 8];
                let fits = n <= 8;
                wide[..n.min(8)].copy_from_slice(&bytes[..n.min(8)]);
                self.stack.push(if fits { Value::Int(i64::from_le_bytes(wide)) } else { Value::Opaque });
            }
            b'I' | b'L' => {
                let text = self.line()?;
                let number = text.trim_end_matches('L').parse();
                self.stack.push(number.map_or(Value::Bool, Value::Int));
            }
            b'G' => {
                self.take(8)?;
                self.stack.push(Value::Opaque);
            }
            b'F' => {
                self.line()?;
                self.stack.push(Value::Opaque);
            }
            b'X' | 0x8c | 0x8d | b'U' | b'T' => {
                let width = match op {
                    b'X' | b'T' => 4,
                    0x8d => 8,
                    _ => 1,
                };
                let n = self.number(width)? as usize;
                let text = self.text(n)?;
                self.stack.push(text);
            }
            b'B' | b'C' | 0x8e | 0x96 => {
                let width = match op {
                    b'B' => 4,
                    b'C' => 1,
                    _ => 8,
                };
                let n = self.number(width)? as usize;
                self.take(n)?;
                self.stack.push(Value::Opaque);
            }
            b'}' => self.stack.push(Value::Dict(vec![])),
            b']' | b')' | 0x8f => self.stack.push(Value::List(vec![])),
            b'l' | b't' => {
                let items = self.pop_mark()?;
                self.stack.push(Value::List(items));
            }
            0x91 => {
                self.pop_mark()?;
                self.stack.push(Value::Opaque);
            }
            b'd' => {
                let items = self.pop_mark()?;
                self.stack.push(Value::Dict(vec![]));
                self.set_items(items);
            }
            0x85..=0x87 => {
                let n = usize::from(op - 0x84);
                let from = self.stack.len().checked_sub(n).ok_or("the pickle takes from an empty stack")?;
                let items = self.stack.split_off(from);
                self.stack.push(Value::List(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item]);
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items);
            }
            0x90 => drop(self.pop_mark()?), // ADDITEMS to a set, which is opaque
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![key, value]);
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(items);
            }
            b'c' => {
                let name = format!("{} {}", self.line()?, self.line()?);
                self.stack.push(Value::Global(name));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let global = match (module, name) {
                    (Value::Text(module), Value::Text(name)) => Value::Global(format!("{module} {name}")),
                    _ => Value::Opaque,
                };
                self.stack.push(global);
            }
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                self.stack.push(Self::reduce(&callee, &arguments));
            }
            0x92 => {
                self.pop()?;
                self.pop()?;
                self.pop()?;
                self.stack.push(Value::Opaque);
            }
            // BUILD: the state of an object; a state dict's `_metadata` comes this way and is not wanted.
            b'b' => drop(self.pop()?),
            b'Q' => {
                // ("storage", class, key, device, count)
                let storage = match self.pop()? {
                    Value::List(parts) => match parts.as_slice() {
                        [Value::Text(tag), Value::Global(class), Value::Text(key), ..] if tag == "storage" => {
                            let class = class.rsplit(' ').next().unwrap_or_default().to_string();
                            Value::Storage(class, key.clone())
                        }
                        _ => Value::Opaque,
                    },
                    _ => Value::Opaque,
                };
                self.stack.push(storage);
            }
            b'q' => {
                let slot = self.number(1)? as u32;
                self.memoize(slot)?;
            }
            b'r' => {
                let slot = self.number(4)? as u32;
                self.memoize(slot)?;
            }
            0x94 => {
                let slot = self.memo.len() as u32;
                self.memoize(slot)?;
            }
            b'h' => {
                let slot = self.number(1)? as u32;
                self.recall(slot)?;
            }
            b'j' => {
                let slot = self.number(4)? as u32;
                self.recall(slot)?;
            }
            other => return Err(format!("the pickle has instruction {other:#04x}, which no checkpoint needs")),
        }
        Ok(None)
    }
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
        assert_eq!(state[0].0, "a");
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
        check(b"\x80\x02}q\x00.", "before 1.6");
    }

    #[test]
    fn no_object_is_ever_made() {
        // os.system("true"): a global, its arguments, REDUCE.
        let value = Machine::run(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.").unwrap();
        assert!(matches!(value, Value::Opaque));
        assert!(Machine::run(b"\x80\x02(").unwrap_err().contains("truncated"));
        assert!(Machine::run(b"\x80\x02u.").unwrap_err().contains("no mark"));
        assert!(Machine::run(b"\x80\x02\xfe").unwrap_err().contains("0xfe"));
    }
}
