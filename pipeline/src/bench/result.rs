//! The line a benchmark ends with, and how its steps are timed.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::gpu::GpuMeasurement;
use crate::interrupt::Interrupt;
use crate::time_split::TimeSplit;

/// The line of numbers (pipeline spec, "The outside that stays put").
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// What was timed.
    pub what: &'static str,
    /// The configuration file, or `defaults`.
    pub config: PathBuf,
    /// Items in a step.
    pub batch: usize,
    /// Threads that computed.
    pub threads: usize,
    /// Where.
    pub device: String,
    /// Median seconds of a step.
    pub median_s: f64,
    /// Items a second at the median.
    pub items_per_s: f64,
    /// Most memory the process had, where the system tells.
    pub peak_rss_bytes: Option<u64>,
    /// Parameters of the network or codec; 0 where there is none.
    pub parameters: usize,
    /// The GPU it ran on, its memory and its kernels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuMeasurement>,
    /// Where the time of the whole stage went, its first step included; for encode and decode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<TimeSplit>,
}

impl Measurement {
    /// Prints it to stdout, as JSON or for people.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if json {
            writeln!(out, "{}", serde_json::to_string(self)?)?;
        } else {
            let memory = self
                .peak_rss_bytes
                .map_or_else(String::new, |bytes| format!(", {} MiB", bytes >> 20));
            writeln!(
                out,
                "{} batch {}: {:.4} s a step, {:.1} a second{memory} ({} threads, {})",
                self.what, self.batch, self.median_s, self.items_per_s, self.threads, self.device
            )?;
            if let Some(gpu) = &self.gpu {
                let mib = |bytes: u64| bytes >> 20;
                let (used, all) = (mib(gpu.peak_bytes), mib(gpu.memory_bytes));
                writeln!(out, "{}: {used} of {all} MiB", gpu.name)?;
                for kernel in &gpu.kernels {
                    let seconds = kernel.seconds.max(1e-12);
                    writeln!(
                        out,
                        "{:10.3} ms {:5}x {} ({:.1} GB/s, {:.2} TFLOP/s)",
                        1e3 * kernel.seconds,
                        kernel.launches,
                        kernel.name,
                        kernel.bytes as f64 / seconds / 1e9,
                        kernel.flops as f64 / seconds / 1e12
                    )?;
                }
            }
            if let Some(time) = &self.time {
                writeln!(out, "{time}")?;
            }
        }
        Ok(())
    }
}

/// Times a number of equal steps.
pub struct Timer<'a> {
    steps: usize,
    interrupt: &'a Interrupt,
    seconds: Vec<f64>,
}

impl<'a> Timer<'a> {
    /// Will time `steps` steps, at least one.
    #[must_use]
    pub fn new(steps: usize, interrupt: &'a Interrupt) -> Self {
        Self {
            steps: steps.max(1),
            interrupt,
            seconds: Vec::new(),
        }
    }

    /// Steps to time and the one before them.
    #[must_use]
    pub fn steps_with_warm_up(&self) -> usize {
        self.steps + 1
    }

    /// Takes over steps that something else ran one after the other, by when each ended; the first was to warm up.
    pub fn take_ends(&mut self, ends: &[Instant]) {
        let between = ends.windows(2).map(|pair| pair[1].duration_since(pair[0]));
        self.seconds.extend(between.map(|time| time.as_secs_f64()));
    }

    /// Runs a step once without and then as often as asked with the clock.
    ///
    /// # Errors
    /// The step's, or [`crate::interrupt::Interrupted`].
    pub fn time(&mut self, mut step: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
        step()?;
        for _ in 0..self.steps {
            self.interrupt.check()?;
            let start = Instant::now();
            step()?;
            self.seconds.push(start.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// The median of the steps' times.
    #[must_use]
    pub fn median_seconds(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            length if length % 2 == 1 => sorted[length / 2],
            length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
        }
    }
}

/// The kernel's own account of the most memory this process had.
#[must_use]
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::Interrupted;

    #[test]
    fn the_median_is_of_the_timed_steps() {
        let interrupt = Interrupt::default();
        let mut timer = Timer::new(4, &interrupt);
        let mut runs = 0;
        let counted = timer.time(|| {
            runs += 1;
            Ok(())
        });
        assert!(counted.is_ok());
        assert_eq!((runs, timer.seconds.len()), (5, 4));
        timer.seconds = vec![4.0, 1.0, 3.0, 2.0];
        assert_eq!(timer.median_seconds(), 2.5);
        interrupt.request();
        assert!(timer.time(|| Ok(())).is_err_and(|error| error.is::<Interrupted>()));
    }
}
