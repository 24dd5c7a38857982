//! Linear layers: products by cuBLAS, an activation of the input in front of them, the bias behind.

use std::ops::Range;

use dfdx::prelude::{HasShape, NoneTape, Tape};
use dfdx::tensor::{Cuda, CudaError};

use super::activation::{activate, Activation};
use super::context::{context, Context};
use super::launch::{column_groups, scratch, start, Kernel};
use super::precision::Precision;
use super::product::Product;
use super::tensor::{address, matrix, pointer, take};
use crate::ops::{Matrix, Vector};

/// `f(x)·weight[part]ᵀ + bias[part]` with the activation `f` of the input, if any: x (N,K), weight (M,K), bias (M) →
/// (N,part). Only `x` is kept for the backward pass; `f(x)` is computed again there.
pub(super) fn linear<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    x: &Matrix<E, Cuda>,
    weight: &Matrix<E, Cuda>,
    bias: &Vector<E, Cuda>,
    part: Range<usize>,
    activation: Option<Activation>,
) -> Result<Matrix<E, Cuda>, CudaError> {
    let context = context(device)?;
    let (rows, inner) = *x.shape();
    let columns = part.len();
    assert_eq!(weight.shape().1, inner, "linear: columns of x and of the weight");
    assert_eq!(
        weight.shape().0,
        bias.shape().0,
        "linear: rows of the weight and values of the bias"
    );
    assert!(
        part.end <= weight.shape().0,
        "linear: rows {part:?} of a weight with {}",
        weight.shape().0
    );
    let size = size_of::<E>() as u64;
    let weight_offset = (part.start * inner) as u64 * size;
    let bias_offset = part.start as u64 * size;

    let input = activated(device, activation, x)?;
    let out = matrix::<E>(device, rows, columns)?;
    Product {
        rows,
        columns,
        inner,
        left: (pointer(&input), false),
        right: (pointer(weight) + weight_offset, true),
        accumulate: false,
        out: pointer(&out),
    }
    .run::<E>(context)?;
    Kernel::of::<E>("add_bias")
        .pointer(pointer(&out))
        .pointer(pointer(bias) + bias_offset)
        .length(rows * columns)
        .int(columns)
        .moves(2 * rows * columns)
        .over_elements(context, rows * columns)?;

    if T::OWNS_TAPE {
        let (device, x, weight, bias, out) = (device.clone(), x.clone(), weight.clone(), bias.ghost(), out.ghost());
        tape.add_backward_op(move |gradients| {
            let upstream = take::<E>(&device, gradients.get_or_alloc_mut(&out)?)?;
            let bias_gradient = address::<E>(gradients.get_or_alloc_mut(&bias)?) + bias_offset;
            add_column_sums::<E>(context, address::<E>(&upstream), rows, columns, bias_gradient)?;
            let input = activated(&device, activation, &x)?;
            Product {
                rows: columns,
                columns: inner,
                inner: rows,
                left: (address::<E>(&upstream), true),
                right: (pointer(&input), false),
                accumulate: true,
                out: address::<E>(gradients.get_or_alloc_mut(&weight)?) + weight_offset,
            }
            .run::<E>(context)?;
            let x_gradient = address::<E>(gradients.get_or_alloc_mut(&x)?);
            let to_input = |accumulate, out| {
                Product {
                    rows,
                    columns: inner,
                    inner: columns,
                    left: (address::<E>(&upstream), false),
                    right: (pointer(&weight) + weight_offset, false),
                    accumulate,
                    out,
                }
                .run::<E>(context)
            };
            match activation {
                None => to_input(true, x_gradient),
                Some(activation) => {
                    // The activated input has done its work; its buffer takes the gradient behind the activation.
                    to_input(false, pointer(&input))?;
                    activation.add_gradient::<E>(context, pointer(&x), pointer(&input), x_gradient, rows * inner)
                }
            }
        });
    }
    Ok(out)
}

fn activated<E: Precision>(
    device: &Cuda,
    activation: Option<Activation>,
    x: &Matrix<E, Cuda>,
) -> Result<Matrix<E, Cuda>, CudaError> {
    match activation {
        None => Ok(x.clone()),
        Some(activation) => activate(device, &mut NoneTape, activation, x),
    }
}

/// `sums[column] += Σ_rows x[row, column]`, in a fixed order.
pub(super) fn add_column_sums<E: Precision>(
    context: &Context,
    x: u64,
    rows: usize,
    columns: usize,
    sums: u64,
) -> Result<(), CudaError> {
    let groups = column_groups(rows);
    let partial = scratch(context, groups * columns)?;
    Kernel::of::<E>("sum_columns")
        .pointer(x)
        .pointer(start(&partial))
        .int(rows)
        .int(columns)
        .moves(rows * columns)
        .over_columns(context, columns, groups)?;
    Kernel::of::<E>("add_partial_columns")
        .pointer(start(&partial))
        .pointer(sums)
        .int(groups)
        .int(columns)
        .int(columns)
        .over_all_elements(context, columns)?;
    Ok(())
}
