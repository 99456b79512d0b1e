//! What the demo shows while it runs: a progress bar on a terminal, plain lines anywhere else.

use std::io::{IsTerminal as _, Write as _, stdout};
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use atelier_engine::Progress;

pub struct Screen {
    bar: Option<ProgressBar>,
    job: Mutex<String>,
}

impl Screen {
    #[must_use]
    pub fn new() -> Self {
        let bar = stdout().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
            let style =
                ProgressStyle::with_template("  {msg:22} {bar:32.cyan/blue} {pos:>3}/{len} steps  {per_sec}  ETA {eta}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, job: Mutex::default() }
    }

    /// Prints one line above the bar.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| write_line(text)),
            None => write_line(text),
        }
    }

    /// Shows how far a job is; called from the engine's thread after each step.
    pub fn progress(&self, job: &str, now: Progress) {
        let Some(bar) = &self.bar else { return };
        let mut shown = self.job.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *shown != job {
            job.clone_into(&mut shown);
            bar.reset();
            bar.set_message(job.to_owned());
            bar.set_length(now.steps.into());
        }
        bar.set_position(now.step.into());
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}

/// A closed pipe (`demo | head`) is no reason to stop generation.
fn write_line(text: &str) {
    let _ = writeln!(stdout().lock(), "{text}");
}
