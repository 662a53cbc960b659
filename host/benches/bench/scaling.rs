//! How a run grows: with the images time must be linear and memory flat, with the explainers time linear in their own work.
//! There is no peer. A run is a process of its own, whose greatest memory is that of its largest process.

use crate::table::Table;
use crate::{Bench, Result, built};
use lightbox::run::spent::Spent;
use lightbox_core::metrics::{self, Masks};
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Seconds, and MiB of the largest process.
fn run(bench: &Bench, folder: &Path, images: usize, explainers: &[&str]) -> Result<(f64, f64)> {
    let model = "densenet-small";
    let weights = folder.join("weights.safetensors");
    if !weights.is_file() {
        bench.write_weights(model, 0, &weights)?;
    }
    let mut spec = format!(
        "name = \"scaling\"\npictures = 0\nstore_mib = 4\n[data]\nsource = \"phantom\"\ncount = {}\npixels = 128\n[split]\ntest = {images}\n\
         [[models]]\nname = \"{model}\"\nweights = {:?}\n",
        images + 64,
        weights.display().to_string()
    );
    explainers.iter().for_each(|e| spec += &format!("[[explainers]]\nname = \"{e}\"\n"));
    let file = folder.join("spec.toml");
    std::fs::write(&file, spec)?;
    let mut command = Command::new(built()?.join("lightbox"));
    command.arg("run").arg(&file).args(["--restart", "--device", &bench.name(), "--output"]).arg(folder.join("run"));
    let start = Instant::now();
    #[allow(clippy::zombie_processes)] // wait4 below waits for it
    let child = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let mut status = 0;
    // SAFETY: plain data that wait4 fills.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: our own child, whom nobody else waits for.
    let waited = unsafe { libc::wait4(child.id() as libc::pid_t, &mut status, 0, &mut usage) };
    if waited < 0 || status != 0 {
        return Err(format!("a run of {images} images failed: status {status}").into());
    }
    Ok((start.elapsed().as_secs_f64(), usage.ru_maxrss as f64 / 1024.0))
}

pub fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sizes: &[usize] = if bench.quick { &[32, 64] } else { &[128, 256, 512, 1024, 2048] };
    let few = ["gradcam", "layercam", "noise", "edges"];
    let (mut head, mut seconds, mut memory) = (String::new(), String::new(), String::new());
    for &images in sizes {
        let (time, most) = run(bench, folder.path(), images, &few)?;
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
        let (time, _) = run(bench, folder.path(), images, &all[..n])?;
        let _ = write!(head, " {n} |");
        let _ = write!(seconds, " {time:.1} |");
    }
    let rule = "---:|".repeat(counts.len());
    table.text(format!("The same with {images} images.\n\n| explainers |{head}\n|---|{rule}\n| seconds |{seconds}\n"));
    Ok(())
}

/// Every explainer and every metric of maps that asks the model nothing, on 4,000 phantoms and two models of fixed weights:
/// which share of the time is whose.
pub fn shares(bench: &Bench, table: &mut Table) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let program = built()?.join("lightbox");
    let (count, tested) = if bench.quick { (80, 8) } else { (4000, 40) };
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
    let metrics = metrics::all().iter().filter(|m| {
        let needs = m.needs();
        needs.maps.is_some() && !needs.model && !needs.explainer && !needs.fork && needs.masks != Masks::Shortcut
    });
    let names: Vec<&str> = metrics.map(|m| m.spec().name).collect();
    let list: String = names.iter().map(|n| format!("[[metrics]]\nname = \"{n}\"\n")).collect();
    let spec = format!("{}{models}{}\n{list}", &text[..start], &text[end..]);
    std::fs::write(folder.path().join("spec.toml"), spec)?;
    let mut command = Command::new(program);
    command.arg("run").arg(folder.path().join("spec.toml")).args(["--device", &bench.name(), "--output"]);
    command.arg(folder.path().join("run"));
    for set in [format!("data.count={count}"), format!("split.test={tested}"), "block=40".into()] {
        command.arg("--set").arg(set);
    }
    let began = Instant::now();
    let output = command.stdout(Stdio::null()).stderr(Stdio::piped()).output()?;
    let wall = began.elapsed().as_secs_f64();
    // 5: some methods fail on weights that were not trained, and the table says so.
    if ![Some(0), Some(5)].contains(&output.status.code()) {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let spent: Spent = serde_json::from_slice(&std::fs::read(folder.path().join("run/spent.json"))?)?;
    let summary: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.path().join("run/summary.json"))?)?;
    let columns = summary["summary"]["columns"].as_array().map_or(0, Vec::len);
    let total = spent.total();
    let mut text = format!(
        "{count} phantoms, of which {tested} are tested and those with nodules explained; two models of fixed weights, \
         {columns} maps an image, {} metrics of maps: {wall:.0} s from start to report.\n\n| part | seconds | share |\n|---|---:|---:|\n",
        names.len()
    );
    for (name, seconds) in spent.parts() {
        let _ = writeln!(text, "| {name} | {seconds:.1} | {:.1} % |", seconds / total * 100.0);
    }
    table.text(text);
    Ok(())
}
