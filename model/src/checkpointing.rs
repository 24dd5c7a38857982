//! Activation checkpointing: keep a block's input, compute the block again when its gradient is due.

use dfdx::prelude::{Backward, Dtype, Gradients, NoneTape, PutTape, Rank0, SplitTape, Storage, Tape, Trace};

use crate::blocks::Block;
use crate::ops::{Matrix, Operators, Scalar};

/// [`Block::forward`] that leaves nothing on the tape but the two inputs. The second computation runs the same
/// operations on the same numbers and adds to the same gradients in the same order, so the result is the same bits.
pub(crate) fn forward_checkpointed<E: Dtype, D: Operators<E>, T: Tape<E, D>>(
    block: &Block<E, D>,
    device: &D,
    tape: &mut T,
    x: Matrix<E, D>,
    silu_c: &Matrix<E, D>,
) -> Result<Matrix<E, D>, D::Err> {
    let out = block.forward(device, &mut NoneTape, x.clone(), silu_c)?;
    let out_ghost = out.ghost();
    let (block, device) = (block.clone(), device.clone());
    let silu_c = silu_c.clone();
    tape.add_backward_op(move |gradients| {
        let upstream = Storage::<E>::try_alloc_len(&device, 1)?;
        let upstream = std::mem::replace(gradients.get_or_alloc_mut(&out_ghost)?, upstream);
        // dfdx runs a tape only from a scalar: this one carries the gradients in and out and is otherwise unused.
        let seed: Scalar<E, D> = device.try_zeros::<Rank0>()?;
        let carried = std::mem::replace(gradients, Gradients::leaky());
        let (seed, mut inner) = seed.traced(carried).split_tape();
        let again = block.forward(&device, &mut inner, x, &silu_c)?;
        inner.add_backward_op(move |gradients| {
            *gradients.get_or_alloc_mut(&again)? = upstream;
            Ok(())
        });
        *gradients = seed.put_tape(inner).try_backward()?;
        Ok(())
    });
    Ok(out)
}
