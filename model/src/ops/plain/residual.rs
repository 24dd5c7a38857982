//! Sums, gated sums, and columns side by side or apart.

use dfdx::prelude::{Axis, BroadcastTo, Device, Dtype, HasShape, ReshapeTo, Tape, TryAdd, TryConcatAlong, TryMul};

use super::record::record;
use crate::ops::Matrix;

/// `a + b`.
pub fn add<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    a: &Matrix<E, D>,
    b: &Matrix<E, D>,
) -> Result<Matrix<E, D>, D::Err> {
    record(tape, a, |a| a.try_add(b.clone()))
}

/// Columns side by side.
pub fn concat<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    a: &Matrix<E, D>,
    b: &Matrix<E, D>,
) -> Result<Matrix<E, D>, D::Err> {
    let b = b.clone();
    record(tape, a, |a| (a, b).try_concat_along(Axis::<1>))
}

/// `x + gate·y` with a gate per sample.
pub fn gated_residual<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    x: &Matrix<E, D>,
    modulation: &Matrix<E, D>,
    gate: usize,
    y: &Matrix<E, D>,
) -> Result<Matrix<E, D>, D::Err> {
    let (rows, width) = *x.shape();
    let samples = modulation.shape().0;
    let tokens = (samples, rows / samples, width);
    let gate = chunk(tape, modulation, gate, width)?;
    let gated = record(tape, y, |y| {
        y.try_reshape_like(&tokens)?
            .try_mul(gate.try_broadcast_like::<_, Axis<1>>(&tokens)?)?
            .try_reshape_like(&(rows, width))
    })?;
    add(tape, x, &gated)
}

/// Columns `index·width ..` of a modulation matrix.
pub(super) fn chunk<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    modulation: &Matrix<E, D>,
    index: usize,
    width: usize,
) -> Result<Matrix<E, D>, D::Err> {
    record(tape, modulation, |modulation| {
        modulation.try_slice((.., index * width..(index + 1) * width))
    })
}
