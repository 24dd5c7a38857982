//! A keyed permutation of 0..n that takes no memory: a Feistel network with cycle walking.

use crate::random::{Purpose, Stream};

/// Enough for every statistic the tests look at; the half-width rounds of a Feistel network mix after four.
const ROUNDS: usize = 10;
/// Halves narrower than this mix badly; small domains walk a little longer instead.
const NARROWEST_HALF: u32 = 4;

/// A pseudo-random permutation of `0..count`.
///
/// The numbers below 2^(2h), the smallest such power that holds `count`, are divided into two halves of h bits, which
/// take part in ten rounds `(left, right) ← (right, left ⊕ (mix(right + key_r) mod 2^h))`. A result that is not below
/// `count` goes through the network again, on average less than four times. The keys are words 0 to 9 (64 bits each)
/// of the [`Stream`] given by the arguments of [`Permutation::new`]; `mix` is the finaliser of splitmix64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permutation {
    count: u64,
    half: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of `0..count` named by seed, purpose, epoch and position.
    pub fn new(count: u64, seed: u64, purpose: Purpose, epoch: u32, position: u64) -> Self {
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        let stream = Stream::new(seed, purpose, epoch, position);
        Self {
            count,
            half: bits.div_ceil(2).max(NARROWEST_HALF),
            keys: std::array::from_fn(|round| stream.word64(round)),
        }
    }

    /// What stands at place `index`.
    ///
    /// # Panics
    /// If `index` is not below `count`.
    pub fn get(&self, index: u64) -> u64 {
        assert!(index < self.count, "place {index} of a permutation of {}", self.count);
        let mut value = self.encrypt(index);
        while value >= self.count {
            value = self.encrypt(value);
        }
        value
    }

    /// The number of things permuted.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn encrypt(&self, value: u64) -> u64 {
        let mask = (1 << self.half) - 1;
        let (mut left, mut right) = (value >> self.half, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right.wrapping_add(key)) & mask));
        }
        left << self.half | right
    }
}

/// The finaliser of splitmix64 (Steele, Lea, Flood 2014).
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
