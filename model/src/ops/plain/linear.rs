//! Linear layers, whole or a range of their outputs.

use std::ops::Range;

use dfdx::prelude::{Axes2, Axis, BroadcastTo, Device, Dtype, HasShape, PermuteTo, Tape, TryAdd, TryMatMul, TryMul};

use super::record::record;
use crate::ops::{scalar, Matrix, Vector};

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
    // dfdx's slice overwrites the gradient of what it cuts from (0.13), so it must not cut from the parameter itself,
    // whose gradient adds up over several uses: it cuts from a copy that has no other use.
    let one = scalar::<E>(1.0);
    let weight = record(tape, weight, |weight| {
        weight.try_mul(one)?.try_slice((rows.clone(), ..))
    })?;
    let bias = record(tape, bias, |bias| bias.try_mul(one)?.try_slice((rows,)))?;
    linear(tape, x, &weight, &bias)
}
