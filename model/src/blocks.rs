//! `blocks.i`: the adaLN-Zero transformer block (network spec §2).

use dfdx::prelude::{Dtype, Tape};

use crate::config::NetworkConfig;
use crate::layers::{LayerNorm, Linear};
use crate::ops::{AttentionWeights, GatedModulation, LinearMap, Matrix, Modulation, Operators};
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
        mut x: Matrix<E, D>,
        silu_c: &Matrix<E, D>,
    ) -> Result<Matrix<E, D>, D::Err> {
        let modulation = self.modulation.forward(device, tape, silu_c)?;
        let parts = |shift, scale, gate| GatedModulation {
            norm: Modulation {
                shift,
                scale,
                scale_limit: None,
                epsilon: EPSILON,
            },
            gate,
        };
        let (of_attention, of_mlp) = (
            parts(SHIFT_ATTENTION, SCALE_ATTENTION, GATE_ATTENTION),
            parts(SHIFT_MLP, SCALE_MLP, GATE_MLP),
        );
        x = device.attention_branch(tape, &x, &modulation, of_attention, &self.attention.weights()?)?;
        let [fc1, fc2] = self.mlp.layers()?;
        device.mlp_branch(tape, &x, &modulation, of_mlp, [&fc1, &fc2])
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

    fn weights(&self) -> Result<AttentionWeights<E, D>, D::Err> {
        let norms = self.q_norm.as_ref().zip(self.k_norm.as_ref());
        Ok(AttentionWeights {
            qkv: self.qkv.map()?,
            head_norms: norms.map(|(query, key)| [query.norm(), key.norm()]),
            proj: self.proj.map()?,
            heads: self.heads,
        })
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

    fn layers(&self) -> Result<[LinearMap<E, D>; 2], D::Err> {
        Ok([self.fc1.map()?, self.fc2.map()?])
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
        let [fc1, fc2] = self.layers()?;
        device.modulated_mlp(tape, x, modulation, parts, [&fc1, &fc2])
    }
}
