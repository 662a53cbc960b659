//! `cargo xtask fuzz`: coverage-guided fuzzing of every reader. The instrumentation is LLVM's own, which the stable compiler has;
//! libFuzzer is built from the crate `libfuzzer-sys`.

use crate::{cargo, root, run};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Targets: those of tests/fuzz/src/main.rs.
pub const TARGETS: [&str; 19] = [
    "image",
    "metaimage",
    "checkpoint",
    "batch",
    "maps",
    "store",
    "scores",
    "images-table",
    "predictions",
    "table",
    "annotations",
    "spec",
    "set",
    "plugin",
    "events",
    "wire",
    "frame",
    "program",
    "archive",
];

/// What cargo-fuzz gives the compiler, without a sanitizer: those need a nightly one.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1";

#[derive(clap::Args)]
pub struct FuzzArgs {
    /// Seconds a target
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only this target [repeatable]
    #[arg(long, value_parser = TARGETS)]
    only: Vec<String>,
    /// Of libFuzzer's own draws; 0 takes another each time
    #[arg(long, default_value_t = 0)]
    seed: u32,
    /// Stop a target after so many inputs, whatever the time
    #[arg(long)]
    inputs: Option<u64>,
}

fn folder(name: &str) -> Result<PathBuf, String> {
    let base = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let folder = base.join("fuzz").join(name);
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(folder)
}

/// Builds the instrumented program; its path.
fn build() -> Result<PathBuf, String> {
    let target = folder("build")?;
    let host = "x86_64-unknown-linux-gnu";
    // With a target named, build scripts and macros are not instrumented.
    run(cargo()
        .args(["build", "-p", "lightbox-fuzz", "--profile", "fuzz", "--target", host, "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", FLAGS))?;
    Ok(target.join(host).join("fuzz/lightbox-fuzz"))
}

/// How many inputs a target took and what the process's memory came to, in MB; an error where it found something.
fn one(program: &Path, target: &str, args: &FuzzArgs) -> Result<(u64, u64), String> {
    let (corpus, found) = (folder(&format!("corpus/{target}"))?, folder("found")?);
    let seeds = root().join("tests/fuzz/corpus").join(target);
    let mut command = Command::new(program);
    command.env("LIGHTBOX_FUZZ_TARGET", target).env("OMP_NUM_THREADS", "1").env("RAYON_NUM_THREADS", "1").arg(&corpus);
    command.args(seeds.is_dir().then_some(&seeds));
    command.args([
        format!("-max_total_time={}", args.seconds),
        format!("-runs={}", args.inputs.map_or(-1, |n| n as i64)),
        format!("-artifact_prefix={}/{target}-", found.display()),
        format!("-seed={}", args.seed),
        "-timeout=10".into(),
        "-malloc_limit_mb=600".into(),
        // libtorch itself takes some two hundred.
        "-rss_limit_mb=900".into(),
        "-max_len=65536".into(),
        "-print_final_stats=1".into(),
    ]);
    let out = command.output().map_err(|e| format!("{}: {e}", program.display()))?;
    let text = String::from_utf8_lossy(&out.stderr);
    let stat = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(&format!("stat::{name}:")))?;
        line.split_whitespace().last()?.parse::<u64>().ok()
    };
    if !out.status.success() {
        let tail: Vec<&str> = text.lines().rev().take(40).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        return Err(format!("{target}: {}\n{}", out.status, tail.join("\n")));
    }
    Ok((stat("number_of_executed_units").unwrap_or(0), stat("peak_rss_mb").unwrap_or(0)))
}

/// Fuzzes all targets one after the other, and says what came of it.
pub fn fuzz(args: &FuzzArgs) -> Result<(), String> {
    let program = build()?;
    let wanted = TARGETS.iter().filter(|t| args.only.is_empty() || args.only.iter().any(|o| o == *t));
    let mut faults = Vec::new();
    println!("| target | inputs | MB at most |\n|---|---:|---:|");
    let wanted: Vec<&str> = wanted.copied().collect();
    // As many at a time as there are cores, each a process of one thread.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for part in wanted.chunks(cores) {
        let results: Vec<_> = std::thread::scope(|scope| {
            let started: Vec<_> = part.iter().map(|target| scope.spawn(|| one(&program, target, args))).collect();
            started.into_iter().map(|s| s.join().unwrap_or_else(|_| Err("a thread has panicked".into()))).collect()
        });
        for (target, result) in part.iter().zip(results) {
            match result {
                Ok((inputs, memory)) => println!("| {target} | {inputs} | {memory} |"),
                Err(text) => {
                    println!("| {target} | FAILED | |");
                    faults.push(text);
                }
            }
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n\n")) }
}
