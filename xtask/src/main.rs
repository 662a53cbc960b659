//! What a newcomer runs: `cargo xtask setup | build | demo | test | lint | bench | fuzz | real | wheel | docs`.

mod build;
mod docs;
mod fuzz;
mod setup;
mod wheel;

use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Sets Lightbox up, builds it, shows it, tests it.
#[derive(Parser)]
#[command(name = "cargo xtask", after_help = "Examples:\n  cargo xtask demo\n  cargo xtask test")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install libtorch; the other tasks do this first
    Setup {
        /// Install the CUDA build of libtorch although no driver is found here
        #[arg(long)]
        cuda: bool,
    },
    /// Build the program and its plugins
    Build {
        /// With optimisation, for measuring
        #[arg(long)]
        release: bool,
    },
    /// Build, then train three small models on phantoms and print the table
    Demo,
    /// Build, then run all tests
    Test {
        /// Passed on to the test binaries: a filter, --nocapture
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Format check, clippy and rustdoc with warnings denied, licences and sources, the oldest Rust
    Lint,
    /// Build with optimisation and measure against the peers, which are installed for it (5 GB)
    #[command(
        after_help = "Examples:\n  cargo xtask bench --only pixel-ap\n  cargo xtask bench --quick\n  cargo xtask bench --output docs/benchmarks/mine"
    )]
    Bench {
        /// --device NAME, --only ROW, --quick, --output FILE; --help lists the rows
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Fuzz every reader for a while, guided by coverage; what is found lies in target/fuzz/found
    #[command(
        after_help = "Examples:\n  cargo xtask fuzz --seconds 60\n  cargo xtask fuzz --only image --seconds 3600"
    )]
    Fuzz(fuzz::FuzzArgs),
    /// Explain photographs by a network with ImageNet's weights, and compare it with its peers, which are installed for it
    Real {
        /// Write a sheet of the overlays here
        #[arg(long, value_name = "FILE.png")]
        picture: Option<PathBuf>,
    },
    /// Make the Python wheel: the program, its plugins and the module `lightbox`
    Wheel(wheel::WheelArgs),
    /// Make docs/explainers.md and its pictures anew, by a run of every explainer
    Docs,
}

/// The project's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// Runs a command in the project's folder; its failure is an error.
pub fn run(command: &mut Command) -> Result<(), String> {
    let shown = format!("{command:?}").replace('"', "");
    let status = command.current_dir(root()).status().map_err(|e| format!("{shown}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{shown}: {status}")) }
}

/// The cargo that runs us.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn demo() -> Result<(), String> {
    setup::setup(false)?;
    let binary = build::build(false)?;
    eprintln!("\n$ lightbox list explainers");
    run(Command::new(&binary).args(["list", "explainers"]))?;
    eprintln!("\n$ lightbox run demo");
    run(Command::new(&binary).args(["run", "demo"]))?;
    eprintln!("\nThe table is in runs/demo/summary.md, the pictures are in runs/demo/sheet.png.");
    Ok(())
}

fn real(picture: Option<&Path>) -> Result<(), String> {
    setup::setup(false)?;
    let binary = build::build(false)?;
    let what = "a network with ImageNet's weights and the peers (2 GB)";
    let python = setup::environment("real", "real-requirements.txt", what)
        .ok_or("the network, the photographs or the peers could not be installed (hint: is there a network?)")?;
    let folder = root().join("runs/real");
    // The folder of a relative path is the caller's.
    let picture = picture.map(std::path::absolute).transpose().map_err(|e| e.to_string())?;
    run(Command::new(python).arg("tests/oracle/real.py").arg(binary).arg(folder).args(picture))
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Setup { cuda } => setup::setup(cuda),
        Task::Build { release } => setup::setup(false).and_then(|()| build::build(release)).map(|binary| {
            println!("{}", binary.display());
        }),
        Task::Demo => demo(),
        Task::Test { args } => setup::setup(false).and_then(|()| {
            setup::recompute();
            setup::browser();
            build::test(&args)
        }),
        Task::Lint => setup::setup(false).and_then(|()| build::lint()),
        Task::Fuzz(args) => setup::setup(false).and_then(|()| fuzz::fuzz(&args)),
        Task::Real { picture } => real(picture.as_deref()),
        Task::Wheel(args) => setup::setup(false).and_then(|()| wheel::wheel(&args)).map(|made| {
            println!("{}", made.display());
        }),
        Task::Docs => setup::setup(false).and_then(|()| docs::docs()),
        Task::Bench { args } => setup::setup(false).and_then(|()| build::bench(&args)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
