//! Linear layers on the tape, with an activation in front of them and hand-written gradients.

use std::ops::Range;

use dfdx::prelude::{Cpu, CpuError, HasShape, Tape};

use super::access::{contiguous, contiguous_vector, matrix, taken, Values};
use crate::ops::cpu::linear::LinearShape;
use crate::ops::cpu::Activation;
use crate::ops::{Matrix, Vector};

/// `activation(x)·weight[outputs]ᵀ + bias[outputs]`; only `x` is kept.
pub(super) fn linear<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    x: &Matrix<f32, Cpu>,
    activation: Activation,
    weight: &Matrix<f32, Cpu>,
    bias: &Vector<f32, Cpu>,
    outputs: Range<usize>,
) -> Result<Matrix<f32, Cpu>, CpuError> {
    let (x, weight) = (contiguous(tape, x)?, contiguous(tape, weight)?);
    let bias = contiguous_vector(tape, bias)?;
    let (rows, inputs) = *x.shape();
    let shape = LinearShape {
        rows,
        inputs,
        outputs: outputs.len(),
    };
    let weights = outputs.start * inputs..outputs.end * inputs;
    let y = shape.forward(
        x.values(),
        activation,
        &weight.values()[weights.clone()],
        &bias.values()[outputs.clone()],
    );
    let y = matrix(device, y, (rows, outputs.len()))?;
    let y_ghost = y.ghost();
    tape.add_backward_op(move |gradients| {
        let dy = std::mem::take(&mut **gradients.get_or_alloc_mut(&y_ghost)?);
        let (mut dweight, mut dbias) = (taken(gradients, &weight)?, taken(gradients, &bias)?);
        let dx = gradients.get_or_alloc_mut(&x)?;
        let (x, weights_read) = (x.values(), &weight.values()[weights.clone()]);
        shape.accumulate_beside(
            (&dy, x),
            activation,
            (&mut dweight[weights], &mut dbias[outputs]),
            || shape.accumulate_input_gradient(&dy, x, activation, weights_read, dx),
        );
        **gradients.get_or_alloc_mut(&weight)? = dweight;
        **gradients.get_or_alloc_mut(&bias)? = dbias;
        Ok(())
    });
    Ok(y)
}
