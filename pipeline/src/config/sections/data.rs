//! `[data]`: where latents come from, and in which order.

use serde::{Deserialize, Serialize};

use super::{at_least_one, Violation};

/// How the order of samples is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shuffle {
    /// `global` where the shards are plain local tars, else `block`.
    #[default]
    Auto,
    /// A uniform permutation of all samples; needs plain local tars.
    Global,
    /// Shards in random order, samples shuffled among `block_samples` at a time.
    Block,
}

/// What a sample that cannot be read does to the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// Ends the run, naming shard, key and byte.
    #[default]
    Stop,
    /// Leaves the sample out, counts and reports it.
    Skip,
}

/// What becomes of the samples that do not fill a batch at the end of a pass over the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LastBatch {
    /// They are left out; the next pass leaves out others.
    #[default]
    Drop,
    /// The batch is filled up with samples from the beginning of the pass.
    Pad,
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataConfig {
    /// Folder or address (`s3://`, `gs://`, `az://`, `https://`, `file://`) of latent shards. Stores take their endpoint
    /// and credentials from the environment (`AWS_…`, `GOOGLE_…`, `AZURE_…`).
    pub shards: Option<String>,
    /// How the order of samples is drawn.
    pub shuffle: Shuffle,
    /// Samples a block shuffle holds. Two blocks are in memory.
    pub block_samples: usize,
    /// Threads that read shards.
    pub readers: usize,
    /// Batches read ahead of training.
    pub read_ahead: usize,
    /// Whether half of the samples use the moments of their mirrored picture, where the shards have them; never when the
    /// run aligns, because the alignment features are of the picture as it is.
    pub mirror: bool,
    /// What becomes of the samples that do not fill a batch.
    pub last_batch: LastBatch,
    /// What a sample that cannot be read does to the run.
    pub on_error: OnError,
    /// Folder that keeps copies of remote shards; several processes may share it.
    pub cache: Option<String>,
    /// Most bytes the cache may take.
    pub cache_bytes: u64,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            shards: None,
            shuffle: Shuffle::Auto,
            block_samples: 8192,
            readers: 2,
            read_ahead: 4,
            mirror: true,
            last_batch: LastBatch::Drop,
            on_error: OnError::Stop,
            cache: None,
            cache_bytes: 64 << 30,
        }
    }
}

impl DataConfig {
    pub(super) fn check(&self) -> Result<(), Violation> {
        at_least_one("data.block_samples", self.block_samples)?;
        at_least_one("data.readers", self.readers)?;
        at_least_one("data.read_ahead", self.read_ahead)
    }
}
