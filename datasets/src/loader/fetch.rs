//! Shards that are read whole, by threads of their own, ahead of the batches that need them.

use crate::dataset::LoadedShard;
use crate::{Dataset, Error, Result};
use crossbeam_channel::Receiver;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// A shard that is being read, or was.
pub(super) struct PendingShard {
    shard: usize,
    result: Mutex<Option<Result<Arc<LoadedShard>>>>,
    arrived: Condvar,
}

impl PendingShard {
    pub(super) fn new(shard: usize) -> Arc<Self> {
        Arc::new(Self {
            shard,
            result: Mutex::new(None),
            arrived: Condvar::new(),
        })
    }

    /// Waits for the shard.
    pub(super) fn wait(&self) -> Result<Arc<LoadedShard>> {
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(result) = &*result {
                return result.clone();
            }
            result = self.arrived.wait(result).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn deliver(&self, delivered: Result<Arc<LoadedShard>>) {
        self.result
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(delivered);
        self.arrived.notify_all();
    }
}

/// The work of a fetching thread: until the loader is dropped.
pub(super) fn run(dataset: &Dataset, jobs: &Receiver<Arc<PendingShard>>, stop: &AtomicBool) {
    for pending in jobs {
        if stop.load(Ordering::Relaxed) {
            pending.deliver(Err(Error::Stopped));
            continue;
        }
        // A panic must not leave a reader waiting for the shard, nor the shards after it without a thread.
        let read = catch_unwind(AssertUnwindSafe(|| dataset.read_whole(pending.shard, stop)));
        let shard = || dataset.shard_name(pending.shard).to_owned();
        pending.deliver(read.unwrap_or_else(|_| Err(Error::FetchPanicked { shard: shard() })));
    }
}
