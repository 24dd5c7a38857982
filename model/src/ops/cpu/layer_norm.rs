//! LayerNorm of rows, each multiplied by a factor and moved by an offset that a group of rows shares: one group per sample
//! for modulation, a single group for an affine norm.

use std::mem::MaybeUninit;

use super::parallel::{for_each_chunk, map_items, rows_per_task, written, ROWS_PER_SUM};
use super::rows::{add_row, sum_by};
use super::simd::{for_each_level, multiply_add};

/// `y = (x - mean)/√(variance + ε)·factor + offset`.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// Values of a row.
    pub columns: usize,
    /// Consecutive rows with the same factor and offset.
    pub rows_per_group: usize,
    /// One row for each group, (groups, columns).
    pub factor: &'a [f32],
    /// One row for each group, (groups, columns).
    pub offset: &'a [f32],
    /// Added to the variance.
    pub epsilon: f32,
}

/// Gradients of factor and offset, (groups, columns) each.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNormGradients {
    /// `Σ dy·x̂` over the rows of a group.
    pub factor: Vec<f32>,
    /// `Σ dy` over the rows of a group.
    pub offset: Vec<f32>,
}

/// Mean and `1/√(variance + ε)` of a row.
#[inline(always)]
fn statistics(x: &[f32], epsilon: f32) -> (f32, f32) {
    let mean = sum_by([x], |[x]| x) / x.len() as f32;
    let variance = sum_by([x], |[x]| (x - mean) * (x - mean)) / x.len() as f32;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

for_each_level! {
    /// One row of the forward pass.
    pub(super) fn forward_row(x: &[f32], factor: &[f32], offset: &[f32], epsilon: f32, y: &mut [MaybeUninit<f32>]) {
        let (mean, inverse) = statistics(x, epsilon);
        let (factor, offset, y) = (&factor[..x.len()], &offset[..x.len()], &mut y[..x.len()]);
        for i in 0..x.len() {
            y[i].write(multiply_add::<FUSED>((x[i] - mean) * inverse, factor[i], offset[i]));
        }
    }

    /// One row of the backward pass: adds to `dx` and to the sums over rows.
    pub(super) fn backward_row(
        x: &[f32],
        dy: &[f32],
        factor: &[f32],
        epsilon: f32,
        dx: &mut [f32],
        dfactor: &mut [f32],
        doffset: &mut [f32],
    ) {
        let n = x.len();
        let (dy, factor, dx) = (&dy[..n], &factor[..n], &mut dx[..n]);
        let (dfactor, doffset) = (&mut dfactor[..n], &mut doffset[..n]);
        let (mean, inverse) = statistics(x, epsilon);
        let mean_gradient = sum_by([dy, factor], |[dy, factor]| dy * factor) / n as f32;
        let product = |[x, dy, factor]: [f32; 3]| dy * factor * ((x - mean) * inverse);
        let mean_product = sum_by([x, dy, factor], product) / n as f32;
        for i in 0..n {
            let normalized = (x[i] - mean) * inverse;
            dfactor[i] = multiply_add::<FUSED>(dy[i], normalized, dfactor[i]);
            doffset[i] += dy[i];
            let centred = dy[i] * factor[i] - mean_gradient - normalized * mean_product;
            dx[i] = multiply_add::<FUSED>(inverse, centred, dx[i]);
        }
    }
}

impl LayerNorm<'_> {
    fn group(&self, row: usize) -> std::ops::Range<usize> {
        let group = row / self.rows_per_group;
        group * self.columns..(group + 1) * self.columns
    }

    fn check(&self, len: usize) -> usize {
        let rows = len / self.columns.max(1);
        let groups = rows.div_ceil(self.rows_per_group.max(1));
        assert!(
            rows * self.columns == len && self.factor.len() >= groups * self.columns,
            "{len} values are not rows of {} with a factor for each group of {}",
            self.columns,
            self.rows_per_group
        );
        assert_eq!(self.factor.len(), self.offset.len(), "factor and offset have one size");
        rows
    }

    /// x (rows, columns) → y (rows, columns).
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        self.check(x.len());
        let columns = self.columns;
        let rows = rows_per_task(columns);
        let write = |y: &mut [_]| {
            for_each_chunk(y, rows * columns, |task, y| {
                for (index, y) in y.chunks_mut(columns).enumerate() {
                    let row = task * rows + index;
                    let group = self.group(row);
                    let (factor, offset) = (&self.factor[group.clone()], &self.offset[group]);
                    forward_row(&x[row * columns..][..columns], factor, offset, self.epsilon, y);
                }
            });
        };
        // SAFETY: the chunks are all of `y`, their rows all of a chunk, and `forward_row` writes a whole row.
        unsafe { written(x.len(), write) }
    }

    /// Adds the gradient of the input to `dx` and returns those of factor and offset.
    pub fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32]) -> LayerNormGradients {
        let rows = self.check(x.len());
        assert!(
            dy.len() == x.len() && dx.len() == x.len(),
            "gradients have their tensors' size"
        );
        let columns = self.columns;
        let groups = self.factor.len() / columns.max(1);
        let mut gradients = LayerNormGradients {
            factor: vec![0.0; groups * columns],
            offset: vec![0.0; groups * columns],
        };
        if rows == 0 {
            return gradients;
        }
        // A task's rows all belong to one group.
        let mut pieces = Vec::new();
        for (group, dx) in dx.chunks_mut(self.rows_per_group * columns).enumerate() {
            for (piece, dx) in dx.chunks_mut(ROWS_PER_SUM * columns).enumerate() {
                pieces.push((group * self.rows_per_group + piece * ROWS_PER_SUM, dx));
            }
        }
        for (row, dfactor, doffset) in map_items(pieces, |(row, dx)| self.backward_rows(row, x, dy, dx)) {
            let group = self.group(row);
            add_row(&mut gradients.factor[group.clone()], &dfactor);
            add_row(&mut gradients.offset[group], &doffset);
        }
        gradients
    }

    /// The rows of one group from `row` on, and their contribution to the group's sums.
    fn backward_rows(&self, row: usize, x: &[f32], dy: &[f32], dx: &mut [f32]) -> (usize, Vec<f32>, Vec<f32>) {
        let columns = self.columns;
        let (mut dfactor, mut doffset) = (vec![0.0; columns], vec![0.0; columns]);
        let factor = &self.factor[self.group(row)];
        for (index, dx) in dx.chunks_exact_mut(columns).enumerate() {
            let values = (row + index) * columns..(row + index + 1) * columns;
            let (x, dy) = (&x[values.clone()], &dy[values]);
            backward_row(x, dy, factor, self.epsilon, dx, &mut dfactor, &mut doffset);
        }
        (row, dfactor, doffset)
    }
}
