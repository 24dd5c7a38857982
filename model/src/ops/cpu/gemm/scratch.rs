//! Buffers for packed panels, kept between calls.
//!
//! Every thread has its pool. A buffer is taken out for as long as it is used, so a task that rayon steals while another
//! one waits finds its own: nothing is ever locked or borrowed across a join.

use std::cell::RefCell;

use bytemuck::{Pod, Zeroable};

/// One cache line, so that no vector load straddles two.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

thread_local! {
    static POOL: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer on loan; its contents are arbitrary.
pub(crate) struct Scratch {
    lines: Vec<Line>,
    pooled: bool,
}

impl Scratch {
    /// Takes a buffer of at least `len` values, preferably one that is large enough already.
    pub(crate) fn take(len: usize) -> Self {
        let lines = len.div_ceil(16);
        if lines == 0 {
            return Self {
                lines: Vec::new(),
                pooled: false,
            };
        }
        let mut buffer = POOL.with_borrow_mut(|pool| {
            let smallest_fit = (0..pool.len())
                .filter(|&index| pool[index].len() >= lines)
                .min_by_key(|&index| pool[index].len());
            let index = smallest_fit.or_else(|| (0..pool.len()).max_by_key(|&index| pool[index].len()));
            index.map(|index| pool.swap_remove(index)).unwrap_or_default()
        });
        if buffer.len() < lines {
            buffer.clear();
            buffer.resize(lines, Line::zeroed());
        }
        Self {
            lines: buffer,
            pooled: true,
        }
    }

    /// A buffer of `len` values, rounded up to a cache line, that stays out of the pool: for long use.
    pub(crate) fn owned(len: usize) -> Self {
        Self {
            lines: vec![Line::zeroed(); len.div_ceil(16)],
            pooled: false,
        }
    }

    pub(crate) fn values(&self) -> &[f32] {
        bytemuck::cast_slice(&self.lines)
    }

    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.pooled && !self.lines.is_empty() {
            let lines = std::mem::take(&mut self.lines);
            // Of a thread that ends, the pool may be gone already: then the buffer goes, too.
            let _ = POOL.try_with(|pool| pool.borrow_mut().push(lines));
        }
    }
}
