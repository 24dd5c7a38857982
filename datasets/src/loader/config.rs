//! The loader's settings and state.

use crate::{Dataset, Error, Result};
use serde::{Deserialize, Serialize};

/// The order in which an epoch visits the samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shuffle {
    /// [`Shuffle::Global`] where every sample can be reached at once, else [`Shuffle::Block`] of 4096 samples.
    #[default]
    Auto,
    /// As stored.
    None,
    /// A uniform permutation of all samples (plain local shards only).
    Global,
    /// Shards in random order, and the samples of a block of neighbouring shards in random order.
    Block {
        /// The most samples in a block; a shard with more is a block by itself. Two blocks are in memory.
        samples: u64,
    },
}

/// What becomes of the samples that do not fill a batch at the end of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LastBatch {
    /// They are left out; another epoch's order leaves out others.
    #[default]
    Drop,
    /// The batch is filled up from the epoch's beginning; `Batch::real` says how many rows are not repetitions.
    Pad,
}

/// What is made of the posterior's moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Posterior {
    /// `mean + std·normal`, drawn afresh at every use.
    #[default]
    Sample,
    /// The mean.
    Mean,
}

/// What happens to a sample that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The error is delivered in the sample's place, and the loader ends.
    #[default]
    Stop,
    /// The sample is left out of its batch, logged and counted.
    Skip,
}

/// The settings of a [`super::Loader`].
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderConfig {
    /// The seed of the order and of every draw.
    pub seed: u64,
    /// Samples of a global batch, over all ranks.
    pub batch_size: usize,
    /// This process among `world`, from 0.
    pub rank: usize,
    /// The number of processes that share every batch.
    pub world: usize,
    /// Threads that read and decode.
    pub readers: usize,
    /// Batches made ahead of the consumer.
    pub prefetch: usize,
    /// The order of samples.
    pub shuffle: Shuffle,
    /// The end of an epoch.
    pub last_batch: LastBatch,
    /// How many epochs there are; `None` for no end.
    pub epochs: Option<u32>,
    /// Whether a mirrored picture's moments are used half of the time, where a sample has them.
    pub flip: bool,
    /// What is made of the moments.
    pub posterior: Posterior,
    /// What latents are multiplied by; `None` for the index's factor, or 1 without an index.
    pub scale_factor: Option<f64>,
    /// Whether `features.npy` is loaded.
    pub features: bool,
    /// The number of classes that labels are checked against; `None` for the index's, or no check.
    pub classes: Option<u32>,
    /// What happens to samples that cannot be read.
    pub on_error: OnError,
}

impl Default for LoaderConfig {
    /// Seed 0, batches of 256 on one rank, two readers, four batches ahead, shuffled, without end, posterior sampled.
    fn default() -> Self {
        Self {
            seed: 0,
            batch_size: 256,
            rank: 0,
            world: 1,
            readers: 2,
            prefetch: 4,
            shuffle: Shuffle::Auto,
            last_batch: LastBatch::Drop,
            epochs: None,
            flip: false,
            posterior: Posterior::Sample,
            scale_factor: None,
            features: false,
            classes: None,
            on_error: OnError::Stop,
        }
    }
}

impl LoaderConfig {
    /// Checks every setting, also against the data set.
    pub(super) fn check(&self, dataset: &Dataset) -> Result<()> {
        let positive = [
            ("batch_size", self.batch_size),
            ("world", self.world),
            ("readers", self.readers),
            ("prefetch", self.prefetch),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(invalid(key, value, "at least 1".to_owned()));
            }
        }
        if self.rank >= self.world {
            return Err(invalid("rank", self.rank, format!("below world = {}", self.world)));
        }
        if self.world > self.batch_size {
            return Err(invalid(
                "batch_size",
                self.batch_size,
                format!("at least a sample for each of {} ranks", self.world),
            ));
        }
        if self.scale_factor.is_some_and(|factor| !factor.is_finite()) {
            return Err(invalid("scale_factor", "not finite", "a number".to_owned()));
        }
        if self.shuffle == (Shuffle::Block { samples: 0 }) {
            return Err(invalid("shuffle block", 0, "at least 1 sample".to_owned()));
        }
        if self.shuffle == Shuffle::Global && !dataset.is_random_access() {
            let expected = "auto or block: some shards are compressed or remote";
            return Err(invalid("shuffle", "global", expected.to_owned()));
        }
        if dataset.is_empty() {
            return Err(invalid("data set", "empty", "at least one sample".to_owned()));
        }
        if self.last_batch == LastBatch::Drop && dataset.len() < self.batch_size as u64 {
            let expected = format!(
                "at most the data set's {} samples, or last_batch = \"pad\"",
                dataset.len()
            );
            return Err(invalid("batch_size", self.batch_size, expected));
        }
        Ok(())
    }
}

fn invalid(key: &'static str, found: impl ToString, expected: String) -> Error {
    Error::InvalidConfig {
        key,
        found: found.to_string(),
        expected,
    }
}

/// Where a loader is: all it takes to continue, with any number of readers and ranks and any batch size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderState {
    /// The epoch, from 0.
    pub epoch: u32,
    /// Samples of the epoch that all ranks together have consumed.
    pub consumed: u64,
}
