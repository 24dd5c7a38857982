//! Cutting a product into blocks that fit the caches, and the blocks into tasks.
//!
//! The sum over `k` is cut at the same places whatever the other sizes and however many threads there are, and every other
//! cut only decides who computes a value, not how: results are the same bits for any number of threads, and a row of the
//! product does not depend on how many rows there are.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::epilogue::{Epilogue, Operand};
use super::kernel::{Kernel, Tile, LARGEST_TILE};
use super::matrix::{MatrixMut, MatrixRef};
use super::packed::{pack, packed_len, panel_width, Panels};
use super::scratch::Scratch;
use crate::ops::cpu::activation::Activation;

/// Length of a stretch of the sum: a panel of B of this length stays in the first cache.
const K_BLOCK: usize = 256;
/// Rows of A packed at a time: with `K_BLOCK` they fill part of the second cache.
const ROW_BLOCK: usize = 128;
/// Columns of B packed at a time by one task.
const COLUMN_BLOCK: usize = 192;
/// Values of a factor packed ahead at a time (4 MiB); longer sums are computed in several rounds.
const SHARED_LIMIT: usize = 1 << 20;
/// Multiplications below which another thread costs more than it saves.
const PARALLEL_FROM: usize = 1 << 19;
/// Tasks worth having: enough for the threads to even out.
const TASKS: usize = 16;
/// Values of a factor that the second cache holds (1 MiB): reading it where it lies costs less than packing it.
const IN_PLACE_LIMIT: usize = 1 << 18;
/// Distance of a factor's rows from which each of them lies on a memory page of its own.
const PAGE: usize = 1 << 10;
/// Columns of a product below which packing the left factor costs more than it saves: it is read once for every tile.
const IN_PLACE_COLUMNS: usize = 512;
/// Values of a factor below which packing it is not worth a second thread.
const PACK_PARALLEL_FROM: usize = 1 << 15;

/// A factor, as a task finds it.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// Packed ahead, beginning at the given position of the sum.
    Shared(Panels<'a>, usize),
    /// To be packed by the task.
    Own(Operand<'a>),
    /// Read where it lies.
    InPlace(MatrixRef<'a>),
}

/// The factor that is packed ahead, as a whole, and read by all tasks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ahead {
    Nothing,
    Left,
    Right,
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
            if !accumulate {
                c.unwritten_row(row).fill(MaybeUninit::new(0.0));
            }
            epilogue.apply(c.row_mut(row), row, 0, columns);
        }
        return;
    }
    let parallel =
        matches!(threads, Threads::All) && rows * columns * k >= PARALLEL_FROM && rayon::current_num_threads() > 1;
    let (left_source, ahead) = plan(kernel, &left, &right, columns);
    let (shared_rows, width) = match ahead {
        Ahead::Nothing => (0, 0),
        Ahead::Left => (rows, kernel.mr),
        Ahead::Right => (columns, kernel.nr),
    };
    let round = match ahead {
        Ahead::Nothing => k,
        Ahead::Left | Ahead::Right => (SHARED_LIMIT / shared_rows / K_BLOCK).max(1) * K_BLOCK,
    };
    let mut shared = Scratch::take(match ahead {
        Ahead::Nothing => 0,
        Ahead::Left | Ahead::Right => packed_len(shared_rows, width, round.min(k)),
    });
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
        let mut pack_ahead = |factor: Operand<'_>, lanes| {
            let parallel = parallel && shared_rows * (end - start) >= PACK_PARALLEL_FROM;
            let (values, widths) = (shared.values_mut(), (width, lanes));
            pack(values, &factor, 0..shared_rows, start..end, widths, kernel, parallel);
        };
        match (right, ahead) {
            (Right::Packed(panels), _) => {
                product.by_rows(rows, left_source, Source::Shared(panels, 0), parallel);
            }
            (Right::Matrix(right), Ahead::Left) => {
                pack_ahead(left, kernel.mr);
                let panels = Panels::new(shared.values(), kernel.mr, end - start);
                product.by_columns(rows, Source::Shared(panels, start), right, parallel);
            }
            (Right::Matrix(right), Ahead::Right) => {
                pack_ahead(right.transposed(), kernel.lanes);
                let panels = Panels::new(shared.values(), kernel.nr, end - start);
                product.by_rows(rows, left_source, Source::Shared(panels, start), parallel);
            }
            (Right::Matrix(right), Ahead::Nothing) if right_stays(kernel, &right) => {
                let right = Source::InPlace(right.matrix.transposed());
                product.by_rows(rows, left_source, right, parallel);
            }
            (Right::Matrix(right), Ahead::Nothing) => product.by_columns(rows, left_source, right, parallel),
        }
    }
}

/// How tasks find the left factor, unless it is the one packed ahead, and which factor is.
fn plan<'a>(kernel: &Kernel, left: &Operand<'a>, right: &Right<'_>, columns: usize) -> (Source<'a>, Ahead) {
    let matrix = left.matrix;
    let size = matrix.rows() * matrix.columns();
    let (row_stride, column_stride) = matrix.strides();
    let is_small = size <= IN_PLACE_LIMIT && (column_stride == 1 || column_stride < PAGE);
    let is_read_seldom = column_stride == 1 && columns <= IN_PLACE_COLUMNS && row_stride % PAGE != 0;
    let stays = left.activation == Activation::Identity && (is_small || is_read_seldom);
    let source = if stays {
        Source::InPlace(matrix)
    } else {
        Source::Own(*left)
    };
    let ahead = match right {
        Right::Packed(_) => Ahead::Nothing,
        Right::Matrix(right) if right_stays(kernel, right) => Ahead::Nothing,
        // Tasks that are blocks of columns pack their part of the right factor themselves, if there are enough of them.
        Right::Matrix(_) if stays && is_small && columns >= TASKS / 2 * kernel.nr => Ahead::Nothing,
        Right::Matrix(_) if stays => Ahead::Right,
        // The larger factor is packed by the tasks, each its part; the smaller one is packed ahead.
        Right::Matrix(_) if matrix.rows() <= columns => Ahead::Left,
        Right::Matrix(_) => Ahead::Right,
    };
    (source, ahead)
}

/// Whether the right factor is read where it lies: whole vectors of its columns lie side by side.
fn right_stays(kernel: &Kernel, right: &Operand<'_>) -> bool {
    let (rows, columns) = (right.matrix.rows(), right.matrix.columns());
    let (row_stride, column_stride) = right.matrix.strides();
    right.activation == Activation::Identity
        && column_stride == 1
        && columns.is_multiple_of(kernel.lanes)
        && rows * columns <= IN_PLACE_LIMIT
        && row_stride < PAGE
}

impl Product<'_> {
    /// Tasks are blocks of rows, of all columns unless that makes too few of them.
    fn by_rows(&self, rows: usize, left: Source<'_>, right: Source<'_>, parallel: bool) {
        let kernel = self.kernel;
        if !parallel {
            self.block(0..rows, 0..self.columns, left, right);
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
            self.block(rows, columns, left, right);
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
            Source::Shared(..) | Source::InPlace(_) => Scratch::take(0),
        };
        let mut own_right = match right {
            Source::Own(_) => Scratch::take(packed_len(columns.len().min(column_step), kernel.nr, longest)),
            Source::Shared(..) | Source::InPlace(_) => Scratch::take(0),
        };
        let column_step = match right {
            Source::Own(_) => column_step,
            Source::Shared(..) | Source::InPlace(_) => columns.len(),
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
                debug_assert!(a.holds(count_rows, k.len()) && b.holds(width, k.len()));
                // SAFETY: `row` and `column` lie within the product, whose size was checked against `c`.
                let c = unsafe { self.c.0.add(row * self.row_stride + column) };
                let tile = Tile {
                    rows: count_rows,
                    vectors: width / lanes,
                    k: k.len(),
                    a: a.values.as_ptr(),
                    a_strides: a.strides,
                    b: b.values.as_ptr(),
                    b_stride: b.strides.1,
                    c,
                    row_stride: self.row_stride,
                    accumulate,
                };
                // SAFETY: kernels are only handed out on CPUs that have their instruction set; packed panels were packed
                // `mr` and `width` wide for `k`, and what is read in place has the tile's rows, or its columns (whole
                // vectors of them, `right_stays`), for `k`; whole tiles lie within this task's block of `c`.
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
            let target = tile.c.wrapping_add(row * tile.row_stride);
            // SAFETY: these `count` values are the tile's part of the product, which this task alone writes.
            let target = unsafe { std::slice::from_raw_parts_mut(target.cast::<MaybeUninit<f32>>(), count) };
            for (target, &value) in target.iter_mut().zip(&aside[row * width..]) {
                // SAFETY: a product is only added to values that have been written.
                let before = if tile.accumulate {
                    unsafe { target.assume_init() }
                } else {
                    0.0
                };
                target.write(if tile.accumulate { before + value } else { value });
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

/// One side of a block, over one stretch of the sum.
#[derive(Clone, Copy)]
enum Side<'a> {
    Packed {
        panels: Panels<'a>,
        /// Group of `k` at which the stretch begins.
        k: usize,
        /// Row (or column) of the first panel.
        first: usize,
    },
    InPlace {
        matrix: MatrixRef<'a>,
        /// Position of the sum at which the stretch begins.
        k: usize,
    },
}

/// The rows of A (or the columns of B) of one tile.
#[derive(Clone, Copy)]
struct Panel<'a> {
    values: &'a [f32],
    /// Distances of its rows (or columns), and of its values along `k`.
    strides: (usize, usize),
}

impl Panel<'_> {
    fn holds(&self, width: usize, k: usize) -> bool {
        self.values.len() > (width - 1) * self.strides.0 + (k - 1) * self.strides.1
    }
}

impl<'a> Side<'a> {
    fn new(source: Source<'a>, own: &'a [f32], width: usize, k: Range<usize>, first: usize) -> Self {
        match source {
            Source::Shared(panels, start) => Self::Packed {
                panels,
                k: k.start - start,
                first: 0,
            },
            Source::Own(_) => Self::Packed {
                panels: Panels::new(own, width, k.len()),
                k: 0,
                first,
            },
            Source::InPlace(matrix) => Self::InPlace { matrix, k: k.start },
        }
    }

    fn panel(&self, position: usize, width: usize, own_width: usize) -> Panel<'a> {
        match *self {
            Self::Packed { panels, k, first } => Panel {
                values: panels.panel((position - first) / width, k, own_width),
                strides: (1, own_width),
            },
            Self::InPlace { matrix, k } => Panel {
                values: matrix.from(position, k),
                strides: matrix.strides(),
            },
        }
    }
}

/// The `index`-th stretch of `step` out of `total`.
fn part(index: usize, step: usize, total: usize) -> Range<usize> {
    index * step..total.min((index + 1) * step)
}
