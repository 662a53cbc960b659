//! `lightbox serve`: reports of runs over HTTP on loopback, with maps and images at their own size.
//!
//! `/` lists the runs; `/N/` is the report of the N-th; `/N/image/G.png` image G of it, `/N/map/M/C/G.png` the map of model M
//! and column C, grey by its own range; `/N/summary.csv` and the other files of results as they are.

use super::Run;
use super::gallery::{file, png, tile};
use super::http::{Answer, Server};
use crate::error::{Error, Exit, Result};
use crate::signals;
use std::path::PathBuf;
use tch::Tensor;

/// Files of a run that are served as they are.
const FILES: [(&str, &str); 8] = [
    ("summary.csv", "text/csv; charset=utf-8"),
    ("summary.md", "text/markdown; charset=utf-8"),
    ("summary.tex", "text/plain; charset=utf-8"),
    ("summary.json", "application/json"),
    ("comparisons.json", "application/json"),
    ("scores.parquet", "application/vnd.apache.parquet"),
    ("predictions.parquet", "application/vnd.apache.parquet"),
    ("images.parquet", "application/vnd.apache.parquet"),
];

/// A page or file; none where there is nothing of this name.
type Found = Option<(String, Vec<u8>)>;

struct Site {
    runs: Vec<(String, Run)>,
    /// Pages, made when first asked for.
    pages: Vec<Option<String>>,
}

impl Site {
    fn index(&self) -> String {
        let escape = |t: &str| t.replace('&', "&amp;").replace('<', "&lt;");
        let item = |(i, (name, run)): (usize, &(String, Run))| {
            let title = escape(&run.summary.title);
            format!("<li><a href=\"/{i}/\">{}</a>: {title}</li>", escape(name))
        };
        let items: String = self.runs.iter().enumerate().map(item).collect();
        format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
             <title>Lightbox runs</title><link rel=\"icon\" href=\"data:,\"><style>{}</style><main><h1>Runs</h1><ul>{items}</ul></main></html>",
            super::STYLE
        )
    }

    fn answer(&mut self, path: &str) -> Result<Found> {
        let path = path.split('?').next().unwrap_or_default();
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        if parts == [""] {
            return Ok(Some(("text/html; charset=utf-8".into(), self.index().into_bytes())));
        }
        let Some(at) = parts[0].parse::<usize>().ok().filter(|i| *i < self.runs.len()) else { return Ok(None) };
        let number = |text: &str| text.trim_end_matches(".png").parse::<usize>().ok();
        match parts[1..] {
            [] => Ok(Some(("redirect".into(), format!("/{at}/").into_bytes()))),
            [""] => {
                if self.pages[at].is_none() {
                    self.pages[at] = Some(self.runs[at].1.html(true)?);
                }
                let page = self.pages[at].clone().unwrap_or_default();
                Ok(Some(("text/html; charset=utf-8".into(), page.into_bytes())))
            }
            ["image", image] => {
                let run = &self.runs[at].1;
                let found = number(image).and_then(|i| run.images.get(i));
                let size = (0..run.summary.models.len()).find_map(|m| run.size(m));
                let (Some(image), Some(size)) = (found, size) else { return Ok(None) };
                let grey = run.store(size)?.grey(image.index as usize);
                Ok(Some(("image/png".into(), png(&grey, size[1], size[0])?)))
            }
            ["map", model, column, image] => {
                let run = &self.runs[at].1;
                let found = number(image).and_then(|i| run.images.get(i)).map(|r| r.index as usize);
                let model = number(model).filter(|m| *m < run.summary.models.len());
                let (Some(index), Some(model), Some(column)) = (found, model, number(column)) else { return Ok(None) };
                let Some(size) = run.size(model) else { return Ok(None) };
                let side = size[0].max(size[1]);
                let mut map: Option<Tensor> = None;
                run.each_map(model, &|c| c == column, &mut |image, _, found| {
                    if image == index {
                        map = Some(found.shallow_clone());
                    }
                    Ok(())
                })?;
                let Some(map) = map else { return Ok(None) };
                Ok(Some(("image/png".into(), png(&tile(&map, side)?, side, side)?)))
            }
            [name] => {
                let known = FILES.iter().find(|(n, _)| *n == name);
                known.map(|(n, kind)| Ok((kind.to_string(), file(&self.runs[at].1, n)?))).transpose()
            }
            _ => Ok(None),
        }
    }
}

/// Serves until interrupted. `ready` hears the address.
pub fn serve(folders: &[PathBuf], port: u16, ready: &mut dyn FnMut(&str)) -> Result<Exit> {
    let mut runs = Vec::new();
    let mut last = None;
    for folder in folders {
        match Run::open(folder) {
            Ok(run) => runs.push((folder.display().to_string(), run)),
            Err(e) => {
                eprintln!("not served: {e}");
                last = Some(e);
            }
        }
    }
    if let (Some(e), true) = (last, runs.is_empty()) {
        return Err(e);
    }
    let pages = vec![None; runs.len()];
    let mut site = Site { runs, pages };
    let server = Server::open(port);
    let server = server.map_err(|e| Error::input(format!("port {port}: {e}")).hint("--port 0 takes a free one"))?;
    ready(&format!("http://{}/", server.address()));
    while !signals::interrupted() {
        let Some(question) = server.next(std::time::Duration::from_millis(200)) else { continue };
        let answer = match site.answer(&question.path) {
            Ok(Some((kind, body))) if kind == "redirect" => {
                Answer { status: 301, kind: String::from_utf8_lossy(&body).into_owned(), body: vec![] }
            }
            Ok(Some((kind, body))) => Answer { status: 200, kind, body },
            Ok(None) => Answer::text(404, "there is nothing of this name"),
            Err(e) => Answer::text(500, e.to_string()),
        };
        question.answer(answer);
    }
    Ok(Exit::Ok)
}
