//! Keeps the mapped pages of a process under a limit.

use super::shard::LoadedShard;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A page fault on a cached file maps the 64 KiB window around it.
const WINDOW: u64 = 64 << 10;

/// Counts the pages that reading has mapped and gives them back, all at once, when they reach the limit.
pub(crate) struct Residency {
    limit: u64,
    resident: AtomicU64,
    touched: Mutex<Vec<Arc<LoadedShard>>>,
}

impl Residency {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            resident: AtomicU64::new(0),
            touched: Mutex::new(Vec::new()),
        }
    }

    /// Notes that `size` bytes of a mapped shard are about to be read.
    pub(crate) fn touch(&self, shard: &Arc<LoadedShard>, size: u64) {
        if shard.mark_touched() {
            self.touched
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Arc::clone(shard));
        }
        let mapped = size.next_multiple_of(WINDOW);
        if self.resident.fetch_add(mapped, Ordering::Relaxed) + mapped <= self.limit {
            return;
        }
        // Whoever finds the lock taken need not wait: the pages are being given back.
        if let Ok(mut touched) = self.touched.try_lock() {
            self.resident.store(0, Ordering::Relaxed);
            for shard in touched.drain(..) {
                shard.release_pages();
            }
        }
    }
}
