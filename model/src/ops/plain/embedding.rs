//! Positions, classes and times as features (network spec §2).

use dfdx::prelude::{Axis, BroadcastTo, Device, Dtype, GatherTo, HasShape, ReshapeTo, Tape, TryAdd};

use super::record::record;
use crate::ops::{scalar, Matrix};

/// Adds the fixed position table to every sample's tokens.
pub fn add_position<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    tokens: &Matrix<E, D>,
    position: &Matrix<E, D>,
) -> Result<Matrix<E, D>, D::Err> {
    let (rows, width) = *tokens.shape();
    let per_sample = (rows / position.shape().0, position.shape().0, width);
    let position = position.clone().try_broadcast_like::<_, Axis<0>>(&per_sample)?;
    record(tape, tokens, |tokens| {
        tokens
            .try_reshape_like(&per_sample)?
            .try_add(position)?
            .try_reshape_like(&(rows, width))
    })
}

/// Rows of a table by index.
pub fn embedding<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    table: &Matrix<E, D>,
    indices: &[usize],
) -> Result<Matrix<E, D>, D::Err> {
    let indices = table.device().try_tensor_from_vec(indices.to_vec(), (indices.len(),))?;
    record(tape, table, |table| table.try_gather(indices))
}

/// Cosines, then sines, of the times at geometrically falling frequencies, computed in f64.
pub fn fourier_features<E: Dtype, D: Device<E>>(
    device: &D,
    times: &[f64],
    frequencies: usize,
) -> Result<Matrix<E, D>, D::Err> {
    let half = frequencies / 2;
    let mut features = Vec::with_capacity(times.len() * frequencies);
    for &time in times {
        let angle = |j: usize| time * (-(10_000f64.ln()) * j as f64 / half as f64).exp();
        features.extend((0..half).map(|j| scalar::<E>(angle(j).cos())));
        features.extend((0..half).map(|j| scalar::<E>(angle(j).sin())));
    }
    device.try_tensor_from_vec(features, (times.len(), frequencies))
}
