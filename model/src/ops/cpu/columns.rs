//! Matrices side by side.

use super::parallel::{for_each_chunk, rows_per_task, unwritten};
use super::rows::add_row;

/// a (rows, left) and b (rows, right) → (rows, left + right).
pub fn concat(a: &[f32], left: usize, b: &[f32], right: usize) -> Vec<f32> {
    let width = left + right;
    let mut out = unwritten(a.len() + b.len());
    let rows = rows_per_task(width);
    for_each_chunk(&mut out, rows * width, |task, out| {
        for (index, out) in out.chunks_exact_mut(width).enumerate() {
            let row = task * rows + index;
            out[..left].copy_from_slice(&a[row * left..][..left]);
            out[left..].copy_from_slice(&b[row * right..][..right]);
        }
    });
    out
}

/// `target += matrix[.., start..start + width]`, target (rows, width), matrix (rows, columns).
pub fn accumulate_part(target: &mut [f32], width: usize, matrix: &[f32], columns: usize, start: usize) {
    let rows = rows_per_task(width);
    for_each_chunk(target, rows * width, |task, target| {
        for (index, target) in target.chunks_exact_mut(width.max(1)).enumerate() {
            add_row(target, &matrix[(task * rows + index) * columns + start..][..width]);
        }
    });
}
