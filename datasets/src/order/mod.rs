//! The order of samples: a pure function of (seed, epoch, index).
//!
//! Nothing is stored and nothing is replayed: the place of any sample in any epoch is computed when it is asked for.
//! The functions here never change their values within a major version; the tests hold golden values.

mod blocks;
mod permutation;

pub(crate) use blocks::BlockOrder;
pub use permutation::Permutation;

use crate::random::Purpose;

/// The sample that stands at place `index` of epoch `epoch`, of `count` samples in uniformly shuffled order.
///
/// # Panics
/// If `index` is not below `count`.
///
/// ```
/// let epoch: Vec<u64> = (0..5).map(|index| deepflow_datasets::order(7, 0, index, 5)).collect();
/// let mut sorted = epoch.clone();
/// sorted.sort();
/// assert_eq!(sorted, [0, 1, 2, 3, 4]);
/// ```
pub fn order(seed: u64, epoch: u32, index: u64, count: u64) -> u64 {
    epoch_permutation(seed, epoch, count).get(index)
}

/// The permutation behind [`order`], for many places of one epoch.
pub fn epoch_permutation(seed: u64, epoch: u32, count: u64) -> Permutation {
    Permutation::new(count, seed, Purpose::Order, epoch, 0)
}

#[cfg(test)]
mod tests;
