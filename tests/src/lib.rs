//! What the end-to-end tests share: where things are, how the program is called, the goldens' weights.

use lightbox_core::results::{self, Names};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tch::{Kind, Tensor};

/// The build's folder. `cargo xtask test` has put the program, its plugins and the tests' plugins there.
pub fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test.parent().and_then(Path::parent).expect("tests lie in target/PROFILE/deps");
    let path = folder.join(name);
    assert!(path.exists(), "{} is not there: run the tests by `cargo xtask test`", path.display());
    path
}

/// The program, with a clean environment.
pub fn lightbox(arguments: &[&str]) -> Command {
    let mut command = Command::new(built("lightbox"));
    command.args(arguments).env_remove("LIGHTBOX_PLUGIN_PATH").env("LIGHTBOX_CACHE", "").env("NO_COLOR", "1");
    command
}

/// Runs the program; stdout, stderr and exit code.
pub fn run(arguments: &[&str]) -> (String, String, i32) {
    texts(lightbox(arguments).output().expect("the program starts"))
}

pub fn texts(output: Output) -> (String, String, i32) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1))
}

/// Runs the program, which must succeed; stdout.
pub fn succeed(arguments: &[&str]) -> String {
    let (out, err, code) = run(arguments);
    assert_eq!(code, 0, "lightbox {arguments:?}\n{out}\n{err}");
    out
}

/// Runs the program, which must fail with this exit code and say this on stderr.
pub fn fail(arguments: &[&str], code: i32, message: &str) {
    let (out, err, found) = run(arguments);
    assert_eq!(found, code, "lightbox {arguments:?}\n{out}\n{err}");
    assert!(err.contains(message), "lightbox {arguments:?}\nexpected: {message}\nstderr: {err}");
    assert!(!err.contains("panicked at"), "a panic reached the user: {err}");
}

/// All values of all units of a run's folder, by model, fold, image, explainer (with its map's name) and metric; predictions
/// under the metric `score`, for the last class. None stands there twice.
pub fn values(folder: &Path) -> BTreeMap<(String, i32, String, String, String), Option<f64>> {
    let mut all = BTreeMap::new();
    let mut put = |key: (String, i32, String, String, String), value| {
        let old = all.insert(key.clone(), value);
        assert!(old.is_none(), "{key:?} was computed twice");
    };
    let mut names = Names::default();
    for entry in std::fs::read_dir(folder.join("units")).expect("a run has units").flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if name.ends_with(".scores.parquet") {
            let mut rows = Vec::new();
            results::read_scores(&path, &mut names, &mut |r| rows.push(r)).expect("a unit's file can be read");
            for r in rows {
                let name = |n: u32| names.name(n).to_string();
                let output = if name(r.output).is_empty() { String::new() } else { format!(".{}", name(r.output)) };
                let explainer = name(r.explainer) + &output;
                put((name(r.model), r.fold + 100 * r.training, name(r.image), explainer, name(r.metric)), r.value);
            }
        } else if name.ends_with(".predictions.parquet") {
            let mut rows = Vec::new();
            results::read_predictions(&path, &mut names, &mut |r| rows.push(r)).expect("a unit's file can be read");
            let last = rows.last().map(|r| r.class);
            for r in rows.into_iter().filter(|r| Some(r.class) == last) {
                let name = |n: u32| names.name(n).to_string();
                let key = (name(r.model), r.fold + 100 * r.training, name(r.image), String::new(), "score".into());
                put(key, Some(r.score));
            }
        }
    }
    all
}

/// Starts a run with JSON events and sends it a signal at the first event whose line holds `text`; the exit code.
pub fn interrupt(arguments: &[&str], text: &str, signal: i32) -> i32 {
    let mut command = lightbox(arguments);
    let mut child =
        command.arg("--json").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts");
    let lines = BufReader::new(child.stdout.take().expect("stdout is a pipe")).lines();
    let mut acted = false;
    for line in lines.map_while(Result::ok) {
        if !acted && line.contains(text) {
            // SAFETY: a signal to a process that is ours and has not been waited for.
            unsafe { libc::kill(child.id() as i32, signal) };
            acted = true;
        }
    }
    assert!(acted, "no event with {text}");
    child.wait().expect("the program ends").code().unwrap_or(-1)
}

/// Says that a test is skipped, past the test harness, which would keep it to itself.
pub fn skip(why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// A folder of shared development data, or `None` with a line that says so.
pub fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(name);
    if !path.exists() {
        skip(&format!("{} is absent", path.display()));
        return None;
    }
    std::fs::canonicalize(path).ok()
}

/// A file that a script in `tests/oracle` made.
pub fn oracle(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("oracle/golden").join(name)
}

/// The goldens' numbers: splitmix64 seeded with the name's FNV-1a hash, in [0, 1).
pub fn unit(name: &str, count: usize) -> Vec<f64> {
    let mut state =
        name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 * 0.5f64.powi(53)
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// The goldens' weight of a name and shape.
pub fn fill(name: &str, shape: &[i64]) -> Tensor {
    if name.ends_with("num_batches_tracked") {
        return Tensor::zeros(shape, (Kind::Int64, tch::Device::Cpu));
    }
    let count = shape.iter().product::<i64>() as usize;
    let fan_in: i64 = shape.iter().skip(1).product();
    let ends = |endings: &[&str]| endings.iter().any(|e| name.ends_with(e));
    let value = |u: f64| {
        let s = 2.0 * u - 1.0;
        match shape.len() {
            _ if ends(&["running_mean"]) => 0.1 * s,
            _ if ends(&["running_var"]) => 1.0 + 0.5 * u,
            _ if ends(&["gamma_1", "gamma_2"]) => 0.3 + 0.1 * s,
            _ if ends(&["cls_token", "dist_token", "pos_embed"]) => 0.5 * s,
            1 if ends(&["weight"]) => 1.0 + 0.1 * s,
            1 => 0.1 * s,
            _ => s * (6.0 / fan_in as f64).sqrt(),
        }
    };
    let values: Vec<f32> = unit(name, count).into_iter().map(|u| value(u) as f32).collect();
    Tensor::from_slice(&values).reshape(shape)
}

/// The goldens' input, [2, 3, 224, 224].
pub fn input() -> Tensor {
    input_of(224)
}

/// The same at another size, [2, 3, side, side].
pub fn input_of(side: i64) -> Tensor {
    let coarse: Vec<f64> = unit("input.coarse", 2 * 3 * 14 * 14).into_iter().map(|u| 4.0 * u - 2.0).collect();
    let coarse =
        Tensor::from_slice(&coarse).reshape([2, 3, 14, 14]).upsample_bilinear2d([side, side], false, None, None);
    let fine: Vec<f64> =
        unit("input.fine", (2 * 3 * side * side) as usize).into_iter().map(|u| 0.2 * u - 0.1).collect();
    (coarse + Tensor::from_slice(&fine).reshape([2, 3, side, side])).to_kind(Kind::Float)
}

/// All weights of a model's keys file (`NAME.keys.json`: key -> shape).
pub fn weights(keys: &Path) -> Vec<(String, Tensor)> {
    let text = std::fs::read_to_string(keys).expect("the keys file is there");
    let keys: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).expect("keys are JSON");
    let shape = |v: &serde_json::Value| -> Vec<i64> { serde_json::from_value(v.clone()).expect("a shape") };
    keys.iter().map(|(name, v)| (name.clone(), fill(name, &shape(v)))).collect()
}

/// The largest difference relative to the largest absolute value of `wanted`.
pub fn relative(found: &Tensor, wanted: &Tensor) -> f64 {
    assert_eq!(found.size(), wanted.size());
    let (found, wanted) = (found.to_kind(Kind::Double), wanted.to_kind(Kind::Double));
    (found - &wanted).abs().max().double_value(&[]) / wanted.abs().max().double_value(&[])
}

/// A spec on small phantoms for a model that is not trained, written to `folder`; `extra` goes to the end.
pub fn small_spec(folder: &Path, extra: &str) -> PathBuf {
    let text = format!(
        "name = \"t\"\noutput = \"{out}\"\nchunk = 4\nbatch_size = 3\npictures = 2\nlimit_seconds = 10\n\
         [data]\nsource = \"phantom\"\ncount = 40\npixels = 64\n[split]\ntest = 12\n\
         [[models]]\nname = \"densenet-small\"\nweights = \"random\"\nparams = {{ size = 64 }}\n{extra}",
        out = folder.join("out").display()
    );
    let path = folder.join("spec.toml");
    std::fs::write(&path, text).expect("the spec can be written");
    path
}
