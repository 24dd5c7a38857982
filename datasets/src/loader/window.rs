//! The blocks of shards that are in memory: those of the batches under way, and one block ahead.

use super::fetch::PendingShard;
use super::schedule::{BatchPlan, EpochOrder};
use crate::order::BlockOrder;
use crossbeam_channel::Sender;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The shards of one block, by their places in the epoch's order of reading.
pub(super) struct Block {
    epoch: u32,
    number: usize,
    first_place: usize,
    shards: Vec<Arc<PendingShard>>,
}

impl Block {
    /// The shard at a place, if it belongs to this block.
    pub(super) fn shard(&self, place: usize) -> Option<&Arc<PendingShard>> {
        self.shards.get(place.checked_sub(self.first_place)?)
    }
}

/// Asks for blocks before they are needed and forgets them when they are used up.
pub(super) struct Window {
    blocks: Vec<Arc<Block>>,
    fetch: Option<Sender<Arc<PendingShard>>>,
}

impl Window {
    pub(super) fn new(fetch: Sender<Arc<PendingShard>>) -> Self {
        Self {
            blocks: Vec::new(),
            fetch: Some(fetch),
        }
    }

    /// Lets the fetching threads end.
    pub(super) fn close(&mut self) {
        self.fetch = None;
    }

    /// The blocks that a batch needs; the block after them is asked for, and others are kept only by their batches.
    pub(super) fn blocks_for(&mut self, plan: &BatchPlan) -> Vec<Arc<Block>> {
        let EpochOrder::Blocks(order) = &*plan.order else {
            return Vec::new();
        };
        let numbers: BTreeSet<usize> = plan
            .positions
            .clone()
            .map(|place| order.block_of(plan.wrapped(place)))
            .collect();
        let needed: Vec<_> = numbers
            .iter()
            .map(|&number| self.block(order, plan.epoch, number))
            .collect();
        let ahead = order.block_of(plan.positions.end.min(plan.samples).saturating_sub(1)) + 1;
        let ahead = (ahead < order.blocks()).then(|| self.block(order, plan.epoch, ahead));
        self.blocks = needed.iter().cloned().chain(ahead).collect();
        needed
    }

    fn block(&self, order: &BlockOrder, epoch: u32, number: usize) -> Arc<Block> {
        let known = self
            .blocks
            .iter()
            .find(|block| (block.epoch, block.number) == (epoch, number));
        known.cloned().unwrap_or_else(|| {
            let places = order.places(number);
            let shards: Vec<_> = places
                .clone()
                .map(|place| PendingShard::new(order.shard(place)))
                .collect();
            if let Some(fetch) = &self.fetch {
                // The threads at the other end live as long as this sender.
                shards.iter().for_each(|shard| drop(fetch.send(Arc::clone(shard))));
            }
            Arc::new(Block {
                epoch,
                number,
                first_place: places.start,
                shards,
            })
        })
    }
}
