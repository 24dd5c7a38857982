//! The operators the network is made of, on dfdx's tensors and tape.
//!
//! [`Operators`] is the whole vocabulary of the network: features are matrices of `rows = batch · tokens` by width, the
//! tape is an explicit argument ([`NoneTape`](dfdx::tensor::NoneTape) means inference: nothing is kept for a backward
//! pass). Every method has a provided version made of plain dfdx operations ([`plain`]), which runs on every device and
//! in every precision and is the oracle of the tests; a device overrides what it has a faster, fused version of.

mod branches;
pub mod conv;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod fused;
pub mod memory;
pub mod plain;
mod scalar;

use std::ops::Range;

use dfdx::prelude::{Device, Dtype, Gradients, Tape, Tensor};

pub use branches::{AttentionWeights, GatedModulation, LinearMap};
pub(crate) use fused::ROWS_TOGETHER;
pub(crate) use scalar::scalar;

/// A `(rows, columns)` tensor without a tape.
pub type Matrix<E, D> = Tensor<(usize, usize), E, D>;
/// A `(length,)` tensor without a tape.
pub type Vector<E, D> = Tensor<(usize,), E, D>;
/// A tensor of one value without a tape.
pub type Scalar<E, D> = Tensor<(), E, D>;

/// Which part of the modulation matrix `(B, n·D)` shifts and which scales a normalised feature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Modulation {
    /// Index of the chunk of `D` columns that is added.
    pub shift: usize,
    /// Index of the chunk of `D` columns that multiplies as `1 + scale`.
    pub scale: usize,
    /// Clamp the scale to `[-limit, limit]`.
    pub scale_limit: Option<f64>,
    /// Added to the variance.
    pub epsilon: f64,
}

/// The learned scale and shift of an affine LayerNorm.
#[derive(Clone, Debug)]
pub struct AffineNorm<E: Dtype, D: Device<E>> {
    /// Multiplies the normalised values, `(D,)`.
    pub weight: Vector<E, D>,
    /// Is added afterwards, `(D,)`.
    pub bias: Vector<E, D>,
    /// Added to the variance.
    pub epsilon: f64,
}

/// The scalars of one AdamW update (torch semantics, network spec §6).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this update, starting with 1 (bias correction).
    pub step: u64,
    /// Multiplies the gradient first: the clipping factor (and the inverse of a loss scale).
    pub gradient_scale: f64,
    /// `ema ← decay·ema + (1-decay)·parameter` after the update.
    pub ema_decay: f64,
}

impl AdamWStep {
    /// `1 - beta1^step`.
    pub fn bias_correction1(&self) -> f64 {
        1.0 - self.beta1.powf(self.step as f64)
    }

    /// `1 - beta2^step`.
    pub fn bias_correction2(&self) -> f64 {
        1.0 - self.beta2.powf(self.step as f64)
    }
}

/// One parameter with everything an update changes, all `(n,)`.
pub struct ParameterState<'a, E: Dtype, D: Device<E>> {
    /// The weights.
    pub parameter: &'a mut Vector<E, D>,
    /// Running mean of the gradient.
    pub first_moment: &'a mut Vector<E, D>,
    /// Running mean of the squared gradient.
    pub second_moment: &'a mut Vector<E, D>,
    /// Exponential moving average of the weights.
    pub ema: &'a mut Vector<E, D>,
}

/// The operators of the network (network spec §2–§4, §6). See the [module](self) documentation.
///
/// Operators that modulate take one row of `modulation` for `rows(x) / rows(modulation)` consecutive rows of `x`: one
/// row per sample, or a single row for the whole batch. Gradients are always accumulated, never overwritten.
pub trait Operators<E: Dtype>: Device<E> {
    /// Columns of the widest attention head the device computes; `None` where there is no limit.
    const WIDEST_HEAD: Option<usize> = None;

    /// `x·weightᵀ + bias`: x (N,K), weight (M,K), bias (M) → (N,M).
    fn linear<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        x: &Matrix<E, Self>,
        weight: &Matrix<E, Self>,
        bias: &Vector<E, Self>,
    ) -> Result<Matrix<E, Self>, Self::Err> {
        plain::linear(tape, x, weight, bias)
    }

    /// [`linear`](Self::linear) with only the given rows of a packed projection's weight (M,K) and bias (M) → (N,rows).
    fn linear_rows<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        x: &Matrix<E, Self>,
        weight: &Matrix<E, Self>,
        bias: &Vector<E, Self>,
        rows: Range<usize>,
    ) -> Result<Matrix<E, Self>, Self::Err> {
        plain::linear_rows(tape, x, weight, bias, rows)
    }

    /// `linear(gelu_tanh(x))`. The activation belongs to the layer that reads it, so that only its input has to be kept
    /// for the backward pass.
    fn gelu_linear<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        x: &Matrix<E, Self>,
        weight: &Matrix<E, Self>,
        bias: &Vector<E, Self>,
    ) -> Result<Matrix<E, Self>, Self::Err> {
        let activated = self.gelu_tanh(tape, x)?;
        self.linear(tape, &activated, weight, bias)
    }

    /// `linear(silu(x))`; see [`gelu_linear`](Self::gelu_linear).
    fn silu_linear<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        x: &Matrix<E, Self>,
        weight: &Matrix<E, Self>,
        bias: &Vector<E, Self>,
    ) -> Result<Matrix<E, Self>, Self::Err> {
        let activated = self.silu(tape, x)?;
        self.linear(tape, &activated, weight, bias)
    }

    /// `x·sigmoid(x)`.
    fn silu<T: Tape<E, Self>>(&self, tape: &mut T, x: &Matrix<E, Self>) -> Result<Matrix<E, Self>, Self::Err> {
        plain::silu(tape, x)
    }

    /// `½x(1 + tanh(√(2/π)(x + 0.044715x³)))`.
    fn gelu_tanh<T: Tape<E, Self>>(&self, tape: &mut T, x: &Matrix<E, Self>) -> Result<Matrix<E, Self>, Self::Err> {
        plain::gelu_tanh(tape, x)
    }

    /// `a + b`, both (N,D).
    fn add<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        a: &Matrix<E, Self>,
        b: &Matrix<E, Self>,
    ) -> Result<Matrix<E, Self>, Self::Err> {
        plain::add(tape, a, b)
    }

    /// `LN(x)·(1 + scale) + shift`: x (N,D), modulation (B,n·D) whose chunks `parts` names.
    fn modulated_layer_norm<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        x: &Matrix<E, Self>,
        modulation: &Matrix<E, Self>,
        parts: Modulation,
    ) -> Result<Matrix<E, Self>, Self::Err> {
        plain::modulated_layer_norm(tape, x, modulation, parts)
    }

    /// [`linear`](Self::linear) of [`modulated_layer_norm`](Self::modulated_layer_norm). The norm belongs to the layer
    /// that reads it, so that only its input has to be kept for the backward pass.
    fn modulated_linear<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        x: &Matrix<E, Self>,
        modulation: &Matrix<E, Self>,
        parts: Modulation,
        weight: &Matrix<E, Self>,
        bias: &Vector<E, Self>,
    ) -> Result<Matrix<E, Self>, Self::Err> {
        let normalized = self.modulated_layer_norm(tape, x, modulation, parts)?;
        self.linear(tape, &normalized, weight, bias)
    }

    /// `LN(x)` without anything learned, x (N,D).
    fn plain_layer_norm<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        x: &Matrix<E, Self>,
        epsilon: f64,
    ) -> Result<Matrix<E, Self>, Self::Err> {
        plain::plain_layer_norm(tape, x, epsilon)
    }

    /// `LN(x)·weight + bias`, x (N,D).
    fn layer_norm<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        x: &Matrix<E, Self>,
        norm: &AffineNorm<E, Self>,
    ) -> Result<Matrix<E, Self>, Self::Err> {
        plain::layer_norm(tape, x, norm)
    }

    /// Normalises every head of the queries and of the keys in qkv (N,3D) by its own affine LayerNorm over `D/heads`
    /// values; the values pass unchanged.
    fn query_key_norm<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        qkv: &Matrix<E, Self>,
        heads: usize,
        query: &AffineNorm<E, Self>,
        key: &AffineNorm<E, Self>,
    ) -> Result<Matrix<E, Self>, Self::Err> {
        plain::query_key_norm(tape, qkv, heads, query, key)
    }

    /// `x + gate·y`: x and y (N,D), gate the chunk number `gate` of modulation (B,n·D).
    fn gated_residual<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        x: &Matrix<E, Self>,
        modulation: &Matrix<E, Self>,
        gate: usize,
        y: &Matrix<E, Self>,
    ) -> Result<Matrix<E, Self>, Self::Err> {
        plain::gated_residual(tape, x, modulation, gate, y)
    }

    /// Multi-head attention of every sample with itself: qkv (B·T,3D), q, k, v in this order, each `heads` × D/heads →
    /// (B·T,D); softmax scale (D/heads)^-½.
    fn self_attention<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        qkv: &Matrix<E, Self>,
        batch: usize,
        heads: usize,
    ) -> Result<Matrix<E, Self>, Self::Err> {
        plain::self_attention(tape, qkv, batch, heads)
    }

    /// Multi-head attention: q (B·T,D) asks kv (B·T,2D), keys before values → (B·T,D); softmax scale (D/heads)^-½.
    fn cross_attention<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        q: &Matrix<E, Self>,
        kv: &Matrix<E, Self>,
        batch: usize,
        heads: usize,
    ) -> Result<Matrix<E, Self>, Self::Err> {
        plain::cross_attention(tape, q, kv, batch, heads)
    }

    /// The attention branch of a transformer block,
    /// `x + gate·proj(attention(qkv(LN(x)·(1 + scale) + shift)))`: x (B·T,D), modulation (B,n·D).
    fn attention_branch<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        x: &Matrix<E, Self>,
        modulation: &Matrix<E, Self>,
        parts: GatedModulation,
        weights: &AttentionWeights<E, Self>,
    ) -> Result<Matrix<E, Self>, Self::Err> {
        branches::attention_branch(self, tape, x, modulation, parts, weights)
    }

    /// The MLP branch of a transformer block, `x + gate·modulated_mlp(x)`.
    fn mlp_branch<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        x: &Matrix<E, Self>,
        modulation: &Matrix<E, Self>,
        parts: GatedModulation,
        layers: [&LinearMap<E, Self>; 2],
    ) -> Result<Matrix<E, Self>, Self::Err> {
        let update = self.modulated_mlp(tape, x, modulation, parts.norm, layers)?;
        self.gated_residual(tape, x, modulation, parts.gate, &update)
    }

    /// `fc2(gelu_tanh(fc1(LN(x)·(1 + scale) + shift)))` of the layers fc1 and fc2.
    fn modulated_mlp<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        x: &Matrix<E, Self>,
        modulation: &Matrix<E, Self>,
        parts: Modulation,
        layers: [&LinearMap<E, Self>; 2],
    ) -> Result<Matrix<E, Self>, Self::Err> {
        branches::modulated_mlp(self, tape, x, modulation, parts, layers)
    }

    /// Linear layers one after the other with SiLU between them.
    fn silu_layers<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        x: &Matrix<E, Self>,
        layers: &[LinearMap<E, Self>],
    ) -> Result<Matrix<E, Self>, Self::Err> {
        branches::silu_layers(self, tape, x, layers)
    }

    /// Columns side by side: a (N,P), b (N,Q) → (N,P+Q).
    fn concat<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        a: &Matrix<E, Self>,
        b: &Matrix<E, Self>,
    ) -> Result<Matrix<E, Self>, Self::Err> {
        plain::concat(tape, a, b)
    }

    /// Adds the position table (T,D) to the tokens (B·T,D) of every sample. The table is fixed: whether
    /// it gets a gradient does not matter.
    fn add_position<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        tokens: &Matrix<E, Self>,
        position: &Matrix<E, Self>,
    ) -> Result<Matrix<E, Self>, Self::Err> {
        plain::add_position(tape, tokens, position)
    }

    /// Rows of a table (R,D) by index → (indices,D).
    fn embedding<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        table: &Matrix<E, Self>,
        indices: &[usize],
    ) -> Result<Matrix<E, Self>, Self::Err> {
        plain::embedding(tape, table, indices)
    }

    /// `[cos(t·f), sin(t·f)]` with `frequencies / 2` frequencies `f_j = 10000^(-2j/frequencies)` → (times,frequencies).
    fn fourier_features(&self, times: &[f64], frequencies: usize) -> Result<Matrix<E, Self>, Self::Err> {
        plain::fourier_features(self, times, frequencies)
    }

    /// Mean of `(prediction - target)²` over all elements; the target gets no gradient.
    fn mean_squared_error<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        prediction: &Matrix<E, Self>,
        target: &Matrix<E, Self>,
    ) -> Result<Scalar<E, Self>, Self::Err> {
        plain::mean_squared_error(tape, prediction, target)
    }

    /// `mean((displacement - t·velocity + ½t²·acceleration)²)` (network spec §4), matrices (B·T,M), times (B); only the
    /// acceleration gets a gradient. `displacement` is `x_t - data`.
    fn acceleration_loss<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        displacement: &Matrix<E, Self>,
        velocity: &Matrix<E, Self>,
        acceleration: &Matrix<E, Self>,
        times: &[f64],
    ) -> Result<Scalar<E, Self>, Self::Err> {
        plain::acceleration_loss(tape, displacement, velocity, acceleration, times)
    }

    /// Mean over rows of `-cos(prediction, target)`, both (N,Z); the target gets no gradient.
    fn cosine_alignment_loss<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        prediction: &Matrix<E, Self>,
        target: &Matrix<E, Self>,
    ) -> Result<Scalar<E, Self>, Self::Err> {
        plain::cosine_alignment_loss(tape, prediction, target)
    }

    /// `Σ weight·term` over the loss terms.
    fn weighted_sum<T: Tape<E, Self>>(
        &self,
        tape: &mut T,
        terms: &[(Scalar<E, Self>, f64)],
    ) -> Result<Scalar<E, Self>, Self::Err> {
        plain::weighted_sum(self, tape, terms)
    }

    /// Sum of the squares of a parameter's gradient. The processor adds in f64; a GPU adds parts of it in f32, and the
    /// parts in f64.
    fn gradient_square_sum(
        &self,
        gradients: &mut Gradients<E, Self>,
        parameter: &Vector<E, Self>,
    ) -> Result<f64, Self::Err> {
        plain::gradient_square_sum(self, gradients, parameter)
    }

    /// [`gradient_square_sum`](Self::gradient_square_sum) over all parameters: the square of the global norm.
    fn global_square_sum(
        &self,
        gradients: &mut Gradients<E, Self>,
        parameters: &[&Vector<E, Self>],
    ) -> Result<f64, Self::Err> {
        let mut sum = 0.0;
        for parameter in parameters {
            sum += self.gradient_square_sum(gradients, parameter)?;
        }
        Ok(sum)
    }

    /// One AdamW update and one step of the moving average, in place.
    fn adamw(
        &self,
        gradients: &mut Gradients<E, Self>,
        state: ParameterState<'_, E, Self>,
        step: &AdamWStep,
    ) -> Result<(), Self::Err> {
        plain::adamw(gradients, state, step)
    }

    /// [`adamw`](Self::adamw) for all parameters. Afterwards their gradients may be gone.
    fn adamw_of_all(
        &self,
        gradients: &mut Gradients<E, Self>,
        states: Vec<ParameterState<'_, E, Self>>,
        step: &AdamWStep,
    ) -> Result<(), Self::Err> {
        states
            .into_iter()
            .try_for_each(|state| self.adamw(gradients, state, step))
    }
}

impl Operators<f64> for dfdx::tensor::Cpu {}
