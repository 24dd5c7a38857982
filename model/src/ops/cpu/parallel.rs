//! How work is cut into tasks. The cuts depend on sizes alone, never on the number of threads.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use rayon::Yield;

/// Elements of one task of an elementwise loop: long enough to hide what starting it costs.
pub(crate) const ELEMENTS_PER_TASK: usize = 1 << 14;
/// Rows whose contributions to a sum over rows are added up by one task.
pub(crate) const ROWS_PER_SUM: usize = 64;

/// Rows of one elementwise task, for rows of `columns` values.
pub(crate) fn rows_per_task(columns: usize) -> usize {
    (ELEMENTS_PER_TASK / columns.max(1)).max(1)
}

/// Cuts `values` into pieces of `size` and runs `task` with the index and the piece.
pub(crate) fn for_each_chunk<V: Send>(values: &mut [V], size: usize, task: impl Fn(usize, &mut [V]) + Sync + Send) {
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

/// The `len` values that `write` writes; to clear them first would be one more pass over all that a network computes.
///
/// # Safety
/// `write` writes every value.
pub(crate) unsafe fn written(len: usize, write: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    write(&mut values.spare_capacity_mut()[..len]);
    // SAFETY: the caller promises that all of them have been written.
    unsafe { values.set_len(len) };
    values
}

/// How long a thread without work looks for some before it sleeps after all.
const PATIENCE: Duration = Duration::from_millis(1);

/// Runs `work` on a thread of rayon's pool, and keeps the others from falling asleep between its parallel loops: to wake a
/// thread up takes longer than most loops of a small network.
pub(crate) fn on_awake_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let is_over = &AtomicBool::new(false);
    rayon::scope(|scope| {
        let here = rayon::current_thread_index();
        scope.spawn_broadcast(move |_, thread| {
            if Some(thread.index()) != here {
                look_for_work(is_over);
            }
        });
        let _over = SetOnDrop(is_over);
        work()
    })
}

/// Set even by a panic, or the pool would wait for the threads that look for work.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does what there is to do until it is over. That it gives up in the end also keeps it from waiting for work that waits
/// for this very thread: a task that looks for another one while it waits itself may have come to this.
fn look_for_work(is_over: &AtomicBool) {
    let mut idle_since = Instant::now();
    while !is_over.load(Ordering::Relaxed) && idle_since.elapsed() < PATIENCE {
        match rayon::yield_now() {
            Some(Yield::Executed) => idle_since = Instant::now(),
            Some(Yield::Idle) | None => std::thread::yield_now(),
        }
    }
}
