//! Who looks after plugins' calls: a worker's supervisor, or a user at a terminal.

use indicatif::ProgressBar;
use std::io::IsTerminal;
use std::sync::Arc;

/// What a host hears of a plugin that is at work.
pub trait Watch: Send + Sync {
    /// A plugin has called: it is alive.
    fn alive(&self);

    /// A line for the user.
    fn log(&self, line: &str);

    /// `done` of `of` steps of the call that runs.
    fn progress(&self, done: u64, of: u64);

    /// Whether the user wants the work to stop.
    fn cancelled(&self) -> bool {
        crate::signals::interrupted()
    }
}

/// The watch of a command at a terminal: lines go to stderr, and a bar shows how far a call has come.
struct Terminal(ProgressBar);

impl Watch for Terminal {
    fn alive(&self) {}

    fn log(&self, line: &str) {
        self.0.suspend(|| eprintln!("{line}"));
    }

    fn progress(&self, done: u64, of: u64) {
        self.0.set_length(of);
        self.0.set_position(done);
        if done >= of {
            self.0.reset();
            self.0.finish_and_clear();
        }
    }
}

/// A watch whose calls reach a terminal, if anybody: cancelled by Ctrl-C, lines go to stderr.
pub fn terminal() -> Arc<dyn Watch> {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::no_length() } else { ProgressBar::hidden() };
    Arc::new(Terminal(bar))
}
