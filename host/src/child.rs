//! Child processes of this program that answer in JSON lines: the one protocol that the registry, `check` and a run's
//! workers use.
//!
//! A child's stdout is its channel. It keeps the descriptor for itself and makes 1 a copy of 2, so that what a plugin
//! prints goes to stderr. A child dies with its parent.

use crate::error::{Error, Exit, Result};
use crate::process_state::guard_descriptors;
use crate::signals;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::Duration;

/// What a child says.
#[derive(Debug)]
pub enum Reply<T> {
    Line(T),
    /// A line that is none of the protocol.
    Malformed(String),
    /// Its channel is closed.
    Ended,
}

/// A child process, parent's side.
pub struct Child {
    process: Process,
    stdin: Option<ChildStdin>,
    reader: Option<JoinHandle<()>>,
}

enum Process {
    Spawned(std::process::Child),
    /// Of the same program, without its start; and how it ended.
    Forked(libc::pid_t, Option<ExitStatus>),
}

impl Process {
    fn id(&self) -> i32 {
        match self {
            Process::Spawned(child) => child.id() as i32,
            Process::Forked(id, _) => *id,
        }
    }

    fn wait(&mut self, options: i32) -> Option<ExitStatus> {
        match self {
            Process::Spawned(child) if options == 0 => child.wait().ok(),
            Process::Spawned(child) => child.try_wait().ok().flatten(),
            Process::Forked(id, status) => {
                let mut raw = 0;
                // SAFETY: our own child, which has not been waited for.
                if status.is_none() && unsafe { libc::waitpid(*id, &mut raw, options) } == *id {
                    *status = Some(ExitStatus::from_raw(raw));
                }
                *status
            }
        }
    }

    fn kill(&mut self) {
        if self.wait(libc::WNOHANG).is_none() {
            // SAFETY: a signal to a process that is ours and has not been waited for.
            unsafe { libc::kill(self.id(), libc::SIGKILL) };
            self.wait(0);
        }
    }
}

/// Each line of a channel begins with its number, which the parent draws: what a plugin writes to the descriptor by mistake is no
/// line of it, however well it is formed.
static CHANNEL: Mutex<String> = Mutex::new(String::new());

/// Where a started child finds its channel's number.
const VARIABLE: &str = "LIGHTBOX_CHANNEL";

fn draw() -> String {
    use std::hash::{BuildHasher, Hasher};
    // The standard library keys each by the system's random numbers.
    let number = || std::hash::RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", number(), number())
}

/// Reads a child's lines on a thread of its own.
fn read<T: DeserializeOwned + Send + 'static>(
    output: impl Read + Send + 'static,
    channel: String,
    mut sink: impl FnMut(Reply<T>) + Send + 'static,
) -> Option<JoinHandle<()>> {
    Some(std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
            let own = line.strip_prefix(&channel).and_then(|l| l.strip_prefix(' '));
            sink(match own.map(serde_json::from_str) {
                Some(Ok(line)) => Reply::Line(line),
                Some(Err(e)) => Reply::Malformed(format!("`{line}`: {e}")),
                None => Reply::Malformed(format!("`{line}`: it does not begin as a line of this channel")),
            });
        }
        sink(Reply::Ended);
    }))
}

impl Child {
    /// Starts this program with other arguments, and with environment variables where they are not set already. `sink` is called, on a thread of its own, for all that the child says.
    pub fn start<T: DeserializeOwned + Send + 'static>(
        arguments: &[OsString],
        variables: &[(&str, &str)],
        stderr: Stdio,
        sink: impl FnMut(Reply<T>) + Send + 'static,
    ) -> Result<Self> {
        let binary = std::env::current_exe()?;
        let mut command = Command::new(binary);
        command.envs(variables.iter().filter(|(name, _)| std::env::var_os(name).is_none()).copied());
        let channel = draw();
        command.env(VARIABLE, &channel);
        let mut process =
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).spawn()?;
        let stdin = process.stdin.take();
        let output = process.stdout.take().ok_or_else(|| Error::new(Exit::Other, "a child has no stdout"))?;
        Ok(Child { process: Process::Spawned(process), stdin, reader: read(output, channel, sink) })
    }

    /// A child that does `work` and ends, without a start of this program, most of which is libtorch's. Only while this
    /// process has a single thread, since what another holds would never be let go in the child; `None` otherwise.
    pub fn fork<T: DeserializeOwned + Send + 'static>(
        work: impl FnOnce(),
        sink: impl FnMut(Reply<T>) + Send + 'static,
    ) -> Result<Option<Self>> {
        if std::fs::read_dir("/proc/self/task").map_or(2, Iterator::count) != 1 {
            return Ok(None);
        }
        let (ours, theirs) = std::io::pipe()?;
        let channel = draw();
        *CHANNEL.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = channel.clone();
        let nothing = File::open("/dev/null")?;
        // SAFETY: there is no other thread, so memory is as whole in the child as here.
        match unsafe { libc::fork() } {
            -1 => Err(std::io::Error::last_os_error().into()),
            0 => {
                // SAFETY: plain calls on descriptors that are open; `work` does not unwind out of here, and the process ends
                // without the parent's exit handlers.
                unsafe {
                    libc::dup2(nothing.as_raw_fd(), 0);
                    libc::dup2(theirs.as_raw_fd(), 1);
                    drop((ours, theirs, nothing));
                    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                    libc::_exit(if done.is_ok() { 0 } else { 101 })
                }
            }
            id => {
                Ok(Some(Child { process: Process::Forked(id, None), stdin: None, reader: read(ours, channel, sink) }))
            }
        }
    }

    /// Says a line to the child. One that has gone is noticed when its channel closes.
    pub fn send(&mut self, line: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(line).map_err(|e| Error::new(Exit::Other, e.to_string()))? + "\n";
        let _ = self.stdin.as_mut().map(|i| i.write_all(text.as_bytes()));
        Ok(())
    }

    /// Asks the child to stop what it is doing: its plugins see that they are cancelled.
    pub fn interrupt(&self) {
        // SAFETY: a signal to a process that is ours and has not been waited for.
        unsafe { libc::kill(self.process.id(), libc::SIGUSR1) };
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// The reader's thread is gone in a moment, so that another child can be forked; not where something that a plugin has
    /// started holds the channel open.
    fn let_reader_end(&mut self) {
        for _ in 0..10 {
            if self.reader.as_ref().is_none_or(JoinHandle::is_finished) {
                let _ = self.reader.take().map(JoinHandle::join);
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the process and says how it ended. One that is still alive is given a moment, then none.
    pub fn end(mut self) -> String {
        self.stdin = None;
        for round in 0..80 {
            if let Some(status) = self.process.wait(libc::WNOHANG) {
                self.let_reader_end();
                return match (status.signal(), status.code()) {
                    (Some(signal), _) => format!("it crashed ({})", signal_name(signal)),
                    (_, Some(code)) => format!("it ended the process (exit code {code})"),
                    _ => "it ended".into(),
                };
            }
            // One whose channel is closed is about to end.
            std::thread::sleep(Duration::from_millis(if round < 40 { 1 } else { 25 }));
        }
        self.kill();
        "it was killed".into()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.stdin = None;
        self.process.kill();
    }
}

/// The child's side of the channel; any thread may speak.
pub struct EventWriter(Mutex<File>, String);

impl EventWriter {
    /// To be called once, first of all, in a child.
    pub fn open() -> Self {
        if let Err(e) = signals::install_child() {
            eprintln!("note: this process cannot be told to stop early: {e}");
        }
        // SAFETY: plain calls on the standard descriptors; the new one belongs to the file alone.
        let out = unsafe {
            let out = libc::dup(1);
            libc::dup2(2, 1);
            File::from_raw_fd(out)
        };
        guard_descriptors(&[out.as_raw_fd()]);
        let forked = CHANNEL.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let channel = std::env::var(VARIABLE).unwrap_or(forked);
        // SAFETY: a child has one thread when it opens its channel.
        unsafe { std::env::remove_var(VARIABLE) };
        EventWriter(Mutex::new(out), channel)
    }

    /// Says a line. A parent that is gone has taken us with it, or will.
    pub fn say(&self, line: &impl Serialize) {
        let mut text = format!("{} ", self.1).into_bytes();
        text.extend(serde_json::to_vec(line).unwrap_or_default());
        text.push(b'\n');
        let mut out = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = out.write_all(&text);
    }
}

/// The usual name of a signal.
pub fn signal_name(signal: i32) -> String {
    let names = [
        (libc::SIGSEGV, "SIGSEGV, segmentation fault"),
        (libc::SIGABRT, "SIGABRT, abort"),
        (libc::SIGBUS, "SIGBUS, bus error"),
        (libc::SIGILL, "SIGILL, illegal instruction"),
        (libc::SIGFPE, "SIGFPE, arithmetic error"),
        (libc::SIGKILL, "SIGKILL, killed, perhaps for memory"),
        (libc::SIGTERM, "SIGTERM, terminated"),
    ];
    let name = names.iter().find(|(s, _)| *s == signal).map(|(_, n)| n.to_string());
    name.unwrap_or_else(|| format!("signal {signal}"))
}
