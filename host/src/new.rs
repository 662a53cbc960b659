//! `lightbox new`: a plugin to start from, a crate or a Python file.

use crate::error::{Error, Result};
use clap::{Args, ValueEnum};
use lightbox_core::files;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct NewArgs {
    #[arg(value_enum)]
    kind: Kind,
    /// Its name, and the crate's: lower-case letters, digits and -
    name: String,
    /// A Python file with its test, in place of a crate
    #[arg(long, conflicts_with_all = ["tch", "sdk"])]
    python: bool,
    /// An explainer on tch::Tensor instead of ndarray (models are always)
    #[arg(long)]
    tch: bool,
    /// The new folder [default: NAME]
    #[arg(long)]
    path: Option<PathBuf>,
    /// The folder of lightbox-sdk [default: that of the checkout which built this program]
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Kind {
    Explainer,
    Model,
}

/// Writes a Python file, of an explainer its test too; what is to be printed.
fn new_python(kind: Kind, name: &str, folder: &Path) -> Result<String> {
    let function = name.replace('-', "_");
    let put = |file: &str, text: &str| {
        files::write_text(&folder.join(file), &text.replace("FUNCTION", &function).replace("NAME", name))
    };
    let file = format!("{function}.py");
    let shown = folder.display();
    Ok(match kind {
        Kind::Explainer => {
            put(&file, include_str!("../templates/explainer.py"))?;
            put(&format!("test_{file}"), include_str!("../templates/test_explainer.py"))?;
            format!(
                "{shown}\n\n  cd {shown}\n  python test_{file}\n  lightbox check {file}\n  \
                 lightbox explain IMAGE --plugins . --model densenet-small --random-weights --explainer {name}\n"
            )
        }
        Kind::Model => {
            put(&file, include_str!("../templates/model.py"))?;
            format!(
                "{shown}\n\n  cd {shown}\n  lightbox check {file}\n  \
                 lightbox explain IMAGE --plugins . --model {name} --random-weights --explainer gradcam\n"
            )
        }
    })
}

/// Writes the crate or the file; what is to be printed.
pub fn new(args: &NewArgs) -> Result<String> {
    let name = args.name.as_str();
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(plain) || name.ends_with('-') {
        return Err(Error::input(format!("name `{name}`: lower-case letters, digits and - expected, a letter first")));
    }
    let folder = args.path.clone().unwrap_or_else(|| PathBuf::from(name));
    if folder.exists() {
        return Err(Error::input(format!("{}: is there already", folder.display())).hint("--path for another folder"));
    }
    if args.python {
        return new_python(args.kind, name, &folder);
    }
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let sdk = args.sdk.clone().unwrap_or_else(|| checkout.join("sdk"));
    if !sdk.join("Cargo.toml").is_file() {
        let sdk = sdk.display();
        return Err(
            Error::input(format!("{sdk}: lightbox-sdk is not there")).hint("--sdk with the folder of a checkout")
        );
    }
    let sdk = std::fs::canonicalize(&sdk).map_err(|e| lightbox_core::Error::io(&sdk, &e))?;
    let (source, features) = match (args.kind, args.tch) {
        (Kind::Explainer, false) => (include_str!("../templates/explainer.rs"), ""),
        (Kind::Explainer, true) => (include_str!("../templates/explainer_tch.rs"), ", features = [\"tch\"]"),
        (Kind::Model, _) => (include_str!("../templates/model.rs"), ", features = [\"nn\"]"),
    };
    // CamelCase of the name.
    let mut type_name = String::new();
    for part in name.split('-').filter(|p| !p.is_empty()) {
        type_name.extend(part[..1].to_uppercase().chars().chain(part[1..].chars()));
    }
    let source = source.replace("NAME", name).replace("TypeName", &type_name);
    let manifest = format!(
        "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n# What the host can load.\n[lib]\n\
         crate-type = [\"cdylib\"]\n\n[dependencies]\nlightbox-sdk = {{ path = {sdk:?}{features} }}\n\n\
         # This crate is a workspace of its own.\n[workspace]\n"
    );
    files::write_text(&folder.join("Cargo.toml"), &manifest)?;
    files::write_text(&folder.join("src/lib.rs"), &source)?;
    files::write_text(&folder.join(".gitignore"), "/target\n")?;
    let tch = !features.is_empty();
    if tch {
        // libtorch of the checkout, and where its tests find it.
        let libtorch = checkout.join(".lightbox/libtorch");
        files::write_text(&folder.join(".cargo/config.toml"), &format!("[env]\nLIBTORCH = {libtorch:?}\n"))?;
        files::write_text(&folder.join("build.rs"), include_str!("../templates/build.rs"))?;
    }
    // The same versions as the checkout's, so that nothing new is fetched.
    if let Ok(lock) = std::fs::read(checkout.join("Cargo.lock")) {
        files::write_atomic(&folder.join("Cargo.lock"), |w| w.write_all(&lock))?;
    }
    let library = format!("target/debug/lib{}.so", name.replace('-', "_"));
    let use_it = match args.kind {
        Kind::Explainer => {
            format!(
                "lightbox explain IMAGE --plugins target/debug --model densenet-small --random-weights --explainer {name}"
            )
        }
        Kind::Model => {
            format!("lightbox explain IMAGE --plugins target/debug --model {name} --random-weights --explainer gradcam")
        }
    };
    Ok(format!(
        "{}\n\n  cd {}\n  cargo test\n  cargo build\n  lightbox check {library}\n  {use_it}\n",
        folder.display(),
        folder.display()
    ))
}
