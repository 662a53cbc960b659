//! Draws a run's events: a progress bar on a terminal, plain lines elsewhere, JSON lines for `--json`.

use super::events::{Event, Stamped};
use indicatif::{ProgressBar, ProgressStyle};
use lightbox_core::text::plain;
use std::io::{IsTerminal, Write};

/// One way of drawing. All talk goes to stderr; JSON lines go to stdout.
pub enum Reporter {
    Json,
    Lines,
    Bar(ProgressBar),
}

impl Reporter {
    pub fn new(json: bool) -> Self {
        if json {
            return Reporter::Json;
        }
        if !std::io::stderr().is_terminal() {
            return Reporter::Lines;
        }
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} units  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Reporter::Bar(bar)
    }

    /// A line of ours; further lines of what others say stand under it.
    fn line(&self, text: &str) {
        let text = plain(text).replace('\n', "\n    ");
        match self {
            Reporter::Json => {}
            Reporter::Lines => eprintln!("{text}"),
            Reporter::Bar(bar) => bar.suspend(|| eprintln!("{text}")),
        }
    }

    /// Shows one event.
    pub fn show(&self, stamped: &Stamped) {
        let event = &stamped.event;
        if let Reporter::Json = self {
            let mut out = std::io::stdout().lock();
            // A reader that has gone away is no reason to stop the run.
            let _ = serde_json::to_writer(&mut out, stamped).map(|()| out.write_all(b"\n"));
            return;
        }
        match event {
            Event::RunStarted { name, folder, devices, workers, units, done } => {
                let continued = if *done > 0 { format!(", {done} of them done before") } else { String::new() };
                let devices = devices.join(", ");
                let several = if *workers > 1 { format!(", {workers} workers") } else { String::new() };
                self.line(&format!("run {name} on {devices}{several}: {units} units{continued}; results in {folder}"));
                if let Reporter::Bar(bar) = self {
                    bar.set_length(*units as u64);
                    bar.set_position(*done as u64);
                }
            }
            Event::UnitStarted { unit } if !unit.ends_with("-survey") => match self {
                Reporter::Bar(bar) => bar.set_message(unit.clone()),
                _ => self.line(&format!("{unit} ...")),
            },
            Event::Progress { unit, done, of } => {
                if let Reporter::Bar(bar) = self {
                    bar.set_message(format!("{unit}  {done}/{of}"));
                }
            }
            Event::Steps { done, of } => {
                if let Reporter::Bar(bar) = self {
                    let message = bar.message();
                    let unit = message.split("  step ").next().unwrap_or_default();
                    bar.set_message(format!("{unit}  step {done}/{of}"));
                }
            }
            Event::Epoch {
                unit,
                epoch,
                of,
                train_loss,
                validation_loss,
                validation_auroc,
                images_per_second,
                seconds_left,
                best,
                ..
            } => {
                let auroc = validation_auroc.map_or("-".into(), |v| format!("{v:.3}"));
                let best = if *best { "  best" } else { "" };
                self.line(&format!(
                    "{unit}  epoch {epoch}/{of}  loss {train_loss:.4}  validation loss {validation_loss:.4}  AUROC {auroc}  \
                     {images_per_second:.0} images/s  {seconds_left:.0} s left{best}"
                ));
            }
            Event::CellFailed(f) => {
                let cell = f.explainer.as_ref().map_or(f.model.clone(), |e| format!("{} x {e}", f.model));
                self.line(&format!("failed: {cell}: {}", f.reason));
            }
            Event::Surveyed { model, explainer, not_applicable: Some(reason), .. } => {
                self.line(&format!("not applicable: {model} x {explainer}: {reason}"));
            }
            Event::UnitStarted { .. } => {}
            Event::UnitFinished { unit, .. } if unit.ends_with("-survey") => {}
            Event::UnitFinished { unit, seconds, images, .. } => match self {
                Reporter::Bar(bar) => bar.inc(1),
                _ => self.line(&format!("{unit} done: {images} images in {seconds:.1} s")),
            },
            Event::UnitFailed { unit, reason, .. } => self.line(&format!("{unit} failed: {reason}")),
            Event::WorkerLost { reason } => self.line(&format!("the worker was lost: {reason}")),
            Event::Note { text } => self.line(&format!("note: {text}")),
            Event::RunFinished { folder, failed_cells, seconds, spent } => {
                if let Reporter::Bar(bar) = self {
                    bar.finish_and_clear();
                }
                let failed = match failed_cells {
                    0 => String::new(),
                    n => format!(", {n} failed cells"),
                };
                if spent.total() > 0.0 {
                    self.line(&format!("workers and summary: {}", spent.shown()));
                }
                self.line(&format!("finished in {seconds:.0} s{failed}; results in {folder}"));
            }
            Event::Ready
            | Event::Alive
            | Event::Surveyed { .. }
            | Event::CellStarted { .. }
            | Event::CellLeft { .. } => {}
        }
    }
}
