//! Where the time of a run went.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Seconds of each part of the work. Reading and cropping are summed over their threads; the parts overlap, so that the
/// longest of (reading + cropping) / threads, codec and writing is about `total`.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct TimeSplit {
    /// From the first picture to the last shard.
    pub total_s: f64,
    /// Reading files, over all threads.
    pub read_s: f64,
    /// Decoding and cropping, over all threads.
    pub crop_s: f64,
    /// In the codec.
    pub codec_s: f64,
    /// The codec's thread waiting for pictures.
    pub codec_waits_s: f64,
    /// Converting, hashing and writing shards.
    pub write_s: f64,
    /// Threads that read and crop.
    pub threads: usize,
}

impl TimeSplit {
    /// Runs `work` and adds the time it took to `to`.
    pub(super) fn add<R>(to: &mut f64, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = work();
        *to += start.elapsed().as_secs_f64();
        result
    }

    pub(super) fn add_load(&mut self, (read, crop): (Duration, Duration)) {
        self.read_s += read.as_secs_f64();
        self.crop_s += crop.as_secs_f64();
    }
}
