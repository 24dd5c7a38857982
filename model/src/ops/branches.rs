//! Whole branches of the network as one operator each, so that a device can keep what flows inside them to itself. Here
//! they are composed of the single operators.

use dfdx::prelude::{Device, Dtype, HasShape, Tape};

use super::{AffineNorm, Matrix, Modulation, Operators, Vector};

/// Weight (M,K) and bias (M) of a linear layer.
#[derive(Clone, Debug)]
pub struct LinearMap<E: Dtype, D: Device<E>> {
    /// Multiplies the input, (M,K).
    pub weight: Matrix<E, D>,
    /// Is added afterwards, (M).
    pub bias: Vector<E, D>,
}

/// What a branch that modulates takes from the modulation matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GatedModulation {
    /// Shift and scale of the norm at the branch's beginning.
    pub norm: Modulation,
    /// Index of the chunk that multiplies the branch's result before it is added.
    pub gate: usize,
}

/// The attention of a transformer block.
#[derive(Clone, Debug)]
pub struct AttentionWeights<E: Dtype, D: Device<E>> {
    /// Packed queries, keys and values, (3D,D).
    pub qkv: LinearMap<E, D>,
    /// Norms of every head's queries and keys.
    pub head_norms: Option<[AffineNorm<E, D>; 2]>,
    /// What the mixed values go through, (D,D).
    pub proj: LinearMap<E, D>,
    /// Number of heads.
    pub heads: usize,
}

pub(super) fn attention_branch<E: Dtype, D: Operators<E>, T: Tape<E, D>>(
    device: &D,
    tape: &mut T,
    x: &Matrix<E, D>,
    modulation: &Matrix<E, D>,
    parts: GatedModulation,
    weights: &AttentionWeights<E, D>,
) -> Result<Matrix<E, D>, D::Err> {
    let (LinearMap { weight, bias }, batch) = (&weights.qkv, modulation.shape().0);
    let mut qkv = device.modulated_linear(tape, x, modulation, parts.norm, weight, bias)?;
    if let Some([query, key]) = &weights.head_norms {
        qkv = device.query_key_norm(tape, &qkv, weights.heads, query, key)?;
    }
    let mixed = device.self_attention(tape, &qkv, batch, weights.heads)?;
    let update = device.linear(tape, &mixed, &weights.proj.weight, &weights.proj.bias)?;
    device.gated_residual(tape, x, modulation, parts.gate, &update)
}

pub(super) fn modulated_mlp<E: Dtype, D: Operators<E>, T: Tape<E, D>>(
    device: &D,
    tape: &mut T,
    x: &Matrix<E, D>,
    modulation: &Matrix<E, D>,
    parts: Modulation,
    [fc1, fc2]: [&LinearMap<E, D>; 2],
) -> Result<Matrix<E, D>, D::Err> {
    let hidden = device.modulated_linear(tape, x, modulation, parts, &fc1.weight, &fc1.bias)?;
    device.gelu_linear(tape, &hidden, &fc2.weight, &fc2.bias)
}

pub(super) fn silu_layers<E: Dtype, D: Operators<E>, T: Tape<E, D>>(
    device: &D,
    tape: &mut T,
    x: &Matrix<E, D>,
    layers: &[LinearMap<E, D>],
) -> Result<Matrix<E, D>, D::Err> {
    let Some((first, others)) = layers.split_first() else {
        return Ok(x.clone());
    };
    let mut y = device.linear(tape, x, &first.weight, &first.bias)?;
    for layer in others {
        y = device.silu_linear(tape, &y, &layer.weight, &layer.bias)?;
    }
    Ok(y)
}
