//! Attention head by head, and the norm of its queries and keys.

use dfdx::prelude::{Axes4, Axis, Device, Dtype, HasShape, PermuteTo, ReshapeTo, Tape, Tensor, TryMatMul, TryMul};

use super::normalization::layer_norm;
use super::record::record;
use super::residual::concat;
use crate::ops::{scalar, AffineNorm, Matrix};

type PerHead<E, D> = Tensor<(usize, usize, usize, usize), E, D>;

/// Attention of every sample with itself from packed queries, keys and values.
pub fn self_attention<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    qkv: &Matrix<E, D>,
    batch: usize,
    heads: usize,
) -> Result<Matrix<E, D>, D::Err> {
    let query = per_head(tape, qkv, batch, heads, 0, 3)?;
    let key = per_head(tape, qkv, batch, heads, 1, 3)?;
    let value = per_head(tape, qkv, batch, heads, 2, 3)?;
    attention(tape, &query, &key, &value)
}

/// Attention of queries from one matrix over packed keys and values from another.
pub fn cross_attention<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    q: &Matrix<E, D>,
    kv: &Matrix<E, D>,
    batch: usize,
    heads: usize,
) -> Result<Matrix<E, D>, D::Err> {
    let query = per_head(tape, q, batch, heads, 0, 1)?;
    let key = per_head(tape, kv, batch, heads, 0, 2)?;
    let value = per_head(tape, kv, batch, heads, 1, 2)?;
    attention(tape, &query, &key, &value)
}

/// Affine LayerNorm of every head's queries and keys.
pub fn query_key_norm<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    qkv: &Matrix<E, D>,
    heads: usize,
    query: &AffineNorm<E, D>,
    key: &AffineNorm<E, D>,
) -> Result<Matrix<E, D>, D::Err> {
    let (rows, packed) = *qkv.shape();
    let width = packed / 3;
    let query = normalized_part(tape, qkv, heads, 0, query)?;
    let key = normalized_part(tape, qkv, heads, 1, key)?;
    let value = record(tape, qkv, |qkv| qkv.try_slice((0..rows, 2 * width..packed)))?;
    let query_key = concat(tape, &query, &key)?;
    concat(tape, &query_key, &value)
}

fn normalized_part<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    qkv: &Matrix<E, D>,
    heads: usize,
    part: usize,
    norm: &AffineNorm<E, D>,
) -> Result<Matrix<E, D>, D::Err> {
    let (rows, packed) = *qkv.shape();
    let width = packed / 3;
    let part = record(tape, qkv, |qkv| {
        qkv.try_slice((0..rows, part * width..(part + 1) * width))
    })?;
    // A reshaped contiguous tensor is the same tensor to the tape.
    let head_rows = part.try_reshape_like(&(rows * heads, width / heads))?;
    layer_norm(tape, &head_rows, norm)?.try_reshape_like(&(rows, width))
}

/// Columns of part `part` of `parts` as (batch, heads, tokens, width of a head).
fn per_head<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    packed: &Matrix<E, D>,
    batch: usize,
    heads: usize,
    part: usize,
    parts: usize,
) -> Result<PerHead<E, D>, D::Err> {
    let (rows, columns) = *packed.shape();
    let width = columns / parts;
    record(tape, packed, |packed| {
        packed
            .try_slice((0..rows, part * width..(part + 1) * width))?
            .try_reshape_like(&(batch, rows / batch, heads, width / heads))?
            .try_permute::<_, Axes4<0, 2, 1, 3>>()
    })
}

fn attention<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    query: &PerHead<E, D>,
    key: &PerHead<E, D>,
    value: &PerHead<E, D>,
) -> Result<Matrix<E, D>, D::Err> {
    let (batch, heads, tokens, head_width) = *query.shape();
    let scale = scalar::<E>((head_width as f64).powf(-0.5));
    let transposed_key = key.clone().try_permute::<_, Axes4<0, 1, 3, 2>>()?;
    let value = value.clone();
    record(tape, query, |query| {
        query
            .try_matmul(transposed_key)?
            .try_mul(scale)?
            .try_softmax::<Axis<3>>()?
            .try_matmul(value)?
            .try_permute::<_, Axes4<0, 2, 1, 3>>()?
            .try_reshape_like(&(batch * tokens, heads * head_width))
    })
}
