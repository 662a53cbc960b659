//! Child processes of this program that answer in JSON lines: the one protocol that the registry, `check` and a run's
//! workers use.
//!
//! A child's stdout is its channel. It keeps the descriptor for itself and makes 1 a copy of 2, so that what a plugin
//! prints goes to stderr. A child dies with its parent.

use crate::error::{Error, Exit, Result};
use crate::signals;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::FromRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

/// What a child says.
#[derive(Debug)]
pub enum Said<T> {
    Line(T),
    /// A line that is none of the protocol.
    Malformed(String),
    /// Its channel is closed.
    Ended,
}

/// A child process, parent's side.
pub struct Child {
    process: std::process::Child,
    stdin: Option<ChildStdin>,
}

impl Child {
    /// Starts this program with other arguments, and with environment variables where they are not set already. `sink` is called, on a thread of its own, for all that the child says.
    pub fn start<T: DeserializeOwned + Send + 'static>(
        arguments: &[OsString],
        variables: &[(&str, &str)],
        stderr: Stdio,
        mut sink: impl FnMut(Said<T>) + Send + 'static,
    ) -> Result<Self> {
        let binary = std::env::current_exe()?;
        let mut command = Command::new(binary);
        command.envs(variables.iter().filter(|(name, _)| std::env::var_os(name).is_none()).copied());
        let mut process =
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).spawn()?;
        let stdin = process.stdin.take();
        let output = process.stdout.take().ok_or_else(|| Error::new(Exit::Other, "a child has no stdout"))?;
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
                sink(match serde_json::from_str(&line) {
                    Ok(line) => Said::Line(line),
                    Err(e) => Said::Malformed(format!("`{line}`: {e}")),
                });
            }
            sink(Said::Ended);
        });
        Ok(Child { process, stdin })
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
        unsafe { libc::kill(self.process.id() as i32, libc::SIGUSR1) };
    }

    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Ends the process and says how it ended. One that is still alive is given a moment, then none.
    pub fn end(mut self) -> String {
        self.stdin = None;
        for _ in 0..40 {
            if let Ok(Some(status)) = self.process.try_wait() {
                return match (status.signal(), status.code()) {
                    (Some(signal), _) => format!("it crashed ({})", signal_name(signal)),
                    (_, Some(code)) => format!("it ended the process (exit code {code})"),
                    _ => "it ended".into(),
                };
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        self.kill();
        "it was killed".into()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.stdin = None;
        if let Ok(None) = self.process.try_wait() {
            self.kill();
        }
    }
}

/// The child's side of the channel; any thread may speak.
pub struct Mouth(Mutex<File>);

impl Mouth {
    /// To be called once, first of all, in a child.
    pub fn open() -> Self {
        signals::install_child();
        // SAFETY: plain calls on the standard descriptors; the new one belongs to the file alone.
        let out = unsafe {
            let out = libc::dup(1);
            libc::dup2(2, 1);
            File::from_raw_fd(out)
        };
        Mouth(Mutex::new(out))
    }

    /// Says a line. A parent that is gone has taken us with it, or will.
    pub fn say(&self, line: &impl Serialize) {
        let mut text = serde_json::to_vec(line).unwrap_or_default();
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
