//! The gated residual `x + gate·y`, whose gate a group of rows shares.

use super::parallel::{for_each_chunk, map_items, rows_per_task, written, ROWS_PER_SUM};
use super::rows::{add_product_row, add_row, multiply_row, write_sum_of_product};

/// `x + gate·y`: x and y (rows, columns), gate (groups, columns), one row for `rows / groups` consecutive rows.
pub fn gated_residual(x: &[f32], gate: &[f32], y: &[f32], columns: usize) -> Vec<f32> {
    let rows_per_group = rows_per_group(x, gate, columns);
    let rows = rows_per_task(columns);
    let write = |out: &mut [_]| {
        for_each_chunk(out, rows * columns, |task, out| {
            for (index, out) in out.chunks_mut(columns).enumerate() {
                let row = task * rows + index;
                let gate = &gate[row / rows_per_group * columns..][..columns];
                let values = row * columns..(row + 1) * columns;
                write_sum_of_product(out, &x[values.clone()], gate, &y[values]);
            }
        });
    };
    // SAFETY: the chunks are all of the result, their rows all of a chunk, and every row is written.
    unsafe { written(x.len(), write) }
}

/// Adds `gate·dout` to `dy` and returns the gate's gradient `Σ_rows dout·y`, (groups, columns). The gradient of `x` is
/// `dout` itself.
pub fn gated_residual_backward(dout: &[f32], gate: &[f32], y: &[f32], columns: usize, dy: &mut [f32]) -> Vec<f32> {
    let rows_per_group = rows_per_group(dout, gate, columns);
    let mut pieces = Vec::new();
    for (group, dy) in dy.chunks_mut((rows_per_group * columns).max(1)).enumerate() {
        for (piece, dy) in dy.chunks_mut(ROWS_PER_SUM * columns).enumerate() {
            pieces.push((group, group * rows_per_group + piece * ROWS_PER_SUM, dy));
        }
    }
    let parts = map_items(pieces, |(group, first, dy)| {
        let mut dgate = vec![0.0; columns];
        let gate = &gate[group * columns..][..columns];
        for (index, dy) in dy.chunks_exact_mut(columns).enumerate() {
            let values = (first + index) * columns..(first + index + 1) * columns;
            add_product_row(dy, gate, &dout[values.clone()]);
            add_product_row(&mut dgate, &dout[values.clone()], &y[values]);
        }
        (group, dgate)
    });
    sum_of_groups(parts, gate.len(), columns)
}

/// [`gated_residual_backward`] that turns `dout` into the gradient of `y` where it lies, after adding it to `dx`.
pub fn gated_residual_backward_in_place(
    dout: &mut [f32],
    gate: &[f32],
    y: &[f32],
    columns: usize,
    dx: &mut [f32],
) -> Vec<f32> {
    let rows_per_group = rows_per_group(dout, gate, columns);
    assert_eq!(dx.len(), dout.len(), "a gradient has its tensor's size");
    let per_group = (rows_per_group * columns).max(1);
    let mut pieces = Vec::new();
    for (group, (dout, dx)) in dout.chunks_mut(per_group).zip(dx.chunks_mut(per_group)).enumerate() {
        let both = dout
            .chunks_mut(ROWS_PER_SUM * columns)
            .zip(dx.chunks_mut(ROWS_PER_SUM * columns));
        for (piece, both) in both.enumerate() {
            pieces.push((group, group * rows_per_group + piece * ROWS_PER_SUM, both));
        }
    }
    let parts = map_items(pieces, |(group, first, (dout, dx))| {
        let mut dgate = vec![0.0; columns];
        let gate = &gate[group * columns..][..columns];
        add_row(dx, dout);
        for (index, dout) in dout.chunks_exact_mut(columns).enumerate() {
            add_product_row(&mut dgate, dout, &y[(first + index) * columns..][..columns]);
            multiply_row(dout, gate);
        }
        (group, dgate)
    });
    sum_of_groups(parts, gate.len(), columns)
}

/// Adds up what the pieces of every group found, (groups, columns).
fn sum_of_groups(parts: Vec<(usize, Vec<f32>)>, len: usize, columns: usize) -> Vec<f32> {
    let mut sums = vec![0.0; len];
    for (group, part) in parts {
        add_row(&mut sums[group * columns..][..columns], &part);
    }
    sums
}

fn rows_per_group(x: &[f32], gate: &[f32], columns: usize) -> usize {
    assert!(
        columns > 0 && !gate.is_empty() && x.len().is_multiple_of(gate.len()) && gate.len().is_multiple_of(columns),
        "{} values are not rows of {columns} for gates of {} values",
        x.len(),
        gate.len()
    );
    x.len() / gate.len()
}
