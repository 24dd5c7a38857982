//! What the loader delivers.

use super::LoaderState;
use bytemuck::{Pod, Zeroable};
use crossbeam_channel::Sender;
use std::ops::{Deref, DerefMut};

/// One cache line, the unit of allocation.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line([f32; LINE]);

const LINE: usize = 16;

/// A buffer of f32 that begins at a multiple of 64 bytes and goes back to its loader when it is dropped.
pub struct AlignedBuffer {
    lines: Vec<Line>,
    length: usize,
    home: Option<Sender<Vec<Line>>>,
}

impl AlignedBuffer {
    /// A buffer of `length` numbers in `lines`, which are reused as they are.
    pub(super) fn recycled(mut lines: Vec<Line>, length: usize, home: Sender<Vec<Line>>) -> Self {
        lines.resize(length.div_ceil(LINE), Line::zeroed());
        Self {
            lines,
            length,
            home: Some(home),
        }
    }

    /// Shortens the buffer to its first `length` numbers.
    pub(super) fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }
}

impl Deref for AlignedBuffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.length]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.length]
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            // A loader that is gone or has enough buffers lets this one go.
            let _ = home.try_send(std::mem::take(&mut self.lines));
        }
    }
}

impl std::fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuffer({} numbers)", self.length)
    }
}

/// Alignment targets of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// (B, T, Z) in C order.
    pub data: Vec<f32>,
    /// (T, Z) of one sample.
    pub shape: [usize; 2],
}

/// One rank's share of a global batch. B is the number of rows that were read.
#[derive(Debug)]
pub struct Batch {
    /// The epoch the batch belongs to.
    pub epoch: u32,
    /// The global place of each row in the epoch. Draws that belong to a sample are keyed by (seed, epoch, position);
    /// rows that pad the last batch have places beyond the data set's size.
    pub positions: Vec<u64>,
    /// The keys of the samples.
    pub keys: Vec<String>,
    /// The classes of the samples.
    pub classes: Vec<u32>,
    /// (B, C, S, S), scaled, in C order, aligned to 64 bytes.
    pub latents: AlignedBuffer,
    /// (C, S, S).
    pub latent_shape: [usize; 3],
    /// Alignment targets, if the configuration asks for them.
    pub features: Option<Features>,
    /// How many of the rows, from the first, are samples of this epoch and not padding.
    pub real: usize,
    /// Samples of this batch that were left out because they could not be read.
    pub skipped: u64,
    /// Where to continue after this batch.
    pub next: LoaderState,
}

impl Batch {
    /// The number of rows.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// The latent of one row, (C, S, S).
    ///
    /// # Panics
    /// If `row` is not below [`Self::len`].
    pub fn latent(&self, row: usize) -> &[f32] {
        let length = self.latent_shape.iter().product::<usize>();
        &self.latents[row * length..(row + 1) * length]
    }
}
