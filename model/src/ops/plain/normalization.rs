//! LayerNorms: plain, affine and modulated.

use dfdx::prelude::{Axis, BroadcastTo, Device, Dtype, HasShape, ReshapeTo, Tape, TryAdd, TryMul};

use super::record::record;
use super::residual::chunk;
use crate::ops::{scalar, AffineNorm, Matrix, Modulation};

/// Zero mean and unit variance over the last axis.
pub fn plain_layer_norm<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    x: &Matrix<E, D>,
    epsilon: f64,
) -> Result<Matrix<E, D>, D::Err> {
    record(tape, x, |x| x.try_normalize::<Axis<1>>(epsilon))
}

/// `LN(x)·weight + bias`.
pub fn layer_norm<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    x: &Matrix<E, D>,
    norm: &AffineNorm<E, D>,
) -> Result<Matrix<E, D>, D::Err> {
    let shape = *x.shape();
    record(tape, x, |x| {
        x.try_normalize::<Axis<1>>(norm.epsilon)?
            .try_mul(norm.weight.clone().try_broadcast_like::<_, Axis<0>>(&shape)?)?
            .try_add(norm.bias.clone().try_broadcast_like::<_, Axis<0>>(&shape)?)
    })
}

/// `LN(x)·(1 + scale) + shift` with shift and scale per sample.
pub fn modulated_layer_norm<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    x: &Matrix<E, D>,
    modulation: &Matrix<E, D>,
    parts: Modulation,
) -> Result<Matrix<E, D>, D::Err> {
    let (rows, width) = *x.shape();
    let samples = modulation.shape().0;
    let tokens = (samples, rows / samples, width);
    let shift = chunk(tape, modulation, parts.shift, width)?;
    let mut scale = chunk(tape, modulation, parts.scale, width)?;
    if let Some(limit) = parts.scale_limit {
        scale = record(tape, &scale, |scale| scale.try_clamp(-limit, limit))?;
    }
    let factor = record(tape, &scale, |scale| scale.try_add(scalar::<E>(1.0)))?;
    record(tape, x, |x| {
        x.try_normalize::<Axis<1>>(parts.epsilon)?
            .try_reshape_like(&tokens)?
            .try_mul(factor.try_broadcast_like::<_, Axis<1>>(&tokens)?)?
            .try_add(shift.try_broadcast_like::<_, Axis<1>>(&tokens)?)?
            .try_reshape_like(&(rows, width))
    })
}
