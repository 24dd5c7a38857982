//! Buffers that begin at a cache line, so that no vector of sixteen values straddles two.

use std::sync::{Mutex, PoisonError};

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

/// Values in a cache line, and channels in a block of a [`FeatureMap`](super::FeatureMap).
pub(super) const LANES: usize = 16;

/// Lines that a task clears: half a megabyte.
const LINES_PER_TASK: usize = 8192;

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// A buffer of f32 values that begins at a cache line and holds a whole number of them.
#[derive(Clone, Debug, Default)]
pub(super) struct AlignedBuffer(Vec<Line>);

impl AlignedBuffer {
    /// Zeros; `len` is rounded up to whole lines.
    pub(super) fn zeros(len: usize) -> Self {
        Self(vec![Line::zeroed(); len.div_ceil(LANES)])
    }

    /// The same, cleared by all threads: the maps of a large picture are too long for one of them while the others wait.
    pub(super) fn zeros_in_parallel(len: usize) -> Self {
        let lines = 0..len.div_ceil(LANES);
        Self(
            lines
                .into_par_iter()
                .with_min_len(LINES_PER_TASK)
                .map(|_| Line::zeroed())
                .collect(),
        )
    }

    pub(super) fn values(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

static POOL: Mutex<Vec<AlignedBuffer>> = Mutex::new(Vec::new());

/// A buffer on loan from a pool, of arbitrary content. It belongs to whoever took it, so a task that rayon runs while
/// another one waits gets its own.
pub(super) struct Scratch {
    buffer: AlignedBuffer,
    len: usize,
}

impl Scratch {
    /// Takes a buffer of `len` values: the smallest that is large enough, or else the largest, enlarged.
    pub(super) fn take(len: usize) -> Self {
        let lines = len.div_ceil(LANES);
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = (0..pool.len())
            .filter(|&index| pool[index].0.len() >= lines)
            .min_by_key(|&index| pool[index].0.len());
        let index = fits.or_else(|| (0..pool.len()).max_by_key(|&index| pool[index].0.len()));
        let mut buffer = index.map(|index| pool.swap_remove(index)).unwrap_or_default();
        drop(pool);
        if buffer.0.len() < lines {
            drop(buffer);
            buffer = AlignedBuffer::zeros(len);
        }
        Self { buffer, len }
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.buffer.values_mut()[..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        pool.push(std::mem::take(&mut self.buffer));
    }
}

/// A pointer that several tasks write through, each to values of its own.
#[derive(Clone, Copy)]
pub(super) struct SharedMut(*mut f32);

// SAFETY: whoever dereferences the pointer promises that no other task touches the same values.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    /// The pointer moved by `offset` values.
    ///
    /// # Safety
    /// The offset must stay within the buffer the pointer was made from.
    pub(super) unsafe fn add(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

impl From<*mut f32> for SharedMut {
    fn from(pointer: *mut f32) -> Self {
        Self(pointer)
    }
}
