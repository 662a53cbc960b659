//! Processes that are there already and listen at a socket: a notebook that started this program. A file `NAME.peer` says where, and what
//! the plugin is called there: `{"socket": "/tmp/.../socket", "plugin": "net", "digest": "..."}`. The digest stands for all that
//! what it computes depends on; whoever wrote the file knows that.

use super::remote::found;
use super::source::{OpenPlugin, PluginSource};
use super::{Found, Rejected};
use crate::error::{Error, Result};
use crate::remote::plugin::RemotePlugin;
use crate::remote::process::Process;
use lightbox_core::files;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Files that end in `.peer`.
pub struct Peers;

#[derive(Deserialize)]
struct Peer {
    socket: PathBuf,
    plugin: String,
    digest: String,
}

fn read(file: &Path) -> Result<Peer> {
    let bytes = files::read(file)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::plugin(format!("{}: {e}", file.display())))
}

/// The process at a socket, reached once in this process.
fn process(socket: &Path) -> Result<Arc<Process>> {
    static ALL: Mutex<Option<HashMap<PathBuf, Arc<Process>>>> = Mutex::new(None);
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    let all = all.get_or_insert_default();
    if let Some(process) = all.get(socket) {
        return Ok(process.clone());
    }
    let process = Process::at(socket)?;
    all.insert(socket.to_path_buf(), process.clone());
    Ok(process)
}

fn open(file: &Path) -> Result<RemotePlugin> {
    let peer = read(file)?;
    Ok(RemotePlugin::open(&process(&peer.socket)?, Path::new(&peer.plugin))?)
}

impl PluginSource for Peers {
    fn name(&self) -> &'static str {
        "a process that listens (.peer)"
    }

    fn takes(&self, file: &Path) -> bool {
        file.extension().is_some_and(|e| e == "peer")
    }

    /// A notebook may be at work, and describes a network by running it.
    fn limit(&self) -> Duration {
        Duration::from_secs(120)
    }

    fn describe(&self, file: &Path) -> std::result::Result<Found, Rejected> {
        found(file, open(file))
    }

    fn digest(&self, file: &Path) -> Result<String> {
        Ok(read(file)?.digest)
    }

    fn open(&self, file: &Path) -> Result<Box<dyn OpenPlugin>> {
        Ok(Box::new(open(file)?))
    }
}
