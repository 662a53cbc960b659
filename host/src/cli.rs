//! The command line. Results go to stdout, talk to stderr.

use crate::error::{Error, Exit, Result};
use crate::registry::Registry;
use crate::run::score_maps;
use crate::run::spec::RunSpec;
use crate::run::summary::{ComparisonsFile, SummaryFile, json_schema};
use crate::run::supervisor::{self, Options};
use crate::{check, compare, data, explain, list, maps, new, run, signals};
use clap::{Args, Parser, Subcommand};
use lightbox_core::text::plain;
use std::io::Write;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "Examples:
  lightbox list                                    what there is
  lightbox info gradcam                            parameters, reference, plugin of one thing
  lightbox explain chest.png --model densenet121 --weights w.pth --explainer gradcam
  lightbox run demo                                a built-in benchmark; `lightbox info demo` prints its spec
  lightbox check target/debug/libmy_plugin.so      does a plugin behave?

Exit codes:
  0 done   1 other error   2 usage   3 bad input   4 plugin error   5 some cells of the table failed
  6 disk full   7 check failed   8 training diverged   130 interrupted (the same command continues)";

/// Measures whether saliency maps tell the truth.
#[derive(Parser)]
#[command(name = "lightbox", version, after_help = EXAMPLES)]
struct Cli {
    /// A folder of plugins, searched before LIGHTBOX_PLUGIN_PATH and `plugins/` beside the binary [repeatable]
    #[arg(long, global = true, value_name = "DIR")]
    plugins: Vec<PathBuf>,
    /// The interpreter of plugins in Python [default: LIGHTBOX_PYTHON, else what each file asks for]
    #[arg(long, global = true, value_name = "FILE")]
    interpreter: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List models, explainers, metrics, datasets, specs and plugins
    #[command(after_help = "Examples:\n  lightbox list\n  lightbox list explainers --json")]
    List {
        /// What to list [default: everything]
        #[arg(value_enum)]
        what: Option<list::What>,
        /// One JSON object on stdout
        #[arg(long)]
        json: bool,
    },
    /// Show all of one model, explainer, metric, dataset or built-in spec
    #[command(after_help = "Examples:\n  lightbox info densenet121\n  lightbox info demo > my.toml")]
    Info {
        name: String,
        #[arg(long)]
        json: bool,
    },
    /// Print the reference of all explainers or metrics as Markdown, or the schema of a result file
    #[command(
        after_help = "Examples:\n  lightbox reference > explainers.md\n  lightbox reference metrics > metrics.md"
    )]
    Reference {
        #[arg(value_enum, default_value = "explainers")]
        what: crate::reference::What,
        /// Link to pictures NAME.png in this folder
        #[arg(long, value_name = "FOLDER")]
        pictures: Option<String>,
    },
    /// Test whether a plugin behaves: in a child process, with a time limit
    #[command(
        after_help = "Examples:\n  lightbox check target/debug/libmy_plugin.so\n  lightbox check my.so --json --model densenet-small"
    )]
    Check(check::CheckArgs),
    /// Explain images: overlays, or raw maps as .safetensors
    #[command(after_help = "Examples:\n  \
        lightbox explain a.png b.dcm --model densenet121 --weights w.pth --explainer gradcam --out overlays\n  \
        lightbox explain batch.npy --model densenet121 --explainer gradcam:layer=features.norm5 --raw maps.safetensors")]
    Explain(explain::ExplainArgs),
    /// Run a benchmark, or continue it
    #[command(after_help = "Examples:\n  lightbox run demo\n  lightbox run mine.toml --json > events.jsonl\n  \
        lightbox run study --set data.root=node21 --set models.DenseNet121.weights=densenet121-a639ec97.pth\n  \
        lightbox run study-quick --workers 2 --output runs/short --set 'models.*.train.epochs=2'")]
    Run {
        /// A TOML file, or the name of a built-in spec
        spec: PathBuf,
        #[command(flatten)]
        options: RunArgs,
    },
    /// Say what changed between two runs, and whether it matters
    #[command(
        after_help = "Examples:\n  lightbox compare runs/before runs/after\n  lightbox compare runs/v1 runs/v2 --metric pixel-auprc --json"
    )]
    Compare(compare::CompareArgs),
    /// Score maps that were made anywhere
    #[command(
        after_help = "Examples:\n  lightbox score --maps maps.npy --masks masks.npy --metric pixel-auprc --metric iou\n  \
        lightbox score --maps maps.safetensors --metric gini --json"
    )]
    Score(score_maps::ScoreArgs),
    /// Write the maps of a run for other tools: .safetensors or .npy
    #[command(
        after_help = "Examples:\n  lightbox maps runs/demo --model densenet-small --explainer gradcam --output maps.safetensors\n  \
        lightbox maps runs/demo --model deit-mini --explainer attention --output maps.npy"
    )]
    Maps(maps::MapsArgs),
    /// Write the report of a run: one HTML file that needs no network
    #[command(after_help = "Examples:\n  lightbox report runs/demo\n  lightbox report runs/demo --output demo.html")]
    Report {
        /// The folder of a run that has ended
        run: PathBuf,
        /// [default: report.html in the run's folder]
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// Serve the reports of runs on this machine, with maps and images at their own size
    #[command(after_help = "Examples:\n  lightbox serve runs/demo\n  lightbox serve runs/* --port 0")]
    Serve {
        /// Folders of runs that have ended
        #[arg(required = true)]
        runs: Vec<PathBuf>,
        /// On 127.0.0.1; 0 takes a free one
        #[arg(long, default_value_t = 8017)]
        port: u16,
    },
    /// Train the models of a spec and stop there; `run` on the same spec goes on
    #[command(after_help = "Example:\n  lightbox train mine.toml")]
    Train {
        /// A TOML file, or the name of a built-in spec
        spec: PathBuf,
        #[command(flatten)]
        options: RunArgs,
    },
    /// Write a plugin that passes its check and has a unit test: a crate, or a Python file
    #[command(
        after_help = "Examples:\n  lightbox new explainer my-map\n  lightbox new explainer my-gradient --tch\n  \
        lightbox new explainer my-map --python\n  lightbox new model my-net"
    )]
    New(new::NewArgs),
    /// Make phantoms, or look at a data source
    #[command(subcommand)]
    Data(data::DataCommand),
    /// A worker of `run`
    #[command(hide = true)]
    Worker {
        #[arg(long)]
        run: PathBuf,
        #[arg(long)]
        device: String,
        #[arg(long)]
        threads: usize,
        #[arg(long)]
        spare: usize,
        #[arg(long)]
        number: usize,
    },
    /// The child that opens plugins
    #[command(hide = true)]
    Describe {
        files: Vec<PathBuf>,
        #[arg(long)]
        models: Option<String>,
        #[arg(long)]
        plans: Option<String>,
    },
    /// The child of `check`
    #[command(hide = true)]
    CheckWorker(check::WorkerArgs),
}

#[derive(Args)]
struct RunArgs {
    /// Events as JSON lines on stdout
    #[arg(long)]
    json: bool,
    /// Throw away what an earlier run in this folder made
    #[arg(long)]
    restart: bool,
    /// Compute failed cells anew
    #[arg(long)]
    retry_failed: bool,
    /// Worker processes at once [default: one a device]. The numbers do not depend on it
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Go on under other threads, CPU kernels or versions than the run began with; it is recorded
    #[arg(long)]
    mixed: bool,
    /// auto, cpu, cuda, cuda:N, or several separated by commas [default: the spec's]
    #[arg(long)]
    device: Option<String>,
    /// The folder for results [default: the spec's, else runs/NAME]
    #[arg(long)]
    output: Option<PathBuf>,
    /// An exported program (.pt2) as one more model [repeatable]
    #[arg(long = "model", value_name = "FILE.pt2")]
    models: Vec<PathBuf>,
    /// Change a key of the spec; entries of models and explainers go by label or name, * is all of them [repeatable]
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Parses, runs, prints the error.
pub fn main() -> u8 {
    let cli = Cli::parse();
    if let Some(python) = &cli.interpreter {
        use_python(python);
    }
    if !matches!(
        cli.command,
        Command::Run { .. } | Command::Train { .. } | Command::Worker { .. } | Command::Describe { .. }
    ) {
        // SAFETY: a plain call. A closed pipe (`lightbox list | head`) ends the process quietly, as other tools do. A run goes on.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
    match dispatch(cli) {
        Ok(exit) => exit as u8,
        Err(error) => {
            eprintln!("error: {}", plain(&error.to_string()));
            error.exit as u8
        }
    }
}

/// Names the interpreter of plugins in Python, for this process and those that it starts.
fn use_python(python: &Path) {
    let python =
        if python.components().count() > 1 { std::path::absolute(python).ok() } else { None }.unwrap_or(python.into());
    // SAFETY: no other thread has been started yet.
    unsafe { std::env::set_var(crate::registry::python::VARIABLE, python) };
}

/// Writes a result to stdout. A disk that is full behind it is an error like another.
fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    Ok(out.write_all(text.as_bytes()).and_then(|()| out.flush())?)
}

fn dispatch(cli: Cli) -> Result<Exit> {
    match cli.command {
        Command::List { what, json } => {
            let registry = Registry::scan(&cli.plugins)?;
            say(&plain(&list::list(&registry, what, json)?))?;
            // The list is whole; a name that nobody can use is said all the same.
            let all: Vec<String> = registry.duplicates.iter().map(|(_, text)| text.clone()).collect();
            if all.is_empty() { Ok(Exit::Ok) } else { Err(Error::plugin(all.join("\n"))) }
        }
        Command::Reference { what, pictures } => {
            let text = match what {
                crate::reference::What::Metrics => crate::reference::metrics(),
                crate::reference::What::Summary => json_schema::<SummaryFile>()?,
                crate::reference::What::Comparisons => json_schema::<ComparisonsFile>()?,
                crate::reference::What::Explainers => {
                    crate::reference::markdown(&Registry::scan(&cli.plugins)?, pictures.as_deref())?
                }
            };
            say(&plain(&text))?;
            Ok(Exit::Ok)
        }
        Command::Info { name, json } => {
            let registry = Registry::scan(&cli.plugins)?.with_programs(std::iter::once(name.as_str()))?;
            say(&plain(&list::info(&registry, &name, json)?))?;
            Ok(Exit::Ok)
        }
        Command::Check(args) => check::check(&args, &cli.plugins),
        Command::CheckWorker(args) => check::worker(&args).map(|()| Exit::Ok),
        Command::Explain(args) => {
            let registry = Registry::scan(&cli.plugins)?.with_programs(std::iter::once(args.model.as_str()))?;
            signals::install()?;
            explain::explain(&args, &registry)
        }
        Command::Run { spec, options } => start(&cli.plugins, spec, options, false),
        Command::Train { spec, options } => start(&cli.plugins, spec, options, true),
        Command::Score(args) => {
            say(&score_maps::main(&args)?)?;
            Ok(Exit::Ok)
        }
        Command::Maps(args) => {
            say(&maps::maps(&args)?)?;
            Ok(Exit::Ok)
        }
        Command::Compare(args) => {
            say(&plain(&compare::compare(&args)?))?;
            Ok(Exit::Ok)
        }
        Command::Report { run, output } => {
            say(&format!("{}\n", crate::report::write(&run, output.as_deref())?.display()))?;
            Ok(Exit::Ok)
        }
        Command::Serve { runs, port } => {
            signals::install()?;
            crate::report::serve::serve(&runs, port, &mut |address| {
                println!("{address}");
                eprintln!("serving {} runs on this machine alone; Ctrl-C ends it", runs.len());
            })
        }
        Command::New(args) => {
            say(&new::new(&args)?)?;
            Ok(Exit::Ok)
        }
        Command::Data(command) => {
            say(&data::data(&command)?)?;
            Ok(Exit::Ok)
        }
        Command::Worker { run, device, threads, spare, number } => {
            run::worker::main(&run, &device, threads, spare, number).map(|()| Exit::Ok)
        }
        Command::Describe { files, models, plans } => {
            crate::registry::describe(&files, models.as_deref(), plans.as_deref()).map(|()| Exit::Ok)
        }
    }
}

fn start(plugins: &[PathBuf], spec: PathBuf, args: RunArgs, train_only: bool) -> Result<Exit> {
    let mut spec = RunSpec::read(&spec, &args.set, &args.models)?;
    // What the user names at the command or by the variable stands before what the spec says.
    if let Some(python) = spec.python.as_ref().filter(|_| std::env::var_os(crate::registry::python::VARIABLE).is_none())
    {
        let named = if python.components().count() > 1 { spec.base.join(python) } else { python.clone() };
        use_python(&named);
    }
    let registry = Registry::scan(plugins)?;
    signals::install()?;
    let registry = registry.with_programs(spec.models.iter().map(|m| m.name.as_str()))?;
    if let Some(device) = args.device {
        spec.device = device;
    }
    if let Some(output) = args.output {
        spec.output = output;
    }
    if train_only && spec.models.iter().all(|m| m.train.is_none()) {
        return Err(Error::input("no model of the spec has a [models.train] section"));
    }
    if args.workers == Some(0) {
        return Err(Error::input("--workers 0: at least 1 expected"));
    }
    let options = Options {
        restart: args.restart,
        retry_failed: args.retry_failed,
        mixed: args.mixed,
        workers: args.workers.unwrap_or(0),
        json: args.json,
        train_only,
    };
    let mut outcome = supervisor::run(&spec, &registry, &options)?;
    if !train_only {
        let report = match crate::report::write(&outcome.folder.0, None) {
            Ok(path) => path.display().to_string(),
            Err(e) => format!("none was written: {e}"),
        };
        outcome.text += &format!("Report: {report}\n");
    }
    if !args.json {
        // The tables are in the folder too; a reader that has gone away is no failure.
        let _ = std::io::stdout().write_all(outcome.text.as_bytes());
    }
    Ok(outcome.exit)
}
