//! Which samples make which batch, one global batch after the other.

use super::{LastBatch, LoaderConfig, LoaderState, Shuffle};
use crate::order::{epoch_permutation, BlockOrder, Permutation};
use crate::Dataset;
use std::sync::Arc;

/// The order of one epoch.
pub(super) enum EpochOrder {
    /// Every sample can be reached at once; `None` is the order of storage.
    Global(Option<Permutation>),
    /// Shards are read whole, in blocks.
    Blocks(BlockOrder),
}

/// The rows of one rank in one global batch.
pub(super) struct BatchPlan {
    pub order: Arc<EpochOrder>,
    pub epoch: u32,
    /// The places of the rows in the epoch; those from `samples` on wrap around.
    pub positions: std::ops::Range<u64>,
    /// The number of samples of the epoch.
    pub samples: u64,
    pub next: LoaderState,
}

impl BatchPlan {
    /// The place whose sample stands at `position`, which may lie in the padding.
    pub(super) fn wrapped(&self, position: u64) -> u64 {
        position % self.samples
    }
}

/// Cuts epochs into batches.
pub(super) struct Schedule {
    seed: u64,
    global_batch: u64,
    rank: u64,
    world: u64,
    shuffle: Shuffle,
    last_batch: LastBatch,
    epochs: Option<u32>,
    shard_samples: Vec<u64>,
    samples: u64,
    state: LoaderState,
    current: Option<(u32, Arc<EpochOrder>)>,
}

impl Schedule {
    pub(super) fn new(dataset: &Dataset, config: &LoaderConfig, state: LoaderState) -> Self {
        let shuffle = match config.shuffle {
            Shuffle::Auto if dataset.is_random_access() => Shuffle::Global,
            Shuffle::Auto => Shuffle::Block { samples: 4096 },
            given => given,
        };
        let whole_shards = matches!(shuffle, Shuffle::Block { .. }) || !dataset.is_random_access();
        Self {
            seed: config.seed,
            global_batch: config.batch_size as u64,
            rank: config.rank as u64,
            world: config.world as u64,
            shuffle,
            last_batch: config.last_batch,
            epochs: config.epochs,
            shard_samples: if whole_shards {
                dataset.shard_samples()
            } else {
                Vec::new()
            },
            samples: dataset.len(),
            state,
            current: None,
        }
    }

    /// Whether samples come from shards that are read whole.
    pub(super) fn reads_whole_shards(&self) -> bool {
        !self.shard_samples.is_empty()
    }

    /// Samples of all ranks in a batch.
    pub(super) fn global_batch(&self) -> u64 {
        self.global_batch
    }

    /// The rank's rows of the next global batch.
    pub(super) fn next_batch(&mut self) -> Option<BatchPlan> {
        let left = self.samples.saturating_sub(self.state.consumed);
        if left == 0 || left < self.global_batch && self.last_batch == LastBatch::Drop {
            self.state = LoaderState {
                epoch: self.state.epoch.wrapping_add(1),
                consumed: 0,
            };
        }
        if self.epochs.is_some_and(|epochs| self.state.epoch >= epochs) {
            return None;
        }
        let LoaderState { epoch, consumed } = self.state;
        let order = self.epoch_order(epoch);
        self.state.consumed = (consumed + self.global_batch).min(self.samples);
        let row = |rank: u64| consumed + self.global_batch * rank / self.world;
        let positions = row(self.rank)..row(self.rank + 1);
        Some(BatchPlan {
            order,
            epoch,
            positions,
            samples: self.samples,
            next: self.state,
        })
    }

    fn epoch_order(&mut self, epoch: u32) -> Arc<EpochOrder> {
        match &self.current {
            Some((current, order)) if *current == epoch => Arc::clone(order),
            _ => {
                let order = Arc::new(self.make_order(epoch));
                self.current = Some((epoch, Arc::clone(&order)));
                order
            }
        }
    }

    fn make_order(&self, epoch: u32) -> EpochOrder {
        match self.shuffle {
            Shuffle::Block { samples } => {
                EpochOrder::Blocks(BlockOrder::shuffled(&self.shard_samples, samples, self.seed, epoch))
            }
            Shuffle::None if !self.shard_samples.is_empty() => {
                EpochOrder::Blocks(BlockOrder::sequential(&self.shard_samples))
            }
            Shuffle::None => EpochOrder::Global(None),
            Shuffle::Global | Shuffle::Auto => {
                EpochOrder::Global(Some(epoch_permutation(self.seed, epoch, self.samples)))
            }
        }
    }
}
