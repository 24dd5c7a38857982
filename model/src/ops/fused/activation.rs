//! Activations on the tape, with hand-written gradients.

use dfdx::prelude::{Cpu, CpuError, HasShape, Tape};

use super::access::{contiguous, matrix, Values};
use crate::ops::cpu::rows::accumulate;
use crate::ops::cpu::Activation;
use crate::ops::Matrix;

/// The activation of every value.
pub(super) fn activate<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    x: &Matrix<f32, Cpu>,
    activation: Activation,
) -> Result<Matrix<f32, Cpu>, CpuError> {
    let x = contiguous(tape, x)?;
    let y = matrix(device, activation.forward(x.values()), *x.shape())?;
    let y_ghost = y.ghost();
    tape.add_backward_op(move |gradients| {
        let mut gradient = std::mem::take(&mut **gradients.get_or_alloc_mut(&y_ghost)?);
        activation.backward(&mut gradient, x.values());
        accumulate(gradients.get_or_alloc_mut(&x)?, &gradient);
        Ok(())
    });
    Ok(y)
}
