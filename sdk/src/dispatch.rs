//! libtorch's dispatcher: operators by name, for models that are programs of them. `csrc/dispatch.cpp` does the calls.

use crate::{Error, ErrorKind, Result};
use std::ffi::{CStr, CString, c_char, c_void};
use tch::{Device, Tensor};

/// An argument or a result as it crosses; its tags are those of the shim.
#[repr(C)]
#[derive(Clone, Copy)]
struct Raw {
    tag: i32,
    len: i32,
    integer: i64,
    number: f64,
    data: *const c_void,
}

const DEFAULT: i32 = 0;
const NONE: i32 = 1;
const TENSOR: i32 = 2;
const INT: i32 = 3;
const DOUBLE: i32 = 4;
const BOOL: i32 = 5;
const TEXT: i32 = 6;
const INTS: i32 = 7;
const DOUBLES: i32 = 8;
const BOOLS: i32 = 9;
const TENSORS: i32 = 10;
const DEVICE: i32 = 11;
/// The most results of a call: a list of tensors counts with each of them.
const MOST_RESULTS: usize = 512;

unsafe extern "C" {
    fn lightbox_operator_find(
        name: *const c_char,
        overload: *const c_char,
        op: *mut *mut c_void,
        text: *mut c_char,
        text_len: usize,
        error: *mut c_char,
        len: usize,
    ) -> i64;
    fn lightbox_operator_free(op: *mut c_void);
    fn lightbox_operator_call(
        op: *const c_void,
        args: *const Raw,
        n: usize,
        out: *mut Raw,
        out_len: usize,
        error: *mut c_char,
        len: usize,
    ) -> i64;
}

/// An argument of a call. What a number or a list becomes, the operator's schema says.
#[derive(Debug)]
pub enum Arg<'a> {
    /// The schema's default; an error where it has none.
    Default,
    /// None.
    None,
    /// A tensor.
    Tensor(&'a Tensor),
    /// A whole number; a tensor's, a list's or a real number where the schema wants one.
    Int(i64),
    /// A real number.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text.
    Text(&'a str),
    /// Whole numbers.
    Ints(Vec<i64>),
    /// Real numbers.
    Floats(&'a [f64]),
    /// Flags, 0 or 1.
    Bools(Vec<i64>),
    /// Tensors, some of which may be absent.
    Tensors(Vec<Option<&'a Tensor>>),
    /// A device.
    Device(Device),
}

/// A result of a call.
#[derive(Debug)]
pub enum Value {
    /// Nothing.
    None,
    /// A tensor.
    Tensor(Tensor),
    /// A whole number.
    Int(i64),
    /// A real number.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A list of tensors.
    Tensors(Vec<Tensor>),
}

/// What an operator does with the memory of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alias {
    /// It reads it.
    Reads,
    /// Its result shares it.
    Views,
    /// It writes to it.
    Writes,
}

/// An operator of the dispatcher, looked up once.
#[derive(Debug)]
pub struct Operator {
    handle: *mut c_void,
    /// Names of the arguments in the schema's order, and what becomes of their memory.
    pub arguments: Vec<(String, Alias)>,
}

// SAFETY: a handle points to an entry of the dispatcher's table, which any thread may call.
unsafe impl Send for Operator {}
// SAFETY: as above; a call changes nothing of the handle.
unsafe impl Sync for Operator {}

impl Drop for Operator {
    fn drop(&mut self) {
        // SAFETY: made by `lightbox_operator_find` and freed here alone.
        unsafe { lightbox_operator_free(self.handle) };
    }
}

/// Calls `f` with a buffer for an error's text; a negative answer means that there is one.
fn checked(f: impl FnOnce(*mut c_char, usize) -> i64) -> Result<i64> {
    let mut error = [0 as c_char; 2048];
    match f(error.as_mut_ptr(), error.len()) {
        n if n < 0 => {
            // SAFETY: the shim writes at most one byte less than the buffer, which began as zeros.
            let text = unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy();
            Err(Error::new(ErrorKind::Torch, text.trim()))
        }
        n => Ok(n),
    }
}

impl Operator {
    /// The operator `aten::conv2d` with an overload (`default` and the empty text are the same); `None` where this libtorch has
    /// none of that name.
    pub fn find(name: &str, overload: &str) -> Result<Option<Operator>> {
        let overload = if overload == "default" { "" } else { overload };
        let text = |t: &str| CString::new(t).map_err(|_| Error::invalid("an operator's name holds a zero byte"));
        let (name, overload) = (text(name)?, text(overload)?);
        let (mut handle, mut lines) = (std::ptr::null_mut(), [0 as c_char; 8192]);
        // SAFETY: the names end with a zero; the buffers are as long as they say.
        let found = checked(|e, n| unsafe {
            let (lines, len) = (lines.as_mut_ptr(), lines.len());
            lightbox_operator_find(name.as_ptr(), overload.as_ptr(), &mut handle, lines, len, e, n)
        })?;
        if found == 0 {
            return Ok(None);
        }
        // SAFETY: the shim ends the text with a zero.
        let lines = unsafe { CStr::from_ptr(lines.as_ptr()) }.to_string_lossy();
        let argument = |line: &str| {
            let (name, alias) = line.split_once(' ').unwrap_or((line, "-"));
            let alias = match alias {
                "w" => Alias::Writes,
                "r" => Alias::Views,
                _ => Alias::Reads,
            };
            (name.to_string(), alias)
        };
        Ok(Some(Operator { handle, arguments: lines.lines().map(argument).collect() }))
    }

    /// Calls it with an argument for each of its schema's. Autograd records as with any operator.
    ///
    /// # Errors
    /// Whatever libtorch says.
    pub fn call(&self, args: &[Arg<'_>]) -> Result<Vec<Value>> {
        let pointer = |t: &Tensor| t.as_ptr() as *const c_void;
        let list = |a: &Arg<'_>| -> Vec<*const c_void> {
            match a {
                Arg::Tensors(all) => all.iter().map(|t| t.map_or(std::ptr::null(), pointer)).collect(),
                _ => Vec::new(),
            }
        };
        let lists: Vec<Vec<*const c_void>> = args.iter().map(list).collect();
        let raw = |(a, list): (&Arg<'_>, &Vec<*const c_void>)| {
            let plain = |tag| Raw { tag, len: 0, integer: 0, number: 0.0, data: std::ptr::null() };
            let many = |tag, len: usize, data: *const c_void| Raw { len: len as i32, data, ..plain(tag) };
            match a {
                Arg::Default => plain(DEFAULT),
                Arg::None => plain(NONE),
                Arg::Tensor(t) => Raw { data: pointer(t), ..plain(TENSOR) },
                Arg::Int(i) => Raw { integer: *i, ..plain(INT) },
                Arg::Float(f) => Raw { number: *f, ..plain(DOUBLE) },
                Arg::Bool(b) => Raw { integer: i64::from(*b), ..plain(BOOL) },
                Arg::Text(s) => many(TEXT, s.len(), s.as_ptr().cast()),
                Arg::Ints(v) => many(INTS, v.len(), v.as_ptr().cast()),
                Arg::Floats(v) => many(DOUBLES, v.len(), v.as_ptr().cast()),
                Arg::Bools(v) => many(BOOLS, v.len(), v.as_ptr().cast()),
                Arg::Tensors(v) => many(TENSORS, v.len(), list.as_ptr().cast()),
                Arg::Device(Device::Cuda(n)) => Raw { integer: 1, len: *n as i32, ..plain(DEVICE) },
                Arg::Device(_) => Raw { integer: 0, len: -1, ..plain(DEVICE) },
            }
        };
        let raw: Vec<Raw> = args.iter().zip(&lists).map(raw).collect();
        let mut out = [Raw { tag: NONE, len: 0, integer: 0, number: 0.0, data: std::ptr::null() }; MOST_RESULTS];
        // SAFETY: what `raw` points to lives in `args` and `lists`.
        let n = checked(|e, len| unsafe {
            lightbox_operator_call(self.handle, raw.as_ptr(), raw.len(), out.as_mut_ptr(), out.len(), e, len)
        })?;
        let mut out = out[..n as usize].iter();
        let tensor = |r: &Raw| match r.data.is_null() {
            true => None,
            // SAFETY: a new `at::Tensor` that nobody else owns.
            false => Some(unsafe { Tensor::from_ptr(r.data as *mut _) }),
        };
        let mut values = Vec::new();
        while let Some(r) = out.next() {
            values.push(match r.tag {
                TENSOR => tensor(r).map_or(Value::None, Value::Tensor),
                INT => Value::Int(r.integer),
                DOUBLE => Value::Float(r.number),
                BOOL => Value::Bool(r.integer != 0),
                TENSORS => Value::Tensors(out.by_ref().take(r.len as usize).filter_map(tensor).collect()),
                _ => Value::None,
            });
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_is_found_described_and_called() {
        let add = Operator::find("aten::add", "Tensor").unwrap().unwrap();
        assert_eq!(add.arguments.iter().map(|a| a.0.as_str()).collect::<Vec<_>>(), ["self", "other", "alpha"]);
        let (a, b) = (Tensor::from_slice(&[1.0f32, 2.0]), Tensor::from_slice(&[10.0f32, 20.0]));
        let sum = |args: &[Arg<'_>]| match add.call(args).unwrap().remove(0) {
            Value::Tensor(t) => Vec::<f32>::try_from(t).unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(sum(&[Arg::Tensor(&a), Arg::Tensor(&b), Arg::Int(2)]), [21.0, 42.0]);
        // A number in a tensor's place, and the schema's default.
        assert_eq!(sum(&[Arg::Tensor(&a), Arg::Float(0.5), Arg::Default]), [1.5, 2.5]);
        assert!(Operator::find("mine::double", "default").unwrap().is_none());
        let view = Operator::find("aten::view", "default").unwrap().unwrap();
        assert_eq!(view.arguments[0].1, Alias::Views);
        assert_eq!(Operator::find("aten::relu_", "").unwrap().unwrap().arguments[0].1, Alias::Writes);
    }

    #[test]
    fn lists_go_in_and_come_back_and_an_exception_is_an_error() {
        let chunk = Operator::find("aten::chunk", "default").unwrap().unwrap();
        let x = Tensor::arange(6, (tch::Kind::Float, Device::Cpu));
        let Value::Tensors(parts) = chunk.call(&[Arg::Tensor(&x), Arg::Int(3), Arg::Int(0)]).unwrap().remove(0) else {
            panic!("no list")
        };
        assert_eq!(parts.iter().map(Tensor::size).collect::<Vec<_>>(), [[2], [2], [2]]);
        let cat = Operator::find("aten::cat", "default").unwrap().unwrap();
        let all: Vec<Option<&Tensor>> = parts.iter().map(Some).collect();
        let Value::Tensor(back) = cat.call(&[Arg::Tensors(all), Arg::Int(0)]).unwrap().remove(0) else { panic!() };
        assert_eq!(back, x);
        let error = chunk.call(&[Arg::Tensor(&x), Arg::Int(0), Arg::Int(0)]).unwrap_err().to_string();
        assert!(error.contains("chunk expects"), "{error}");
        let error = chunk.call(&[Arg::Tensor(&x)]).unwrap_err().to_string();
        assert!(error.contains("1 arguments for aten::chunk"), "{error}");
    }
}
