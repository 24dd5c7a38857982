//! Between our explicit tape and dfdx's tape inside the tensor.

use dfdx::prelude::{Dtype, PutTape, Shape, SplitTape, Storage, Tape, Tensor};

/// Runs a dfdx operation on `x` that records on `tape`. Other tensors used inside need no tape: dfdx finds their
/// gradients by id.
pub(in crate::ops) fn record<S: Shape, R: Shape, E: Dtype, D: Storage<E>, T: Tape<E, D>>(
    tape: &mut T,
    x: &Tensor<S, E, D>,
    operation: impl FnOnce(Tensor<S, E, D, T>) -> Result<Tensor<R, E, D, T>, D::Err>,
) -> Result<Tensor<R, E, D>, D::Err> {
    let taped = x.clone().put_tape(std::mem::take(tape));
    let (result, filled) = operation(taped)?.split_tape();
    *tape = filled;
    Ok(result)
}
