//! How a run grows: with the images time must be linear and memory flat, with the explainers time linear in their own work.
//! There is no peer. A run is a process of its own, whose greatest memory is that of its largest process.

use crate::table::Table;
use crate::{Bench, Result, built};
use lightbox_core::checkpoint;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Seconds, and MiB of the largest process.
fn run(bench: &Bench, folder: &Path, images: usize, explainers: &[&str]) -> Result<(f64, f64)> {
    let model = "densenet-small";
    let weights = folder.join("weights.safetensors");
    if !weights.is_file() {
        let (_, state) = bench.engine(model, 0, &[])?;
        let state: Vec<_> = state.into_iter().map(|(n, t)| (n.trim_start_matches("weights.").to_string(), t)).collect();
        checkpoint::write(&weights, &state)?;
    }
    let mut spec = format!(
        "name = \"scaling\"\npictures = 0\n[data]\nsource = \"phantom\"\ncount = {}\npixels = 128\n[split]\ntest = {images}\n\
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
        "A run of densenet-small on phantoms of 128 x 128 with {} explainers, process and report included.\n\n\
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
