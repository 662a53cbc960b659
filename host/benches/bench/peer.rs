//! The peer of a row: a Python process that runs one round when it is asked.

use crate::{Result, built};
use lightbox_core::checkpoint::{self, State};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use tch::Tensor;

/// `tests/oracle/peer.py`; where a benchmark was carried to another machine, the copy in its folder.
pub fn script() -> Result<PathBuf> {
    let carried = built()?.join("peer.py");
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/oracle/peer.py");
    Ok(if carried.is_file() { carried } else { own() })
}

/// What `lightbox::device::keep_memory` sets for ourselves: peers are not slower for want of it.
pub const ALLOCATOR: [(&str, &str); 2] =
    [("MALLOC_MMAP_THRESHOLD_", "1073741824"), ("MALLOC_TRIM_THRESHOLD_", "2147483647")];

pub struct Peer {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    folder: tempfile::TempDir,
    /// Its sides, with the versions of the packages that they are.
    pub versions: BTreeMap<String, String>,
}

impl Peer {
    /// Starts `tests/oracle/peer.py` on a row, with what both sides read.
    pub fn start(python: &Path, row: &str, mut job: Value, state: &State) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        job["row"] = json!(row);
        job["threads"] = json!(tch::get_num_threads());
        std::fs::write(folder.path().join("job.json"), job.to_string())?;
        checkpoint::write(&folder.path().join("in.safetensors"), state)?;
        let script = script()?;
        let mut command = Command::new(python);
        command.arg(script).arg(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.envs(ALLOCATOR);
        let mut child = command.spawn().map_err(|e| format!("{}: {e}", python.display()))?;
        let orders = child.stdin.take().ok_or("no stdin")?;
        let answers = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        let mut peer = Peer { child, orders, answers, folder, versions: BTreeMap::new() };
        peer.versions = serde_json::from_str(&peer.line()?)?;
        Ok(peer)
    }

    /// The next answer.
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err("the peer has stopped".into());
        }
        Ok(line)
    }

    /// Runs one round of a side; its seconds.
    pub fn ask(&mut self, side: &str) -> Result<f64> {
        writeln!(self.orders, "{side}")?;
        self.orders.flush()?;
        loop {
            if let Ok(seconds) = self.line()?.trim().parse() {
                return Ok(seconds);
            }
        }
    }

    /// What the last rounds gave, by side.
    pub fn outputs(&mut self) -> Result<BTreeMap<String, Tensor>> {
        self.ask("outputs")?;
        Ok(checkpoint::read(&self.folder.path().join("out.safetensors"))?.into_iter().collect())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
