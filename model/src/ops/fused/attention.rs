//! Attention on the tape: of tokens over themselves and over those of another matrix, with hand-written gradients.

use dfdx::prelude::{Cpu, CpuError, HasShape, Tape};

use super::access::{contiguous, matrix, Values};
use crate::ops::cpu::attention::{Attention, Projection};
use crate::ops::Matrix;

/// Attention of every sample with itself.
pub(super) fn self_attention<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    qkv: &Matrix<f32, Cpu>,
    batch: usize,
    heads: usize,
) -> Result<Matrix<f32, Cpu>, CpuError> {
    let qkv = contiguous(tape, qkv)?;
    let (rows, packed) = *qkv.shape();
    let (tokens, width) = (rows / batch, packed / 3);
    let attention = Attention {
        batch,
        queries: tokens,
        keys: tokens,
        heads,
        head_width: width / heads,
    };
    let part = |index| Projection {
        values: qkv.values(),
        stride: packed,
        offset: index * width,
    };
    let (out, normalizers) = attention.forward(part(0), part(1), part(2));
    let out = matrix(device, out, (rows, width))?;
    let kept = out.clone();
    tape.add_backward_op(move |gradients| {
        let dout = std::mem::take(&mut **gradients.get_or_alloc_mut(&kept)?);
        let dqkv = gradients.get_or_alloc_mut(&qkv)?;
        attention.self_backward(qkv.values(), kept.values(), &normalizers, &dout, dqkv);
        Ok(())
    });
    Ok(out)
}

/// Attention of queries over keys and values from another matrix.
pub(super) fn cross_attention<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    q: &Matrix<f32, Cpu>,
    kv: &Matrix<f32, Cpu>,
    batch: usize,
    heads: usize,
) -> Result<Matrix<f32, Cpu>, CpuError> {
    let (q, kv) = (contiguous(tape, q)?, contiguous(tape, kv)?);
    let (rows, width) = *q.shape();
    let (queries, keys) = (rows / batch, kv.shape().0 / batch);
    let attention = Attention {
        batch,
        queries,
        keys,
        heads,
        head_width: width / heads,
    };
    let query = Projection {
        values: q.values(),
        stride: width,
        offset: 0,
    };
    let part = |index| Projection {
        values: kv.values(),
        stride: 2 * width,
        offset: index * width,
    };
    let (out, normalizers) = attention.forward(query, part(0), part(1));
    let out = matrix(device, out, (rows, width))?;
    let kept = out.clone();
    tape.add_backward_op(move |gradients| {
        let dout = std::mem::take(&mut **gradients.get_or_alloc_mut(&kept)?);
        // Both gradients are written together, but only one can be borrowed: the other is taken out meanwhile.
        let mut dq = std::mem::take(&mut **gradients.get_or_alloc_mut(&q)?);
        let dkv = gradients.get_or_alloc_mut(&kv)?;
        attention.cross_backward(
            (q.values(), kv.values()),
            kept.values(),
            &normalizers,
            &dout,
            (&mut dq, dkv),
        );
        **gradients.get_or_alloc_mut(&q)? = dq;
        Ok(())
    });
    Ok(out)
}
