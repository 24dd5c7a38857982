//! The CPU's `f32` operators: the kernels of [`cpu`](super::cpu) on dfdx's tape.
//!
//! An operator computes its result from slices of the inputs and records one closure for the backward pass. The closure
//! takes the gradient of its output out of the store, which frees it at once, adds to the gradients of its inputs, and
//! releases what it kept when it returns.

mod access;
mod activation;
mod attention;
mod branches;
mod linear;
mod loss;
mod modulated_linear;
mod modulation;
mod normalization;
mod optimizer;
mod residual;
#[cfg(test)]
mod tests;

use std::ops::Range;

use dfdx::prelude::{Cpu, CpuError, Gradients, HasShape, Tape};

pub(crate) use branches::ROWS_TOGETHER;

use super::cpu::Activation;
use super::{
    AdamWStep, AffineNorm, AttentionWeights, GatedModulation, LinearMap, Matrix, Modulation, Operators, ParameterState,
    Scalar, Vector,
};

type Result<T, E = CpuError> = std::result::Result<T, E>;
type M = Matrix<f32, Cpu>;

impl Operators<f32> for Cpu {
    fn linear<T: Tape<f32, Cpu>>(&self, tape: &mut T, x: &M, weight: &M, bias: &Vector<f32, Cpu>) -> Result<M> {
        linear::linear(self, tape, x, Activation::Identity, weight, bias, 0..weight.shape().0)
    }

    fn linear_rows<T: Tape<f32, Cpu>>(
        &self,
        tape: &mut T,
        x: &M,
        weight: &M,
        bias: &Vector<f32, Cpu>,
        rows: Range<usize>,
    ) -> Result<M> {
        linear::linear(self, tape, x, Activation::Identity, weight, bias, rows)
    }

    fn gelu_linear<T: Tape<f32, Cpu>>(&self, tape: &mut T, x: &M, weight: &M, bias: &Vector<f32, Cpu>) -> Result<M> {
        linear::linear(self, tape, x, Activation::GeluTanh, weight, bias, 0..weight.shape().0)
    }

    fn silu_linear<T: Tape<f32, Cpu>>(&self, tape: &mut T, x: &M, weight: &M, bias: &Vector<f32, Cpu>) -> Result<M> {
        linear::linear(self, tape, x, Activation::Silu, weight, bias, 0..weight.shape().0)
    }

    fn silu<T: Tape<f32, Cpu>>(&self, tape: &mut T, x: &M) -> Result<M> {
        activation::activate(self, tape, x, Activation::Silu)
    }

    fn gelu_tanh<T: Tape<f32, Cpu>>(&self, tape: &mut T, x: &M) -> Result<M> {
        activation::activate(self, tape, x, Activation::GeluTanh)
    }

    fn add<T: Tape<f32, Cpu>>(&self, tape: &mut T, a: &M, b: &M) -> Result<M> {
        residual::add(self, tape, a, b)
    }

    fn modulated_layer_norm<T: Tape<f32, Cpu>>(
        &self,
        tape: &mut T,
        x: &M,
        modulation: &M,
        parts: Modulation,
    ) -> Result<M> {
        normalization::modulated_layer_norm(self, tape, x, modulation, parts)
    }

    fn modulated_linear<T: Tape<f32, Cpu>>(
        &self,
        tape: &mut T,
        x: &M,
        modulation: &M,
        parts: Modulation,
        weight: &M,
        bias: &Vector<f32, Cpu>,
    ) -> Result<M> {
        modulated_linear::modulated_linear(self, tape, x, modulation, parts, weight, bias)
    }

    fn plain_layer_norm<T: Tape<f32, Cpu>>(&self, tape: &mut T, x: &M, epsilon: f64) -> Result<M> {
        normalization::plain_layer_norm(self, tape, x, epsilon)
    }

    fn layer_norm<T: Tape<f32, Cpu>>(&self, tape: &mut T, x: &M, norm: &AffineNorm<f32, Cpu>) -> Result<M> {
        normalization::layer_norm(self, tape, x, norm)
    }

    fn query_key_norm<T: Tape<f32, Cpu>>(
        &self,
        tape: &mut T,
        qkv: &M,
        heads: usize,
        query: &AffineNorm<f32, Cpu>,
        key: &AffineNorm<f32, Cpu>,
    ) -> Result<M> {
        normalization::query_key_norm(self, tape, qkv, heads, query, key)
    }

    fn gated_residual<T: Tape<f32, Cpu>>(&self, tape: &mut T, x: &M, modulation: &M, gate: usize, y: &M) -> Result<M> {
        residual::gated_residual(self, tape, x, modulation, gate, y)
    }

    fn self_attention<T: Tape<f32, Cpu>>(&self, tape: &mut T, qkv: &M, batch: usize, heads: usize) -> Result<M> {
        attention::self_attention(self, tape, qkv, batch, heads)
    }

    fn cross_attention<T: Tape<f32, Cpu>>(&self, tape: &mut T, q: &M, kv: &M, batch: usize, heads: usize) -> Result<M> {
        attention::cross_attention(self, tape, q, kv, batch, heads)
    }

    fn attention_branch<T: Tape<f32, Cpu>>(
        &self,
        tape: &mut T,
        x: &M,
        modulation: &M,
        parts: GatedModulation,
        weights: &AttentionWeights<f32, Cpu>,
    ) -> Result<M> {
        branches::attention_branch(self, tape, x, modulation, parts, weights)
    }

    fn mlp_branch<T: Tape<f32, Cpu>>(
        &self,
        tape: &mut T,
        x: &M,
        modulation: &M,
        parts: GatedModulation,
        layers: [&LinearMap<f32, Cpu>; 2],
    ) -> Result<M> {
        branches::mlp_branch(self, tape, x, modulation, parts, layers)
    }

    fn modulated_mlp<T: Tape<f32, Cpu>>(
        &self,
        tape: &mut T,
        x: &M,
        modulation: &M,
        parts: Modulation,
        layers: [&LinearMap<f32, Cpu>; 2],
    ) -> Result<M> {
        branches::modulated_mlp(self, tape, x, modulation, parts, layers)
    }

    fn silu_layers<T: Tape<f32, Cpu>>(&self, tape: &mut T, x: &M, layers: &[LinearMap<f32, Cpu>]) -> Result<M> {
        branches::silu_layers(self, tape, x, layers)
    }

    fn concat<T: Tape<f32, Cpu>>(&self, tape: &mut T, a: &M, b: &M) -> Result<M> {
        residual::concat(self, tape, a, b)
    }

    fn add_position<T: Tape<f32, Cpu>>(&self, tape: &mut T, tokens: &M, position: &M) -> Result<M> {
        residual::add_position(self, tape, tokens, position)
    }

    fn embedding<T: Tape<f32, Cpu>>(&self, tape: &mut T, table: &M, indices: &[usize]) -> Result<M> {
        residual::embedding(self, tape, table, indices)
    }

    fn mean_squared_error<T: Tape<f32, Cpu>>(
        &self,
        tape: &mut T,
        prediction: &M,
        target: &M,
    ) -> Result<Scalar<f32, Cpu>> {
        loss::mean_squared_error(self, tape, prediction, target)
    }

    fn acceleration_loss<T: Tape<f32, Cpu>>(
        &self,
        tape: &mut T,
        displacement: &M,
        velocity: &M,
        acceleration: &M,
        times: &[f64],
    ) -> Result<Scalar<f32, Cpu>> {
        loss::acceleration_loss(self, tape, displacement, velocity, acceleration, times)
    }

    fn cosine_alignment_loss<T: Tape<f32, Cpu>>(
        &self,
        tape: &mut T,
        prediction: &M,
        target: &M,
    ) -> Result<Scalar<f32, Cpu>> {
        loss::cosine_alignment_loss(self, tape, prediction, target)
    }

    fn gradient_square_sum(&self, gradients: &mut Gradients<f32, Cpu>, parameter: &Vector<f32, Cpu>) -> Result<f64> {
        optimizer::square_sum(gradients, &[parameter])
    }

    fn global_square_sum(&self, gradients: &mut Gradients<f32, Cpu>, parameters: &[&Vector<f32, Cpu>]) -> Result<f64> {
        optimizer::square_sum(gradients, parameters)
    }

    fn adamw(
        &self,
        gradients: &mut Gradients<f32, Cpu>,
        state: ParameterState<'_, f32, Cpu>,
        step: &AdamWStep,
    ) -> Result<()> {
        optimizer::adamw(gradients, vec![state], step)
    }

    fn adamw_of_all(
        &self,
        gradients: &mut Gradients<f32, Cpu>,
        states: Vec<ParameterState<'_, f32, Cpu>>,
        step: &AdamWStep,
    ) -> Result<()> {
        optimizer::adamw(gradients, states, step)
    }
}
