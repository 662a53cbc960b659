//! The report of a run: one file that needs no network, looked at in headless Chromium (`tests/browser/report.mjs`), and served.

use lightbox_tests::{fail, lightbox, run, skip, succeed, texts};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A run of two models, one of which has no attention, by metrics of every kind.
fn example() -> &'static Path {
    static RUN: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, out) = RUN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut spec = String::from(
            "name = \"report\"\ntitle = \"A report </script> & <b>all</b>\"\nseed = 1\nbatch_size = 8\noutput = \"OUT\"\n\
             [data]\nsource = \"phantom\"\ncount = 96\npixels = 96\nscale = 3.0\nshortcut = 0.9\n\
             [split]\ntest = 32\nfolds = 2\n\
             [[models]]\nname = \"densenet-small\"\nweights = \"random\"\n[[models]]\nname = \"deit-mini\"\nweights = \"random\"\n",
        );
        let out = folder.path().join("out");
        spec = spec.replace("OUT", &text(&out));
        for name in ["gradcam", "attention", "inputxgradient", "noise", "centre"] {
            spec += &format!("[[explainers]]\nname = \"{name}\"\n");
        }
        for name in ["auroc", "pixel-auprc", "pixel-auprc-pooled", "hit", "dice", "froc", "shortcut-mass", "gini"] {
            spec += &format!("[[metrics]]\nname = \"{name}\"\n");
        }
        spec += "[[metrics]]\nname = \"deletion\"\nparams = { steps = 4, baseline = \"blur\" }\n";
        spec += "[[metrics]]\nname = \"max-sensitivity\"\nparams = { copies = 2 }\n";
        let path = folder.path().join("report.toml");
        std::fs::write(&path, spec).unwrap();
        succeed(&["run", &text(&path)]);
        (folder, out)
    });
    out
}

/// The page's data.
fn data(page: &str) -> serde_json::Value {
    let start = "<script type=\"application/json\" id=\"data\">";
    let data = page.split_once(start).unwrap().1.split_once("</script>").unwrap().0;
    serde_json::from_str(data).unwrap()
}

/// Looks at a page in the browser where there is one; false, and a line that says so, where there is none.
fn look(url: &str, name: &str) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let modules = root.join(".lightbox/browser/node_modules");
    let chromium = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|c| Command::new(c).arg("--version").output().is_ok_and(|o| o.status.success()));
    let (Some(chromium), true) = (chromium, modules.is_dir()) else {
        skip(
            "the report in a browser: Chromium, Node.js or .lightbox/browser is missing; `cargo xtask test` installs them",
        );
        return false;
    };
    let which = Command::new("which").arg(chromium).output().unwrap();
    let screenshots = root.join("target/report-screenshots").join(name);
    let out = Command::new("node")
        .arg(root.join("tests/browser/report.mjs"))
        .args([url, &text(&screenshots)])
        .env("NODE_MODULES", std::fs::canonicalize(&modules).unwrap())
        .env("CHROMIUM", String::from_utf8_lossy(&which.stdout).trim())
        .envs((name == "large").then_some(("WITHOUT_NA", "1")))
        .output()
        .unwrap();
    let (out, err, code) = texts(out);
    assert_eq!(code, 0, "{out}\n{err}");
    assert!(out.matches("ok ").count() >= 12, "{out}");
    eprintln!("{name}: {}", out.lines().next().unwrap_or_default().trim());
    assert!(screenshots.join("leaderboard.png").is_file() && screenshots.join("phone.png").is_file());
    true
}

#[test]
fn a_report_is_one_whole_file() {
    let out = example();
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.len() < 12 << 20, "{} bytes", page.len());
    // The title is text, and the data's own text cannot end its element.
    assert!(page.contains("<title>A report &lt;/script&gt; &amp; &lt;b&gt;all&lt;/b&gt;</title>"));
    let data = data(&page);
    assert_eq!(data["models"].as_array().unwrap().len(), 2);
    let cells = data["cells"].as_array().unwrap();
    // Two models: one cell for AUROC; nine metrics of five explainers; chance where it is a constant map's.
    let of_maps = cells.iter().filter(|c| c["c"].as_i64().unwrap() >= 0).count();
    assert_eq!(of_maps, 2 * 9 * 5);
    let none: Vec<&serde_json::Value> = cells.iter().filter(|c| c["state"] == "n/a").collect();
    assert!(none.iter().any(|c| c["reason"].as_str().unwrap().contains("attention")), "{none:?}");
    // What the summary says is what the page says.
    let summary: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap();
    let wanted = summary["summary"]["cells"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["model"] == "deit-mini" && c["explainer"] == "gradcam" && c["metric"] == "pixel-auprc");
    let metrics = data["metrics"].as_array().unwrap();
    let metric = metrics.iter().position(|m| m["label"] == "pixel-auprc").unwrap();
    let found = cells.iter().find(|c| c["m"] == 1 && c["c"] == 0 && c["k"] == metric).unwrap();
    let (wanted, found) = (wanted.unwrap()["mean"].as_f64().unwrap(), found["mean"].as_f64().unwrap());
    assert!((wanted - found).abs() <= 1e-6 * wanted.abs(), "{wanted} {found}");
    // Single images too: their mean is the cell's.
    let values: Vec<f64> = data["values"][1][0].as_array().unwrap().iter().filter_map(|v| v.as_f64()).collect();
    assert!((values.iter().sum::<f64>() / values.len() as f64 - wanted).abs() < 1e-5);
    let gallery = &data["gallery"];
    let shown = gallery["images"].as_array().unwrap().len();
    assert!(shown == values.len() && gallery["maps"][1].as_array().unwrap().len() == shown);
    assert_eq!(gallery["maps"][0][0]["has"].as_str().unwrap(), "10111");
    assert_eq!(gallery["maps"][1][0]["has"].as_str().unwrap(), "11111");
    // A second time, and elsewhere: the same page.
    let other = out.join("elsewhere.html");
    let said = succeed(&["report", &text(out), "--output", &text(&other)]);
    assert_eq!(said.trim(), text(&other));
    assert_eq!(std::fs::read_to_string(&other).unwrap(), page);
    let bibtex = data["made"]["bibtex"].as_str().unwrap();
    assert!(bibtex.contains("@misc{explainer-gradcam,") && bibtex.contains("@misc{metric-deletion,"), "{bibtex}");
}

#[test]
fn a_reader_finds_their_way_in_a_browser() {
    let page = example().join("report.html");
    look(&format!("file://{}", page.display()), "file");
}

/// Ended whatever the test comes to.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Status, headers and body of a page.
fn fetch(address: &str, path: &str, host: &str) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let end = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
    (status, head, all[end + 4..].to_vec())
}

#[test]
fn runs_are_served_on_loopback_with_their_own_pictures() {
    let out = example();
    let child =
        lightbox(&["serve", &text(out), "--port", "0"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut server = Server(child);
    let child = &mut server.0;
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().trim_start_matches("http://").trim_end_matches('/').to_string();
    assert!(address.starts_with("127.0.0.1:"), "{line}");
    let get = |path: &str| fetch(&address, path, &address);
    let (status, _, index) = get("/");
    assert!(status == 200 && String::from_utf8_lossy(&index).contains("href=\"/0/\""));
    let (status, head, page) = get("/0/");
    assert!(status == 200 && head.contains("text/html"), "{head}");
    let data = data(&String::from_utf8_lossy(&page));
    assert_eq!(data["served"], true);
    // Maps at the model's own size, not tiles.
    let image = data["gallery"]["images"][0].as_u64().unwrap();
    for path in [format!("/0/image/{image}.png"), format!("/0/map/0/0/{image}.png")] {
        let (status, head, png) = get(&path);
        assert!(status == 200 && head.contains("image/png"), "{path}: {head}");
        assert_eq!(image::load_from_memory(&png).unwrap().width(), 128, "{path}");
    }
    let (status, _, csv) = get("/0/summary.csv");
    assert!(status == 200 && csv == std::fs::read(out.join("summary.csv")).unwrap());
    for path in ["/1/", "/0/map/9/0/0.png", "/0/map/0/1/0.png", "/0/../spec.toml", "/0/spec.toml", "/0/image/x.png"] {
        assert_eq!(get(path).0, 404, "{path}");
    }
    // Another site's page that leads a browser here by its own name gets nothing.
    assert_eq!(fetch(&address, "/0/", "example.org").0, 404);
    look(&format!("http://{address}/0/"), "served");
    // SAFETY: a signal to a process that is ours and has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_is_no_finished_run_is_said() {
    let folder = tempfile::tempdir().unwrap();
    fail(&["report", &text(folder.path())], 3, "is not the folder of a run (hint: `lightbox run` makes them)");
    fail(&["serve", &text(folder.path())], 3, "is not the folder of a run");
    std::fs::write(folder.path().join("environment.json"), "{}").unwrap();
    fail(&["report", &text(folder.path())], 3, "the run has not ended");
    let (_, err, code) = run(&["compare", &text(folder.path()), &text(folder.path())]);
    assert!(code == 3 && err.contains("the run has not ended"), "{err}");
}

#[test]
fn two_runs_are_compared_cell_by_cell() {
    let out = example();
    let other = tempfile::tempdir().unwrap();
    let spec = out.parent().unwrap().join("report.toml");
    let after = other.path().join("after");
    succeed(&[
        "run",
        &text(&spec),
        "--output",
        &text(&after),
        "--set",
        "explainers.inputxgradient.params={ channels = \"sum-abs\" }",
        "--set",
        "models=[{ name = \"densenet-small\", weights = \"random\" }]",
    ]);
    let same = succeed(&["compare", &text(out), &text(out)]);
    assert!(same.contains("0 better, 0 worse, 0 without a difference found"), "{same}");
    let told = succeed(&["compare", &text(out), &text(&after)]);
    assert!(told.contains("explainers.inputxgradient has other settings"), "{told}");
    assert!(told.contains("only before") && told.contains("deit-mini x gradcam, pixel-auprc"), "{told}");
    let json: serde_json::Value =
        serde_json::from_str(&succeed(&["compare", &text(out), &text(&after), "--json"])).unwrap();
    let rows = json["rows"].as_array().unwrap();
    let row = |explainer: &str, metric: &str| {
        rows.iter().find(|r| r["explainer"] == explainer && r["metric"] == metric).unwrap()
    };
    assert_eq!(row("gradcam", "pixel-auprc")["verdict"], "equal");
    // Magnitudes in place of signed values: another map.
    let changed = row("inputxgradient", "gini");
    assert_ne!(changed["before"], changed["after"]);
    let (low, high) = (changed["interval"][0].as_f64(), changed["interval"][1].as_f64());
    let difference = changed["difference"].as_f64();
    assert!(low <= difference && difference <= high, "{changed}");
    fail(
        &["compare", &text(out), &text(&after), "--metric", "iou"],
        3,
        "the run has no metric iou (known: auroc, pixel-auprc",
    );
}

#[test]
fn a_run_is_read_as_the_docs_show_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let python = root.join(".lightbox/recompute/bin/python");
    if !python.is_file() {
        skip("pandas, polars and DuckDB are absent (`cargo xtask test` installs them with pip): a run was not read");
        return;
    }
    let (out, files) = (example(), tempfile::tempdir().unwrap());
    for name in ["maps.safetensors", "maps.npy"] {
        let path = files.path().join(name);
        let said = succeed(&[
            "maps",
            &text(out),
            "--model",
            "deit-mini",
            "--explainer",
            "attention",
            "--fold",
            "1",
            "--output",
            &text(&path),
        ]);
        assert!(said.ends_with(&format!("maps in {}\n", path.display())), "{said}");
    }
    let script = root.join("tests/oracle/read.py");
    let output = Command::new(python).arg(script).arg(out).arg(files.path()).arg(root.join("docs")).output().unwrap();
    let (said, err, code) = texts(output);
    assert_eq!(code, 0, "{said}\n{err}");
    assert!(said.contains("16 maps read by pandas, polars, DuckDB"), "{said}");
    let none = ["maps", &text(out), "--model", "densenet-small", "--explainer", "attention", "--output", "x.npy"];
    fail(&none, 3, "no maps of densenet-small x attention, fold 0, training 0 (known: deit-mini x attention,");
    let odd = ["maps", &text(out), "--model", "deit-mini", "--explainer", "noise", "--output", "x.csv"];
    fail(&odd, 3, "--output x.csv: .safetensors or .npy expected");
}

/// The size that the report is made for: LIGHTBOX_LONG=1, some minutes.
#[test]
fn four_hundred_images_and_sixty_explainers_fit_one_file() {
    if std::env::var_os("LIGHTBOX_LONG").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("large");
    let mut spec = format!(
        "name = \"large\"\nbatch_size = 32\noutput = {:?}\npictures = 1\n[data]\nsource = \"phantom\"\ncount = 1000\npixels = 96\n\
         [split]\ntest = 800\nfolds = 1\n[[models]]\nname = \"densenet-small\"\nweights = \"random\"\n",
        text(&out)
    );
    // Maps of every roughness: noise takes the most room.
    for (name, n) in [("noise", 10), ("inputxgradient", 25), ("gradcam", 25)] {
        for i in 0..n {
            spec += &format!("[[explainers]]\nname = \"{name}\"\nlabel = \"{name} {i}\"\n");
        }
    }
    for name in ["auroc", "pixel-auprc", "pixel-auprc-pooled", "froc", "hit", "entropy", "relevance-mass"] {
        spec += &format!("[[metrics]]\nname = \"{name}\"\n");
    }
    let path = folder.path().join("large.toml");
    std::fs::write(&path, spec).unwrap();
    succeed(&["run", &text(&path)]);
    let page = out.join("report.html");
    let bytes = std::fs::metadata(&page).unwrap().len();
    assert!(bytes < 30 << 20, "{bytes} bytes");
    let data = data(&std::fs::read_to_string(&page).unwrap());
    assert_eq!(data["gallery"]["images"].as_array().unwrap().len(), 400);
    eprintln!("report of 400 images x 60 explainers: {bytes} bytes");
    look(&format!("file://{}", page.display()), "large");
}
