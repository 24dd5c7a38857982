//! The matrix product under every convolution: `C = A·B`, all three in blocks of sixteen columns.
//!
//! A matrix is a list of column blocks, a block is rows of sixteen values. That is the layout of a feature map (rows are
//! pixels), so neither side is repacked: sixteen columns of `A` are sixteen steps of the sum, a value of `A` is broadcast
//! from memory, and the distance between its rows is a constant of the instruction. Where the blocks of `A` lie is a
//! list, so the taps of a kernel are just more blocks.

use super::aligned::LANES;
use super::lanes::Lanes;

/// One product. Rows of `a` and `c` are sixteen values apart.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    /// Row 0 of the left side.
    pub(super) a: *const f32,
    /// Where each block of the left side begins, relative to `a`.
    pub(super) offsets: &'a [usize],
    /// The right side: for every column block all steps of the sum, sixteen values each.
    pub(super) b: *const f32,
    /// Values between two column blocks of the right side.
    pub(super) b_stride: usize,
    /// Row 0 of the result.
    pub(super) c: *mut f32,
    /// Values between two column blocks of the result.
    pub(super) c_stride: usize,
    /// Rows of the result.
    pub(super) rows: usize,
    /// Column blocks of the result.
    pub(super) column_blocks: usize,
    /// Sixteen values a column block that every row begins with; null for zero.
    pub(super) bias: *const f32,
    /// Add to what `c` holds instead of overwriting it.
    pub(super) accumulate: bool,
    /// Replace negative results by zero.
    pub(super) relu: bool,
}

/// Computes the product tile by tile.
///
/// # Safety
/// The pointers must be valid for the rows, blocks and strides given, `c` for writing and by this call alone.
#[inline(always)]
pub(super) unsafe fn multiply_tiles<L: Lanes>(product: &Product<'_>) {
    let panels = product.rows.div_ceil(L::TILE_ROWS).max(1);
    let mut column = 0;
    while column < product.column_blocks {
        let columns = L::TILE_COLUMNS.min(product.column_blocks - column);
        let mut row = 0;
        for panel in 0..panels {
            // Rows are dealt out evenly, so that no panel is left with a few.
            let rows = product.rows / panels + usize::from(panel < product.rows % panels);
            // SAFETY: the tile lies within the product.
            unsafe {
                if columns == 2 {
                    tile_of::<L, 2>(product, row, rows, column);
                } else {
                    tile_of::<L, 1>(product, row, rows, column);
                }
            }
            row += rows;
        }
        column += columns;
    }
}

/// Chooses the tile with this number of rows.
#[inline(always)]
unsafe fn tile_of<L: Lanes, const COLUMNS: usize>(product: &Product<'_>, row: usize, rows: usize, column: usize) {
    macro_rules! with_rows {
        ($($count:literal)*) => {
            match rows {
                // SAFETY: the caller's promise.
                $($count if $count <= L::TILE_ROWS => unsafe { tile::<L, $count, COLUMNS>(product, row, column) },)*
                _ => {}
            }
        };
    }
    if COLUMNS <= L::TILE_COLUMNS {
        with_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    }
}

#[inline(always)]
unsafe fn tile<L: Lanes, const ROWS: usize, const COLUMNS: usize>(product: &Product<'_>, first: usize, column: usize) {
    // SAFETY: the caller promises that rows and columns lie within the product.
    unsafe {
        let mut sums = [[L::splat(0.0); COLUMNS]; ROWS];
        let a = product.a.add(first * LANES);
        let mut b = product.b.add(column * product.b_stride);
        for (index, &offset) in product.offsets.iter().enumerate() {
            // The processor's own prefetching follows neither a jump to the next block nor one to the next page; without a
            // hint every block would begin with a wait for the third-level cache.
            let next = a.wrapping_add(product.offsets[(index + 1).min(product.offsets.len() - 1)]);
            let a = a.add(offset);
            for step in 0..LANES {
                if step < ROWS {
                    L::prefetch(next.wrapping_add(step * LANES));
                }
                for block in 0..COLUMNS {
                    L::prefetch(b.wrapping_add(block * product.b_stride + (LANES + step) * LANES));
                }
                let mut right = [L::splat(0.0); COLUMNS];
                for (block, right) in right.iter_mut().enumerate() {
                    *right = L::load(b.add(block * product.b_stride + step * LANES));
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let left = L::splat(*a.add(row * LANES + step));
                    for (sum, &right) in sums.iter_mut().zip(&right) {
                        *sum = left.multiply_add(right, *sum);
                    }
                }
            }
            b = b.add(LANES * LANES);
        }
        let mut bias = [L::splat(0.0); COLUMNS];
        if !product.bias.is_null() {
            for (block, bias) in bias.iter_mut().enumerate() {
                *bias = L::load(product.bias.add((column + block) * LANES));
            }
        }
        // Row by row, as they were summed: indexed in any other order the sums would live in memory, not in registers.
        for (row, sums) in sums.into_iter().enumerate() {
            for (block, sum) in sums.into_iter().enumerate() {
                let c = product
                    .c
                    .add((column + block) * product.c_stride + (first + row) * LANES);
                let mut sum = sum.add(bias[block]);
                if product.accumulate {
                    sum = sum.add(L::load(c));
                }
                if product.relu {
                    sum = sum.max(L::splat(0.0));
                }
                sum.store(c);
            }
        }
    }
}
