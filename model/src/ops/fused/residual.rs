//! Sums, gated sums, columns side by side and rows of a table on the tape, with hand-written gradients.

use dfdx::prelude::{Cpu, CpuError, HasShape, Tape};

use super::access::{contiguous, matrix, Values};
use super::modulation::{accumulate_chunk, chunk};
use crate::ops::cpu::residual::{gated_residual as gated_residual_kernel, gated_residual_backward};
use crate::ops::cpu::{columns, rows};
use crate::ops::Matrix;

/// `x + gate·y`.
pub(super) fn gated_residual<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    x: &Matrix<f32, Cpu>,
    modulation: &Matrix<f32, Cpu>,
    gate: usize,
    y: &Matrix<f32, Cpu>,
) -> Result<Matrix<f32, Cpu>, CpuError> {
    let (x, y) = (contiguous(tape, x)?, contiguous(tape, y)?);
    let modulation = contiguous(tape, modulation)?;
    let width = x.shape().1;
    let gates = chunk(&modulation, gate, width);
    let out = matrix(
        device,
        gated_residual_kernel(x.values(), &gates, y.values(), width),
        *x.shape(),
    )?;
    let (x, out_ghost) = (x.ghost(), out.ghost());
    tape.add_backward_op(move |gradients| {
        let dout = std::mem::take(&mut **gradients.get_or_alloc_mut(&out_ghost)?);
        rows::accumulate(gradients.get_or_alloc_mut(&x)?, &dout);
        let dy = gradients.get_or_alloc_mut(&y)?;
        let dgate = gated_residual_backward(&dout, &gates, y.values(), width, dy);
        accumulate_chunk(
            gradients.get_or_alloc_mut(&modulation)?,
            &modulation,
            gate,
            &dgate,
            width,
        );
        Ok(())
    });
    Ok(out)
}

/// `a + b`.
pub(super) fn add<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    a: &Matrix<f32, Cpu>,
    b: &Matrix<f32, Cpu>,
) -> Result<Matrix<f32, Cpu>, CpuError> {
    let (a, b) = (contiguous(tape, a)?, contiguous(tape, b)?);
    let sum = matrix(device, rows::add(a.values(), b.values()), *a.shape())?;
    let (a, b, sum_ghost) = (a.ghost(), b.ghost(), sum.ghost());
    tape.add_backward_op(move |gradients| {
        let dsum = std::mem::take(&mut **gradients.get_or_alloc_mut(&sum_ghost)?);
        rows::accumulate(gradients.get_or_alloc_mut(&a)?, &dsum);
        rows::accumulate(gradients.get_or_alloc_mut(&b)?, &dsum);
        Ok(())
    });
    Ok(sum)
}

/// Columns side by side.
pub(super) fn concat<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    a: &Matrix<f32, Cpu>,
    b: &Matrix<f32, Cpu>,
) -> Result<Matrix<f32, Cpu>, CpuError> {
    let (a, b) = (contiguous(tape, a)?, contiguous(tape, b)?);
    let (rows, left) = *a.shape();
    let right = b.shape().1;
    let out = columns::concat(a.values(), left, b.values(), right);
    let out = matrix(device, out, (rows, left + right))?;
    let (a, b, out_ghost) = (a.ghost(), b.ghost(), out.ghost());
    tape.add_backward_op(move |gradients| {
        let dout = std::mem::take(&mut **gradients.get_or_alloc_mut(&out_ghost)?);
        columns::accumulate_part(gradients.get_or_alloc_mut(&a)?, left, &dout, left + right, 0);
        columns::accumulate_part(gradients.get_or_alloc_mut(&b)?, right, &dout, left + right, left);
        Ok(())
    });
    Ok(out)
}

/// Adds the position table to the tokens of every sample.
pub(super) fn add_position<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    tokens: &Matrix<f32, Cpu>,
    position: &Matrix<f32, Cpu>,
) -> Result<Matrix<f32, Cpu>, CpuError> {
    let (tokens, position) = (contiguous(tape, tokens)?, contiguous(tape, position)?);
    let out = matrix(
        device,
        rows::add_repeated(tokens.values(), position.values()),
        *tokens.shape(),
    )?;
    let (tokens, out_ghost) = (tokens.ghost(), out.ghost());
    tape.add_backward_op(move |gradients| {
        let dout = std::mem::take(&mut **gradients.get_or_alloc_mut(&out_ghost)?);
        rows::accumulate(gradients.get_or_alloc_mut(&tokens)?, &dout);
        Ok(())
    });
    Ok(out)
}

/// Rows of a table by index.
pub(super) fn embedding<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    table: &Matrix<f32, Cpu>,
    indices: &[usize],
) -> Result<Matrix<f32, Cpu>, CpuError> {
    let table = contiguous(tape, table)?;
    let width = table.shape().1;
    let values: Vec<f32> = indices
        .iter()
        .flat_map(|&row| table.values()[row * width..][..width].iter().copied())
        .collect();
    let out = matrix(device, values, (indices.len(), width))?;
    let (table, out_ghost, indices) = (table.ghost(), out.ghost(), indices.to_vec());
    tape.add_backward_op(move |gradients| {
        let dout = std::mem::take(&mut **gradients.get_or_alloc_mut(&out_ghost)?);
        let dtable = gradients.get_or_alloc_mut(&table)?;
        for (row, gradient) in indices.into_iter().zip(dout.chunks_exact(width.max(1))) {
            rows::accumulate(&mut dtable[row * width..][..width], gradient);
        }
        Ok(())
    });
    Ok(out)
}
