use std::ops::Range;

use dfdx::prelude::{Axes2, Axis, BroadcastTo, Device, Dtype, HasShape, PermuteTo, Tape, TryAdd, TryMatMul};

use super::record::record;
use crate::ops::{Matrix, Vector};

/// `x·weightᵀ + bias`.
pub fn linear<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    x: &Matrix<E, D>,
    weight: &Matrix<E, D>,
    bias: &Vector<E, D>,
) -> Result<Matrix<E, D>, D::Err> {
    let transposed = weight.clone().try_permute::<_, Axes2<1, 0>>()?;
    record(tape, x, |x| {
        let product = x.try_matmul(transposed)?;
        let bias = bias.clone().try_broadcast_like::<_, Axis<0>>(product.shape())?;
        product.try_add(bias)
    })
}

/// [`linear`] with a range of rows of a packed projection.
pub fn linear_rows<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    x: &Matrix<E, D>,
    weight: &Matrix<E, D>,
    bias: &Vector<E, D>,
    rows: Range<usize>,
) -> Result<Matrix<E, D>, D::Err> {
    let weight = record(tape, weight, |weight| weight.try_slice((rows.clone(), ..)))?;
    let bias = record(tape, bias, |bias| bias.try_slice((rows,)))?;
    linear(tape, x, &weight, &bias)
}
