//! The losses (network spec §4) on the tape, with hand-written gradients.

use dfdx::prelude::{Cpu, CpuError, HasShape, Tape, TensorFromVec};

use super::access::{contiguous, Values};
use crate::ops::cpu::loss::{CosineAlignment, ScaledDifference};
use crate::ops::{Matrix, Scalar};

/// Mean of `(prediction - target)²`.
pub(super) fn mean_squared_error<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    prediction: &Matrix<f32, Cpu>,
    target: &Matrix<f32, Cpu>,
) -> Result<Scalar<f32, Cpu>, CpuError> {
    let (prediction, target) = (contiguous(tape, prediction)?, contiguous(tape, target)?);
    let mean = ScaledDifference { factors: &[1.0] }.mean_square(prediction.values(), target.values());
    let loss = scalar(device, mean)?;
    let loss_ghost = loss.ghost();
    tape.add_backward_op(move |gradients| {
        let dloss = gradients.get_or_alloc_mut(&loss_ghost)?[0];
        let dprediction = gradients.get_or_alloc_mut(&prediction)?;
        ScaledDifference { factors: &[1.0] }.backward(prediction.values(), target.values(), dloss, dprediction);
        Ok(())
    });
    Ok(loss)
}

/// `mean((displacement - t·velocity + ½t²·acceleration)²)`.
pub(super) fn acceleration_loss<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    displacement: &Matrix<f32, Cpu>,
    velocity: &Matrix<f32, Cpu>,
    acceleration: &Matrix<f32, Cpu>,
    times: &[f64],
) -> Result<Scalar<f32, Cpu>, CpuError> {
    let (displacement, velocity) = (contiguous(tape, displacement)?, contiguous(tape, velocity)?);
    let acceleration = contiguous(tape, acceleration)?;
    let per_sample = (acceleration.values().len() / times.len().max(1)).max(1);
    // What the acceleration has to explain: t·velocity - displacement.
    let remaining: Vec<f32> = displacement
        .values()
        .iter()
        .zip(velocity.values())
        .enumerate()
        .map(|(index, (displacement, velocity))| times[index / per_sample] as f32 * velocity - displacement)
        .collect();
    let factors: Vec<f32> = times.iter().map(|t| (0.5 * t * t) as f32).collect();
    let mean = ScaledDifference { factors: &factors }.mean_square(acceleration.values(), &remaining);
    let loss = scalar(device, mean)?;
    let loss_ghost = loss.ghost();
    tape.add_backward_op(move |gradients| {
        let dloss = gradients.get_or_alloc_mut(&loss_ghost)?[0];
        let dacceleration = gradients.get_or_alloc_mut(&acceleration)?;
        let difference = ScaledDifference { factors: &factors };
        difference.backward(acceleration.values(), &remaining, dloss, dacceleration);
        Ok(())
    });
    Ok(loss)
}

/// Mean over rows of minus the cosine between prediction and target.
pub(super) fn cosine_alignment_loss<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    prediction: &Matrix<f32, Cpu>,
    target: &Matrix<f32, Cpu>,
) -> Result<Scalar<f32, Cpu>, CpuError> {
    let (prediction, target) = (contiguous(tape, prediction)?, contiguous(tape, target)?);
    let alignment = CosineAlignment {
        columns: prediction.shape().1,
    };
    let loss = scalar(device, alignment.loss(prediction.values(), target.values()))?;
    let loss_ghost = loss.ghost();
    tape.add_backward_op(move |gradients| {
        let dloss = gradients.get_or_alloc_mut(&loss_ghost)?[0];
        let dprediction = gradients.get_or_alloc_mut(&prediction)?;
        alignment.backward(prediction.values(), target.values(), dloss, dprediction);
        Ok(())
    });
    Ok(loss)
}

fn scalar(device: &Cpu, value: f64) -> Result<Scalar<f32, Cpu>, CpuError> {
    device.try_tensor_from_vec(vec![value as f32], ())
}
