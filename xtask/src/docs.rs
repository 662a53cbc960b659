//! The references of explainers and metrics, from what they say of themselves, with a picture of each explainer.

use crate::{build, root, run};
use std::path::Path;
use std::process::Command;

/// The models of the spec `all-explainers`, in its order: a picture is that of the first which has one.
const MODELS: [&str; 3] = ["densenet-small", "deit-mini", "patchconvnet-mini"];

pub fn docs() -> Result<(), String> {
    let binary = build::build(false)?;
    run(Command::new(&binary).args(["run", "all-explainers"]))?;
    let sheets = root().join("runs/all-explainers/sheets");
    let pictures = root().join("docs/explainers");
    let error = |path: &Path| {
        let path = path.display().to_string();
        move |e: std::io::Error| format!("{path}: {e}")
    };
    std::fs::create_dir_all(&pictures).map_err(error(&pictures))?;
    for model in MODELS.iter().rev() {
        let folder = sheets.join(model);
        for entry in std::fs::read_dir(&folder).map_err(error(&folder))?.flatten() {
            let to = pictures.join(entry.file_name());
            std::fs::copy(entry.path(), &to).map_err(error(&to))?;
        }
    }
    let pages: [(&str, &[&str]); 4] = [
        ("docs/explainers.md", &["reference", "--pictures", "explainers"]),
        ("docs/metrics.md", &["reference", "metrics"]),
        ("docs/schemas/summary-4.schema.json", &["reference", "summary"]),
        ("docs/schemas/comparisons-1.schema.json", &["reference", "comparisons"]),
    ];
    for (to, args) in pages {
        let page = Command::new(&binary).args(args).output().map_err(|e| e.to_string())?;
        if !page.status.success() {
            return Err(String::from_utf8_lossy(&page.stderr).into_owned());
        }
        let to = root().join(to);
        std::fs::write(&to, page.stdout).map_err(error(&to))?;
    }
    Ok(())
}
