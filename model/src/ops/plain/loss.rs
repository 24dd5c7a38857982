//! The losses (network spec §4).

use dfdx::prelude::{
    Axis, BroadcastTo, Device, Dtype, HasShape, MeanTo, NoneTape, Rank0, ReshapeTo, SumTo, Tape, TryAdd, TryDiv,
    TryMul, TrySub,
};

use super::record::record;
use crate::ops::{scalar, Matrix, Scalar};

/// Below this norm a vector has no direction: its cosine is counted as 0 (torch's `cosine_similarity`).
const SMALLEST_NORM: f64 = 1e-8;

/// Mean of the squared difference over all elements.
pub fn mean_squared_error<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    prediction: &Matrix<E, D>,
    target: &Matrix<E, D>,
) -> Result<Scalar<E, D>, D::Err> {
    record(tape, prediction, |prediction| {
        prediction.try_sub(target.clone())?.try_square()?.try_mean::<Rank0, _>()
    })
}

/// `mean((displacement - t·velocity + ½t²·acceleration)²)`.
pub fn acceleration_loss<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    displacement: &Matrix<E, D>,
    velocity: &Matrix<E, D>,
    acceleration: &Matrix<E, D>,
    times: &[f64],
) -> Result<Scalar<E, D>, D::Err> {
    let (rows, columns) = *acceleration.shape();
    let tokens = (times.len(), rows / times.len(), columns);
    // Operations on a tensor without a tape are not recorded: this is the stop-gradient.
    let tangent = scale_samples(&mut NoneTape, velocity, times)?;
    let remaining = displacement.clone().try_sub(tangent)?;
    let halves: Vec<f64> = times.iter().map(|t| 0.5 * t * t).collect();
    let curve = scale_samples(tape, acceleration, &halves)?;
    debug_assert_eq!(tokens.0 * tokens.1, rows);
    record(tape, &curve, |curve| {
        curve.try_add(remaining)?.try_square()?.try_mean::<Rank0, _>()
    })
}

/// Multiplies every sample's rows by its own factor.
fn scale_samples<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    x: &Matrix<E, D>,
    factors: &[f64],
) -> Result<Matrix<E, D>, D::Err> {
    let (rows, columns) = *x.shape();
    let samples = (factors.len(), rows / factors.len() * columns);
    let factors = x
        .device()
        .try_tensor_from_vec(factors.iter().map(|&f| scalar::<E>(f)).collect(), (factors.len(),))?;
    let factors = factors.try_broadcast_like::<_, Axis<1>>(&samples)?;
    record(tape, x, |x| {
        x.try_reshape_like(&samples)?
            .try_mul(factors)?
            .try_reshape_like(&(rows, columns))
    })
}

/// Mean over rows of minus the cosine between prediction and target.
pub fn cosine_alignment_loss<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    prediction: &Matrix<E, D>,
    target: &Matrix<E, D>,
) -> Result<Scalar<E, D>, D::Err> {
    let length = |tape: &mut T| {
        record(tape, prediction, |prediction| {
            prediction
                .try_square()?
                .try_sum::<_, Axis<1>>()?
                .try_sqrt()?
                .try_clamp(SMALLEST_NORM, f64::MAX)
        })
    };
    let target_length = target
        .clone()
        .try_square()?
        .try_sum::<(usize,), Axis<1>>()?
        .try_sqrt()?
        .try_clamp(SMALLEST_NORM, f64::MAX)?;
    let prediction_length = length(tape)?;
    record(tape, prediction, |prediction| {
        prediction
            .try_mul(target.clone())?
            .try_sum::<(usize,), Axis<1>>()?
            .try_div(prediction_length)?
            .try_div(target_length)?
            .try_mean::<Rank0, _>()?
            .try_mul(scalar::<E>(-1.0))
    })
}

/// `Σ weight·term`.
pub fn weighted_sum<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    device: &D,
    tape: &mut T,
    terms: &[(Scalar<E, D>, f64)],
) -> Result<Scalar<E, D>, D::Err> {
    let mut sum: Scalar<E, D> = device.try_zeros::<Rank0>()?;
    for (term, weight) in terms {
        let weighted = record(tape, term, |term| term.try_mul(scalar::<E>(*weight)))?;
        sum = record(tape, &sum, |sum| sum.try_add(weighted))?;
    }
    Ok(sum)
}
