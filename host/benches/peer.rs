//! The peer of a benchmark: a Python process that runs one round when it is asked, so that both are measured alternately.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub struct Peer {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts `tests/oracle/peer.py` with these arguments; `None` without LIGHTBOX_PEER_PYTHON.
    pub fn start(arguments: &[&str]) -> Result<Option<Self>, Box<dyn std::error::Error>> {
        let Some(python) = std::env::var_os("LIGHTBOX_PEER_PYTHON") else { return Ok(None) };
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        // A relative interpreter is relative to the project.
        let python = if Path::new(&python).components().count() > 1 { root.join(python) } else { python.into() };
        let mut child = Command::new(python)
            .arg(root.join("tests/oracle/peer.py"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take().ok_or("no stdin")?;
        let answers = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        Ok(Some(Peer { child, orders, answers }))
    }

    /// Runs one round; its times in seconds.
    pub fn ask(&mut self) -> Result<Vec<f64>, Box<dyn std::error::Error>> {
        self.orders.write_all(b"\n")?;
        self.orders.flush()?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
