//! The losses of network spec §4.

use cudarc::driver::CudaSlice;
use dfdx::prelude::{HasShape, Tape, ZerosTensor};
use dfdx::tensor::{Cuda, CudaError};

use super::context::{context, Context};
use super::launch::{reduction_blocks, scratch, start, upload, Kernel};
use super::precision::Precision;
use super::tensor::{address, pointer, take};
use crate::ops::{Matrix, Scalar};

/// Mean of `(prediction - target)²`; the target gets no gradient.
pub(super) fn mean_squared_error<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    prediction: &Matrix<E, Cuda>,
    target: &Matrix<E, Cuda>,
) -> Result<Scalar<E, Cuda>, CudaError> {
    assert_eq!(prediction.shape(), target.shape(), "mean squared error: shapes");
    let context = context(device)?;
    let length = prediction.shape().0 * prediction.shape().1;
    let sums = PartialSums::new(context, length)?;
    Kernel::of::<E>("squared_error_forward")
        .pointer(pointer(prediction))
        .pointer(pointer(target))
        .pointer(start(&sums.partial))
        .length(length)
        .moves(2 * length)
        .over_reduction(context, sums.count)?;
    let loss = sums.total::<E>(device, context, 1.0 / length as f64)?;
    if T::OWNS_TAPE {
        let (device, prediction, target) = (device.clone(), prediction.clone(), target.clone());
        let ghost = loss.ghost();
        tape.add_backward_op(move |gradients| {
            let upstream = take::<E>(&device, gradients.get_or_alloc_mut(&ghost)?)?;
            Kernel::of::<E>("squared_error_backward")
                .pointer(pointer(&prediction))
                .pointer(pointer(&target))
                .pointer(address::<E>(&upstream))
                .pointer(address::<E>(gradients.get_or_alloc_mut(&prediction)?))
                .length(length)
                .moves(4 * length)
                .over_elements(context, length)?;
            Ok(())
        });
    }
    Ok(loss)
}

/// `mean((displacement - t·velocity + ½t²·acceleration)²)`; only the acceleration gets a gradient.
pub(super) fn acceleration_loss<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    displacement: &Matrix<E, Cuda>,
    velocity: &Matrix<E, Cuda>,
    acceleration: &Matrix<E, Cuda>,
    times: &[f64],
) -> Result<Scalar<E, Cuda>, CudaError> {
    assert_eq!(displacement.shape(), acceleration.shape(), "acceleration loss: shapes");
    assert_eq!(velocity.shape(), acceleration.shape(), "acceleration loss: shapes");
    let context = context(device)?;
    let length = acceleration.shape().0 * acceleration.shape().1;
    assert_eq!(length % times.len(), 0, "acceleration loss: {} times", times.len());
    let per_sample = length / times.len();
    let times = upload(context, times.iter().map(|&time| time as f32).collect())?;
    let sums = PartialSums::new(context, length)?;
    Kernel::of::<E>("acceleration_error_forward")
        .pointer(pointer(displacement))
        .pointer(pointer(velocity))
        .pointer(pointer(acceleration))
        .pointer(start(&times))
        .pointer(start(&sums.partial))
        .length(length)
        .length(per_sample)
        .moves(3 * length)
        .over_reduction(context, sums.count)?;
    let loss = sums.total::<E>(device, context, 1.0 / length as f64)?;
    if T::OWNS_TAPE {
        let (device, displacement, velocity) = (device.clone(), displacement.clone(), velocity.clone());
        let (acceleration, ghost) = (acceleration.clone(), loss.ghost());
        tape.add_backward_op(move |gradients| {
            let upstream = take::<E>(&device, gradients.get_or_alloc_mut(&ghost)?)?;
            Kernel::of::<E>("acceleration_error_backward")
                .pointer(pointer(&displacement))
                .pointer(pointer(&velocity))
                .pointer(pointer(&acceleration))
                .pointer(start(&times))
                .pointer(address::<E>(&upstream))
                .pointer(address::<E>(gradients.get_or_alloc_mut(&acceleration)?))
                .length(length)
                .length(per_sample)
                .moves(5 * length)
                .over_elements(context, length)?;
            Ok(())
        });
    }
    Ok(loss)
}

/// Mean over rows of `-cos(prediction, target)`; the target gets no gradient.
pub(super) fn cosine_alignment_loss<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    prediction: &Matrix<E, Cuda>,
    target: &Matrix<E, Cuda>,
) -> Result<Scalar<E, Cuda>, CudaError> {
    assert_eq!(prediction.shape(), target.shape(), "alignment loss: shapes");
    let context = context(device)?;
    let (rows, width) = *prediction.shape();
    let factor = -1.0 / rows as f64;
    let sums = PartialSums::new(context, rows * 32)?;
    Kernel::of::<E>("cosine_forward")
        .pointer(pointer(prediction))
        .pointer(pointer(target))
        .pointer(start(&sums.partial))
        .int(rows)
        .int(width)
        .moves(2 * rows * width)
        .over_reduction(context, sums.count)?;
    let loss = sums.total::<E>(device, context, factor)?;
    if T::OWNS_TAPE {
        let (device, prediction, target) = (device.clone(), prediction.clone(), target.clone());
        let ghost = loss.ghost();
        tape.add_backward_op(move |gradients| {
            let upstream = take::<E>(&device, gradients.get_or_alloc_mut(&ghost)?)?;
            Kernel::of::<E>("cosine_backward")
                .pointer(pointer(&prediction))
                .pointer(pointer(&target))
                .pointer(address::<E>(&upstream))
                .pointer(address::<E>(gradients.get_or_alloc_mut(&prediction)?))
                .int(rows)
                .int(width)
                .float(factor)
                .moves(4 * rows * width)
                .over_rows(context, rows)?;
            Ok(())
        });
    }
    Ok(loss)
}

/// The float every block of a reduction leaves.
struct PartialSums {
    partial: CudaSlice<f32>,
    count: usize,
}

impl PartialSums {
    fn new(context: &Context, elements: usize) -> Result<Self, CudaError> {
        let count = reduction_blocks(elements);
        let partial = scratch(context, count)?;
        Ok(Self { partial, count })
    }

    fn total<E: Precision>(&self, device: &Cuda, context: &Context, factor: f64) -> Result<Scalar<E, Cuda>, CudaError> {
        let total: Scalar<E, Cuda> = device.try_zeros_like(&())?;
        Kernel::of::<E>("add_partial_sums")
            .pointer(start(&self.partial))
            .pointer(pointer(&total))
            .int(self.count)
            .float(factor)
            .over_reduction(context, 1)?;
        Ok(total)
    }
}
