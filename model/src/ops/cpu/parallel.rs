//! How work is cut into tasks. The cuts depend on sizes alone, never on the number of threads.

use rayon::prelude::*;

/// Elements of one task of an elementwise loop: long enough to hide what starting it costs.
pub(crate) const ELEMENTS_PER_TASK: usize = 1 << 14;
/// Rows whose contributions to a sum over rows are added up by one task.
pub(crate) const ROWS_PER_SUM: usize = 64;

/// Rows of one elementwise task, for rows of `columns` values.
pub(crate) fn rows_per_task(columns: usize) -> usize {
    (ELEMENTS_PER_TASK / columns.max(1)).max(1)
}

/// Cuts `values` into pieces of `size` and runs `task` with the index and the piece.
pub(crate) fn for_each_chunk(values: &mut [f32], size: usize, task: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let size = size.max(1);
    if values.len() <= size {
        if !values.is_empty() {
            task(0, values);
        }
    } else {
        values
            .par_chunks_mut(size)
            .enumerate()
            .for_each(|(index, chunk)| task(index, chunk));
    }
}

/// What every task returns, in the order of the tasks.
pub(crate) fn map_tasks<R: Send>(count: usize, task: impl Fn(usize) -> R + Sync + Send) -> Vec<R> {
    if count <= 1 {
        (0..count).map(task).collect()
    } else {
        (0..count).into_par_iter().map(task).collect()
    }
}

/// What the task returns for every item, in the order of the items.
pub(crate) fn map_items<I: Send, R: Send>(items: Vec<I>, task: impl Fn(I) -> R + Sync + Send) -> Vec<R> {
    if items.len() <= 1 {
        items.into_iter().map(task).collect()
    } else {
        items.into_par_iter().map(task).collect()
    }
}

/// A vector of arbitrary values, for results that are written completely before anything reads them.
pub(crate) fn unwritten(len: usize) -> Vec<f32> {
    // SAFETY: every bit pattern is a value of `f32`, and all callers in `ops` hand the vector to a kernel that writes each
    // value before it is read.
    unsafe { Box::<[f32]>::new_uninit_slice(len).assume_init() }.into_vec()
}
