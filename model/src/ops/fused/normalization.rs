//! LayerNorms of every kind on the tape: plain, affine, modulated and of heads, with hand-written gradients.

use dfdx::prelude::{Cpu, CpuError, Gradients, HasShape, Tape};

use super::access::{contiguous, contiguous_vector, matrix, Values};
use super::modulation::{accumulate_chunk, chunk};
use crate::ops::cpu::head_norm::{HeadNorm, QueryKeyNorm};
use crate::ops::cpu::layer_norm::LayerNorm;
use crate::ops::cpu::rows::accumulate;
use crate::ops::{AffineNorm, Matrix, Modulation};

/// A LayerNorm whose factor and offset are parts of a modulation matrix; statistics are recomputed in the backward pass.
pub(super) struct ModulatedNorm {
    modulation: Matrix<f32, Cpu>,
    parts: Modulation,
    columns: usize,
    rows_per_group: usize,
    limit: f32,
    scale: Vec<f32>,
    factor: Vec<f32>,
    offset: Vec<f32>,
}

impl ModulatedNorm {
    /// The norm of `x` (N,D) with the parts of `modulation` (B,n·D), both contiguous.
    pub(super) fn new(x: &Matrix<f32, Cpu>, modulation: Matrix<f32, Cpu>, parts: Modulation) -> Self {
        let (rows, columns) = *x.shape();
        let limit = parts.scale_limit.map_or(f32::INFINITY, |limit| limit as f32);
        let scale = chunk(&modulation, parts.scale, columns);
        Self {
            columns,
            rows_per_group: rows / modulation.shape().0,
            limit,
            factor: scale.iter().map(|scale| 1.0 + scale.clamp(-limit, limit)).collect(),
            offset: chunk(&modulation, parts.shift, columns),
            scale,
            modulation,
            parts,
        }
    }

    pub(super) fn forward(&self, x: &Matrix<f32, Cpu>) -> Vec<f32> {
        self.kernel().forward(x.values())
    }

    /// Adds the gradients of `x` and of the modulation.
    pub(super) fn backward(
        &self,
        gradients: &mut Gradients<f32, Cpu>,
        x: &Matrix<f32, Cpu>,
        dy: &[f32],
    ) -> Result<(), CpuError> {
        let mut found = self.kernel().backward(x.values(), dy, gradients.get_or_alloc_mut(x)?);
        for (gradient, scale) in found.factor.iter_mut().zip(&self.scale) {
            if scale.abs() > self.limit {
                *gradient = 0.0;
            }
        }
        let dmodulation = gradients.get_or_alloc_mut(&self.modulation)?;
        for (part, gradient) in [(self.parts.scale, found.factor), (self.parts.shift, found.offset)] {
            accumulate_chunk(dmodulation, &self.modulation, part, &gradient, self.columns);
        }
        Ok(())
    }

    fn kernel(&self) -> LayerNorm<'_> {
        LayerNorm {
            columns: self.columns,
            rows_per_group: self.rows_per_group,
            factor: &self.factor,
            offset: &self.offset,
            epsilon: self.parts.epsilon as f32,
        }
    }
}

/// `LN(x)·(1 + scale) + shift`.
pub(super) fn modulated_layer_norm<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    x: &Matrix<f32, Cpu>,
    modulation: &Matrix<f32, Cpu>,
    parts: Modulation,
) -> Result<Matrix<f32, Cpu>, CpuError> {
    let (x, modulation) = (contiguous(tape, x)?, contiguous(tape, modulation)?);
    let norm = ModulatedNorm::new(&x, modulation, parts);
    let y = matrix(device, norm.forward(&x), *x.shape())?;
    let y_ghost = y.ghost();
    tape.add_backward_op(move |gradients| {
        let dy = std::mem::take(&mut **gradients.get_or_alloc_mut(&y_ghost)?);
        norm.backward(gradients, &x, &dy)
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
