//! Matrices side by side.

use super::parallel::{for_each_chunk, rows_per_task, written};
use super::rows::{add_row, write_copy};

/// a (rows, left) and b (rows, right) → (rows, left + right).
pub fn concat(a: &[f32], left: usize, b: &[f32], right: usize) -> Vec<f32> {
    let width = left + right;
    let rows = rows_per_task(width);
    let write = |out: &mut [_]| {
        for_each_chunk(out, rows * width, |task, out| {
            for (index, out) in out.chunks_mut(width).enumerate() {
                let row = task * rows + index;
                let (out_left, out_right) = out.split_at_mut(left);
                write_copy(out_left, &a[row * left..]);
                write_copy(out_right, &b[row * right..]);
            }
        });
    };
    // SAFETY: the chunks are all of the result, their rows all of a chunk, and both parts of a row are written.
    unsafe { written(a.len() + b.len(), write) }
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
