//! The pickles in PyTorch's files, interpreted by a small machine that knows containers, numbers, strings and tensors.
//!
//! A pickle can be told to run any code. Here every object that is none of these becomes an opaque value with its class's
//! name, and nothing is ever called. Values lie in one list and name each other by their places in it, so that whatever is
//! stored, recalled or doubled costs a number, nesting costs no stack, and a pickle cannot take more memory than a fixed
//! multiple of its length. Instructions: Python's `pickletools`.

use std::collections::HashMap;

/// A value's place in [`Pickle::values`].
pub type Id = usize;

/// A tensor whose values are not read yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Lazy {
    /// PyTorch's class of the storage, as `FloatStorage`.
    pub class: String,
    /// The storage's key.
    pub storage: String,
    /// Values before the first.
    pub offset: i64,
    /// Sizes.
    pub shape: Vec<i64>,
    /// Values from one index to the next.
    pub strides: Vec<i64>,
}

/// What the machine can hold.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `None`, a truth value, a real number, bytes: known to be there, and nothing more.
    Plain,
    /// A whole number.
    Int(i64),
    /// A text.
    Text(String),
    /// A list or a tuple.
    List(Vec<Id>),
    /// A dictionary, in the order of its entries.
    Dict(Vec<(Id, Id)>),
    /// A class or a function, `module name`.
    Global(String),
    /// A storage: its class and key.
    Storage(String, String),
    /// A tensor of a storage.
    Tensor(Lazy),
    /// An object of a class, `module name`.
    Object(String),
    /// On the stack only: where a list of items begins.
    Mark,
}

/// What one pickle holds.
#[derive(Debug)]
pub struct Pickle {
    /// All values.
    pub values: Vec<Value>,
    /// The place of the one that was pickled.
    pub top: Id,
    /// Bytes that the pickle took.
    pub length: usize,
}

impl Pickle {
    /// Interprets the pickle at the beginning of some bytes.
    ///
    /// # Errors
    /// What is wrong, as a sentence.
    pub fn read(code: &[u8]) -> Result<Self, String> {
        let mut machine =
            Machine { code, at: 0, values: vec![Value::Mark, Value::Plain], stack: vec![], memo: HashMap::new() };
        loop {
            if let Some(top) = machine.step()? {
                return Ok(Pickle { values: machine.values, top, length: machine.at });
            }
        }
    }

    /// The text at a place.
    pub fn text(&self, id: Id) -> Option<&str> {
        if let Value::Text(text) = &self.values[id] { Some(text) } else { None }
    }

    /// The entries of the dictionary at a place, those whose keys are texts.
    pub fn entries(&self, id: Id) -> Option<Vec<(&str, Id)>> {
        let Value::Dict(entries) = &self.values[id] else { return None };
        Some(entries.iter().filter_map(|(key, value)| Some((self.text(*key)?, *value))).collect())
    }
}

struct Machine<'a> {
    code: &'a [u8],
    at: usize,
    /// The first two are the mark and the plain value, which all share.
    values: Vec<Value>,
    stack: Vec<Id>,
    memo: HashMap<u32, Id>,
}

const MARK: Id = 0;
const PLAIN: Id = 1;

type Step<T> = Result<T, String>;

impl<'a> Machine<'a> {
    fn take(&mut self, n: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&e| e <= self.code.len()).ok_or("the pickle is truncated")?;
        let bytes = &self.code[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn number(&mut self, n: usize) -> Step<u64> {
        Ok(self.take(n)?.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b)))
    }

    /// A length in so many bytes.
    fn length(&mut self, n: usize) -> Step<usize> {
        usize::try_from(self.number(n)?).map_err(|_| "the pickle is truncated".to_string())
    }

    fn line(&mut self) -> Step<String> {
        let end = self.code[self.at..].iter().position(|&b| b == b'\n').ok_or("the pickle is truncated")?;
        let line = String::from_utf8_lossy(self.take(end)?).into_owned();
        self.at += 1;
        Ok(line)
    }

    fn push(&mut self, value: Value) {
        self.values.push(value);
        self.stack.push(self.values.len() - 1);
    }

    fn pop(&mut self) -> Step<Id> {
        self.stack.pop().filter(|id| *id != MARK).ok_or_else(|| "the pickle takes from an empty stack".into())
    }

    fn top(&self) -> Step<Id> {
        self.stack.last().copied().filter(|id| *id != MARK).ok_or_else(|| "the pickle reads an empty stack".into())
    }

    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.stack.iter().rposition(|id| *id == MARK).ok_or("the pickle has no mark")?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn set_items(&mut self, items: &[Id]) {
        if let Some(Value::Dict(dict)) = self.stack.last().and_then(|id| self.values.get_mut(*id)) {
            dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        }
    }

    fn append(&mut self, items: Vec<Id>) {
        if let Some(Value::List(list)) = self.stack.last().and_then(|id| self.values.get_mut(*id)) {
            list.extend(items);
        }
    }

    fn recall(&mut self, slot: u32) -> Step<()> {
        let id = *self.memo.get(&slot).ok_or("the pickle recalls what was not stored")?;
        self.stack.push(id);
        Ok(())
    }

    /// "Calls" what PyTorch's files call. Nothing runs; what is not known is an object of its class.
    fn reduce(&self, callee: Id, arguments: Id) -> Value {
        let (Value::Global(name), Value::List(args)) = (&self.values[callee], &self.values[arguments]) else {
            return Value::Plain;
        };
        let ints = |id: Id| -> Option<Vec<i64>> {
            let Value::List(list) = &self.values[id] else { return None };
            list.iter().map(|id| if let Value::Int(n) = self.values[*id] { Some(n) } else { None }).collect()
        };
        match (name.as_str(), args.as_slice()) {
            ("collections OrderedDict", _) => Value::Dict(vec![]),
            (
                "torch._utils _rebuild_tensor_v2" | "torch._utils _rebuild_tensor",
                [storage, offset, shape, strides, ..],
            ) => match (&self.values[*storage], &self.values[*offset], ints(*shape), ints(*strides)) {
                (Value::Storage(class, key), Value::Int(offset), Some(shape), Some(strides)) => {
                    Value::Tensor(Lazy { class: class.clone(), storage: key.clone(), offset: *offset, shape, strides })
                }
                _ => Value::Object(name.clone()),
            },
            ("torch._utils _rebuild_parameter", [tensor, ..]) => match &self.values[*tensor] {
                Value::Tensor(tensor) => Value::Tensor(tensor.clone()),
                _ => Value::Object(name.clone()),
            },
            _ => Value::Object(name.clone()),
        }
    }

    /// ("storage", class, key, device, count)
    fn storage(&self, id: Id) -> Value {
        let Value::List(parts) = &self.values[id] else { return Value::Plain };
        match parts.iter().map(|id| &self.values[*id]).collect::<Vec<_>>()[..] {
            [Value::Text(tag), Value::Global(class), Value::Text(key), ..] if tag == "storage" => {
                Value::Storage(class.rsplit(' ').next().unwrap_or_default().to_string(), key.clone())
            }
            _ => Value::Plain,
        }
    }

    fn step(&mut self) -> Step<Option<Id>> {
        let op = self.take(1)?[0];
        match op {
            0x80 => drop(self.take(1)?), // PROTO
            0x95 => drop(self.take(8)?), // FRAME
            b'.' => return self.pop().map(Some),
            b'(' => self.stack.push(MARK),
            b'0' => drop(self.stack.pop().ok_or("the pickle takes from an empty stack")?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' | 0x88 | 0x89 => self.stack.push(PLAIN),
            b'K' => {
                let n = self.number(1)? as i64;
                self.push(Value::Int(n));
            }
            b'M' => {
                let n = self.number(2)? as i64;
                self.push(Value::Int(n));
            }
            b'J' => {
                let n = self.number(4)? as u32 as i32;
                self.push(Value::Int(n.into()));
            }
            0x8a => {
                let n = self.length(1)?;
                let bytes = self.take(n)?;
                let mut wide = [if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 }; 8];
                let fits = n <= 8;
                wide[..n.min(8)].copy_from_slice(&bytes[..n.min(8)]);
                self.push(if fits { Value::Int(i64::from_le_bytes(wide)) } else { Value::Plain });
            }
            b'I' | b'L' => {
                let text = self.line()?;
                let number = text.trim_end_matches('L').parse();
                self.push(number.map_or(Value::Plain, Value::Int));
            }
            b'G' => {
                self.take(8)?;
                self.stack.push(PLAIN);
            }
            b'F' => {
                self.line()?;
                self.stack.push(PLAIN);
            }
            b'X' | 0x8c | 0x8d | b'U' | b'T' => {
                let width = match op {
                    b'X' | b'T' => 4,
                    0x8d => 8,
                    _ => 1,
                };
                let n = self.length(width)?;
                let text = String::from_utf8_lossy(self.take(n)?).into_owned();
                self.push(Value::Text(text));
            }
            b'B' | b'C' | 0x8e | 0x96 => {
                let width = match op {
                    b'B' => 4,
                    b'C' => 1,
                    _ => 8,
                };
                let n = self.length(width)?;
                self.take(n)?;
                self.stack.push(PLAIN);
            }
            b'}' => self.push(Value::Dict(vec![])),
            b']' | b')' | 0x8f => self.push(Value::List(vec![])),
            b'l' | b't' => {
                let items = self.pop_mark()?;
                self.push(Value::List(items));
            }
            0x91 => {
                self.pop_mark()?;
                self.stack.push(PLAIN);
            }
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Value::Dict(vec![]));
                self.set_items(&items);
            }
            0x85..=0x87 => {
                let n = usize::from(op - 0x84);
                let from = self.stack.len().checked_sub(n).ok_or("the pickle takes from an empty stack")?;
                let items = self.stack.split_off(from);
                if items.contains(&MARK) {
                    return Err("the pickle takes from an empty stack".into());
                }
                self.push(Value::List(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item]);
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items);
            }
            0x90 => drop(self.pop_mark()?), // ADDITEMS to a set, whose items are not wanted
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value]);
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items);
            }
            b'c' => {
                let name = format!("{} {}", self.line()?, self.line()?);
                self.push(Value::Global(name));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let global = match (&self.values[module], &self.values[name]) {
                    (Value::Text(module), Value::Text(name)) => Value::Global(format!("{module} {name}")),
                    _ => Value::Plain,
                };
                self.push(global);
            }
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                let made = self.reduce(callee, arguments);
                self.push(made);
            }
            // NEWOBJ_EX, and what old pickles make objects by: OBJ, INST.
            0x92 => {
                self.pop()?;
                self.pop()?;
                let class = self.pop()?;
                let made = self.object(class);
                self.push(made);
            }
            b'o' => {
                let items = self.pop_mark()?;
                let made = items.first().map_or(Value::Plain, |class| self.object(*class));
                self.push(made);
            }
            b'i' => {
                let name = format!("{} {}", self.line()?, self.line()?);
                self.pop_mark()?;
                self.push(Value::Object(name));
            }
            // BUILD: the state of an object; a state dict's `_metadata` comes this way and is not wanted.
            b'b' => drop(self.pop()?),
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id);
                self.push(storage);
            }
            b'q' | b'r' | 0x94 => {
                let slot = match op {
                    b'q' => self.number(1)? as u32,
                    b'r' => self.number(4)? as u32,
                    _ => self.memo.len() as u32,
                };
                let top = self.top()?;
                self.memo.insert(slot, top);
            }
            b'h' | b'j' => {
                let slot = self.number(if op == b'h' { 1 } else { 4 })? as u32;
                self.recall(slot)?;
            }
            other => return Err(format!("the pickle has instruction {other:#04x}, which no checkpoint needs")),
        }
        Ok(None)
    }

    fn object(&self, class: Id) -> Value {
        if let Value::Global(name) = &self.values[class] { Value::Object(name.clone()) } else { Value::Plain }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top(code: &[u8]) -> Value {
        let pickle = Pickle::read(code).unwrap();
        pickle.values[pickle.top].clone()
    }

    #[test]
    fn no_object_is_ever_made() {
        // os.system("true"): a global, its arguments, REDUCE.
        let code = b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.";
        assert_eq!(top(code), Value::Object("os system".into()));
        let fault = |code: &[u8]| Pickle::read(code).unwrap_err();
        assert!(fault(b"\x80\x02(").contains("truncated"));
        assert!(fault(b"\x80\x02u.").contains("no mark"));
        assert!(fault(b"\x80\x02\xfe").contains("0xfe"));
        assert!(fault(b"(.").contains("empty stack"));
    }

    #[test]
    fn what_is_stored_changes_with_what_it_is() {
        // x = {}; y = [x, x]; x["a"] = 1: both are the one dictionary.
        let pickle = Pickle::read(b"}q\x00X\x01\x00\x00\x00aK\x01sh\x00\x86.").unwrap();
        let Value::List(items) = &pickle.values[pickle.top] else { panic!() };
        assert_eq!(items[0], items[1]);
        assert_eq!(pickle.entries(items[0]).unwrap().len(), 1);
    }

    #[test]
    fn doubling_and_nesting_cost_what_the_pickle_is_long() {
        // (x, x) of it, 34 times, was 2^34 values; a million levels were a million frames of the stack.
        let mut code = b"N".to_vec();
        (0..34).for_each(|_| code.extend(b"2\x86"));
        code.push(b'.');
        assert!(Pickle::read(&code).unwrap().values.len() < 100);
        let mut code = b"N".to_vec();
        code.resize(1_000_001, 0x85);
        code.push(b'.');
        drop(Pickle::read(&code).unwrap());
    }
}
