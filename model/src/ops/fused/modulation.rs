//! Chunks of columns of a modulation matrix, gathered (they are as small as the batch).

use dfdx::prelude::{Cpu, HasShape};

use super::access::Values;
use crate::ops::Matrix;

/// Columns `index·width ..` of every row, (rows, width).
pub(super) fn chunk(modulation: &Matrix<f32, Cpu>, index: usize, width: usize) -> Vec<f32> {
    let columns = modulation.shape().1;
    let rows = modulation.values().chunks_exact(columns.max(1));
    rows.flat_map(|row| row[index * width..(index + 1) * width].iter().copied())
        .collect()
}

/// Adds (rows, width) to the columns `index·width ..` of the modulation's gradient.
pub(super) fn accumulate_chunk(
    dmodulation: &mut [f32],
    modulation: &Matrix<f32, Cpu>,
    index: usize,
    gradient: &[f32],
    width: usize,
) {
    let columns = modulation.shape().1;
    let rows = dmodulation.chunks_exact_mut(columns.max(1));
    for (row, gradient) in rows.zip(gradient.chunks_exact(width.max(1))) {
        for (target, gradient) in row[index * width..].iter_mut().zip(gradient) {
            *target += gradient;
        }
    }
}
