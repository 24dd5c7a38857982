//! A linear layer behind a modulated norm, which the backward pass computes again instead of keeping it.

use dfdx::prelude::{Cpu, CpuError, HasShape, Tape};

use super::access::{contiguous, contiguous_vector, matrix, taken, Values};
use super::normalization::ModulatedNorm;
use crate::ops::cpu::linear::LinearShape;
use crate::ops::cpu::Activation;
use crate::ops::{Matrix, Modulation, Vector};

/// `(LN(x)·(1 + scale) + shift)·weightᵀ + bias`; only `x` is kept, its norm is computed again in the backward pass.
pub(super) fn modulated_linear<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    x: &Matrix<f32, Cpu>,
    modulation: &Matrix<f32, Cpu>,
    parts: Modulation,
    weight: &Matrix<f32, Cpu>,
    bias: &Vector<f32, Cpu>,
) -> Result<Matrix<f32, Cpu>, CpuError> {
    let (x, modulation) = (contiguous(tape, x)?, contiguous(tape, modulation)?);
    let (weight, bias) = (contiguous(tape, weight)?, contiguous_vector(tape, bias)?);
    let norm = ModulatedNorm::new(&x, modulation, parts);
    let shape = LinearShape {
        rows: x.shape().0,
        inputs: x.shape().1,
        outputs: weight.shape().0,
    };
    let y = shape.forward(&norm.forward(&x), Activation::Identity, weight.values(), bias.values());
    let y = matrix(device, y, (shape.rows, shape.outputs))?;
    let y_ghost = y.ghost();
    tape.add_backward_op(move |gradients| {
        let dy = std::mem::take(&mut **gradients.get_or_alloc_mut(&y_ghost)?);
        let normalized = norm.forward(&x);
        let (mut dweight, mut dbias) = (taken(gradients, &weight)?, taken(gradients, &bias)?);
        let (factors, weights) = ((&dy[..], &normalized[..]), weight.values());
        let parameters = (&mut dweight[..], &mut dbias[..]);
        let dnormalized = shape.accumulate_beside(factors, Activation::Identity, parameters, || {
            shape.input_gradient(factors.0, factors.1, Activation::Identity, weights)
        });
        **gradients.get_or_alloc_mut(&weight)? = dweight;
        **gradients.get_or_alloc_mut(&bias)? = dbias;
        drop((dy, normalized));
        norm.backward(gradients, &x, &dnormalized)
    });
    Ok(y)
}
