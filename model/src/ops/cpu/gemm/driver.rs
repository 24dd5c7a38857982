//! Cutting a product into blocks that fit the caches, and the blocks into tasks.
//!
//! The sum over `k` is cut at the same places whatever the other sizes and however many threads there are, and every other
//! cut only decides who computes a value, not how: results are the same bits for any number of threads, and a row of the
//! product does not depend on how many rows there are.

use std::ops::Range;

use rayon::prelude::*;

use super::epilogue::{Epilogue, Operand};
use super::kernel::{Kernel, Tile, LARGEST_TILE};
use super::matrix::MatrixMut;
use super::packed::{pack, packed_len, panel_width, Panels};
use super::scratch::Scratch;

/// Length of a stretch of the sum: a panel of B of this length stays in the first cache.
const K_BLOCK: usize = 256;
/// Rows of A packed at a time: with `K_BLOCK` they fill part of the second cache.
const ROW_BLOCK: usize = 128;
/// Columns of B packed at a time by one task.
const COLUMN_BLOCK: usize = 192;
/// Values of a factor packed ahead at a time (16 MiB); longer sums are computed in several rounds.
const SHARED_LIMIT: usize = 1 << 22;
/// Multiplications below which another thread costs more than it saves.
const PARALLEL_FROM: usize = 1 << 19;
/// Tasks worth having: enough for the threads to even out.
const TASKS: usize = 16;

/// A factor, as a task finds it.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// Packed ahead, beginning at the given position of the sum.
    Shared(Panels<'a>, usize),
    /// To be packed by the task.
    Own(Operand<'a>),
}

/// The right factor of [`multiply`].
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    /// A matrix `(k, columns)`.
    Matrix(Operand<'a>),
    /// Panels of the kernel's width.
    Packed(Panels<'a>),
}

/// Who computes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread alone: for products that are themselves tasks.
    Calling,
    /// All threads of the current rayon pool, when the product is large enough.
    All,
}

/// One product, the same for all its tasks.
struct Product<'a> {
    kernel: &'static Kernel,
    /// Stretch of the sum of this round.
    k: Range<usize>,
    columns: usize,
    c: Target,
    row_stride: usize,
    accumulate: bool,
    epilogue: Epilogue<'a>,
}

/// First value of the matrix written to.
#[derive(Clone, Copy)]
struct Target(*mut f32);

// SAFETY: the tasks of a product write disjoint blocks, and the matrix is borrowed mutably until all have ended.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

/// `c (+)= left · right`, then the epilogue. Sizes have been checked.
pub(super) fn multiply(
    kernel: &'static Kernel,
    left: Operand<'_>,
    right: Right<'_>,
    mut c: MatrixMut<'_>,
    accumulate: bool,
    epilogue: Epilogue<'_>,
    threads: Threads,
) {
    let (rows, columns, k) = (c.rows(), c.columns(), left.matrix.columns());
    if rows == 0 || columns == 0 {
        return;
    }
    if k == 0 {
        for row in 0..rows {
            let values = c.row_mut(row);
            if !accumulate {
                values.fill(0.0);
            }
            epilogue.apply(values, row, 0, columns);
        }
        return;
    }
    let parallel =
        matches!(threads, Threads::All) && rows * columns * k >= PARALLEL_FROM && rayon::current_num_threads() > 1;
    // The larger factor is packed by the tasks, each its part; the smaller one is packed ahead and read by all.
    let share_left = matches!(right, Right::Matrix(_)) && rows <= columns;
    let shared_rows = if share_left { rows } else { columns };
    let round = match right {
        Right::Packed(_) => k,
        Right::Matrix(_) => (SHARED_LIMIT / shared_rows / K_BLOCK).max(1) * K_BLOCK,
    };
    let mut shared = match right {
        Right::Packed(_) => Scratch::take(0),
        Right::Matrix(_) => {
            let width = if share_left { kernel.mr } else { kernel.nr };
            Scratch::take(packed_len(shared_rows, width, round.min(k)))
        }
    };
    for start in (0..k).step_by(round) {
        let end = k.min(start + round);
        let product = Product {
            kernel,
            k: start..end,
            columns,
            c: Target(c.as_mut_ptr()),
            row_stride: c.row_stride(),
            accumulate: accumulate || start > 0,
            epilogue: if end == k { epilogue } else { Epilogue::None },
        };
        match right {
            Right::Packed(panels) => {
                product.by_rows(rows, left, Source::Shared(panels, 0), parallel);
            }
            Right::Matrix(right) if share_left => {
                let widths = (kernel.mr, kernel.mr);
                pack(
                    shared.values_mut(),
                    &left,
                    0..rows,
                    start..end,
                    widths,
                    kernel,
                    parallel,
                );
                let panels = Panels::new(shared.values(), kernel.mr, end - start);
                product.by_columns(rows, Source::Shared(panels, start), right, parallel);
            }
            Right::Matrix(right) => {
                let widths = (kernel.nr, kernel.lanes);
                let right = right.transposed();
                pack(
                    shared.values_mut(),
                    &right,
                    0..columns,
                    start..end,
                    widths,
                    kernel,
                    parallel,
                );
                let panels = Panels::new(shared.values(), kernel.nr, end - start);
                product.by_rows(rows, left, Source::Shared(panels, start), parallel);
            }
        }
    }
}

impl Product<'_> {
    /// Tasks are blocks of rows, of all columns unless that makes too few of them.
    fn by_rows(&self, rows: usize, left: Operand<'_>, right: Source<'_>, parallel: bool) {
        let kernel = self.kernel;
        if !parallel {
            self.block(0..rows, 0..self.columns, Source::Own(left), right);
            return;
        }
        let step = rows.div_ceil(TASKS).next_multiple_of(kernel.mr).min(ROW_BLOCK);
        let row_tasks = rows.div_ceil(step);
        let column_tasks = (TASKS / 2).div_ceil(row_tasks);
        let width = self.columns.div_ceil(column_tasks).next_multiple_of(kernel.nr);
        let column_tasks = self.columns.div_ceil(width);
        (0..row_tasks * column_tasks).into_par_iter().for_each(|task| {
            let rows = part(task / column_tasks, step, rows);
            let columns = part(task % column_tasks, width, self.columns);
            self.block(rows, columns, Source::Own(left), right);
        });
    }

    /// Tasks are blocks of columns, of all rows.
    fn by_columns(&self, rows: usize, left: Source<'_>, right: Operand<'_>, parallel: bool) {
        if !parallel {
            self.block(0..rows, 0..self.columns, left, Source::Own(right));
            return;
        }
        let most = COLUMN_BLOCK.next_multiple_of(self.kernel.nr);
        let width = self.columns.div_ceil(TASKS).next_multiple_of(self.kernel.nr).min(most);
        (0..self.columns.div_ceil(width)).into_par_iter().for_each(|task| {
            self.block(0..rows, part(task, width, self.columns), left, Source::Own(right));
        });
    }

    /// Computes one block, stretch of the sum by stretch.
    fn block(&self, rows: Range<usize>, columns: Range<usize>, left: Source<'_>, right: Source<'_>) {
        let kernel = self.kernel;
        let longest = self.k.len().min(K_BLOCK);
        let row_step = ROW_BLOCK.next_multiple_of(kernel.mr);
        let column_step = COLUMN_BLOCK.next_multiple_of(kernel.nr);
        let mut own_left = match left {
            Source::Own(_) => Scratch::take(packed_len(rows.len().min(row_step), kernel.mr, longest)),
            Source::Shared(..) => Scratch::take(0),
        };
        let mut own_right = match right {
            Source::Own(_) => Scratch::take(packed_len(columns.len().min(column_step), kernel.nr, longest)),
            Source::Shared(..) => Scratch::take(0),
        };
        let column_step = match right {
            Source::Own(_) => column_step,
            Source::Shared(..) => columns.len(),
        };
        for start in self.k.clone().step_by(K_BLOCK) {
            let k = start..self.k.end.min(start + K_BLOCK);
            for first_column in columns.clone().step_by(column_step) {
                let columns = first_column..columns.end.min(first_column + column_step);
                if let Source::Own(right) = right {
                    let widths = (kernel.nr, kernel.lanes);
                    let right = right.transposed();
                    let target = own_right.values_mut();
                    pack(target, &right, columns.clone(), k.clone(), widths, kernel, false);
                }
                let b = Side::new(right, own_right.values(), kernel.nr, k.clone(), columns.start);
                for first_row in rows.clone().step_by(row_step) {
                    let rows = first_row..rows.end.min(first_row + row_step);
                    if let Source::Own(left) = left {
                        let widths = (kernel.mr, kernel.mr);
                        let target = own_left.values_mut();
                        pack(target, &left, rows.clone(), k.clone(), widths, kernel, false);
                    }
                    let a = Side::new(left, own_left.values(), kernel.mr, k.clone(), rows.start);
                    self.tiles(rows.clone(), columns.clone(), &k, a, b);
                    if k.end == self.k.end {
                        self.finish(rows, columns.clone());
                    }
                }
            }
        }
    }

    /// All tiles of a block over one stretch of the sum.
    fn tiles(&self, rows: Range<usize>, columns: Range<usize>, k: &Range<usize>, a: Side<'_>, b: Side<'_>) {
        let Kernel { mr, nr, lanes, .. } = *self.kernel;
        let accumulate = self.accumulate || k.start > self.k.start;
        for column in columns.clone().step_by(nr) {
            // Panels packed ahead are cut for the whole matrix, and tasks begin at panels: both give the same width.
            let width = panel_width(column, columns.end, nr, lanes);
            let count = width.min(columns.end - column);
            let b = b.panel(column, nr, width);
            for row in rows.clone().step_by(mr) {
                let count_rows = mr.min(rows.end - row);
                let a = a.panel(row, mr, mr);
                debug_assert!(a.len() >= k.len() * mr && b.len() >= k.len() * width);
                // SAFETY: `row` and `column` lie within the product, whose size was checked against `c`.
                let c = unsafe { self.c.0.add(row * self.row_stride + column) };
                let tile = Tile {
                    rows: count_rows,
                    vectors: width / lanes,
                    k: k.len(),
                    a: a.as_ptr(),
                    b: b.as_ptr(),
                    c,
                    row_stride: self.row_stride,
                    accumulate,
                };
                // SAFETY: kernels are only handed out on CPUs that have their instruction set; the panels were packed
                // `mr` and `width` wide for `k`; whole tiles lie within this task's block of `c`.
                unsafe {
                    if count == width {
                        (self.kernel.tile)(tile);
                    } else {
                        self.incomplete(tile, width, count);
                    }
                }
            }
        }
    }

    /// Computes a tile of `width` columns aside and copies the first `count` of them.
    ///
    /// # Safety
    /// As [`Kernel::tile`], but only `count` columns of `c` belong to the product.
    unsafe fn incomplete(&self, tile: Tile, width: usize, count: usize) {
        let mut aside = [0.0f32; LARGEST_TILE];
        let c = aside.as_mut_ptr();
        // SAFETY: no tile is larger than `LARGEST_TILE`; the rest is the caller's promise.
        unsafe {
            (self.kernel.tile)(Tile {
                c,
                row_stride: width,
                accumulate: false,
                ..tile
            })
        };
        for row in 0..tile.rows {
            // SAFETY: these `count` values are the tile's part of the product, which this task alone writes.
            let target = unsafe { std::slice::from_raw_parts_mut(tile.c.add(row * tile.row_stride), count) };
            for (target, &value) in target.iter_mut().zip(&aside[row * width..]) {
                *target = if tile.accumulate { *target + value } else { value };
            }
        }
    }

    /// Applies the epilogue to a block.
    fn finish(&self, rows: Range<usize>, columns: Range<usize>) {
        if matches!(self.epilogue, Epilogue::None) {
            return;
        }
        for row in rows {
            let start = row * self.row_stride + columns.start;
            // SAFETY: the row's part of this task's block, which this task alone touches.
            let values = unsafe { std::slice::from_raw_parts_mut(self.c.0.add(start), columns.len()) };
            self.epilogue.apply(values, row, columns.start, self.columns);
        }
    }
}

/// Packed panels of one side of a block.
#[derive(Clone, Copy)]
struct Side<'a> {
    panels: Panels<'a>,
    /// Group of `k` at which the stretch begins.
    k: usize,
    /// Row (or column) of the first panel.
    first: usize,
}

impl<'a> Side<'a> {
    fn new(source: Source<'a>, own: &'a [f32], width: usize, k: Range<usize>, first: usize) -> Self {
        match source {
            Source::Shared(panels, start) => Self {
                panels,
                k: k.start - start,
                first: 0,
            },
            Source::Own(_) => Self {
                panels: Panels::new(own, width, k.len()),
                k: 0,
                first,
            },
        }
    }

    fn panel(&self, position: usize, width: usize, own_width: usize) -> &'a [f32] {
        self.panels.panel((position - self.first) / width, self.k, own_width)
    }
}

/// The `index`-th stretch of `step` out of `total`.
fn part(index: usize, step: usize, total: usize) -> Range<usize> {
    index * step..total.min((index + 1) * step)
}
