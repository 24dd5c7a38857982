use dfdx::prelude::{Cpu, CpuError, HasShape, Tape};

use super::access::{contiguous, contiguous_vector, matrix, Values};
use super::modulation::{accumulate_chunk, chunk};
use crate::ops::cpu::head_norm::{HeadNorm, QueryKeyNorm};
use crate::ops::cpu::layer_norm::LayerNorm;
use crate::ops::cpu::rows::accumulate;
use crate::ops::{AffineNorm, Matrix, Modulation};

/// `LN(x)·(1 + scale) + shift`; statistics are recomputed in the backward pass.
pub(super) fn modulated_layer_norm<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    x: &Matrix<f32, Cpu>,
    modulation: &Matrix<f32, Cpu>,
    parts: Modulation,
) -> Result<Matrix<f32, Cpu>, CpuError> {
    let (x, modulation) = (contiguous(tape, x)?, contiguous(tape, modulation)?);
    let (rows, columns) = *x.shape();
    let rows_per_group = rows / modulation.shape().0;
    let limit = parts.scale_limit.map_or(f32::INFINITY, |limit| limit as f32);
    let scale = chunk(&modulation, parts.scale, columns);
    let factor: Vec<f32> = scale.iter().map(|scale| 1.0 + scale.clamp(-limit, limit)).collect();
    let offset = chunk(&modulation, parts.shift, columns);
    let epsilon = parts.epsilon as f32;
    let norm = LayerNorm {
        columns,
        rows_per_group,
        factor: &factor,
        offset: &offset,
        epsilon,
    };
    let y = matrix(device, norm.forward(x.values()), (rows, columns))?;
    let y_ghost = y.ghost();
    tape.add_backward_op(move |gradients| {
        let dy = std::mem::take(&mut **gradients.get_or_alloc_mut(&y_ghost)?);
        let norm = LayerNorm {
            columns,
            rows_per_group,
            factor: &factor,
            offset: &offset,
            epsilon,
        };
        let mut found = norm.backward(x.values(), &dy, gradients.get_or_alloc_mut(&x)?);
        for (gradient, scale) in found.factor.iter_mut().zip(&scale) {
            if scale.abs() > limit {
                *gradient = 0.0;
            }
        }
        let dmodulation = gradients.get_or_alloc_mut(&modulation)?;
        accumulate_chunk(dmodulation, &modulation, parts.scale, &found.factor, columns);
        accumulate_chunk(dmodulation, &modulation, parts.shift, &found.offset, columns);
        Ok(())
    });
    Ok(y)
}

/// `LN(x)`.
pub(super) fn plain_layer_norm<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    x: &Matrix<f32, Cpu>,
    epsilon: f64,
) -> Result<Matrix<f32, Cpu>, CpuError> {
    let x = contiguous(tape, x)?;
    let (rows, columns) = *x.shape();
    let (factor, offset, epsilon) = (vec![1.0; columns], vec![0.0; columns], epsilon as f32);
    let norm = LayerNorm {
        columns,
        rows_per_group: rows,
        factor: &factor,
        offset: &offset,
        epsilon,
    };
    let y = matrix(device, norm.forward(x.values()), (rows, columns))?;
    let y_ghost = y.ghost();
    tape.add_backward_op(move |gradients| {
        let dy = std::mem::take(&mut **gradients.get_or_alloc_mut(&y_ghost)?);
        let norm = LayerNorm {
            columns,
            rows_per_group: rows,
            factor: &factor,
            offset: &offset,
            epsilon,
        };
        norm.backward(x.values(), &dy, gradients.get_or_alloc_mut(&x)?);
        Ok(())
    });
    Ok(y)
}

/// `LN(x)·weight + bias`.
pub(super) fn layer_norm<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    x: &Matrix<f32, Cpu>,
    affine: &AffineNorm<f32, Cpu>,
) -> Result<Matrix<f32, Cpu>, CpuError> {
    let x = contiguous(tape, x)?;
    let weight = contiguous_vector(tape, &affine.weight)?;
    let bias = contiguous_vector(tape, &affine.bias)?;
    let (rows, columns) = *x.shape();
    let epsilon = affine.epsilon as f32;
    let rows_per_group = rows;
    let norm = LayerNorm {
        columns,
        rows_per_group,
        factor: weight.values(),
        offset: bias.values(),
        epsilon,
    };
    let y = matrix(device, norm.forward(x.values()), (rows, columns))?;
    let y_ghost = y.ghost();
    tape.add_backward_op(move |gradients| {
        let dy = std::mem::take(&mut **gradients.get_or_alloc_mut(&y_ghost)?);
        let norm = LayerNorm {
            columns,
            rows_per_group,
            factor: weight.values(),
            offset: bias.values(),
            epsilon,
        };
        let found = norm.backward(x.values(), &dy, gradients.get_or_alloc_mut(&x)?);
        accumulate(gradients.get_or_alloc_mut(&weight)?, &found.factor);
        accumulate(gradients.get_or_alloc_mut(&bias)?, &found.offset);
        Ok(())
    });
    Ok(y)
}

/// Affine LayerNorm of every head's queries and keys in qkv.
pub(super) fn query_key_norm<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    qkv: &Matrix<f32, Cpu>,
    heads: usize,
    query: &AffineNorm<f32, Cpu>,
    key: &AffineNorm<f32, Cpu>,
) -> Result<Matrix<f32, Cpu>, CpuError> {
    let qkv = contiguous(tape, qkv)?;
    let mut affine = Vec::with_capacity(4);
    for vector in [&query.weight, &query.bias, &key.weight, &key.bias] {
        affine.push(contiguous_vector(tape, vector)?);
    }
    let (query_epsilon, key_epsilon) = (query.epsilon as f32, key.epsilon as f32);
    let norm = move |affine: &[crate::ops::Vector<f32, Cpu>], forward: &mut dyn FnMut(QueryKeyNorm<'_>)| {
        let part = |index: usize, epsilon| HeadNorm {
            factor: affine[index].values(),
            offset: affine[index + 1].values(),
            epsilon,
        };
        forward(QueryKeyNorm {
            heads,
            query: part(0, query_epsilon),
            key: part(2, key_epsilon),
        });
    };
    let mut y = Vec::new();
    norm(&affine, &mut |norm| y = norm.forward(qkv.values()));
    let y = matrix(device, y, *qkv.shape())?;
    let y_ghost = y.ghost();
    tape.add_backward_op(move |gradients| {
        let dy = std::mem::take(&mut **gradients.get_or_alloc_mut(&y_ghost)?);
        let mut found = Default::default();
        let dqkv = gradients.get_or_alloc_mut(&qkv)?;
        norm(&affine, &mut |norm| found = norm.backward(qkv.values(), &dy, dqkv));
        for (vector, gradient) in affine.iter().zip(found) {
            accumulate(gradients.get_or_alloc_mut(vector)?, &gradient);
        }
        Ok(())
    });
    Ok(y)
}
