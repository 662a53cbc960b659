//! A whole run, process and all: radiographs of 1024 x 1024 pixels are decoded, two models classify them, GradCAM and the last
//! attention explain those with nodules, and every map gets its average precision; against a Python script that does so with
//! Pillow, pytorch-grad-cam and scikit-learn. Ours makes the tables, the statistics and the report as well.

use crate::decode::files;
use crate::peer::{ALLOCATOR, script};
use crate::table::{Comparison, Table};
use crate::{Bench, Result, built};
use lightbox_core::data::phantom::Phantom;
use lightbox_core::data::{self, DataSpec, Truth};
use lightbox_core::task::Task;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const MODELS: [&str; 2] = ["densenet121", "deit_small_patch16_224"];
const SIDE: usize = 1024;

/// PNG files, table.csv, and a split that tests all but the last `rest` images, of which half train and half validate.
fn dataset(folder: &Path, count: usize, rest: usize) -> Result<()> {
    let paths = files(folder, count, SIDE, "png")?;
    let spec = Phantom { count, pixels: SIDE, ..Phantom::default() };
    let source = data::open(&DataSpec::Phantom(spec), &Task::default())?;
    let mut table = "image,label,x,y,width,height\n".to_string();
    let [mut test, mut train, mut validation] = [(); 3].map(|()| "img_name\n".to_string());
    for (i, (sample, path)) in source.samples().iter().zip(&paths).enumerate() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let boxes = if let Truth::Boxes(boxes) = &sample.truth { boxes.as_slice() } else { &[] };
        for b in boxes {
            table += &format!("{name},1,{},{},{},{}\n", b.x, b.y, b.width, b.height);
        }
        if boxes.is_empty() {
            table += &format!("{name},0,,,,\n");
        }
        let part = match count - i {
            left if left > rest => &mut test,
            left if left > rest / 2 => &mut train,
            _ => &mut validation,
        };
        *part += &format!("{name}\n");
    }
    std::fs::write(folder.join("table.csv"), table)?;
    std::fs::write(folder.join("test.csv"), test)?;
    std::fs::write(folder.join("train_fold0.csv"), train)?;
    std::fs::write(folder.join("val_fold0.csv"), validation)?;
    Ok(())
}

pub fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    let count = if bench.quick { 16 } else { 64 };
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("images"))?;
    dataset(&at("images"), count + 32, 32)?;
    let mut weights = serde_json::Map::new();
    let mut models = String::new();
    for model in MODELS {
        let file = at(&format!("{model}.safetensors"));
        bench.write_weights(model, 2, &file)?;
        weights.insert(model.into(), json!(file));
        models += &format!("[[models]]\nname = {model:?}\nweights = {:?}\n", file.display().to_string());
    }
    let images = at("images");
    let spec = format!(
        "name = \"bench\"\nbatch_size = 8\nchunk = 1000\n[data]\nsource = \"table\"\ncsv = {:?}\n[split]\nfiles = {:?}\n{models}\
         [[explainers]]\nname = \"gradcam\"\n[[explainers]]\nname = \"attention\"\n",
        images.join("table.csv").display().to_string(),
        images.display().to_string()
    );
    std::fs::write(at("spec.toml"), spec)?;
    let job = json!({ "row": "script", "table": images.join("table.csv"), "weights": weights, "batch": 8,
                      "device": bench.name(), "split": images.join("test.csv") });
    std::fs::write(at("job.json"), job.to_string())?;
    let script = script()?;
    let (mut ours, mut theirs, mut found) = (vec![], vec![], Value::Null);
    for round in 0..bench.rounds(3) + 1 {
        let mut command = Command::new(built()?.join("lightbox"));
        command
            .arg("run")
            .arg(at("spec.toml"))
            .args(["--restart", "--device", &bench.name(), "--output"])
            .arg(at("run"));
        let start = Instant::now();
        let output = command.stderr(Stdio::piped()).stdout(Stdio::null()).output()?;
        let time = start.elapsed().as_secs_f64();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        let mut peer = None;
        if let Some(python) = &bench.python {
            let mut command = Command::new(python);
            command.arg(&script).arg(folder.path());
            command.env("OMP_NUM_THREADS", tch::get_num_threads().to_string()).envs(ALLOCATOR);
            let start = Instant::now();
            let output = command.stderr(Stdio::inherit()).output()?;
            peer = Some(start.elapsed().as_secs_f64());
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            found = serde_json::from_str(text.lines().last().unwrap_or_default())?;
        }
        // The first round fills caches of files.
        if round > 0 {
            ours.push(time);
            theirs.extend(peer);
        }
    }
    let mut difference = None;
    if found.is_object() {
        let summary: Value = serde_json::from_slice(&std::fs::read(at("run/summary.json"))?)?;
        let mut worst = 0f64;
        let cells = summary["summary"]["cells"].as_array().ok_or("no cells")?;
        let mut compared = 0;
        for cell in cells.iter().filter(|c| c["metric"] == "pixel-auprc") {
            let name = format!("{} {}", cell["model"].as_str().unwrap_or(""), cell["explainer"].as_str().unwrap_or(""));
            if let (Some(ours), Some(theirs)) = (cell["mean"].as_f64(), found[&name].as_f64()) {
                worst = worst.max((ours - theirs).abs());
                compared += 1;
            }
        }
        if compared != 3 {
            return Err(format!("{compared} of three cells were compared: {}", json!(cells)).into());
        }
        difference = Some((worst, 2e-3));
    }
    table.add(Comparison {
        work: format!("a whole run: {count} images, two models, GradCAM and attention, pixel AP (difference of means)"),
        ours: &ours,
        peer: (!theirs.is_empty()).then_some(("a script", "", &theirs)),
        difference,
        target: None,
    });
    Ok(())
}
