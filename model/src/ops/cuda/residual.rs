//! The gated residual of an adaLN block.

use dfdx::prelude::{HasShape, Tape};
use dfdx::tensor::{Cuda, CudaError};

use super::context::context;
use super::launch::Kernel;
use super::precision::Precision;
use super::tensor::{address, matrix, pointer, take};
use crate::ops::Matrix;

/// `x + gate·y`: x and y (N,D), gate the chunk number `gate` of modulation (B,n·D).
pub(super) fn gated_residual<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    x: &Matrix<E, Cuda>,
    modulation: &Matrix<E, Cuda>,
    gate: usize,
    y: &Matrix<E, Cuda>,
) -> Result<Matrix<E, Cuda>, CudaError> {
    let context = context(device)?;
    let (rows, width) = *x.shape();
    let (samples, stride) = *modulation.shape();
    assert_eq!(x.shape(), y.shape(), "gated residual: shapes");
    assert_eq!(rows % samples, 0, "gated residual: {rows} rows for {samples} samples");
    assert!(
        (gate + 1) * width <= stride,
        "gated residual: chunk {gate} of {stride} columns"
    );
    let tokens = rows / samples;
    let out = matrix::<E>(device, rows, width)?;
    Kernel::of::<E>("gated_residual_forward")
        .pointer(pointer(x))
        .pointer(pointer(modulation))
        .pointer(pointer(y))
        .pointer(pointer(&out))
        .length(rows * width)
        .int(width)
        .int(tokens)
        .int(stride)
        .int(gate * width)
        .moves(3 * rows * width)
        .over_elements(context, rows * width)?;
    if T::OWNS_TAPE {
        let (device, x, modulation, y) = (device.clone(), x.ghost(), modulation.clone(), y.clone());
        let out = out.ghost();
        tape.add_backward_op(move |gradients| {
            let upstream = take::<E>(&device, gradients.get_or_alloc_mut(&out)?)?;
            Kernel::of::<E>("gated_residual_backward")
                .pointer(pointer(&modulation))
                .pointer(pointer(&y))
                .pointer(address::<E>(&upstream))
                .pointer(address::<E>(gradients.get_or_alloc_mut(&x)?))
                .pointer(address::<E>(gradients.get_or_alloc_mut(&y)?))
                .pointer(address::<E>(gradients.get_or_alloc_mut(&modulation)?))
                .int(width)
                .int(tokens)
                .int(stride)
                .int(gate * width)
                .moves(6 * rows * width)
                .over_columns(context, width, samples)?;
            Ok(())
        });
    }
    Ok(out)
}
