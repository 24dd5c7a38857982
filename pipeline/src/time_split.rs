//! Where the time of an encode or decode run went.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

/// Seconds of each part of the work. The parts overlap: what a pool of threads does is summed over its threads, and the
/// codec hides the rest where `codec_s` is about `total_s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TimeSplit {
    /// From the first picture or latent to the last file.
    pub total_s: f64,
    /// Reading: picture files over all threads, or latents.
    pub read_s: f64,
    /// Decoding and cropping pictures, over all threads; 0 in decode.
    pub crop_s: f64,
    /// In the codec.
    pub codec_s: f64,
    /// The codec waiting for something to work on.
    pub codec_waits_s: f64,
    /// The codec waiting until what it made can be taken over.
    pub codec_blocked_s: f64,
    /// Converting, hashing and writing shards; in decode compressing and writing pictures, over all threads.
    pub write_s: f64,
    /// Threads that read and crop; in decode those that compress and write.
    pub threads: usize,
    /// Cores this process kept busy on average, where the system tells.
    pub busy_cores: Option<f64>,
}

impl TimeSplit {
    /// Runs the whole work and completes its split with the time from end to end.
    ///
    /// # Errors
    /// The work's.
    pub(crate) fn of<R>(work: impl FnOnce(&mut Self) -> anyhow::Result<R>) -> anyhow::Result<(R, Self)> {
        let mut split = Self::default();
        let (start, cpu) = (Instant::now(), process_cpu_time());
        let result = work(&mut split)?;
        split.total_s = start.elapsed().as_secs_f64();
        split.busy_cores = cpu
            .zip(process_cpu_time())
            .map(|(before, after)| after.saturating_sub(before).as_secs_f64() / split.total_s);
        Ok((result, split))
    }

    /// Runs `work` and adds the time it took to `to`.
    pub(crate) fn add<R>(to: &mut f64, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = work();
        *to += start.elapsed().as_secs_f64();
        result
    }

    pub(crate) fn add_load(&mut self, (read, crop): (Duration, Duration)) {
        self.read_s += read.as_secs_f64();
        self.crop_s += crop.as_secs_f64();
    }
}

impl fmt::Display for TimeSplit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "of {:.2} s: codec {:.2} s, waiting for its input {:.2} s and for its output {:.2} s; beside it reading {:.2} s, \
             cropping {:.2} s, writing {:.2} s",
            self.total_s,
            self.codec_s,
            self.codec_waits_s,
            self.codec_blocked_s,
            self.read_s,
            self.crop_s,
            self.write_s
        )?;
        match self.busy_cores {
            Some(cores) => write!(f, "; {cores:.2} cores busy"),
            None => Ok(()),
        }
    }
}

/// Processor time of all threads of this process.
#[cfg(unix)]
fn process_cpu_time() -> Option<Duration> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).ok()
}

/// Not known on this system.
#[cfg(not(unix))]
fn process_cpu_time() -> Option<Duration> {
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_processor_time_are_counted() {
        let (value, split) = TimeSplit::of(|split| {
            let start = Instant::now();
            Ok(TimeSplit::add(&mut split.codec_s, || {
                while start.elapsed() < Duration::from_millis(60) {
                    std::hint::black_box(0);
                }
                7
            }))
        })
        .unwrap();
        assert_eq!(value, 7);
        assert!(split.codec_s >= 0.06 && split.total_s >= split.codec_s);
        if let Some(busy) = split.busy_cores {
            assert!(busy > 0.0 && busy.is_finite(), "{busy}");
        }
    }
}
