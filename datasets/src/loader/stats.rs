//! Progress and throughput, as a trainer shows them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What the reader threads have done.
#[derive(Default)]
pub(super) struct Counters {
    samples: AtomicU64,
    skipped: AtomicU64,
    bytes: AtomicU64,
}

impl Counters {
    pub(super) fn made(&self, samples: u64, skipped: u64, bytes: u64) {
        self.samples.fetch_add(samples, Ordering::Relaxed);
        self.skipped.fetch_add(skipped, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self, batches: u64, waited: Duration, elapsed: Duration) -> LoaderStats {
        LoaderStats {
            batches,
            samples: self.samples.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            waited,
            elapsed,
        }
    }
}

/// What a loader has done since it was made. Its `Display` is a line for a log.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoaderStats {
    /// Batches delivered.
    pub batches: u64,
    /// Samples decoded on this rank, those of batches not yet delivered included.
    pub samples: u64,
    /// Samples left out because they could not be read.
    pub skipped: u64,
    /// Bytes of latents made.
    pub bytes: u64,
    /// Time the consumer has waited for batches.
    pub waited: Duration,
    /// Time since the loader was made.
    pub elapsed: Duration,
}

impl LoaderStats {
    /// The share of time the consumer has waited, from 0 to 1.
    pub fn waiting_share(&self) -> f64 {
        if self.elapsed.is_zero() {
            return 0.0;
        }
        self.waited.as_secs_f64() / self.elapsed.as_secs_f64()
    }

    /// Samples a second.
    pub fn samples_per_second(&self) -> f64 {
        if self.elapsed.is_zero() {
            return 0.0;
        }
        self.samples as f64 / self.elapsed.as_secs_f64()
    }
}

impl fmt::Display for LoaderStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rate, share) = (self.samples_per_second(), 100.0 * self.waiting_share());
        write!(
            f,
            "{} samples, {rate:.0}/s, waiting for data {share:.1} %",
            self.samples
        )?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}
