//! A connection to another process: lines of JSON on a Unix socket, arrays in shared memory. Either side calls the other, and a side
//! that waits for an answer answers calls, so that calls nest: an explainer in Python runs a model here while it is being called.
//! docs/wire.md describes the lines.

use super::memory::{Lent, Mapped, Piece, Pool};
use lightbox_sdk::remote::RawMessage;
use lightbox_sdk::{Error, ErrorKind, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// The version of the lines; a side that does not know the other's ends the connection.
pub const PROTOCOL: u32 = 1;
/// A longer line is no line of ours.
const LONGEST: usize = 64 << 20;

/// A line. One of `call`, `reply` and `error` is there.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Frame {
    /// The call's number among the sender's; an answer repeats that of its call.
    #[serde(default)]
    pub id: u64,
    /// The name of what is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    /// On which object.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub object: usize,
    /// The call's header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<Box<RawValue>>,
    /// The answer's header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Box<RawValue>>,
    /// In place of an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// The arrays, in the order of their numbers in the header.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arrays: Vec<Piece>,
    /// The sender's segment that they are in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<u32>,
    /// The segment's memory file comes with this line.
    #[serde(default, skip_serializing_if = "is_false")]
    pub new: bool,
    /// The receiver's segments that the sender reads no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub free: Vec<u32>,
    /// The sender's segments that it has given up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<u32>,
    /// Objects that the sender needs no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drop: Vec<usize>,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

fn is_false(b: &bool) -> bool {
    !*b
}

/// A call of the other side.
pub struct Incoming {
    pub name: String,
    pub object: usize,
    pub message: RawMessage,
}

struct State {
    pool: Pool,
    mapped: Mapped,
    /// Bytes that were received beyond the last line.
    rest: Vec<u8>,
    files: VecDeque<OwnedFd>,
    /// Calls of ours.
    calls: u64,
}

/// A connection. It belongs to one thread.
pub struct Channel {
    socket: UnixStream,
    state: RefCell<State>,
}

/// The other side has ended, or speaks something else.
fn lost(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Other, format!("{LOST}: {what}"))
}

/// How errors begin after which a channel is of no more use.
const LOST: &str = "the other process is lost";

/// Whether a channel is of no more use after this.
pub fn is_lost(error: &Error) -> bool {
    error.kind == ErrorKind::Other && error.message.starts_with(LOST)
}

impl Channel {
    pub fn new(socket: UnixStream) -> Self {
        let state =
            State { pool: Pool::default(), mapped: Mapped::default(), rest: vec![], files: VecDeque::new(), calls: 0 };
        Channel { socket, state: RefCell::new(state) }
    }

    /// Calls the other side. `answer` answers what it asks in the meantime; `dropped` are objects that nobody here needs.
    ///
    /// # Errors
    /// The other side's own, or it is lost ([`is_lost`]).
    pub fn call(
        &self,
        (name, object): (&str, usize),
        message: RawMessage,
        dropped: Vec<usize>,
        answer: &mut dyn FnMut(Incoming) -> Result<RawMessage>,
    ) -> Result<RawMessage> {
        let header = RawValue::from_string(message.header).map_err(|e| Error::invalid(e.to_string()))?;
        let id = self.next();
        let call = Some(name.into());
        let frame = Frame { id, call, object, header: Some(header), drop: dropped, ..Frame::default() };
        self.send(frame, &message.arrays, None)?;
        loop {
            let (frame, arrays) = self.receive()?;
            let text = |raw: Option<Box<RawValue>>| raw.map_or("{}".to_string(), |r| r.get().to_string());
            match frame {
                Frame { call: Some(name), object, header, id, .. } => {
                    let said = answer(Incoming { name, object, message: RawMessage { header: text(header), arrays } });
                    let sent = match said {
                        Ok(reply) => self.answer(id, reply),
                        Err(error) => Err(error),
                    };
                    // Also where the answer could not be sent, for want of memory: the other side waits for one.
                    if let Err(error) = sent {
                        self.send(Frame { id, error: Some(error), ..Frame::default() }, &[], None)?;
                    }
                }
                Frame { id: other, .. } if other != id => {
                    return Err(lost(format!("it answers call {other}, and this is call {id}")));
                }
                Frame { error: Some(error), .. } => return Err(error),
                Frame { reply: Some(reply), .. } => return Ok(RawMessage { header: reply.get().into(), arrays }),
                _ => return Err(lost("a line that is neither call nor answer")),
            }
        }
    }

    /// Hands over one end of a new connection.
    ///
    /// # Errors
    /// The other side is lost.
    pub fn hand_over(&self, end: &UnixStream) -> Result<()> {
        let frame = Frame { id: self.next(), call: Some("connect".into()), ..Frame::default() };
        self.send(frame, &[], Some(end.as_fd()))?;
        let (frame, _) = self.receive()?;
        frame.error.map_or(Ok(()), Err)
    }

    fn answer(&self, id: u64, reply: RawMessage) -> Result<()> {
        let header = RawValue::from_string(reply.header).map_err(|e| Error::invalid(e.to_string()))?;
        self.send(Frame { id, reply: Some(header), ..Frame::default() }, &reply.arrays, None)
    }

    fn next(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        state.calls += 1;
        state.calls
    }

    fn send(&self, mut frame: Frame, arrays: &[lightbox_sdk::Array], file: Option<BorrowedFd<'_>>) -> Result<()> {
        let mut state = self.state.borrow_mut();
        let Lent { segment, pieces, new, gone } = state.pool.lend(arrays)?;
        (frame.arrays, frame.segment, frame.new, frame.gone) = (pieces, segment, new.is_some(), gone);
        frame.free = state.mapped.freed();
        let mut line = serde_json::to_vec(&frame).map_err(|e| Error::invalid(e.to_string()))?;
        line.push(b'\n');
        let file = new.as_ref().map(AsFd::as_fd).or(file);
        let mut sent = 0;
        while sent < line.len() {
            let files: Vec<BorrowedFd<'_>> = file.filter(|_| sent == 0).into_iter().collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !files.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&files));
            }
            match sendmsg(&self.socket, &[IoSlice::new(&line[sent..])], &mut control, SendFlags::NOSIGNAL) {
                Ok(n) => sent += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(lost(e)),
            }
        }
        Ok(())
    }

    /// The next line and its arrays. A side whose arrays are not where it says is lost.
    fn receive(&self) -> Result<(Frame, Vec<lightbox_sdk::Array>)> {
        let mut state = self.state.borrow_mut();
        let mut searched = 0;
        let end = loop {
            if let Some(at) = memchr::memchr(b'\n', &state.rest[searched..]) {
                break searched + at;
            }
            searched = state.rest.len();
            if searched > LONGEST {
                return Err(lost(format!("a line of more than {LONGEST} bytes")));
            }
            let mut buffer = vec![0u8; 1 << 16];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let got = match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags) {
                Ok(got) => got.bytes,
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(lost(e)),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(files) = message {
                    state.files.extend(files);
                }
            }
            if got == 0 {
                return Err(lost("it closed the connection"));
            }
            state.rest.extend_from_slice(&buffer[..got]);
        };
        let line: Vec<u8> = state.rest.drain(..=end).collect();
        let frame: Frame = serde_json::from_slice(&line[..end]).map_err(|e| {
            let start = String::from_utf8_lossy(&line[..end.min(200)]).into_owned();
            lost(format!("it said `{start}`: {e}"))
        })?;
        for id in &frame.free {
            state.pool.take_back(*id);
        }
        for id in &frame.gone {
            state.mapped.remove(*id);
        }
        if frame.new {
            let file = state.files.pop_front().ok_or_else(|| lost("a new segment without its file"))?;
            let id = frame.segment.ok_or_else(|| lost("a new segment without a number"))?;
            state.mapped.add(id, file).map_err(|e| lost(e.message))?;
        } else if let Some(file) = state.files.pop_front() {
            return Err(lost(format!("a file ({file:?}) that belongs to nothing")));
        }
        let arrays = state.mapped.arrays(frame.segment, &frame.arrays).map_err(|e| lost(e.message))?;
        Ok((frame, arrays))
    }
}
