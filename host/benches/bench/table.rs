//! What was measured, as a table and as JSON.

use crate::peer::Peer;
use crate::{Bench, Result};
use serde::Serialize;
use std::fmt::Write as _;

/// Median, least and greatest.
#[derive(Clone, Copy, Serialize)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub greatest: f64,
}

impl Spread {
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
        let n = sorted.len();
        let median = (at(n / 2) + at(n.saturating_sub(1) / 2)) / 2.0;
        Spread { median, least: at(0), greatest: at(sorted.len().saturating_sub(1)) }
    }
}

#[derive(Serialize)]
pub struct Line {
    /// What is measured, and on what.
    pub work: String,
    /// Seconds.
    pub ours: Spread,
    /// With its version.
    pub peer: Option<String>,
    pub theirs: Option<Spread>,
    /// The peer's time over ours, round by round.
    pub ratio: Option<Spread>,
    /// The greatest of the results, and how large it may be.
    pub difference: Option<(f64, f64)>,
    /// The ratio to reach.
    pub target: Option<f64>,
}

#[derive(Serialize)]
pub struct Table {
    machine: String,
    device: String,
    threads: i64,
    date: String,
    quick: bool,
    command: String,
    lines: Vec<Line>,
    /// What is no comparison: tables of their own.
    texts: Vec<String>,
}

/// Of both sides of a comparison, round by round.
pub struct Comparison<'a> {
    pub work: String,
    pub ours: &'a [f64],
    /// The side, its version, its times.
    pub peer: Option<(&'a str, &'a str, &'a [f64])>,
    pub difference: Option<(f64, f64)>,
    pub target: Option<f64>,
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ").map(|p| p.1.to_string()));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let gpus = lightbox::device::gpus();
    let gpus = if gpus.is_empty() { gpus } else { format!(", {gpus}") };
    format!("{}, {cores} virtual cores{gpus}; {}", name.unwrap_or("unknown CPU".into()), lightbox::device::kernels())
}

fn shown(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} us", s * 1e6),
        s if s < 10.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.1} s"),
    }
}

impl Table {
    pub fn new(bench: &Bench) -> Self {
        let date = std::process::Command::new("date").arg("+%F").output();
        let date = date.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string()).unwrap_or_default();
        let given: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        let end = given.iter().position(|a| *a == "--output").unwrap_or(given.len());
        Table {
            machine: machine(),
            device: bench.name(),
            threads: i64::from(tch::get_num_threads()),
            date,
            quick: bench.quick,
            command: format!("cargo xtask bench {}", given[..end].join(" ")).trim().to_string(),
            lines: vec![],
            texts: vec![],
        }
    }

    pub fn add(&mut self, c: Comparison<'_>) {
        let ratio = c.peer.map(|(_, _, times)| {
            let ratios: Vec<f64> = times.iter().zip(c.ours).map(|(theirs, ours)| theirs / ours).collect();
            Spread::of(&ratios)
        });
        let line = Line {
            work: c.work,
            ours: Spread::of(c.ours),
            peer: c.peer.map(|(side, version, _)| format!("{side} {version}").trim().to_string()),
            theirs: c.peer.map(|(_, _, times)| Spread::of(times)),
            ratio,
            difference: c.difference,
            target: c.target,
        };
        eprintln!("{}", row(&line));
        self.lines.push(line);
    }

    /// One comparison a side of the peer's, with the same times of ours.
    pub fn version<'a>(peer: &'a Option<Peer>, side: &str) -> &'a str {
        peer.as_ref().and_then(|p| p.versions.get(side)).map_or("", String::as_str)
    }

    /// A table of its own, in Markdown.
    pub fn text(&mut self, text: String) {
        eprintln!("{text}");
        self.texts.push(text);
    }

    /// The lines whose results differ by more than they may.
    pub fn wrong(&self) -> Vec<String> {
        let wrong = |l: &&Line| l.difference.is_some_and(|(found, allowed)| found.is_nan() || found > allowed);
        self.lines.iter().filter(wrong).map(|l| l.work.clone()).collect()
    }

    pub fn markdown(&self) -> String {
        let Table { machine, device, threads, date, command, .. } = self;
        let threads = format!("{threads} thread{}", if *threads == 1 { "" } else { "s" });
        let mut text = format!("{date}, {machine}. Device {device}, {threads}, `{command}`.\n");
        if !self.lines.is_empty() {
            text +=
                "\n| work | Lightbox | peer | its time | ratio | least to greatest | target | largest difference |\n";
            text += "|---|---:|---|---:|---:|---:|---:|---:|\n";
            self.lines.iter().for_each(|l| text += &format!("{}\n", row(l)));
        }
        self.texts.iter().for_each(|t| {
            let _ = write!(text, "\n{t}");
        });
        text
    }

    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

fn row(l: &Line) -> String {
    let none = String::new;
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} |",
        l.work,
        shown(l.ours.median),
        l.peer.clone().unwrap_or_default(),
        l.theirs.map_or_else(none, |t| shown(t.median)),
        l.ratio.map_or_else(none, |r| format!("{:.2}", r.median)),
        l.ratio.map_or_else(none, |r| format!("{:.2} to {:.2}", r.least, r.greatest)),
        l.target.map_or_else(none, |t| format!("{t}")),
        l.difference.map_or_else(none, |(found, _)| format!("{found:.0e}")),
    )
}
