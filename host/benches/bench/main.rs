//! Lightbox against its peers: each row runs both alternately in one process a side, on the same weights, inputs and number of
//! threads, for several rounds. A ratio is the peer's time over ours, round by round: its median, least and greatest. What
//! both computed is compared, and a row whose results differ by more than it allows fails.
//!
//! ```sh
//! cargo xtask bench                      # everything, with the peers
//! cargo xtask bench --only pixel-ap      # one row
//! cargo xtask bench --quick              # fewer rounds and smaller cases: that all of it works
//! ```

mod attributions;
mod cams;
mod cost;
mod decode;
mod explainers;
mod exported;
mod map_metrics;
mod memory;
mod peer;
mod pixel_ap;
mod precision;
mod python;
mod removal;
mod rounds;
mod run;
mod scaling;
mod startup;
mod summary;
mod table;
mod training;

use clap::Parser;
use lightbox::choice::ExplainerChoice;
use lightbox::engine::{Engine, Settings};
use lightbox::registry;
use lightbox_core::checkpoint::{self, State};
use lightbox_sdk::spec::ModelOptions;
use peer::Peer;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;
use table::Table;
use tch::{Device, Kind, Tensor};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Name, and what measures it.
type Row = (&'static str, fn(&Bench, &mut Table) -> Result<()>);

const ROWS: [Row; 21] = [
    // First: a process's greatest memory counts from that of its parent.
    ("scaling", scaling::measure),
    ("memory", memory::measure),
    ("start-up", startup::measure),
    ("cost", cost::measure),
    ("explainers", explainers::measure),
    ("cams", cams::measure),
    ("exported", exported::measure),
    ("python", python::measure),
    ("ig", attributions::ig),
    ("scorecam", attributions::scorecam),
    ("ablationcam", attributions::ablationcam),
    ("rise", attributions::rise),
    ("precision", precision::measure),
    ("pixel-ap", pixel_ap::measure),
    ("map-metrics", map_metrics::measure),
    ("removal", removal::measure),
    ("decode", decode::measure),
    ("training", training::measure),
    ("run", run::measure),
    ("shares", scaling::shares),
    ("summary", summary::measure),
];

#[derive(Parser)]
struct Cli {
    /// cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Only these rows [repeatable]
    #[arg(long, value_parser = ROWS.map(|(name, _)| name))]
    only: Vec<String>,
    /// Fewer rounds and smaller cases
    #[arg(long)]
    quick: bool,
    /// Writes FILE.md and FILE.json
    #[arg(long)]
    output: Option<PathBuf>,
    /// A part of a row that is a process of its own
    #[arg(long, hide = true)]
    part: Option<String>,
    /// Cargo says it
    #[arg(long, hide = true)]
    bench: bool,
}

/// What all rows share.
pub struct Bench {
    pub device: Device,
    pub quick: bool,
    /// A Python with `tests/oracle/bench-requirements.txt`; without it there are no peers.
    pub python: Option<PathBuf>,
}

/// What a part of a row prints, as cells of a table. A part is a process of its own, so that its greatest memory is too.
pub fn part(row: &str, size: usize) -> Result<String> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    let output = command.args(["--part", &format!("{row}:{size}")]).stderr(std::process::Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("{row} of {size}: {}", output.status).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().replace(' ', " | "))
}

impl Bench {
    /// Many rounds, or few where that will do.
    pub fn rounds(&self, many: usize) -> usize {
        if self.quick { 2 } else { many }
    }

    pub fn name(&self) -> String {
        lightbox::device::name(self.device)
    }

    /// A model of seeded random weights with explainers, given as `plugin/name:params`, and its weights.
    pub fn engine(&self, model: &str, size: i64, explainers: &[&str]) -> Result<(Engine, State)> {
        self.engine_of(model, size, 0, explainers)
    }

    /// The same, of another number of classes than the model's own (0).
    pub fn engine_of(&self, model: &str, size: i64, classes: usize, explainers: &[&str]) -> Result<(Engine, State)> {
        let size = (size > 0).then(|| ("size".to_string(), size.into()));
        let engine = self.made(model, size.into_iter().collect(), classes, explainers)?;
        let mut weights = State::new();
        for (name, array) in engine.parameters()? {
            weights.push((format!("weights.{name}"), array.share_tensor()?.f_to_device(Device::Cpu)?.f_contiguous()?));
        }
        Ok((engine, weights))
    }

    /// The same weights, computing in another precision.
    pub fn engine_in(&self, model: &str, precision: &str, explainers: &[&str]) -> Result<Engine> {
        self.made(model, BTreeMap::from([("precision".to_string(), precision.into())]), 0, explainers)
    }

    fn made(
        &self,
        model: &str,
        params: BTreeMap<String, serde_json::Value>,
        classes: usize,
        explainers: &[&str],
    ) -> Result<Engine> {
        let family = model.split(['_', '-']).next().unwrap_or_default().trim_end_matches(char::is_numeric);
        let options = ModelOptions { device: self.name(), classes, seed: 1, params };
        let made = registry::open(&plugin(family)?)?.make_model(model, &options)?;
        let mut engine = Engine::new(made, Settings::new(self.device, 0), lightbox::watch::terminal())?;
        for explainer in explainers {
            let (file, choice) = explainer.split_once('/').ok_or("plugin/name")?;
            engine.add(&plugin(file)?, &ExplainerChoice::parse(choice)?)?;
        }
        Ok(engine)
    }

    /// Writes such a model's weights as a checkpoint.
    pub fn write_weights(&self, model: &str, classes: usize, file: &Path) -> Result<()> {
        let (_, state) = self.engine_of(model, 0, classes, &[])?;
        let bare = |(name, tensor): (String, Tensor)| (name.trim_start_matches("weights.").to_string(), tensor);
        Ok(checkpoint::write(file, &state.into_iter().map(bare).collect::<Vec<_>>())?)
    }

    pub fn peer(&self, row: &str, job: serde_json::Value, state: &State) -> Result<Option<Peer>> {
        match &self.python {
            Some(python) => Ok(Some(Peer::start(python, row, job, state)?)),
            None => Ok(None),
        }
    }
}

/// A plugin of this build.
pub fn plugin(family: &str) -> Result<PathBuf> {
    Ok(built()?.join(format!("plugins/liblightbox_{family}.so")))
}

/// Where the program and its plugins are.
pub fn built() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().and_then(Path::parent).ok_or("a benchmark lies in target/release/deps")?.to_path_buf())
}

/// Images of noise, the same every time: their values are those of normalised radiographs.
pub fn images(n: i64, side: i64) -> Result<Tensor> {
    tch::manual_seed(7);
    Ok(Tensor::f_randn([n, 3, side, side], (Kind::Float, Device::Cpu))?)
}

/// The class that the model ranks first of each image: of others a map may be 0 everywhere.
pub fn highest(engine: &Engine, images: &Tensor) -> Result<Vec<i64>> {
    let logits = engine.classify(&images.to_device(engine.device()))?;
    Ok(Vec::<i64>::try_from(logits.f_argmax(1, false)?)?)
}

/// Seconds that a call takes.
pub fn timed<T>(device: Device, call: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let start = Instant::now();
    let value = call()?;
    if let Device::Cuda(n) = device {
        tch::Cuda::synchronize(n as i64);
    }
    Ok((value, start.elapsed().as_secs_f64()))
}

/// The greatest difference of two maps, each [n, ...] scaled to [0, 1] by its own range: what is left of a map when it is seen.
/// A map of theirs that is constant or not finite compares with nothing, and is an error.
pub fn map_difference(ours: &Tensor, theirs: &Tensor) -> Result<f64> {
    let scaled = |t: &Tensor| -> Result<Tensor> {
        let flat = t.f_to_kind(Kind::Double)?.f_flatten(1, -1)?;
        let low = flat.f_amin([1i64].as_slice(), true)?;
        let range = flat.f_amax([1i64].as_slice(), true)?.f_sub(&low)?;
        Ok(flat.f_sub(&low)?.f_div(&range.f_clamp_min(1e-300)?)?)
    };
    let range = theirs
        .f_flatten(1, -1)?
        .f_amax([1i64].as_slice(), false)?
        .f_sub(&theirs.f_flatten(1, -1)?.f_amin([1i64].as_slice(), false)?)?;
    if range.f_gt(0.0)?.f_logical_and(&range.f_isfinite()?)?.f_all()?.f_int64_value(&[])? == 0 {
        return Err(format!("the peer's maps have the ranges {range:?}").into());
    }
    Ok(scaled(ours)?.f_sub(&scaled(theirs)?)?.f_abs()?.f_max()?.f_double_value(&[])?)
}

/// The greatest difference, of the greatest value of theirs.
pub fn relative_difference(ours: &Tensor, theirs: &Tensor) -> Result<f64> {
    let (ours, theirs) = (ours.f_to_kind(Kind::Double)?, theirs.f_to_kind(Kind::Double)?);
    let most = theirs.f_abs()?.f_max()?.f_double_value(&[])?;
    Ok(ours.f_sub(&theirs)?.f_abs()?.f_max()?.f_double_value(&[])? / most)
}

fn main() {
    // Runs are measured with the preparing of their images.
    // SAFETY: no other thread is there yet.
    unsafe { std::env::set_var("LIGHTBOX_CACHE", "") };
    lightbox::device::open_cuda();
    lightbox::device::keep_memory();
    let cli = Cli::parse();
    if let Err(e) = run(&cli) {
        eprintln!("error: {e}");
        std::process::exit(1);
    }
}

fn run(cli: &Cli) -> Result<()> {
    if let Some(part) = &cli.part {
        let (row, size) = part.split_once(':').ok_or("ROW:SIZE expected")?;
        return match row {
            "memory" => memory::part(size.parse()?),
            "exported" => exported::part(size.parse()?),
            _ => summary::part(size.parse()?),
        };
    }
    let device = lightbox::device::choose(&cli.device)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let python = std::env::var_os("LIGHTBOX_PEER_PYTHON").map(PathBuf::from);
    // A relative interpreter is relative to the project.
    let python = python.map(|p| if p.components().count() > 1 { root.join(p) } else { p });
    if python.is_none() {
        eprintln!("note: no peers (hint: `cargo xtask bench` installs them)");
    }
    let bench = Bench { device, quick: cli.quick, python };
    let mut table = Table::new(&bench);
    let mut failed = Vec::new();
    for (name, measure) in ROWS.iter().filter(|(name, _)| cli.only.is_empty() || cli.only.iter().any(|o| o == name)) {
        eprintln!("-- {name}");
        lightbox::device::tf32(false)?;
        if let Err(e) = measure(&bench, &mut table) {
            eprintln!("error: {name}: {e}");
            failed.push(*name);
        }
    }
    let text = table.markdown();
    println!("{text}");
    if let Some(output) = &cli.output {
        let write = |ending: &str, text: &str| {
            let path = output.with_extension(ending);
            std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
        };
        write("md", &text)?;
        write("json", &table.json()?)?;
    }
    let wrong = table.wrong();
    match (failed.is_empty(), wrong.is_empty()) {
        (true, true) => Ok(()),
        (false, _) => Err(format!("rows that were not measured: {}", failed.join(", ")).into()),
        _ => Err(format!("results differ by more than they may: {}", wrong.join(", ")).into()),
    }
}
