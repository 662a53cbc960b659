//! How a run grows: with the images time must be linear and memory flat, with the explainers time linear in their own work.
//! There is no peer. A run is a process of its own, whose greatest memory is that of its largest process.

use crate::map_metrics::of_maps;
use crate::table::{Spread, Table};
use crate::{Bench, Result, built};
use lightbox::run::timings::Timings;
use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;
use tch::Device;

/// How a run is spread.
#[derive(Clone, Copy)]
pub struct Shape {
    workers: usize,
    /// Of each; 0 for one a core.
    threads: usize,
    /// That there are; 0 for all.
    cores: usize,
}

pub const PLAIN: Shape = Shape { workers: 1, threads: 0, cores: 0 };

/// Seconds, and MiB of the largest process.
fn run(
    bench: &Bench,
    folder: &Path,
    images: usize,
    explainers: &[&str],
    metrics: &[&str],
    Shape { workers, threads, cores }: Shape,
) -> Result<(f64, f64)> {
    let model = "densenet-small";
    let weights = folder.join("weights.safetensors");
    if !weights.is_file() {
        bench.write_weights(model, 0, &weights)?;
    }
    let mut spec = format!(
        "name = \"scaling\"\npictures = 0\nstore_mib = 4\nthreads = {threads}\nchunk = 64\n[data]\nsource = \"phantom\"\ncount = {}\npixels = 128\n[split]\ntest = {images}\n\
         [[models]]\nname = \"{model}\"\nweights = {:?}\n",
        images + 64,
        weights.display().to_string()
    );
    explainers.iter().for_each(|e| spec += &format!("[[explainers]]\nname = \"{e}\"\n"));
    metrics.iter().for_each(|m| spec += &format!("[[metrics]]\nname = \"{m}\"\n"));
    run_spec(bench, folder, &spec, Shape { workers, threads, cores })
}

/// The same of any spec.
pub fn run_spec(bench: &Bench, folder: &Path, spec: &str, shape: Shape) -> Result<(f64, f64)> {
    let Shape { workers, cores, .. } = shape;
    let file = folder.join("spec.toml");
    std::fs::write(&file, spec)?;
    let mut command = Command::new(built()?.join("lightbox"));
    command.arg("run").arg(&file).args(["--restart", "--device", &bench.name(), "--output"]).arg(folder.join("run"));
    command.args(["--workers", &workers.to_string()]);
    if cores > 0 {
        // SAFETY: plain calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                let (mut all, mut set): (libc::cpu_set_t, libc::cpu_set_t) = (std::mem::zeroed(), std::mem::zeroed());
                libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut all);
                let allowed = (0..libc::CPU_SETSIZE as usize).filter(|core| libc::CPU_ISSET(*core, &all));
                allowed.take(cores).for_each(|core| libc::CPU_SET(core, &mut set));
                match libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
    }
    let start = Instant::now();
    #[allow(clippy::zombie_processes)] // wait4 below waits for it
    let child = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let mut status = 0;
    // SAFETY: plain data that wait4 fills.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: our own child, whom nobody else waits for.
    let waited = unsafe { libc::wait4(child.id() as libc::pid_t, &mut status, 0, &mut usage) };
    if waited < 0 || status != 0 {
        return Err(format!("the run of a spec failed, status {status}:\n{spec}").into());
    }
    Ok((start.elapsed().as_secs_f64(), usage.ru_maxrss as f64 / 1024.0))
}

pub fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sizes: &[usize] = if bench.quick { &[32, 64] } else { &[128, 256, 512, 1024, 2048] };
    let few = ["gradcam", "layercam", "noise", "edges"];
    let (mut head, mut seconds, mut memory) = (String::new(), String::new(), String::new());
    for &images in sizes {
        let (time, most) = run(bench, folder.path(), images, &few, &[], PLAIN)?;
        let _ = write!(head, " {images} |");
        let _ = write!(seconds, " {time:.1} |");
        let _ = write!(memory, " {most:.0} |");
    }
    let rule = "---:|".repeat(sizes.len());
    table.text(format!(
        "A run of densenet-small on phantoms of 128 x 128 with {} explainers and 4 MiB for images (a larger set streams), process and report included.\n\n\
         | test images |{head}\n|---|{rule}\n| seconds |{seconds}\n| MiB at most |{memory}\n",
        few.len()
    ));
    let all = [
        "gradcam",
        "hirescam",
        "xgradcam",
        "layercam",
        "eigencam",
        "fem",
        "cam",
        "kpcacam",
        "noise",
        "edges",
        "centre",
        "brightness",
        "gradcampp",
        "eigengradcam",
        "segeigencam",
        "gradcam-elementwise",
    ];
    let counts: &[usize] = if bench.quick { &[1, 2] } else { &[1, 2, 4, 8, 16] };
    let images = if bench.quick { 32 } else { 512 };
    let (mut head, mut seconds) = (String::new(), String::new());
    for &n in counts {
        let (time, _) = run(bench, folder.path(), images, &all[..n], &[], PLAIN)?;
        let _ = write!(head, " {n} |");
        let _ = write!(seconds, " {time:.1} |");
    }
    let rule = "---:|".repeat(counts.len());
    table.text(format!("The same with {images} images.\n\n| explainers |{head}\n|---|{rule}\n| seconds |{seconds}\n"));
    if bench.device == Device::Cpu {
        let cores = std::thread::available_parallelism()?.get();
        let methods = ["gradcam", "scorecam", "integratedgradients", "occlusion"];
        let (mut whole, mut split) = (vec![], vec![]);
        for _ in 0..bench.rounds(3) {
            let shaped = |workers, threads| {
                run(bench, folder.path(), images, &methods, &[], Shape { workers, threads, cores: 0 }).map(|r| r.0)
            };
            whole.push(shaped(1, cores)?);
            split.push(shaped(cores, 1)?);
        }
        let ratios: Vec<f64> = whole.iter().zip(&split).map(|(a, b)| a / b).collect();
        let (whole, split, ratio) = (Spread::of(&whole).median, Spread::of(&split).median, Spread::of(&ratios));
        table.text(format!(
            "The same images with {}, alternately: one worker of {cores} threads {whole:.1} s, {cores} workers of one thread \
             {split:.1} s, {:.2} times faster ({:.2} to {:.2}). A model this small does not keep {cores} threads busy.\n",
            methods.join(", "),
            ratio.median,
            ratio.least,
            ratio.greatest
        ));
        if cores > 1 {
            let names: Vec<&str> = of_maps().iter().map(|m| m.spec().name).collect();
            let (mut alone, mut beside) = (vec![], vec![]);
            for _ in 0..bench.rounds(3) {
                let on = |cores| {
                    let shape = Shape { workers: 1, threads: 1, cores };
                    run(bench, folder.path(), images, &all, &names, shape).map(|r| r.0)
                };
                alone.push(on(1)?);
                beside.push(on(2)?);
            }
            let ratios: Vec<f64> = alone.iter().zip(&beside).map(|(a, b)| a / b).collect();
            let (alone, beside, ratio) = (Spread::of(&alone).median, Spread::of(&beside).median, Spread::of(&ratios));
            table.text(format!(
                "The same images with all {} explainers above and {} metrics of maps, one worker of one thread, alternately: on \
                 one core {alone:.1} s, with a second one for the metrics (and for preparing and the summary), which score a batch while the model is at the next, \
                 {beside:.1} s, {:.2} times faster ({:.2} to {:.2}).\n",
                all.len(),
                names.len(),
                ratio.median,
                ratio.least,
                ratio.greatest
            ));
        }
    }
    Ok(())
}

/// Fewer passes than the spec `all-explainers` gives methods of many, so that all images can be tested.
const FEW: [&str; 16] = [
    "tis.params.masks=16",
    "vitcx.params.most=8",
    "rise.params.masks=32",
    "lime.params.samples=32",
    "kernelshap.params.samples=32",
    "partitionshap.params.evaluations=32",
    "meaningful.params.iterations=5",
    "extremal.params.iterations=4",
    "smoothgrad.params.samples=4",
    "smoothgradsq.params.samples=4",
    "vargrad.params.samples=4",
    "integratedgradients.params.steps=4",
    "sscam.params.samples=1",
    "iscam.params.steps=1",
    "xrai.params.steps=2",
    "example-occlusion.params.grid=4",
];

/// Every explainer and every metric of maps that asks the model nothing, on 4,000 phantoms, all of them tested, and two models
/// of fixed weights: which share of the time is whose. A share of bookkeeping is the larger the less the methods do.
pub fn shares(bench: &Bench, table: &mut Table) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let program = built()?.join("lightbox");
    let (count, tested) = if bench.quick { (80, 8) } else { (4040, 4000) };
    let text = Command::new(&program).args(["info", "all-explainers"]).output()?;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    let (start, end) = (text.find("[[models]]"), text.find("[[explainers]]"));
    let (start, end) = start.zip(end).ok_or("all-explainers has no models or explainers")?;
    let mut models = String::new();
    for model in ["densenet-small", "deit-mini"] {
        let file = folder.path().join(format!("{model}.safetensors"));
        bench.write_weights(model, 0, &file)?;
        models += &format!("[[models]]\nname = \"{model}\"\nweights = {:?}\n", file.display().to_string());
    }
    let names: Vec<&str> = of_maps().iter().map(|m| m.spec().name).collect();
    let list: String = names.iter().map(|n| format!("[[metrics]]\nname = \"{n}\"\n")).collect();
    let spec = format!("{}{models}{}\n{list}", &text[..start], &text[end..]);
    std::fs::write(folder.path().join("spec.toml"), spec)?;
    let mut command = Command::new(program);
    command.arg("run").arg(folder.path().join("spec.toml")).args(["--device", &bench.name(), "--output"]);
    command.arg(folder.path().join("run"));
    let few = FEW.map(|set| format!("explainers.{set}"));
    let small = ["models.*.params.size=64", "data.pixels=64", "block=100"].map(String::from);
    for set in few.into_iter().chain(small).chain([format!("data.count={count}"), format!("split.test={tested}")]) {
        command.arg("--set").arg(set);
    }
    if bench.device == Device::Cpu {
        let cores = std::thread::available_parallelism()?.to_string();
        command.args(["--set", "threads=1", "--workers", &cores]);
    }
    let began = Instant::now();
    let output = command.stdout(Stdio::null()).stderr(Stdio::piped()).output()?;
    let wall = began.elapsed().as_secs_f64();
    // 5: some methods fail on weights that were not trained, and the table says so.
    if ![Some(0), Some(5)].contains(&output.status.code()) {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let spent: Timings = serde_json::from_slice(&std::fs::read(folder.path().join("run/spent.json"))?)?;
    let summary: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.path().join("run/summary.json"))?)?;
    let columns = summary["summary"]["columns"].as_array().map_or(0, Vec::len);
    let total = spent.total();
    let how = if bench.device == Device::Cpu { ", a worker of one thread a core" } else { "" };
    let mut text = format!(
        "{tested} phantoms of 64 x 64, those with nodules explained; two models of fixed weights, {columns} maps an image, \
         {} metrics of maps: {wall:.0} s from start to report{how}. Seconds are those of all \
         workers together.\n\n| part | seconds | share |\n|---|---:|---:|\n",
        names.len()
    );
    for (name, seconds) in spent.parts() {
        let _ = writeln!(text, "| {name} | {seconds:.1} | {:.1} % |", seconds / total * 100.0);
    }
    table.text(text);
    Ok(())
}
