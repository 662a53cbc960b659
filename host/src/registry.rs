//! Which plugins there are. Folders in order: `--plugins`, `LIGHTBOX_PLUGIN_PATH`, `plugins/` beside the binary.
//! Never the current directory.
//!
//! Files are first opened in a forked child, so that one whose start-up crashes or hangs is rejected by name and hides
//! no other. The child is forked before this process has threads.

use crate::error::{Error, Result};
use crate::loader::{self, Plugin};
use lightbox_sdk::spec::{ExplainerSpec, Manifest, ModelSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a plugin may take to open and describe itself.
const SCAN_LIMIT: Duration = Duration::from_secs(10);

/// A plugin that described itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Found {
    pub file: PathBuf,
    pub torch: String,
    pub rustc: String,
    pub abi: String,
    pub manifest: Manifest,
    /// Sentences for the user.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A file of a plugin folder that is not used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rejected {
    pub file: PathBuf,
    pub reason: String,
}

/// All plugins of some folders.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    pub folders: Vec<PathBuf>,
    pub found: Vec<Found>,
    pub rejected: Vec<Rejected>,
    /// Names that two files offer: an error for every command.
    pub duplicates: Vec<String>,
}

/// The folders to search. A folder of `--plugins` that does not exist is an error; the others may be absent.
fn folders(given: &[PathBuf]) -> Result<Vec<PathBuf>> {
    if let Some(missing) = given.iter().find(|f| !f.is_dir()) {
        return Err(Error::plugin(format!("{}: no such plugin folder (given by --plugins)", missing.display())));
    }
    let mut folders = given.to_vec();
    if let Some(list) = std::env::var_os("LIGHTBOX_PLUGIN_PATH") {
        folders.extend(std::env::split_paths(&list).filter(|f| f.is_dir() && f.is_absolute()));
    }
    let binary = std::env::current_exe().and_then(std::fs::canonicalize);
    if let Some(own) = binary.ok().and_then(|b| b.parent().map(|p| p.join("plugins")))
        && own.is_dir()
    {
        folders.push(own);
    }
    Ok(folders)
}

impl Registry {
    /// Looks through the folders. Call it before the process has threads.
    pub fn scan(given: &[PathBuf]) -> Result<Self> {
        let folders = folders(given)?;
        let mut files: Vec<PathBuf> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for folder in &folders {
            let entries = std::fs::read_dir(folder);
            let entries = entries.map_err(|e| Error::plugin(format!("{}: {e}", folder.display())))?;
            let mut here: Vec<PathBuf> =
                entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "so")).collect();
            here.sort();
            // The same file by two ways is one file.
            here.retain(|file| seen.insert(std::fs::canonicalize(file).unwrap_or_else(|_| file.clone())));
            files.extend(here);
        }
        let mut registry = Registry { folders, ..Registry::default() };
        let mut rest: &[PathBuf] = &files;
        while let [first, ..] = rest {
            let mut answers = describe(rest)?;
            if answers.len() < rest.len() {
                let at = answers.len();
                let reason = answers.crash.take().unwrap_or_else(|| "it ended the process when it was opened".into());
                registry.take(answers.list);
                registry.rejected.push(Rejected { file: rest[at].clone(), reason });
                rest = &rest[at + 1..];
            } else {
                registry.take(answers.list);
                let _ = first;
                break;
            }
        }
        registry.find_duplicates();
        Ok(registry)
    }

    fn take(&mut self, answers: Vec<Answer>) {
        for answer in answers {
            match answer {
                Answer::Found(found) => self.found.push(found),
                Answer::Rejected(rejected) => self.rejected.push(rejected),
            }
        }
    }

    fn find_duplicates(&mut self) {
        let mut owners: BTreeMap<(&str, &str), Vec<&Path>> = BTreeMap::new();
        for found in &self.found {
            for model in &found.manifest.models {
                owners.entry(("model", &model.name)).or_default().push(&found.file);
            }
            for explainer in &found.manifest.explainers {
                owners.entry(("explainer", &explainer.name)).or_default().push(&found.file);
            }
        }
        for ((kind, name), files) in owners.into_iter().filter(|(_, f)| f.len() > 1) {
            let files: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
            let files = files.join(" and ");
            self.duplicates.push(format!("two plugins offer the {kind} {name}: {files}; take one away"));
        }
    }

    /// Errors when two files offer one name.
    pub fn need_unique(&self) -> Result<()> {
        match self.duplicates.as_slice() {
            [] => Ok(()),
            all => Err(Error::plugin(all.join("\n"))),
        }
    }

    fn missing(&self, kind: &str, name: &str, known: Vec<&str>) -> Error {
        let mut message = format!("no {kind} is named {name}");
        if known.is_empty() {
            let folders: Vec<String> = self.folders.iter().map(|f| f.display().to_string()).collect();
            message += &match folders.is_empty() {
                true => "; no plugin folder was found (hint: `cargo xtask build` makes one, or use --plugins)".into(),
                false => format!("; no plugin in {} has one", folders.join(", ")),
            };
        } else {
            message += &format!(" (known: {})", known.join(", "));
        }
        for rejected in &self.rejected {
            message += &format!("\nnote: {} was rejected: {}", rejected.file.display(), rejected.reason);
        }
        Error::plugin(message)
    }

    /// The plugin that offers a model, and the model's specification with default options.
    pub fn model(&self, name: &str) -> Result<(&Found, &ModelSpec)> {
        let all = || self.found.iter().flat_map(|f| f.manifest.models.iter().map(move |m| (f, m)));
        let known = || all().map(|(_, m)| m.name.as_str()).collect();
        all().find(|(_, m)| m.name == name).ok_or_else(|| self.missing("model", name, known()))
    }

    /// The plugin that offers an explainer, and its specification.
    pub fn explainer(&self, name: &str) -> Result<(&Found, &ExplainerSpec)> {
        let all = || self.found.iter().flat_map(|f| f.manifest.explainers.iter().map(move |e| (f, e)));
        let known = || all().map(|(_, e)| e.name.as_str()).collect();
        all().find(|(_, e)| e.name == name).ok_or_else(|| self.missing("explainer", name, known()))
    }
}

/// Opens a plugin in this process.
pub fn open(file: &Path) -> Result<Plugin> {
    loader::load(file, lightbox_sdk::BUILT_WITH_TORCH)
        .map_err(|e| Error::plugin(format!("plugin {}: {e}", file.display())))
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Found(Found),
    Rejected(Rejected),
}

struct Answers {
    list: Vec<Answer>,
    crash: Option<String>,
}

impl Answers {
    fn len(&self) -> usize {
        self.list.len()
    }
}

fn describe_one(file: &Path) -> Answer {
    match loader::load(file, lightbox_sdk::BUILT_WITH_TORCH) {
        Err(e) => Answer::Rejected(Rejected { file: file.to_path_buf(), reason: e.to_string() }),
        Ok(plugin) => {
            let record = plugin.preflight;
            let mut warnings = Vec::new();
            if record.torch != "none" && record.torch != lightbox_sdk::BUILT_WITH_TORCH {
                let own = lightbox_sdk::BUILT_WITH_TORCH;
                warnings.push(format!("built against libtorch {}, this host has {own}", record.torch));
            }
            Answer::Found(Found {
                file: file.to_path_buf(),
                torch: record.torch,
                rustc: record.rustc,
                abi: record.abi,
                manifest: plugin.manifest,
                warnings,
            })
        }
    }
}

/// Opens files one after the other in a forked child, which answers with a line each. Fewer answers than files mean that
/// the next one ended the child.
fn describe(files: &[PathBuf]) -> Result<Answers> {
    let mut pipe = [0; 2];
    if unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // The child has one thread, as this process has now, and ends by _exit.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    use std::os::fd::FromRawFd;
    if child == 0 {
        unsafe {
            libc::close(pipe[0]);
            // A plugin's start-up may print; that is not for our user's stdout.
            libc::dup2(2, 1);
        }
        let mut out = unsafe { std::fs::File::from_raw_fd(pipe[1]) };
        for file in files {
            let answer = describe_one(file);
            let mut line = serde_json::to_vec(&answer).unwrap_or_default();
            line.push(b'\n');
            if std::io::Write::write_all(&mut out, &line).is_err() {
                break;
            }
        }
        unsafe { libc::_exit(0) };
    }
    unsafe { libc::close(pipe[1]) };
    let mut input = unsafe { std::fs::File::from_raw_fd(pipe[0]) };
    let mut text = Vec::new();
    let mut deadline = Instant::now() + SCAN_LIMIT;
    let mut crash = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis() as i32;
        let mut poll = libc::pollfd { fd: pipe[0], events: libc::POLLIN, revents: 0 };
        let ready = unsafe { libc::poll(&mut poll, 1, left) };
        if ready == 0 {
            crash = Some(format!("it did not open within {} s", SCAN_LIMIT.as_secs()));
            unsafe { libc::kill(child, libc::SIGKILL) };
            break;
        }
        let mut buffer = [0; 1 << 16];
        match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                text.extend_from_slice(&buffer[..n]);
                deadline = Instant::now() + SCAN_LIMIT;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut status = 0;
    unsafe { libc::waitpid(child, &mut status, 0) };
    if crash.is_none() && libc::WIFSIGNALED(status) {
        crash = Some(format!("it crashed when it was opened ({})", signal_name(libc::WTERMSIG(status))));
    }
    let complete = text.split_inclusive(|&b| b == b'\n').filter(|l| l.ends_with(b"\n"));
    let list = complete.map(serde_json::from_slice).collect::<Result<_, _>>();
    let list = list.map_err(|e| Error::plugin(format!("a plugin's description is malformed: {e}")))?;
    Ok(Answers { list, crash })
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
