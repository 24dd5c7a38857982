//! GELU, SiLU, sums of matrices and of scalars.

use dfdx::prelude::{HasShape, Tape, ZerosTensor};
use dfdx::tensor::{Cuda, CudaError};

use super::context::{context, Context};
use super::launch::Kernel;
use super::precision::Precision;
use super::tensor::{address, matrix, pointer, take};
use crate::ops::{Matrix, Scalar};

#[derive(Clone, Copy)]
pub(super) enum Activation {
    Gelu,
    Silu,
}

impl Activation {
    fn forward(self) -> &'static str {
        match self {
            Self::Gelu => "gelu_forward",
            Self::Silu => "silu_forward",
        }
    }

    fn backward(self) -> &'static str {
        match self {
            Self::Gelu => "gelu_backward",
            Self::Silu => "silu_backward",
        }
    }

    /// `x_gradient += out_gradient·f'(x)`.
    pub fn add_gradient<E: Precision>(
        self,
        context: &Context,
        x: u64,
        out_gradient: u64,
        x_gradient: u64,
        length: usize,
    ) -> Result<(), CudaError> {
        Kernel::of::<E>(self.backward())
            .pointer(x)
            .pointer(out_gradient)
            .pointer(x_gradient)
            .length(length)
            .moves(4 * length)
            .over_elements(context, length)?;
        Ok(())
    }
}

pub(super) fn activate<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    activation: Activation,
    x: &Matrix<E, Cuda>,
) -> Result<Matrix<E, Cuda>, CudaError> {
    let context = context(device)?;
    let (rows, columns) = *x.shape();
    let out = matrix::<E>(device, rows, columns)?;
    Kernel::of::<E>(activation.forward())
        .pointer(pointer(x))
        .pointer(pointer(&out))
        .length(rows * columns)
        .moves(2 * rows * columns)
        .over_elements(context, rows * columns)?;
    if T::OWNS_TAPE {
        let (device, x, ghost) = (device.clone(), x.clone(), out.ghost());
        tape.add_backward_op(move |gradients| {
            let upstream = take::<E>(&device, gradients.get_or_alloc_mut(&ghost)?)?;
            let x_gradient = address::<E>(gradients.get_or_alloc_mut(&x)?);
            let upstream = address::<E>(&upstream);
            activation.add_gradient::<E>(context, pointer(&x), upstream, x_gradient, rows * columns)
        });
    }
    Ok(out)
}

pub(super) fn add<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    a: &Matrix<E, Cuda>,
    b: &Matrix<E, Cuda>,
) -> Result<Matrix<E, Cuda>, CudaError> {
    assert_eq!(a.shape(), b.shape(), "add: shapes");
    let context = context(device)?;
    let (rows, columns) = *a.shape();
    let length = rows * columns;
    let out = matrix::<E>(device, rows, columns)?;
    Kernel::of::<E>("add")
        .pointer(pointer(a))
        .pointer(pointer(b))
        .pointer(pointer(&out))
        .length(length)
        .moves(3 * length)
        .over_elements(context, length)?;
    if T::OWNS_TAPE {
        let (device, a, b, out) = (device.clone(), a.ghost(), b.ghost(), out.ghost());
        tape.add_backward_op(move |gradients| {
            let upstream = take::<E>(&device, gradients.get_or_alloc_mut(&out)?)?;
            for target in [&a, &b] {
                let target = address::<E>(gradients.get_or_alloc_mut(target)?);
                add_scaled::<E>(&device, address::<E>(&upstream), target, 1.0, length)?;
            }
            Ok(())
        });
    }
    Ok(out)
}

/// `Σ weight·term`.
pub(super) fn weighted_sum<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    terms: &[(Scalar<E, Cuda>, f64)],
) -> Result<Scalar<E, Cuda>, CudaError> {
    let sum: Scalar<E, Cuda> = device.try_zeros_like(&())?;
    for (term, weight) in terms {
        add_scaled::<E>(device, pointer(term), pointer(&sum), *weight, 1)?;
    }
    if T::OWNS_TAPE {
        let terms: Vec<_> = terms.iter().map(|(term, weight)| (term.ghost(), *weight)).collect();
        let (device, sum) = (device.clone(), sum.ghost());
        tape.add_backward_op(move |gradients| {
            let upstream = take::<E>(&device, gradients.get_or_alloc_mut(&sum)?)?;
            for (term, weight) in &terms {
                let target = address::<E>(gradients.get_or_alloc_mut(term)?);
                add_scaled::<E>(&device, address::<E>(&upstream), target, *weight, 1)?;
            }
            Ok(())
        });
    }
    Ok(sum)
}

/// `sum += factor·x`.
pub(super) fn add_scaled<E: Precision>(
    device: &Cuda,
    x: u64,
    sum: u64,
    factor: f64,
    length: usize,
) -> Result<(), CudaError> {
    Kernel::of::<E>("add_scaled")
        .pointer(x)
        .pointer(sum)
        .float(factor)
        .length(length)
        .moves(3 * length)
        .over_elements(context(device)?, length)?;
    Ok(())
}
