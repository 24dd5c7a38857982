//! LayerNorm: modulated, affine over matrices or over heads, and plain.

use dfdx::prelude::{HasShape, Tape};
use dfdx::tensor::{Cuda, CudaError};

use super::context::{context, Context};
use super::launch::{column_groups, scratch, start, Kernel};
use super::precision::Precision;
use super::tensor::{address, matrix, pointer, take};
use crate::ops::{Matrix, Modulation, Vector};

/// `LN(x)·(1 + scale) + shift`: x (N,D), modulation (B,n·D).
pub(super) fn modulated_layer_norm<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    x: &Matrix<E, Cuda>,
    modulation: &Matrix<E, Cuda>,
    parts: Modulation,
) -> Result<Matrix<E, Cuda>, CudaError> {
    let context = context(device)?;
    let (rows, width) = *x.shape();
    let (samples, stride) = *modulation.shape();
    assert_eq!(rows % samples, 0, "modulated norm: {rows} rows for {samples} samples");
    assert!(
        (parts.shift.max(parts.scale) + 1) * width <= stride,
        "modulated norm: chunks {} and {} of {stride} columns",
        parts.shift,
        parts.scale
    );
    let (mean, inverse_std) = (scratch(context, rows)?, scratch(context, rows)?);
    let out = matrix::<E>(device, rows, width)?;
    let with_layout = move |kernel: Kernel| {
        kernel
            .int(rows)
            .int(width)
            .int(rows / samples)
            .int(stride)
            .int(parts.shift * width)
            .int(parts.scale * width)
            .float(parts.scale_limit.unwrap_or(f64::INFINITY))
    };
    let forward = Kernel::of::<E>("modulated_layer_norm_forward")
        .pointer(pointer(x))
        .pointer(pointer(modulation))
        .pointer(pointer(&out))
        .pointer(start(&mean))
        .pointer(start(&inverse_std));
    with_layout(forward)
        .float(parts.epsilon)
        .moves(2 * rows * width)
        .over_rows(context, rows)?;
    if T::OWNS_TAPE {
        let (device, x, modulation, out) = (device.clone(), x.clone(), modulation.clone(), out.ghost());
        tape.add_backward_op(move |gradients| {
            let upstream = take::<E>(&device, gradients.get_or_alloc_mut(&out)?)?;
            let given = |name: &str| {
                Kernel::of::<E>(name)
                    .pointer(pointer(&x))
                    .pointer(pointer(&modulation))
                    .pointer(start(&mean))
                    .pointer(start(&inverse_std))
                    .pointer(address::<E>(&upstream))
            };
            let target = address::<E>(gradients.get_or_alloc_mut(&x)?);
            with_layout(given("modulated_layer_norm_backward_input").pointer(target))
                .moves(4 * rows * width)
                .over_rows(context, rows)?;
            let target = address::<E>(gradients.get_or_alloc_mut(&modulation)?);
            with_layout(given("modulated_layer_norm_backward_modulation").pointer(target))
                .moves(2 * rows * width)
                .over_columns(context, width, samples)?;
            Ok(())
        });
    }
    Ok(out)
}

/// `LN(x)`, x (N,D).
pub(super) fn plain_layer_norm<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    x: &Matrix<E, Cuda>,
    epsilon: f64,
) -> Result<Matrix<E, Cuda>, CudaError> {
    let context = context(device)?;
    let (rows, width) = *x.shape();
    let (mean, inverse_std) = (scratch(context, rows)?, scratch(context, rows)?);
    let out = matrix::<E>(device, rows, width)?;
    Kernel::of::<E>("plain_layer_norm_forward")
        .pointer(pointer(x))
        .pointer(pointer(&out))
        .pointer(start(&mean))
        .pointer(start(&inverse_std))
        .int(rows)
        .int(width)
        .float(epsilon)
        .moves(2 * rows * width)
        .over_rows(context, rows)?;
    if T::OWNS_TAPE {
        let (device, x, out) = (device.clone(), x.clone(), out.ghost());
        tape.add_backward_op(move |gradients| {
            let upstream = take::<E>(&device, gradients.get_or_alloc_mut(&out)?)?;
            Kernel::of::<E>("plain_layer_norm_backward")
                .pointer(pointer(&x))
                .pointer(start(&mean))
                .pointer(start(&inverse_std))
                .pointer(address::<E>(&upstream))
                .pointer(address::<E>(gradients.get_or_alloc_mut(&x)?))
                .int(rows)
                .int(width)
                .moves(4 * rows * width)
                .over_rows(context, rows)?;
            Ok(())
        });
    }
    Ok(out)
}

/// The learned part of an affine LayerNorm, and what is added to the variance.
pub(super) struct Affine<'a, E: Precision> {
    pub weight: &'a Vector<E, Cuda>,
    pub bias: &'a Vector<E, Cuda>,
    pub epsilon: f64,
}

/// `LN(x)·weight + bias`, x (N,D).
pub(super) fn layer_norm<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    x: &Matrix<E, Cuda>,
    norm: Affine<'_, E>,
) -> Result<Matrix<E, Cuda>, CudaError> {
    let (rows, width) = *x.shape();
    let out = matrix::<E>(device, rows, width)?;
    let whole = Heads {
        rows,
        width,
        groups: 1,
        row_stride: width,
        offset: 0,
    };
    normalize_heads(device, tape, x, &out, &norm, whole)?;
    Ok(out)
}

/// Normalises the heads of queries and keys in qkv (N,3D); the values pass unchanged.
pub(super) fn query_key_norm<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    qkv: &Matrix<E, Cuda>,
    heads: usize,
    query: Affine<'_, E>,
    key: Affine<'_, E>,
) -> Result<Matrix<E, Cuda>, CudaError> {
    let context = context(device)?;
    let (rows, packed) = *qkv.shape();
    let width = packed / 3;
    assert_eq!(
        width * 3,
        packed,
        "query-key norm: {packed} columns hold no three parts"
    );
    assert_eq!(width % heads, 0, "query-key norm: {width} columns for {heads} heads");
    let values = 2 * width * size_of::<E>();
    let out = matrix::<E>(device, rows, packed)?;
    let move_values = move |name: &str, from: u64, to: u64| {
        Kernel::of::<E>(name)
            .pointer(from + values as u64)
            .pointer(to + values as u64)
            .int(rows)
            .int(width)
            .int(packed)
            .int(packed)
            .moves(if name == "copy_columns" { 2 } else { 3 } * rows * width)
            .over_elements(context, rows * width)
    };
    move_values("copy_columns", pointer(qkv), pointer(&out))?;
    for (part, norm) in [query, key].iter().enumerate() {
        let heads = Heads {
            rows: rows * heads,
            width: width / heads,
            groups: heads,
            row_stride: packed,
            offset: part * width,
        };
        normalize_heads(device, tape, qkv, &out, norm, heads)?;
    }
    if T::OWNS_TAPE {
        let (qkv, ghost) = (qkv.ghost(), out.ghost());
        tape.add_backward_op(move |gradients| {
            let from = address::<E>(gradients.get_or_alloc_mut(&ghost)?);
            let to = address::<E>(gradients.get_or_alloc_mut(&qkv)?);
            Ok(move_values("add_columns", from, to)?)
        });
    }
    Ok(out)
}

/// Where the vectors to normalise lie in a matrix: `groups` of `width` values side by side in every row, from column
/// `offset` on; `rows` counts the vectors.
#[derive(Clone, Copy)]
struct Heads {
    rows: usize,
    width: usize,
    groups: usize,
    row_stride: usize,
    offset: usize,
}

/// Writes the normalised vectors to the same places of `out` and records the backward pass, which reads the gradient of
/// `out` without taking it: other vectors of the same matrix need it too.
fn normalize_heads<E: Precision, T: Tape<E, Cuda>>(
    device: &Cuda,
    tape: &mut T,
    x: &Matrix<E, Cuda>,
    out: &Matrix<E, Cuda>,
    norm: &Affine<'_, E>,
    heads: Heads,
) -> Result<(), CudaError> {
    let context = context(device)?;
    let offset = (heads.offset * size_of::<E>()) as u64;
    assert_eq!(norm.weight.shape().0, heads.width, "affine norm: values of the weight");
    assert_eq!(norm.bias.shape().0, heads.width, "affine norm: values of the bias");
    let (mean, inverse_std) = (scratch(context, heads.rows)?, scratch(context, heads.rows)?);
    let with_layout = move |kernel: Kernel| {
        kernel
            .int(heads.rows)
            .int(heads.width)
            .int(heads.groups)
            .int(heads.row_stride)
    };
    let forward = Kernel::of::<E>("affine_layer_norm_forward")
        .pointer(pointer(x) + offset)
        .pointer(pointer(norm.weight))
        .pointer(pointer(norm.bias))
        .pointer(pointer(out) + offset)
        .pointer(start(&mean))
        .pointer(start(&inverse_std));
    with_layout(forward)
        .float(norm.epsilon)
        .moves(2 * heads.rows * heads.width)
        .over_rows(context, heads.rows)?;
    if T::OWNS_TAPE {
        let (x, weight, bias, out) = (x.clone(), norm.weight.clone(), norm.bias.clone(), out.ghost());
        tape.add_backward_op(move |gradients| {
            let upstream = address::<E>(gradients.get_or_alloc_mut(&out)?) + offset;
            let input = Kernel::of::<E>("affine_layer_norm_backward_input")
                .pointer(pointer(&x) + offset)
                .pointer(pointer(&weight))
                .pointer(pointer(&bias))
                .pointer(start(&mean))
                .pointer(start(&inverse_std))
                .pointer(upstream)
                .pointer(address::<E>(gradients.get_or_alloc_mut(&x)?) + offset);
            with_layout(input)
                .moves(4 * heads.rows * heads.width)
                .over_rows(context, heads.rows)?;

            let groups = column_groups(heads.rows);
            let partial = scratch(context, groups * 2 * heads.width)?;
            let parameters = Kernel::of::<E>("affine_layer_norm_backward_parameters")
                .pointer(pointer(&x) + offset)
                .pointer(start(&mean))
                .pointer(start(&inverse_std))
                .pointer(upstream)
                .pointer(start(&partial));
            with_layout(parameters)
                .moves(2 * heads.rows * heads.width)
                .over_columns(context, heads.width, groups)?;
            let of_bias = (heads.width * size_of::<f32>()) as u64;
            let weight_gradient = address::<E>(gradients.get_or_alloc_mut(&weight)?);
            let bias_gradient = address::<E>(gradients.get_or_alloc_mut(&bias)?);
            for (from, to) in [(0, weight_gradient), (of_bias, bias_gradient)] {
                add_partial_columns::<E>(context, start(&partial) + from, to, groups, heads.width)?;
            }
            Ok(())
        });
    }
    Ok(())
}

fn add_partial_columns<E: Precision>(
    context: &Context,
    partial: u64,
    sums: u64,
    groups: usize,
    width: usize,
) -> Result<(), CudaError> {
    Kernel::of::<E>("add_partial_columns")
        .pointer(partial)
        .pointer(sums)
        .int(groups)
        .int(width)
        .int(2 * width)
        .over_all_elements(context, width)?;
    Ok(())
}
