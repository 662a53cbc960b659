//! Where workers come from. The supervisor speaks to an [`Executor`] alone, so that workers may one day be started by an
//! engine that exists (a cluster's queue) instead of as processes of this machine.

use super::events::{Event, Order};
use crate::child::{Child, Reply};
use crate::error::Result;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// What a worker has said, or that it is gone.
#[derive(Debug)]
pub enum Signal {
    Event(Event),
    Malformed(String),
    Ended,
}

/// Workers by number.
pub trait Executor {
    /// Starts worker `id` on a device.
    fn launch(&mut self, id: usize, device: &str) -> Result<()>;

    fn send(&mut self, id: usize, order: &Order) -> Result<()>;

    /// The next signal of any worker; none within the time. Signals of a worker that was ended do not come any more.
    fn poll(&mut self, wait: Duration) -> Option<(usize, Signal)>;

    /// Asks all workers to stop what they do: their plugins see that they are cancelled.
    fn interrupt(&mut self);

    /// Ends a worker, at once with `kill`, and says how it ended.
    fn end(&mut self, id: usize, kill: bool) -> String;
}

/// Processes of this machine.
pub struct Local {
    folder: PathBuf,
    threads: usize,
    /// A worker's share of the cores.
    share: usize,
    /// More threads than cores, over all workers.
    crowded: bool,
    /// By worker: its process and the number of its launch, which its signals carry.
    workers: Vec<Option<(Child, usize)>>,
    launches: usize,
    send: Sender<(usize, usize, Reply<Event>)>,
    said: Receiver<(usize, usize, Reply<Event>)>,
}

impl Local {
    /// For so many workers of so many threads.
    pub fn new(folder: PathBuf, workers: usize, threads: usize) -> Self {
        let (send, said) = channel();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let crowded = workers > 1 && workers * threads > cores;
        let share = cores / workers.max(1);
        Local { folder, threads, share, crowded, workers: Vec::new(), launches: 0, send, said }
    }
}

impl Executor for Local {
    fn launch(&mut self, id: usize, device: &str) -> Result<()> {
        // Of a GPU's worker one core feeds the GPU.
        let busy = if device.starts_with("cuda") { 1 } else { self.threads };
        let (threads, spare) = (self.threads.to_string(), self.share.saturating_sub(busy).to_string());
        let mut arguments: Vec<OsString> = vec!["worker".into(), "--device".into(), device.into()];
        arguments.extend(["--threads".into(), threads.into(), "--spare".into(), spare.into()]);
        arguments.extend(["--number".into(), id.to_string().into()]);
        arguments.extend(["--run".into(), self.folder.clone().into_os_string()]);
        self.launches += 1;
        let (send, launch) = (self.send.clone(), self.launches);
        // OpenMP's threads wait for each other in a busy loop, which keeps another worker's from the cores.
        let variables: &[(&str, &str)] = if self.crowded { &[("OMP_WAIT_POLICY", "PASSIVE")] } else { &[] };
        let child =
            Child::start(&arguments, variables, Stdio::inherit(), move |said| drop(send.send((id, launch, said))))?;
        if self.workers.len() <= id {
            self.workers.resize_with(id + 1, || None);
        }
        self.workers[id] = Some((child, launch));
        Ok(())
    }

    fn send(&mut self, id: usize, order: &Order) -> Result<()> {
        match self.workers.get_mut(id) {
            Some(Some((child, _))) => child.send(order),
            _ => Ok(()),
        }
    }

    fn poll(&mut self, wait: Duration) -> Option<(usize, Signal)> {
        let (id, launch, said) = self.said.recv_timeout(wait).ok()?;
        let current = matches!(self.workers.get(id), Some(Some((_, own))) if *own == launch);
        if !current {
            return None;
        }
        let signal = match said {
            Reply::Line(event) => Signal::Event(event),
            Reply::Malformed(line) => Signal::Malformed(line),
            Reply::Ended => Signal::Ended,
        };
        Some((id, signal))
    }

    fn interrupt(&mut self) {
        self.workers.iter().flatten().for_each(|(child, _)| child.interrupt());
    }

    fn end(&mut self, id: usize, kill: bool) -> String {
        match self.workers.get_mut(id).and_then(Option::take) {
            Some((mut child, _)) if kill => {
                child.kill();
                "it was killed".into()
            }
            Some((child, _)) => child.end(),
            None => "it was not there".into(),
        }
    }
}
