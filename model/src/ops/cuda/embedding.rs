//! What enters the network (times, labels, positions), and columns side by side.

use dfdx::prelude::{HasShape, Tape};
use dfdx::tensor::{Cuda, CudaError};

use super::activation::add_scaled;
use super::context::{context, Context};
use super::launch::{start, upload, Kernel};
use super::precision::Precision;
use super::tensor::{address, matrix, pointer, take};
use crate::ops::Matrix;

/// `[cos(t·f), sin(t·f)]` → (times, frequencies).
pub(super) fn fourier_features<E: Precision>(
    device: &Cuda,
    times: &[f64],
    frequencies: usize,
) -> Result<Matrix<E, Cuda>, CudaError> {
    let context = context(device)?;
    let half = frequencies / 2;
    let out = matrix::<E>(device, times.len(), frequencies)?;
    let uploaded = upload(context, times.to_vec())?;
    Kernel::of::<E>("fourier_features")
        .pointer(start(&uploaded))
        .pointer(pointer(&out))
        .int(times.len())
        .int(half)
        .over_elements(context, times.len() * half)?;
    Ok(out)
}

/// Rows of a table by index → (indices, D).
pub(super) fn embedding<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    table: &Matrix<E, Cuda>,
    indices: &[usize],
) -> Result<Matrix<E, Cuda>, CudaError> {
    let context = context(device)?;
    let (rows, width) = *table.shape();
    let count = indices.len();
    for &index in indices {
        assert!(index < rows, "embedding: row {index} of a table with {rows}");
    }
    let rows = upload(context, indices.iter().map(|&index| index as i32).collect())?;
    let out = matrix::<E>(device, count, width)?;
    Kernel::of::<E>("gather_rows")
        .pointer(pointer(table))
        .pointer(start(&rows))
        .pointer(pointer(&out))
        .int(count)
        .int(width)
        .moves(2 * count * width)
        .over_elements(context, count * width)?;
    if T::OWNS_TAPE {
        let (device, table, out) = (device.clone(), table.ghost(), out.ghost());
        tape.add_backward_op(move |gradients| {
            let upstream = take::<E>(&device, gradients.get_or_alloc_mut(&out)?)?;
            Kernel::of::<E>("scatter_rows")
                .pointer(start(&rows))
                .pointer(address::<E>(&upstream))
                .pointer(address::<E>(gradients.get_or_alloc_mut(&table)?))
                .int(count)
                .int(width)
                .moves(3 * count * width)
                .over_all_elements(context, width)?;
            Ok(())
        });
    }
    Ok(out)
}

/// Adds the position table (T,D), which gets no gradient, to every sample's tokens (B·T,D).
pub(super) fn add_position<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    tokens: &Matrix<E, Cuda>,
    position: &Matrix<E, Cuda>,
) -> Result<Matrix<E, Cuda>, CudaError> {
    let context = context(device)?;
    let (rows, width) = *tokens.shape();
    assert_eq!(position.shape().1, width, "position table: columns");
    assert_eq!(rows % position.shape().0, 0, "position table: {rows} rows of tokens");
    let length = rows * width;
    let out = matrix::<E>(device, rows, width)?;
    Kernel::of::<E>("add_repeated")
        .pointer(pointer(tokens))
        .pointer(pointer(position))
        .pointer(pointer(&out))
        .length(length)
        .length(position.shape().0 * width)
        .moves(2 * length)
        .over_elements(context, length)?;
    if T::OWNS_TAPE {
        let (device, tokens, out) = (device.clone(), tokens.ghost(), out.ghost());
        tape.add_backward_op(move |gradients| {
            let upstream = take::<E>(&device, gradients.get_or_alloc_mut(&out)?)?;
            let target = address::<E>(gradients.get_or_alloc_mut(&tokens)?);
            add_scaled::<E>(&device, address::<E>(&upstream), target, 1.0, length)
        });
    }
    Ok(out)
}

/// Columns side by side: a (N,P), b (N,Q) → (N,P+Q).
pub(super) fn concat<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    a: &Matrix<E, Cuda>,
    b: &Matrix<E, Cuda>,
) -> Result<Matrix<E, Cuda>, CudaError> {
    let context = context(device)?;
    let (rows, left) = *a.shape();
    let (right_rows, right) = *b.shape();
    assert_eq!(rows, right_rows, "concat: rows");
    let both = left + right;
    let after_left = (left * size_of::<E>()) as u64;
    let out = matrix::<E>(device, rows, both)?;
    let copy = |from, to, width| move_columns::<E>(context, "copy_columns", from, to, [rows, width, width, both]);
    copy(pointer(a), pointer(&out), left)?;
    copy(pointer(b), pointer(&out) + after_left, right)?;
    if T::OWNS_TAPE {
        let (device, a, b, out) = (device.clone(), a.ghost(), b.ghost(), out.ghost());
        tape.add_backward_op(move |gradients| {
            let upstream = take::<E>(&device, gradients.get_or_alloc_mut(&out)?)?;
            let from = address::<E>(&upstream);
            let add = |from, to, width| move_columns::<E>(context, "add_columns", from, to, [rows, width, both, width]);
            add(from, address::<E>(gradients.get_or_alloc_mut(&a)?), left)?;
            add(from + after_left, address::<E>(gradients.get_or_alloc_mut(&b)?), right)
        });
    }
    Ok(out)
}

fn move_columns<E: Precision>(
    context: &Context,
    kernel: &str,
    from: u64,
    to: u64,
    [rows, width, from_stride, to_stride]: [usize; 4],
) -> Result<(), CudaError> {
    Kernel::of::<E>(kernel)
        .pointer(from)
        .pointer(to)
        .int(rows)
        .int(width)
        .int(from_stride)
        .int(to_stride)
        .moves(if kernel == "copy_columns" { 2 } else { 3 } * rows * width)
        .over_elements(context, rows * width)?;
    Ok(())
}
