//! What a plugin may ask of the host during a call, and how a host answers.
//!
//! Any call is a sign of life: a host stops a plugin for its silence, not for the length of its work.

use crate::abi::{self, HostCalls, Message, RResult, RStr, RString, RVec};
use crate::message::{Packer, Unpacker};
use crate::model::Named;
use crate::spec::ImageRecord;
use crate::wire::FitBatchMessage;
use crate::{Array, Error, ErrorKind, Result};
use serde_json::{Value, json};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::path::Path;

/// A host's answers. Everything but [`Host::cancelled`] has a default, so that a host of a test is short.
pub trait Host {
    /// Whether the user wants the work to stop.
    fn cancelled(&self) -> bool {
        false
    }

    /// A line for the user.
    fn log(&self, line: &str) {
        let _ = line;
    }

    /// How far the call has come: `done` of `of` in units of the plugin's own.
    fn progress(&self, done: u64, of: u64) {
        let _ = (done, of);
    }

    /// An image file as the model takes it: [C, H, W] float32, resized and normalised, in the memory that the
    /// explainer's arrays are in.
    fn read_image(&self, path: &Path) -> Result<Array> {
        let _ = path;
        Err(Error::unsupported("this call reads no images"))
    }

    /// The next batch of a fit, from the first one again with `rewind`; `None` after the last.
    fn fit_batch(&self, rewind: bool) -> Result<Option<FitBatch>> {
        let _ = rewind;
        Err(Error::unsupported("this call has no batches to fit on"))
    }
}

/// A host that never cancels and drops what is logged.
pub struct Silent;

impl Host for Silent {}

/// A batch of the training set, for [`Bound::with_fit`](crate::Bound::with_fit).
#[derive(Debug, Clone)]
pub struct FitBatch {
    /// [B, C, H, W] float32, normalised as the model's input says.
    pub images: Array,
    /// [B, classes] float32, CPU: 1 where the class holds.
    pub labels: Array,
    /// [B, H, W] uint8, CPU: 1 where the finding is; all 0 where there is none or its place is not known.
    pub masks: Array,
    /// `[B]` bool, CPU: whether the mask is known.
    pub known: Array,
    /// Stable numbers of the images.
    pub ids: Vec<u64>,
    /// What the data source says of each image.
    pub records: Vec<ImageRecord>,
    /// Values of the sites that [`FitNeeds`](crate::spec::FitNeeds) names.
    pub values: Named,
    /// [B, classes] float32.
    pub logits: Array,
}

/// The calls of a [`Host`], valid while this lives.
pub struct Serving<'a>(&'a dyn Host);

impl<'a> Serving<'a> {
    /// Serves a plugin's calls by this host.
    pub fn new(host: &'a dyn Host) -> Self {
        Serving(host)
    }

    /// For one call, during which the serving is borrowed.
    pub(crate) fn calls(&self) -> HostCalls<'_> {
        HostCalls { data: (&raw const *self).cast(), call: serve, lent: PhantomData }
    }
}

/// # Safety
///
/// `data` is a [`Serving`] that lives.
unsafe extern "C" fn serve(data: *const c_void, name: RStr<'_>, message: Message) -> RResult<Message, RString> {
    // SAFETY: as above.
    let serving = unsafe { &*data.cast::<Serving<'_>>() };
    abi::reply(|| "host".into(), || answer(serving.0, &name, message))
}

fn answer(host: &dyn Host, name: &str, message: Message) -> Result<Message> {
    let (header, _): (Value, _) = Unpacker::open(message)?;
    let number = |key: &str| header.get(key).and_then(Value::as_u64).unwrap_or_default();
    let reply = match name {
        "cancelled" => json!({ "cancelled": host.cancelled() }),
        "log" => {
            host.log(header.get("line").and_then(Value::as_str).unwrap_or_default());
            json!({})
        }
        "progress" => {
            host.progress(number("done"), number("of"));
            json!({})
        }
        "read-image" => {
            let path = header.get("path").and_then(Value::as_str).unwrap_or_default();
            let mut packer = Packer::default();
            let image = packer.add(&host.read_image(Path::new(path))?);
            return packer.finish(&json!({ "image": image }));
        }
        "fit-batch" => {
            let rewind = header.get("rewind").and_then(Value::as_bool).unwrap_or_default();
            let Some(batch) = host.fit_batch(rewind)? else { return Packer::default().finish(&json!({})) };
            let mut packer = Packer::default();
            let wire = FitBatchMessage {
                images: packer.add(&batch.images),
                labels: packer.add(&batch.labels),
                masks: packer.add(&batch.masks),
                known: packer.add(&batch.known),
                ids: batch.ids,
                records: batch.records,
                values: packer.add_named(&batch.values),
                logits: packer.add(&batch.logits),
            };
            return packer.finish(&json!({ "batch": wire }));
        }
        other => return Err(Error::unsupported(format!("this host does not know the call {other}"))),
    };
    Packer::default().finish(&reply)
}

/// The plugin's side.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'a>(pub(crate) HostCalls<'a>);

impl Caller<'_> {
    fn call(&self, name: &str, header: Value) -> Result<(Value, Unpacker)> {
        let message = Message { json: header.to_string().into(), tensors: RVec::new() };
        // SAFETY: a caller stands in a context, which is lent to one call of the plugin; the host's side of it outlives that.
        let reply = unsafe { (self.0.call)(self.0.data, name.into(), message) };
        Unpacker::open(abi::receive(reply)?)
    }

    /// A host that does not answer wants nothing more.
    pub(crate) fn cancelled(&self) -> bool {
        let reply = self.call("cancelled", json!({}));
        reply.map_or(true, |(r, _)| r.get("cancelled").and_then(Value::as_bool).unwrap_or_default())
    }

    pub(crate) fn check_cancelled(&self) -> Result<()> {
        if self.cancelled() { Err(Error::new(ErrorKind::Cancelled, "cancelled")) } else { Ok(()) }
    }

    pub(crate) fn log(&self, line: &str) {
        // A host that cannot show a line does not fail the work.
        let _ = self.call("log", json!({ "line": line }));
    }

    pub(crate) fn progress(&self, done: u64, of: u64) {
        let _ = self.call("progress", json!({ "done": done, "of": of }));
    }

    pub(crate) fn read_image(&self, path: &Path) -> Result<Array> {
        let name = path.to_str().ok_or_else(|| Error::invalid(format!("{}: no name in UTF-8", path.display())))?;
        let (header, arrays) = self.call("read-image", json!({ "path": name }))?;
        let index = header.get("image").and_then(Value::as_u64);
        arrays.get(index.ok_or_else(|| Error::invalid("malformed message: no image"))? as usize)
    }

    pub(crate) fn fit_batch(&self, rewind: bool) -> Result<Option<FitBatch>> {
        let (mut header, arrays) = self.call("fit-batch", json!({ "rewind": rewind }))?;
        let Some(batch) = header.get_mut("batch") else { return Ok(None) };
        let wire: FitBatchMessage = serde_json::from_value(batch.take())?;
        Ok(Some(FitBatch {
            images: arrays.get(wire.images)?,
            labels: arrays.get(wire.labels)?,
            masks: arrays.get(wire.masks)?,
            known: arrays.get(wire.known)?,
            ids: wire.ids,
            records: wire.records,
            values: arrays.named(wire.values)?,
            logits: arrays.get(wire.logits)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[derive(Default)]
    struct Recorder(RefCell<Vec<String>>);

    impl Host for Recorder {
        fn cancelled(&self) -> bool {
            true
        }
        fn log(&self, line: &str) {
            self.0.borrow_mut().push(line.into());
        }
        fn progress(&self, done: u64, of: u64) {
            self.0.borrow_mut().push(format!("{done}/{of}"));
        }
    }

    #[test]
    fn calls_reach_the_host_and_unknown_ones_are_errors() {
        let host = Recorder::default();
        let serving = Serving::new(&host);
        let caller = Caller(serving.calls());
        caller.log("a line");
        caller.progress(3, 4);
        assert!(caller.cancelled() && caller.check_cancelled().is_err());
        assert_eq!(*host.0.borrow(), ["a line", "3/4"]);
        assert!(caller.fit_batch(false).unwrap_err().message.contains("no batches to fit on"));
        let error = caller.call("dance", json!({})).map(|_| ()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(error.message.contains("does not know the call dance"));
    }
}
