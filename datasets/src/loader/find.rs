//! Finds the samples of a batch: the shard of each, and its place there.

use super::schedule::{BatchPlan, EpochOrder};
use super::window::Block;
use crate::dataset::LoadedShard;
use crate::order::{BlockOrder, Permutation};
use crate::{Dataset, Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// How many samples are found before the first of them is read. Of a large data set neither the shards' entries nor those
/// of their offset tables are in the processor's cache; found together they are on their way to it at the same time.
pub(super) const AHEAD: usize = 8;

/// A shard and a place in it.
pub(super) type Found = (Arc<LoadedShard>, usize);

/// Parts of a range, `length` long but for the last.
pub(super) fn pieces(range: &Range<u64>, length: usize) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    range
        .clone()
        .step_by(length)
        .map(move |start| start..(start + length as u64).min(end))
}

/// The samples that stand at positions of the epoch, once their shards were read.
pub(super) fn find(
    dataset: &Dataset,
    plan: &BatchPlan,
    blocks: &[Arc<Block>],
    positions: &Range<u64>,
) -> Vec<Result<Found>> {
    let wrapped = positions.clone().map(|position| plan.wrapped(position));
    match &*plan.order {
        EpochOrder::Global(permutation) => find_at_random(dataset, permutation.as_ref(), wrapped),
        EpochOrder::Blocks(order) => wrapped
            .map(|position| find_in_blocks(order, blocks, position))
            .collect(),
    }
}

/// Each step is taken for all samples before the next one, so that none of them waits for the memory of another.
fn find_at_random(
    dataset: &Dataset,
    permutation: Option<&Permutation>,
    positions: impl Iterator<Item = u64>,
) -> Vec<Result<Found>> {
    let locate = |position| dataset.locate(permutation.map_or(position, |permutation| permutation.get(position)));
    let places: Vec<_> = positions.map(locate).collect();
    let open = |(shard, index)| Ok((Arc::clone(dataset.at_random(shard)?), index));
    let found: Vec<_> = places.into_iter().map(open).collect();
    for (shard, index) in found.iter().flatten() {
        shard.table().fetch(*index);
    }
    found
}

fn find_in_blocks(order: &BlockOrder, blocks: &[Arc<Block>], position: u64) -> Result<Found> {
    let (place, index) = order.locate(position);
    let pending = blocks
        .iter()
        .find_map(|block| block.shard(place))
        .ok_or(Error::Stopped)?;
    Ok((pending.wait()?, index))
}
