//! Loops over single rows that several operators share.

use std::mem::MaybeUninit;

use super::parallel::{for_each_chunk, map_tasks, written, ELEMENTS_PER_TASK, ROWS_PER_SUM};
use super::simd::{for_each_level, multiply_add};

/// Independent partial sums of one row, so that the sum is the same for every instruction set's width.
const LANES: usize = 16;

#[inline(always)]
fn total(lanes: [f32; LANES]) -> f32 {
    let mut sums = lanes;
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}

/// `Σ term(values)` over the columns of `rows`, in [`LANES`] interleaved partial sums.
#[inline(always)]
pub(crate) fn sum_by<const N: usize>(rows: [&[f32]; N], term: impl Fn([f32; N]) -> f32) -> f32 {
    let len = rows[0].len();
    // Arrays of a constant length: a check of every single index would keep the loop from becoming vectors.
    let parts = rows.map(|row| row[..len].as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for chunk in 0..len / LANES {
        let values = parts.map(|(chunks, _)| &chunks[chunk]);
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(values.map(|values| values[lane]));
        }
    }
    for (lane, sum) in lanes.iter_mut().take(len % LANES).enumerate() {
        *sum += term(parts.map(|(_, rest)| rest[lane]));
    }
    total(lanes)
}

for_each_level! {
    /// `target += source`.
    pub(crate) fn add_row(target: &mut [f32], source: &[f32]) {
        for (target, &source) in target.iter_mut().zip(source) {
            *target += source;
        }
    }

    /// `target += left · right`.
    pub(crate) fn add_product_row(target: &mut [f32], left: &[f32], right: &[f32]) {
        for ((target, &left), &right) in target.iter_mut().zip(left).zip(right) {
            *target = multiply_add::<FUSED>(left, right, *target);
        }
    }

    /// `target *= factor`.
    pub(crate) fn multiply_row(target: &mut [f32], factor: &[f32]) {
        for (target, &factor) in target.iter_mut().zip(factor) {
            *target *= factor;
        }
    }

    /// `target = x + left · right`.
    pub(crate) fn write_sum_of_product(target: &mut [MaybeUninit<f32>], x: &[f32], left: &[f32], right: &[f32]) {
        let x = &x[..target.len()];
        let (left, right) = (&left[..target.len()], &right[..target.len()]);
        for (index, target) in target.iter_mut().enumerate() {
            target.write(multiply_add::<FUSED>(left[index], right[index], x[index]));
        }
    }

    /// `target = left + right`.
    pub(crate) fn write_sum(target: &mut [MaybeUninit<f32>], left: &[f32], right: &[f32]) {
        let (left, right) = (&left[..target.len()], &right[..target.len()]);
        for (index, target) in target.iter_mut().enumerate() {
            target.write(left[index] + right[index]);
        }
    }

    /// `target = source`.
    pub(crate) fn write_copy(target: &mut [MaybeUninit<f32>], source: &[f32]) {
        let source = &source[..target.len()];
        for (index, target) in target.iter_mut().enumerate() {
            target.write(source[index]);
        }
    }

    /// `values *= factor`.
    pub(crate) fn scale_row(values: &mut [f32], factor: f32) {
        for value in values {
            *value *= factor;
        }
    }

    /// `Σ left · right`.
    pub(crate) fn dot(left: &[f32], right: &[f32]) -> f32 {
        sum_by([left, right], |[left, right]| left * right)
    }
}

/// `target += source`, in parallel.
pub fn accumulate(target: &mut [f32], source: &[f32]) {
    assert_eq!(target.len(), source.len(), "a gradient has its tensor's size");
    for_each_chunk(target, ELEMENTS_PER_TASK, |index, target| {
        add_row(target, &source[index * ELEMENTS_PER_TASK..]);
    });
}

/// `left + right`.
pub fn add(left: &[f32], right: &[f32]) -> Vec<f32> {
    assert_eq!(left.len(), right.len(), "terms of a sum have one size");
    let write = |sum: &mut [_]| {
        for_each_chunk(sum, ELEMENTS_PER_TASK, |index, sum| {
            let start = index * ELEMENTS_PER_TASK;
            write_sum(sum, &left[start..], &right[start..]);
        });
    };
    // SAFETY: the chunks are all of the sum, and `write_sum` writes all of a chunk.
    unsafe { written(left.len(), write) }
}

/// `sums[column] += Σ_row matrix[row, column]`: the gradient of a bias.
pub fn accumulate_column_sums(matrix: &[f32], sums: &mut [f32]) {
    let columns = sums.len();
    if columns == 0 {
        return;
    }
    let rows = matrix.len() / columns;
    let parts = map_tasks(rows.div_ceil(ROWS_PER_SUM), |task| {
        let rows = task * ROWS_PER_SUM..rows.min((task + 1) * ROWS_PER_SUM);
        let mut part = vec![0.0; columns];
        for row in matrix[rows.start * columns..rows.end * columns].chunks_exact(columns) {
            add_row(&mut part, row);
        }
        part
    });
    for part in parts {
        add_row(sums, &part);
    }
}

/// `values + repeated`, the second one again and again: values (samples·n), repeated (n).
pub fn add_repeated(values: &[f32], repeated: &[f32]) -> Vec<f32> {
    let write = |sum: &mut [_]| {
        for_each_chunk(sum, repeated.len(), |sample, sum| {
            write_sum(sum, &values[sample * repeated.len()..], repeated);
        });
    };
    // SAFETY: the chunks are all of the sum, and `write_sum` writes all of a chunk.
    unsafe { written(values.len(), write) }
}
