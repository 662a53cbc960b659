//! The processes on the other side: a Python interpreter that this process starts, once for all plugins that it runs, or one that
//! is there already and listens at a socket. Each thread of ours has a connection of its own, which a thread over there serves, so
//! that calls of one thread nest and those of two do not wait for each other. Objects are known by the same numbers on all.

use super::channel::{Channel, Incoming, PROTOCOL, is_lost};
use crate::child::signal_name;
use lightbox_sdk::remote::RawMessage;
use lightbox_sdk::{Error, ErrorKind, Result};
use serde::Deserialize;
use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// What the other side says of itself.
#[derive(Debug, Clone, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    pub pid: u32,
    /// `Python 3.11.2`.
    pub language: String,
    /// The interpreter's path.
    pub interpreter: String,
}

enum Link {
    /// A child, and the connection over which it gets others.
    Child(Mutex<(std::process::Child, Channel)>),
    /// It listens here.
    Socket(PathBuf),
}

/// A process on the other side.
pub struct Process {
    /// Among those of this process.
    number: u64,
    link: Link,
    /// Objects that nobody needs here.
    dropped: Mutex<Vec<usize>>,
}

thread_local! {
    static CHANNELS: RefCell<HashMap<u64, (Rc<Channel>, Hello)>> = RefCell::new(HashMap::new());
}

/// In a worker the end of a plugin's process is the worker's own: its supervisor knows which explainer was in the act, and starts
/// another worker.
static DIES_WITH_PLUGINS: AtomicBool = AtomicBool::new(false);

/// Says that this process is a worker, which ends as its plugins' processes do.
pub fn die_with_plugins() {
    DIES_WITH_PLUGINS.store(true, Ordering::Relaxed);
}

fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A thread that starts children and never ends: the kernel ends a child with the thread that started it.
fn spawner() -> &'static Sender<Box<dyn FnOnce() + Send>> {
    static SPAWNER: OnceLock<Sender<Box<dyn FnOnce() + Send>>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (send, receive) = channel::<Box<dyn FnOnce() + Send>>();
        std::thread::spawn(move || receive.into_iter().for_each(|work| work()));
        send
    })
}

fn spawn(mut command: Command) -> std::io::Result<std::process::Child> {
    let (send, receive) = channel();
    let work = Box::new(move || drop(send.send(command.spawn())));
    let gone = || std::io::Error::other("the thread that starts processes has ended");
    spawner().send(work).map_err(|_| gone())?;
    receive.recv().map_err(|_| gone())?
}

/// The descriptor that the child finds its connection at.
const DESCRIPTOR: i32 = 3;

impl Process {
    /// Starts an interpreter that finds the module `lightbox` in `modules`, if anywhere but where it looks.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(interpreter: &[String], modules: Option<&Path>) -> Result<Arc<Self>> {
        let (program, arguments) =
            interpreter.split_first().ok_or_else(|| Error::invalid("no Python interpreter is named"))?;
        let wrong = |e: std::io::Error| Error::new(ErrorKind::Other, format!("{program}: {e}"));
        let (ours, theirs) = UnixStream::pair().map_err(wrong)?;
        let theirs = OwnedFd::from(theirs);
        let number_there = theirs.as_raw_fd();
        let mut command = Command::new(program);
        command.args(arguments).args(["-u", "-m", "lightbox.serve", "--descriptor", &DESCRIPTOR.to_string()]);
        // What it prints is a plugin's talk, and talk goes to stderr.
        let talk = std::io::stderr();
        let talk = std::os::fd::AsFd::as_fd(&talk).try_clone_to_owned().map_err(wrong)?;
        command.stdin(Stdio::null()).stdout(Stdio::from(talk)).stderr(Stdio::inherit());
        // A set's order must not differ from run to run.
        command.env("PYTHONHASHSEED", "0").env("LIGHTBOX_THREADS", tch::get_num_threads().to_string());
        // It brings a libtorch of its own.
        command.env_remove("LD_LIBRARY_PATH");
        if let Some(folder) = modules {
            let old = std::env::var_os("PYTHONPATH").unwrap_or_default();
            let all =
                [folder.as_os_str().to_os_string()].into_iter().chain(std::env::split_paths(&old).map(Into::into));
            let joined = std::env::join_paths(all).map_err(|e| Error::invalid(e.to_string()))?;
            command.env("PYTHONPATH", joined);
        }
        let own = std::process::id() as i32;
        // SAFETY: between fork and exec only system calls that may be made there.
        unsafe {
            command.pre_exec(move || {
                let failed = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
                    // This process may have ended before that.
                    || libc::getppid() != own
                    // A group of its own: a terminal's Ctrl-C is for us, who ask it to stop.
                    || libc::setpgid(0, 0) != 0
                    || if number_there == DESCRIPTOR {
                        libc::fcntl(DESCRIPTOR, libc::F_SETFD, 0) < 0
                    } else {
                        libc::dup2(number_there, DESCRIPTOR) < 0
                    };
                if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let child = spawn(command).map_err(wrong)?;
        drop(theirs);
        let link = Link::Child(Mutex::new((child, Channel::new(ours))));
        let process = Process { number: number(), link, dropped: Mutex::default() };
        let process = Arc::new(process);
        process.hello()?;
        Ok(process)
    }

    /// A process that listens at a socket.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn at(socket: &Path) -> Result<Arc<Self>> {
        let link = Link::Socket(socket.to_path_buf());
        let process = Arc::new(Process { number: number(), link, dropped: Mutex::default() });
        process.hello()?;
        Ok(process)
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// It is lost, or speaks another version.
    pub fn hello(&self) -> Result<Hello> {
        Ok(self.channel()?.1)
    }

    /// This thread's connection.
    fn channel(&self) -> Result<(Rc<Channel>, Hello)> {
        if let Some(known) = CHANNELS.with(|all| all.borrow().get(&self.number).cloned()) {
            return Ok(known);
        }
        let socket = match &self.link {
            Link::Socket(path) => UnixStream::connect(path)
                .map_err(|e| Error::new(ErrorKind::Other, format!("{}: {e}", path.display())))?,
            Link::Child(child) => {
                let wrong = |e: std::io::Error| Error::new(ErrorKind::Other, e.to_string());
                let (ours, theirs) = UnixStream::pair().map_err(wrong)?;
                let handed = child.lock().unwrap_or_else(PoisonError::into_inner).1.hand_over(&theirs);
                handed.map_err(|e| self.ended(e))?;
                ours
            }
        };
        let channel = Rc::new(Channel::new(socket));
        let header = serde_json::json!({ "protocol": PROTOCOL }).to_string();
        let none = &mut |_: Incoming| Err(Error::unsupported("nothing can be asked yet"));
        let reply = channel.call(("hello", 0), RawMessage::of(header), vec![], none).map_err(|e| self.ended(e))?;
        let hello: Hello = serde_json::from_str(&reply.header)?;
        if hello.protocol != PROTOCOL {
            let (theirs, what) = (hello.protocol, &hello.interpreter);
            return Err(Error::unsupported(format!(
                "{what} speaks version {theirs} of the wire, and this program {PROTOCOL}"
            )));
        }
        CHANNELS.with(|all| all.borrow_mut().insert(self.number, (channel.clone(), hello.clone())));
        Ok((channel, hello))
    }

    /// Calls the other side, and answers what it asks in the meantime.
    ///
    /// # Errors
    /// Its own, or how it ended.
    pub fn call(
        &self,
        what: (&str, usize),
        message: RawMessage,
        answer: &mut dyn FnMut(Incoming) -> Result<RawMessage>,
    ) -> Result<RawMessage> {
        let (channel, _) = self.channel()?;
        let dropped = std::mem::take(&mut *self.dropped.lock().unwrap_or_else(PoisonError::into_inner));
        channel.call(what, message, dropped, answer).map_err(|e| self.ended(e))
    }

    /// A call during which nothing can be asked.
    ///
    /// # Errors
    /// As [`Process::call`].
    pub fn ask(&self, what: (&str, usize), message: RawMessage) -> Result<RawMessage> {
        let none = &mut |call: Incoming| Err(Error::unsupported(format!("nobody answers {} now", call.name)));
        self.call(what, message, none)
    }

    /// An object that is needed no more; the other side hears of it with the next call.
    pub fn let_go(&self, object: usize) {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner).push(object);
    }

    /// An error with the way in which the process ended, where it did.
    fn ended(&self, error: Error) -> Error {
        if !is_lost(&error) {
            return error;
        }
        CHANNELS.with(|all| all.borrow_mut().remove(&self.number));
        let Link::Child(child) = &self.link else { return error };
        let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
        let until = Instant::now() + Duration::from_secs(2);
        let status = loop {
            match child.0.try_wait() {
                Ok(Some(status)) => break Some(status),
                _ if Instant::now() > until => break None,
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let how = match status.map(|s| (s.signal(), s.code())) {
            Some((Some(signal), _)) => format!("it crashed ({})", signal_name(signal)),
            Some((_, Some(code))) => format!("it ended the process (exit code {code})"),
            _ => {
                let _ = child.0.kill();
                format!("it was stopped, for {}", error.message)
            }
        };
        if DIES_WITH_PLUGINS.load(Ordering::Relaxed) {
            eprintln!("the plugin's process: {how}");
            end_as(status);
        }
        Error::new(ErrorKind::Other, format!("the plugin's process: {how}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Link::Child(child) = &self.link {
            let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
            // With all that it has started and that stayed in its group.
            // SAFETY: a signal to a group that was made for this child.
            unsafe { libc::kill(-(child.0.id() as i32), libc::SIGKILL) };
            let _ = child.0.wait();
        }
    }
}

/// Ends this process as another one ended.
fn end_as(status: Option<ExitStatus>) -> ! {
    if let Some(signal) = status.map_or(Some(libc::SIGKILL), |s| s.signal()) {
        // SAFETY: the signal's own action, then the signal.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
    // SAFETY: without exit handlers, as a process that crashed.
    unsafe { libc::_exit(status.and_then(|s| s.code()).unwrap_or(1)) }
}

/// The process of an interpreter, started once in this process.
///
/// # Errors
/// It cannot be started.
pub fn of_interpreter(interpreter: &[String], modules: Option<&Path>) -> Result<Arc<Process>> {
    static ALL: Mutex<Option<HashMap<Vec<String>, Arc<Process>>>> = Mutex::new(None);
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    let all = all.get_or_insert_default();
    // One that has ended is started again.
    if let Some(process) = all.get(interpreter) {
        if process.is_alive() {
            return Ok(process.clone());
        }
        all.remove(interpreter);
    }
    let process = Process::start(interpreter, modules)?;
    all.insert(interpreter.to_vec(), process.clone());
    Ok(process)
}

impl Process {
    fn is_alive(&self) -> bool {
        match &self.link {
            Link::Socket(_) => true,
            Link::Child(child) => {
                matches!(child.lock().unwrap_or_else(PoisonError::into_inner).0.try_wait(), Ok(None))
            }
        }
    }
}
