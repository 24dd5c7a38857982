//! Counter-based random numbers: every draw is a pure function of what it is for.
//!
//! A [`Stream`] is named by `(seed, purpose, epoch, position)` and nothing else, so a sample gets the same noise at
//! every batch size, on every rank, with any number of threads and after any restart (pipeline spec, "The loader").
//! The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), tested
//! against the known answers of Random123. Only `+ - × ÷ sqrt` and integer operations touch the numbers, never the
//! platform's mathematical library, so the values are the same bits on every machine.
//!
//! ```
//! use deepflow_datasets::random::{Purpose, Stream};
//!
//! let mut noise = vec![0.0; 4096];
//! Stream::new(42, Purpose::Posterior, 3, 1_000_000).fill_normal(&mut noise);
//! let again = Stream::new(42, Purpose::Posterior, 3, 1_000_000).normal(17);
//! assert_eq!(noise[17], again);
//! ```

mod normal;
mod philox;
mod simd;

pub(crate) use simd::{vectorized, VectorWork};

pub use philox::philox4x32_10;

use philox::{Counters, LANES, WORDS};

/// How many consecutive draws share one group of counters (see [`Stream::word`]).
const GROUP: usize = LANES * WORDS;

/// What a random number is for. Streams of different purposes are independent of each other.
///
/// The discriminants are part of the order promise: they never change within a major version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Purpose {
    /// The round keys of the epoch's permutation of samples or of shards.
    Order = 0,
    /// The round keys of the permutation inside a shuffle block.
    BlockOrder = 1,
    /// The normal draw of the posterior, `mean + std·normal`.
    Posterior = 2,
    /// The choice between a picture and its mirror image.
    Flip = 3,
    /// The choice to replace a label by "no class" (network spec §2).
    ClassDropout = 4,
    /// The first time t_0 of a training sample (network spec §4).
    Time = 5,
    /// The uniform gaps between the times of the branches.
    TimeGap = 6,
    /// The sign of the gaps, one for a batch.
    TimeSign = 7,
    /// The noise a training sample is mixed with.
    Noise = 8,
    /// The initial noise of a generated sample.
    SampleNoise = 9,
    /// The noise a stochastic sampler adds at every step.
    SamplerStep = 10,
    /// Initial values of parameters.
    Initialization = 11,
    // 12 is free.
    /// Synthetic data of benchmarks and tests.
    Synthetic = 13,
    /// A split of data into parts.
    Split = 14,
}

/// The random numbers of one thing: up to 2³⁴ 32-bit words, addressable in any order.
///
/// Draw `i` is word `(i mod 64) / 16` of Philox counter `16·(i / 64) + i mod 16`: sixteen neighbouring draws come from
/// sixteen neighbouring counters, which is the order in which a vector unit makes them. A longer fill therefore always
/// begins with the shorter one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    /// Counter words 1, 2 and 3; word 0 counts the draws.
    name: [u32; 3],
}

impl Stream {
    /// The stream of `purpose` for place `position` of `epoch` (or whatever the two count) under `seed`.
    ///
    /// `position` counts modulo 2⁵⁶; the top byte holds the purpose.
    pub fn new(seed: u64, purpose: Purpose, epoch: u32, position: u64) -> Self {
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            name: [
                epoch,
                position as u32,
                ((position >> 32) as u32 & 0x00ff_ffff) | (purpose as u32) << 24,
            ],
        }
    }

    /// The 32 random bits of draw `index`.
    pub fn word(&self, index: usize) -> u32 {
        let counter = (index / GROUP * LANES + index % LANES) as u32;
        let [a, b, c] = self.name;
        philox4x32_10([counter, a, b, c], self.key)[index % GROUP / LANES]
    }

    /// The 64 random bits made of the words `2·index` and `2·index + 1`.
    pub fn word64(&self, index: usize) -> u64 {
        u64::from(self.word(2 * index)) | u64::from(self.word(2 * index + 1)) << 32
    }

    /// Draw `index` as a number of [0, 1), a multiple of 2⁻²⁴.
    pub fn uniform(&self, index: usize) -> f32 {
        uniform_of(self.word(index))
    }

    /// Draw `index` as a number of [0, 1), a multiple of 2⁻⁵³ (made of two words).
    pub fn uniform_f64(&self, index: usize) -> f64 {
        (self.word64(index) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Draw `index` as an integer below `bound`, without bias worth naming (below 2⁻³² for every bound under 2³²).
    pub fn below(&self, index: usize, bound: u64) -> u64 {
        ((u128::from(self.word64(index)) * u128::from(bound)) >> 64) as u64
    }

    /// Draw `index` as a standard normal number: the element `index` of [`Stream::fill_normal`].
    pub fn normal(&self, index: usize) -> f32 {
        let pair = index % (2 * LANES);
        let first = index - pair + pair % LANES;
        let (cosine, sine) = normal::box_muller(self.word(first), self.word(first + LANES));
        if pair < LANES {
            cosine
        } else {
            sine
        }
    }

    /// Fills `out` with the uniform draws 0, 1, 2, ….
    pub fn fill_uniform(&self, out: &mut [f32]) {
        vectorized(FillUniform(*self, out));
    }

    /// Fills `out` with the standard normal draws 0, 1, 2, … (Box–Muller on pairs of words sixteen apart).
    pub fn fill_normal(&self, out: &mut [f32]) {
        vectorized(FillNormal(*self, out));
    }

    /// The body of [`Stream::fill_normal`], for callers that are vectorised already.
    #[inline(always)]
    pub(crate) fn fill_normal_inlined(&self, out: &mut [f32]) {
        self.fill::<normal::Normal>(out);
    }

    #[inline(always)]
    fn fill<D: Distribution>(&self, out: &mut [f32]) {
        let mut counters = Counters::new(self.name, self.key);
        let mut groups = out.chunks_exact_mut(GROUP);
        for group in &mut groups {
            if let Ok(group) = group.try_into() {
                D::convert(&counters.next_group(), group);
            }
        }
        let rest = groups.into_remainder();
        if !rest.is_empty() {
            let mut group = [0.0; GROUP];
            D::convert(&counters.next_group(), &mut group);
            rest.copy_from_slice(&group[..rest.len()]);
        }
    }
}

struct FillUniform<'a>(Stream, &'a mut [f32]);

impl VectorWork for FillUniform<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.0.fill::<Uniform>(self.1);
    }
}

struct FillNormal<'a>(Stream, &'a mut [f32]);

impl VectorWork for FillNormal<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.0.fill_normal_inlined(self.1);
    }
}

/// What words become. A trait and not a closure, because only what is inlined is vectorised.
trait Distribution {
    fn convert(words: &[u32; GROUP], out: &mut [f32; GROUP]);
}

struct Uniform;

impl Distribution for Uniform {
    #[inline(always)]
    fn convert(words: &[u32; GROUP], out: &mut [f32; GROUP]) {
        for (value, word) in out.iter_mut().zip(words) {
            *value = uniform_of(*word);
        }
    }
}

#[inline(always)]
fn uniform_of(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
}

#[cfg(test)]
mod tests;
