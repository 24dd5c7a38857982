//! `blocks.i`: the adaLN-Zero transformer block (network spec §2).

use dfdx::prelude::{Dtype, HasShape, Tape};

use crate::config::NetworkConfig;
use crate::layers::{LayerNorm, Linear};
use crate::ops::{Matrix, Modulation, Operators};
use crate::parameters::{parameters_of, Builder};

/// Epsilon of every LayerNorm without an affine part.
pub(crate) const EPSILON: f64 = 1e-6;

/// Places of (shift, scale, gate) of attention and of the MLP in a block's modulation.
const SHIFT_ATTENTION: usize = 0;
const SCALE_ATTENTION: usize = 1;
const GATE_ATTENTION: usize = 2;
const SHIFT_MLP: usize = 3;
const SCALE_MLP: usize = 4;
const GATE_MLP: usize = 5;

/// One transformer block.
#[derive(Clone, Debug)]
pub(crate) struct Block<E: Dtype, D: Operators<E>> {
    attention: Attention<E, D>,
    mlp: Mlp<E, D>,
    modulation: Linear<E, D>,
}

parameters_of!(Block: attention, mlp, modulation);

impl<E: Dtype, D: Operators<E>> Block<E, D> {
    pub(crate) fn new(at: &Builder<'_, E, D>, config: &NetworkConfig) -> Result<Self, D::Err> {
        let width = config.width;
        Ok(Self {
            attention: Attention::new(&at.at("attn"), config)?,
            mlp: Mlp::new(&at.at("mlp"), width, width * config.mlp_ratio, width)?,
            modulation: Linear::zero(&at.at("adaLN_modulation.1"), width, 6 * width)?,
        })
    }

    /// x (B·T, D), silu_c = SiLU(c) (B, D) → (B·T, D).
    pub(crate) fn forward<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        x: &Matrix<E, D>,
        silu_c: &Matrix<E, D>,
    ) -> Result<Matrix<E, D>, D::Err> {
        let modulation = self.modulation.forward(device, tape, silu_c)?;
        let part = |shift, scale| Modulation {
            shift,
            scale,
            scale_limit: None,
            epsilon: EPSILON,
        };

        let attention = part(SHIFT_ATTENTION, SCALE_ATTENTION);
        let update = self.attention.forward(device, tape, x, &modulation, attention)?;
        let x = device.gated_residual(tape, x, &modulation, GATE_ATTENTION, &update)?;

        let mlp = part(SHIFT_MLP, SCALE_MLP);
        let update = self.mlp.after_modulated_norm(device, tape, &x, &modulation, mlp)?;
        device.gated_residual(tape, &x, &modulation, GATE_MLP, &update)
    }
}

/// `attn`: packed queries, keys and values, optional norm of queries and keys, output projection.
#[derive(Clone, Debug)]
struct Attention<E: Dtype, D: Operators<E>> {
    qkv: Linear<E, D>,
    q_norm: Option<LayerNorm<E, D>>,
    k_norm: Option<LayerNorm<E, D>>,
    proj: Linear<E, D>,
    heads: usize,
}

parameters_of!(Attention: qkv, q_norm, k_norm, proj);

impl<E: Dtype, D: Operators<E>> Attention<E, D> {
    fn new(at: &Builder<'_, E, D>, config: &NetworkConfig) -> Result<Self, D::Err> {
        let width = config.width;
        let head_norm = |name: &str| {
            config
                .qk_norm
                .then(|| LayerNorm::new(&at.at(name), width / config.heads))
                .transpose()
        };
        Ok(Self {
            qkv: Linear::xavier(&at.at("qkv"), width, 3 * width)?,
            q_norm: head_norm("q_norm")?,
            k_norm: head_norm("k_norm")?,
            proj: Linear::xavier(&at.at("proj"), width, width)?,
            heads: config.heads,
        })
    }

    fn forward<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        x: &Matrix<E, D>,
        modulation: &Matrix<E, D>,
        parts: Modulation,
    ) -> Result<Matrix<E, D>, D::Err> {
        let batch = modulation.shape().0;
        let mut qkv = self.qkv.after_modulated_norm(device, tape, x, modulation, parts)?;
        if let (Some(query), Some(key)) = (&self.q_norm, &self.k_norm) {
            qkv = device.query_key_norm(tape, &qkv, self.heads, &query.norm(), &key.norm())?;
        }
        let mixed = device.self_attention(tape, &qkv, batch, self.heads)?;
        self.proj.forward(device, tape, &mixed)
    }
}

/// `mlp`: `fc2(gelu_tanh(fc1(x)))`.
#[derive(Clone, Debug)]
pub(crate) struct Mlp<E: Dtype, D: Operators<E>> {
    fc1: Linear<E, D>,
    fc2: Linear<E, D>,
}

parameters_of!(Mlp: fc1, fc2);

impl<E: Dtype, D: Operators<E>> Mlp<E, D> {
    pub(crate) fn new(at: &Builder<'_, E, D>, inputs: usize, hidden: usize, outputs: usize) -> Result<Self, D::Err> {
        Ok(Self {
            fc1: Linear::xavier(&at.at("fc1"), inputs, hidden)?,
            fc2: Linear::xavier(&at.at("fc2"), hidden, outputs)?,
        })
    }

    pub(crate) fn forward<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        x: &Matrix<E, D>,
    ) -> Result<Matrix<E, D>, D::Err> {
        let hidden = self.fc1.forward(device, tape, x)?;
        self.fc2.after_gelu(device, tape, &hidden)
    }

    /// [`forward`](Self::forward) of the modulated LayerNorm of `x`.
    pub(crate) fn after_modulated_norm<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        x: &Matrix<E, D>,
        modulation: &Matrix<E, D>,
        parts: Modulation,
    ) -> Result<Matrix<E, D>, D::Err> {
        let hidden = self.fc1.after_modulated_norm(device, tape, x, modulation, parts)?;
        self.fc2.after_gelu(device, tape, &hidden)
    }
}
