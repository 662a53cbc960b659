//! A host of the next version of the ABI: loads a plugin of today's and calls it. The loader is the host's own.

#[path = "../../../host/src/loader.rs"]
mod loader;

use lightbox_sdk::host::{Serving, Silent};
use lightbox_sdk::spec::{InputSpec, ModelSpec, Plan};
use lightbox_sdk::{Array, ExplainInput, Target};
use std::collections::BTreeMap;
use std::path::Path;

fn main() {
    if let Err(message) = run() {
        eprintln!("error: {message}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, file, name, rest @ ..] = arguments.as_slice() else {
        return Err("usage: abi-next-host PLUGIN EXPLAINER [PLUGIN...]".into());
    };
    let plugin = loader::load(Path::new(file), "none").map_err(|e| e.to_string())?;
    let (manifest, path) = (&plugin.manifest, plugin.path.display());
    println!("{} {} of {path}, {}", manifest.plugin, manifest.version, plugin.preflight.rustc);
    println!("self_test: {:?}", plugin.self_test());
    println!("no model: {}", plugin.make_model("none", &Default::default()).is_err());
    println!("no spec: {}", plugin.model_spec("none", &Default::default()).is_err());
    let explainer = plugin.make_explainer(name).map_err(|e| e.to_string())?;
    println!("examples: {}", explainer.examples());
    let model = ModelSpec::new("none", InputSpec::imagenet(8), 2);
    let bound = explainer.bind(&model, &[], &BTreeMap::new()).map_err(|e| e.to_string())?;
    println!("plan: {}", matches!(bound.plan(), Plan::Run(_)));
    let array = |shape: &[usize]| Array::from_vec(shape, vec![0.5f32; shape.iter().product()]);
    let make = || -> lightbox_sdk::Result<Array> {
        bound
            .explain(ExplainInput::new(
                array(&[2, 3, 8, 8])?,
                vec![Target::Class(0); 2],
                array(&[2, 2])?,
                &Serving::new(&Silent),
            ))
            .map(|maps| maps.array)
    };
    println!("map: {:?}", make().map_err(|e| e.to_string())?.shape());
    for file in rest {
        loader::load(Path::new(file), "none").map_err(|e| e.to_string())?;
        println!("beside it: {file}");
    }
    Ok(())
}
