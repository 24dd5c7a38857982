//! Progress on stderr: a bar on a terminal, a line every few seconds elsewhere; log lines and bars do not tear.

use std::io::{self, IsTerminal, Write};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Without a terminal one line this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

static BARS: LazyLock<MultiProgress> = LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));

/// How far a long piece of work is.
pub struct Progress {
    what: String,
    bar: Option<ProgressBar>,
    start: Instant,
    first: u64,
    state: Mutex<State>,
}

struct State {
    done: u64,
    total: u64,
    note: String,
    last_line: Instant,
}

impl Progress {
    /// Starts showing `what`, with `done` of `total` `unit`s (such as `images`) behind it already.
    #[must_use]
    pub fn start(what: &str, unit: &str, done: u64, total: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = BARS.add(ProgressBar::new(total).with_position(done).with_prefix(what.to_owned()));
            bar.set_style(bar_style(unit));
            bar.reset_eta();
            bar
        });
        let now = Instant::now();
        let state = State {
            done,
            total,
            note: String::new(),
            last_line: now,
        };
        Self {
            what: format!("{what} ({unit})"),
            bar,
            start: now,
            first: done,
            state: Mutex::new(state),
        }
    }

    /// Another `count` are done.
    pub fn advance(&self, count: u64) {
        let mut state = self.lock();
        state.done += count;
        self.show(&mut state);
    }

    /// `done` are done in all.
    pub fn set(&self, done: u64) {
        let mut state = self.lock();
        state.done = done;
        self.show(&mut state);
    }

    /// What to say beside the numbers, such as the loss.
    pub fn note(&self, note: impl Into<String>) {
        let mut state = self.lock();
        state.note = note.into();
        if let Some(bar) = &self.bar {
            bar.set_message(state.note.clone());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, state: &mut State) {
        if let Some(bar) = &self.bar {
            bar.set_position(state.done);
        } else if state.last_line.elapsed() >= LINE_EVERY {
            state.last_line = Instant::now();
            tracing::info!("{}", self.line(state));
        }
    }

    fn line(&self, state: &State) -> String {
        let here = state.done.saturating_sub(self.first);
        let rate = here as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
        let left = if rate > 0.0 {
            let seconds = (state.total.saturating_sub(state.done) as f64 / rate).min(1e9);
            format!("{} left", duration(Duration::from_secs_f64(seconds)))
        } else {
            "time left unknown".to_owned()
        };
        let note = if state.note.is_empty() {
            String::new()
        } else {
            format!(", {}", state.note)
        };
        format!(
            "{}: {}/{}, {rate:.1}/s, {left}{note}",
            self.what, state.done, state.total
        )
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            BARS.remove(bar);
        }
    }
}

fn bar_style(unit: &str) -> ProgressStyle {
    let template = format!("{{prefix}} {{wide_bar}} {{pos}}/{{len}} {unit}, {{per_sec}}, {{eta}} left  {{msg}}");
    ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// `1h 02m`, `3m 20s` or `12s`.
#[must_use]
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m {seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h {minutes:02}m"),
    }
}

/// `1 shard` or `2 shards`.
#[must_use]
pub fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Where log lines go: stderr, with the bars taken away while a line is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(duration(Duration::from_secs(12)), "12s");
        assert_eq!(duration(Duration::from_secs(200)), "3m 20s");
        assert_eq!(duration(Duration::from_secs(3725)), "1h 02m");
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!(
            [0, 1, 2].map(|count| counted(count, "shard")),
            ["0 shards", "1 shard", "2 shards"]
        );
    }
}
