//! Linear layers: products by cuBLAS, an activation of the input in front of them, the bias behind.

use std::ops::Range;

use cudarc::cublas::result::gemm_ex;
use cudarc::cublas::sys::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t};
use dfdx::prelude::{HasShape, NoneTape, Tape};
use dfdx::tensor::{Cuda, CudaError};

use super::activation::{activate, Activation};
use super::context::{context, Context};
use super::launch::{column_groups, scratch, start, Kernel};
use super::precision::Precision;
use super::profile::Work;
use super::tensor::{address, matrix, pointer, take};
use crate::ops::{Matrix, Vector};

/// `C (m,n) = op(A)·op(B) + beta·C`, all row-major without gaps; `A` is (m,k), or (k,m) when transposed.
struct Product {
    rows: usize,
    columns: usize,
    inner: usize,
    left: (u64, bool),
    right: (u64, bool),
    accumulate: bool,
    out: u64,
}

impl Product {
    /// cuBLAS thinks in columns: a row-major matrix is its transpose, so `Cᵀ = op(B)ᵀ·op(A)ᵀ` is asked for.
    fn run<E: Precision>(&self, context: &Context) -> Result<(), CudaError> {
        if self.rows == 0 || self.columns == 0 || self.inner == 0 {
            return Ok(());
        }
        let operation = |transposed| match transposed {
            true => cublasOperation_t::CUBLAS_OP_T,
            false => cublasOperation_t::CUBLAS_OP_N,
        };
        let leading = |(_, transposed): (u64, bool), rows, columns| if transposed { rows } else { columns };
        let one = 1.0f32;
        let beta = if self.accumulate { 1.0f32 } else { 0.0 };
        let compute = match E::IS_SINGLE && context.tensor_float_32() {
            true => cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            false => cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        context.device.bind_to_thread()?;
        let operands = self.rows * self.inner + self.inner * self.columns;
        let results = self.rows * self.columns * if self.accumulate { 2 } else { 1 };
        let work = Work {
            bytes: ((operands + results) * size_of::<E>()) as u64,
            flops: 2 * (self.rows * self.inner * self.columns) as u64,
        };
        // SAFETY: the addresses are of buffers with the sizes named by rows, columns and inner (asserted by the
        // callers), which live until the work queued behind this call frees them; the scalars are floats as the compute
        // type demands and are read before the call returns.
        let multiply = || unsafe {
            gemm_ex(
                *context.blas.handle(),
                operation(self.right.1),
                operation(self.left.1),
                self.columns as i32,
                self.rows as i32,
                self.inner as i32,
                std::ptr::from_ref(&one).cast(),
                self.right.0 as *const _,
                E::TYPE,
                leading(self.right, self.inner, self.columns) as i32,
                self.left.0 as *const _,
                E::TYPE,
                leading(self.left, self.rows, self.inner) as i32,
                std::ptr::from_ref(&beta).cast(),
                self.out as *mut _,
                E::TYPE,
                self.columns as i32,
                compute,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        context.watched(&format!("product_{}", E::NAME), work, || Ok(multiply()?))
    }
}

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
