//! The order for shards that are read whole, compressed or remote: shards are shuffled, then the samples of a block of
//! neighbouring shards, so that no more than a block or two need be in memory.

use super::Permutation;
use crate::random::Purpose;
use std::ops::Range;

/// The order of one epoch over shards of known sizes.
#[derive(Clone, Debug)]
pub(crate) struct BlockOrder {
    /// The shards in the order they are read.
    sequence: Vec<u32>,
    /// `ends[i]`: samples in the first i shards of `sequence`.
    ends: Vec<u64>,
    /// `blocks[k]..blocks[k + 1]`: the shards of block k in `sequence`.
    blocks: Vec<u32>,
    shuffle: Option<Key>,
}

#[derive(Clone, Copy, Debug)]
struct Key {
    seed: u64,
    epoch: u32,
}

impl BlockOrder {
    /// Shards in shuffled order, cut into blocks of as many shards as hold at most `block_samples` (at least one), the
    /// samples of a block shuffled.
    pub(crate) fn shuffled(shard_samples: &[u64], block_samples: u64, seed: u64, epoch: u32) -> Self {
        let order = Permutation::new(shard_samples.len() as u64, seed, Purpose::Order, epoch, 1);
        let sequence = (0..shard_samples.len() as u64)
            .map(|place| order.get(place) as u32)
            .collect();
        Self::new(sequence, shard_samples, block_samples, Some(Key { seed, epoch }))
    }

    /// Shards and samples in the order they are stored, a block a shard.
    pub(crate) fn sequential(shard_samples: &[u64]) -> Self {
        Self::new((0..shard_samples.len() as u32).collect(), shard_samples, 0, None)
    }

    fn new(sequence: Vec<u32>, shard_samples: &[u64], block_samples: u64, shuffle: Option<Key>) -> Self {
        let mut ends = vec![0];
        let mut blocks = vec![0];
        let (mut total, mut in_block) = (0, 0);
        for (place, &shard) in sequence.iter().enumerate() {
            let samples = shard_samples[shard as usize];
            if place > 0 && in_block + samples > block_samples {
                blocks.push(place as u32);
                in_block = 0;
            }
            in_block += samples;
            total += samples;
            ends.push(total);
        }
        if !sequence.is_empty() {
            blocks.push(sequence.len() as u32);
        }
        Self {
            sequence,
            ends,
            blocks,
            shuffle,
        }
    }

    /// The number of blocks.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len() - 1
    }

    /// The shards of a block, as places in the order of reading.
    pub(crate) fn places(&self, block: usize) -> Range<usize> {
        self.blocks[block] as usize..self.blocks[block + 1] as usize
    }

    /// The shard that is read at a place.
    pub(crate) fn shard(&self, place: usize) -> usize {
        self.sequence[place] as usize
    }

    /// The block that the sample at `position` comes from.
    pub(crate) fn block_of(&self, position: u64) -> usize {
        self.blocks[1..].partition_point(|&end| self.ends[end as usize] <= position)
    }

    /// The place of the shard, and the sample within it, that stand at `position` of the epoch.
    pub(crate) fn locate(&self, position: u64) -> (usize, usize) {
        let block = self.block_of(position);
        let places = self.places(block);
        let (start, end) = (self.ends[places.start], self.ends[places.end]);
        let sample = match self.shuffle {
            Some(Key { seed, epoch }) => {
                let order = Permutation::new(end - start, seed, Purpose::BlockOrder, epoch, block as u64);
                start + order.get(position - start)
            }
            None => position,
        };
        let place = places.start + self.ends[places.start + 1..=places.end].partition_point(|&end| end <= sample);
        (place, (sample - self.ends[place]) as usize)
    }
}
