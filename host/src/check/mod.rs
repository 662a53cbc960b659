//! `lightbox check FILE`: does a plugin behave? The tests run in a child process; one that crashes or hangs is named and
//! the rest goes on in a new child.

mod explainer;
mod model;

use crate::child::{Child, EventWriter, Reply};
use crate::error::{Error, Exit, Result};
use crate::registry::dylib::Dylibs;
use crate::registry::source::{OpenPlugin, PluginSource};
use crate::registry::{Registry, source_of};
use clap::Args;
use lightbox_sdk::spec::{ModelOptions, ModelSpec};
use lightbox_sdk::{Array, ErrorKind, ModelHandle};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

#[derive(Args)]
pub struct CheckArgs {
    /// The plugin's library, or an exported program (.pt2)
    file: PathBuf,
    /// The model that explainers are tried on [default: a model of the file, else densenet-small]
    #[arg(long)]
    model: Option<String>,
    /// Seconds that one test may take
    #[arg(long, default_value_t = 60)]
    limit: u64,
    /// A parameter of the explainers that are tested, as name=value [repeatable]
    #[arg(long = "param", value_name = "NAME=VALUE")]
    params: Vec<String>,
    /// Test only this model or explainer of the file [repeatable]
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct WorkerArgs {
    file: PathBuf,
    /// The library and name of the model that explainers are tried on
    #[arg(long, num_args = 2)]
    model: Vec<String>,
    /// How many tests are done already
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// The model was asked for; otherwise one of the file's own goes first
    #[arg(long)]
    asked: bool,
    #[arg(long)]
    only: Vec<String>,
    /// Subjects that ended the process, and in which test, as NAME=TEST [repeatable]
    #[arg(long)]
    dead: Vec<String>,
    /// Subjects that hung [repeatable]
    #[arg(long)]
    hung: Vec<String>,
    #[arg(long = "param")]
    params: Vec<String>,
}

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    Pass,
    /// Works, but a user may be surprised; or the test could not be made.
    Warn,
    Fail,
    /// It ended the process or hung.
    Crash,
}

/// One test's result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finding {
    /// `gradcam` or `densenet121`; the file for tests of the whole.
    pub subject: String,
    pub test: String,
    pub status: Status,
    pub message: String,
}

/// What the child says.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Started { subject: String, test: String },
    Ended(Finding),
    Done,
}

/// Runs the tests and prints them; [`Exit::CheckFailed`] when one fails.
pub fn check(args: &CheckArgs, plugins: &[PathBuf]) -> Result<Exit> {
    if !args.file.is_file() {
        return Err(Error::input(format!("{}: no such file", args.file.display())));
    }
    let findings = findings(args, plugins)?;
    let failed = findings.iter().any(|f| matches!(f.status, Status::Fail | Status::Crash));
    if args.json {
        let value = serde_json::json!({"file": args.file, "passed": !failed, "tests": findings});
        println!("{}", serde_json::to_string_pretty(&value).map_err(|e| Error::input(e.to_string()))?);
    } else {
        for f in &findings {
            let status = format!("{:?}", f.status).to_uppercase();
            let message = if f.message.is_empty() { String::new() } else { format!(": {}", f.message) };
            println!("{status:5}  {}  {}{message}", f.subject, f.test);
        }
        let count = |s: Status| findings.iter().filter(|f| f.status == s).count();
        let (pass, warn) = (count(Status::Pass), count(Status::Warn));
        println!("\n{pass} pass, {warn} warn, {} fail, {} crash", count(Status::Fail), count(Status::Crash));
    }
    Ok(if failed { Exit::CheckFailed } else { Exit::Ok })
}

fn findings(args: &CheckArgs, plugins: &[PathBuf]) -> Result<Vec<Finding>> {
    let subject = args.file.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
    let finding =
        |test: &str, status, message: String| Finding { subject: subject.clone(), test: test.into(), status, message };
    // What can be said without running any of its code.
    let text = match source_or_library(&args.file).identify(&args.file) {
        Ok(text) => text,
        Err(e) => return Ok(vec![finding("preflight", Status::Fail, e)]),
    };
    let mut all = vec![finding("preflight", Status::Pass, text)];

    let registry = Registry::scan(plugins)?;
    let wanted = args.model.as_deref().unwrap_or("densenet-small");
    let model = registry.model(wanted).map(|(found, _)| found.file.clone());
    if let (Err(e), Some(_)) = (&model, &args.model) {
        return Err(e.clone());
    }
    let limit = Duration::from_secs(args.limit);
    let (mut skip, mut dead, mut hung) = (0, Vec::<String>::new(), Vec::<String>::new());
    loop {
        let mut arguments: Vec<OsString> = vec!["check-worker".into(), args.file.clone().into()];
        arguments.extend(["--skip".into(), skip.to_string().into()]);
        let lists = [("--only", &args.only), ("--dead", &dead), ("--hung", &hung), ("--param", &args.params)];
        for (flag, list) in lists {
            list.iter().for_each(|value| arguments.extend([flag.into(), value.into()]));
        }
        if args.model.is_some() {
            arguments.push("--asked".into());
        }
        if let Ok(file) = &model {
            arguments.extend(["--model".into(), file.clone().into(), wanted.into()]);
        }
        let (send, lines) = channel();
        let mut child = Child::start::<Line>(&arguments, &[], Stdio::null(), move |said| drop(send.send(said)))?;
        let mut now: Option<(String, String)> = None;
        let mut last = Instant::now();
        let mut silent = false;
        let how = loop {
            match lines.recv_timeout(Duration::from_millis(100)) {
                Ok(Reply::Line(Line::Started { subject, test })) => now = Some((subject, test)),
                Ok(Reply::Line(Line::Ended(f))) => {
                    all.push(f);
                    skip += 1;
                    now = None;
                }
                Ok(Reply::Line(Line::Done)) => {
                    child.end();
                    return Ok(all);
                }
                Ok(Reply::Malformed(line)) => break format!("it wrote to the host's channel: {line}"),
                Err(RecvTimeoutError::Timeout) if last.elapsed() < limit => continue,
                Err(RecvTimeoutError::Timeout) => {
                    silent = true;
                    child.kill();
                    break format!("no answer within {} s", args.limit);
                }
                Ok(Reply::Ended) | Err(RecvTimeoutError::Disconnected) => break child.end(),
            }
            last = Instant::now();
        };
        let Some((subject, test)) = now else {
            return Err(Error::new(Exit::Other, format!("the tests' process failed between two tests: {how}")));
        };
        let opening = test == "opens";
        if [MODEL_MADE, EXPLAINER_MADE, PLANS, FITS, FITS_AGAIN].contains(&test.as_str()) {
            dead.push(format!("{subject}={test}"));
        } else if silent {
            // One that hangs once would hang in every further test.
            hung.push(subject.clone());
        }
        all.push(Finding { subject, test, status: Status::Crash, message: how });
        if opening {
            return Ok(all);
        }
        skip += 1;
    }
}

/// The source of a file; a file of another name is taken for a library.
fn source_or_library(file: &Path) -> &'static dyn PluginSource {
    source_of(file).unwrap_or(&Dylibs)
}

/// The outcome of a test: a message for the user, or what went wrong.
type Outcome = std::result::Result<(Status, String), String>;

fn pass() -> Outcome {
    Ok((Status::Pass, String::new()))
}

/// The child: runs the tests in a fixed order, from `skip` on.
pub fn worker(args: &WorkerArgs) -> Result<()> {
    let writer = EventWriter::open();
    crate::remote::process::die_with_plugins();
    THREADS.get_or_init(tch::get_num_threads);
    let watch = crate::watch::terminal();
    let say = |line: &Line| writer.say(line);
    let mut params = BTreeMap::new();
    for pair in &args.params {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| Error::input(format!("--param {pair}: name=value expected")))?;
        params.insert(key.to_string(), serde_json::Value::from(value));
    }
    let subject = args.file.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
    let mut number = 0;
    let mut test = |subject: &str, name: &str, f: &mut dyn FnMut() -> Outcome| {
        number += 1;
        if number <= args.skip {
            return;
        }
        let (subject, test) = (subject.to_string(), name.to_string());
        if args.hung.contains(&subject) {
            let message = "not tried: it hung in an earlier test".to_string();
            say(&Line::Ended(Finding { subject, test, status: Status::Warn, message }));
            return;
        }
        say(&Line::Started { subject: subject.clone(), test: test.clone() });
        let (status, message) = f().unwrap_or_else(|message| (Status::Fail, message));
        say(&Line::Ended(Finding { subject, test, status, message }));
    };

    let mut plugin: Option<&'static dyn OpenPlugin> = None;
    let mut open = || {
        let opened = source_or_library(&args.file).open_to_try(&args.file).map_err(|e| e.message)?;
        plugin = Some(Box::leak(opened));
        Ok(())
    };
    if args.skip > 0 {
        open().map_err(|e: String| Error::plugin(e))?;
    }
    test(&subject, "opens", &mut || {
        let started = Instant::now();
        open()?;
        let time = started.elapsed().as_millis();
        let slow = started.elapsed() > source_or_library(&args.file).limit() / 10;
        Ok((if slow { Status::Warn } else { Status::Pass }, format!("{time} ms")))
    });
    let Some(plugin) = plugin else {
        say(&Line::Done);
        return Ok(());
    };
    let manifest = plugin.manifest();
    test(&subject, "manifest", &mut || {
        let plain = |s: &str| {
            !s.is_empty() && s.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c))
        };
        let names = manifest.models.iter().map(|m| &m.name).chain(manifest.explainers.iter().map(|e| &e.name));
        let names: Vec<&String> = names.collect();
        if names.is_empty() {
            return Err("it offers neither model nor explainer".into());
        }
        match names.iter().find(|n| !plain(n)) {
            Some(bad) => Err(format!("name `{bad}`: lower-case letters, digits, - _ . expected")),
            None => pass(),
        }
    });
    test(&subject, "an unknown name is an error", &mut || {
        let mut unknown = vec!["no-such-name".to_string()];
        unknown.extend(manifest.explainers.iter().map(|e| format!("{} ", e.name)));
        unknown.extend(manifest.models.iter().map(|m| format!("{}x", m.name)));
        let options = ModelOptions::default();
        match unknown.iter().find(|n| plugin.make_explainer(n).is_ok() || plugin.make_model(n, &options).is_ok()) {
            Some(name) => Err(format!("it makes something of the name `{name}`")),
            None => pass(),
        }
    });
    let dead = |name: &String| args.dead.iter().filter_map(|d| d.rsplit_once('=')).find(|d| d.0 == name).map(|d| d.1);
    let wanted = |name: &String| args.only.is_empty() || args.only.contains(name);
    for spec in manifest.models.iter().filter(|m| wanted(&m.name)) {
        model::check(plugin, spec, dead(&spec.name).is_some(), &mut test);
    }
    let other = match args.model.as_slice() {
        [file, name] => Some((PathBuf::from(file), name.clone())),
        _ => None,
    };
    let own = manifest.models.iter().find(|m| m.name == "densenet-small").or(manifest.models.first());
    for spec in manifest.explainers.iter().filter(|e| wanted(&e.name)) {
        let mut model = || match (&other, own) {
            (Some((file, name)), own) if args.asked || own.is_none() => build(file, name),
            (_, Some(own)) => make_small(plugin, &own.name),
            _ => Err("no model is at hand to try it on (hint: --plugins DIR, --model NAME)".into()),
        };
        explainer::check(plugin, spec, &args.file, &params, &watch, &mut model, dead(&spec.name), &mut test);
    }
    say(&Line::Done);
    Ok(())
}

type Test<'a> = dyn FnMut(&str, &str, &mut dyn FnMut() -> Outcome) + 'a;

fn build(file: &Path, name: &str) -> std::result::Result<ModelHandle, String> {
    make_small(crate::registry::open(file).map_err(|e| e.message)?, name)
}

/// A model at a small input size where it has such a parameter, to be quick.
fn make_small(plugin: &dyn OpenPlugin, name: &str) -> std::result::Result<ModelHandle, String> {
    let spec = plugin.model_spec(name, &ModelOptions::default()).map_err(|e| e.to_string())?;
    let mut options = ModelOptions::default();
    if spec.parameters.iter().any(|p| p.name == "size") && spec.input.size.iter().any(|n| *n > 64) {
        options.params.insert("size".into(), 64.into());
        if let Ok(model) = plugin.make_model(name, &options) {
            return Ok(model);
        }
        options.params.clear();
    }
    plugin.make_model(name, &options).map_err(|e| e.to_string())
}

/// A batch that is no noise and no constant.
fn images(spec: &ModelSpec, n: usize) -> Array {
    let i = &spec.input;
    let shape = i.shape(n);
    let count = shape.iter().product::<usize>();
    let values = (0..count).map(|k| ((k as f32 * 0.37).sin() + (k as f32 * 0.0011).cos()) * 0.8).collect();
    Array::from_vec(&shape, values).unwrap_or_else(|e| unreachable!("own images: {e}"))
}

fn rows(array: &Array, from: usize, n: usize) -> std::result::Result<Array, lightbox_sdk::Error> {
    let tensor = array.to_tensor()?;
    Array::from_tensor(&tensor.f_narrow(0, from as i64, n as i64)?.f_contiguous()?)
}

fn tensor(array: &Array) -> std::result::Result<Tensor, String> {
    array.to_tensor().and_then(|t| Ok(t.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)).map_err(|e| e.to_string())
}

/// The largest difference, relative to the largest value.
fn difference(a: &Array, b: &Array) -> std::result::Result<f64, String> {
    let (a, b) = (tensor(a)?, tensor(b)?);
    if a.size() != b.size() {
        return Err(format!("shapes {:?} and {:?}", a.size(), b.size()));
    }
    let run = || -> std::result::Result<f64, tch::TchError> {
        let most = b.f_abs()?.f_max()?.f_double_value(&[])?.max(1e-12);
        Ok((a.f_sub(&b)?).f_abs()?.f_max()?.f_double_value(&[])? / most)
    };
    run().map_err(|e| e.to_string())
}

fn finite(array: &Array, what: &str) -> std::result::Result<(), String> {
    let t = tensor(array)?;
    match t.f_isfinite().and_then(|t| t.f_all()).and_then(|t| t.f_int64_value(&[])) {
        Ok(0) => Err(format!("{what} holds values that are not finite")),
        Ok(_) => Ok(()),
        Err(e) => Err(e.to_string()),
    }
}

/// Global state that a call must leave as it was.
#[derive(Debug, PartialEq)]
struct Globals {
    grad_mode: bool,
    threads: i32,
    /// The next number of libtorch's generator, which reading spoils: it is seeded before and after.
    random: f64,
}

/// libtorch's threads before any plugin ran.
static THREADS: std::sync::OnceLock<i32> = std::sync::OnceLock::new();

fn globals() -> Globals {
    let probe = Tensor::zeros([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let grad_mode = (&probe * 1.0).requires_grad();
    let random = Tensor::rand([1], (Kind::Double, Device::Cpu)).double_value(&[0]);
    Globals { grad_mode, threads: tch::get_num_threads(), random }
}

/// Runs `f` and compares the global state around it.
fn keeps_globals(f: &mut dyn FnMut() -> std::result::Result<(), String>) -> Outcome {
    // A test before this one may have changed them already.
    tch::set_num_threads(*THREADS.get_or_init(tch::get_num_threads));
    tch::manual_seed(7);
    let before = globals();
    tch::manual_seed(7);
    let ran = f();
    let after = globals();
    // SAFETY: sets a thread-local flag.
    unsafe { torch_sys::at_grad_set_enabled(1) };
    tch::set_num_threads(before.threads);
    ran?;
    let mut changed = Vec::new();
    if before.grad_mode != after.grad_mode {
        changed.push("the grad mode");
    }
    if before.threads != after.threads {
        changed.push("the number of threads");
    }
    if before.random != after.random {
        changed.push("libtorch's random generator");
    }
    if changed.is_empty() { pass() } else { Err(format!("it changed {}", changed.join(" and "))) }
}

/// An error that is not a panic.
fn refuses<T>(result: std::result::Result<T, lightbox_sdk::Error>, what: &str) -> std::result::Result<(), String> {
    match result {
        Ok(_) => Err(format!("{what} is accepted")),
        Err(e) if e.kind == ErrorKind::Panic => Err(format!("{what} makes it panic: {e}")),
        Err(_) => Ok(()),
    }
}

const MODEL_MADE: &str = "is made, and describes itself";
const EXPLAINER_MADE: &str = "is made, describes itself, and its defaults are valid";
const PLANS: &str = "plans";
const FITS: &str = "fits";
const FITS_AGAIN: &str = "learns the same again";

/// What a subject's first test makes; made anew, without a test, in a child that goes on after it.
fn made<T>(
    cell: &mut Option<T>,
    make: &mut dyn FnMut() -> std::result::Result<T, String>,
) -> std::result::Result<(), String> {
    if cell.is_none() {
        *cell = Some(make()?);
    }
    Ok(())
}
