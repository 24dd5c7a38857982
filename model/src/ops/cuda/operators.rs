//! [`Operators`] for dfdx's CUDA device, in single and in half precision.

use std::ops::Range;

use dfdx::prelude::{Gradients, HasShape, Tape};
use dfdx::tensor::Cuda;
use half::f16;

use super::activation::Activation;
use super::layer_norm::Affine;
use super::optimizer::Parts;
use super::tensor::{address, pointer};
use super::{activation, attention, embedding, layer_norm, linear, loss, optimizer, residual, step_controller};
use crate::ops::{AdamWStep, AffineNorm, Matrix, Modulation, Operators, ParameterState, Scalar, Vector};

type Result<T> = std::result::Result<T, dfdx::tensor::CudaError>;

macro_rules! affine {
    ($norm:expr) => {
        Affine {
            weight: &$norm.weight,
            bias: &$norm.bias,
            epsilon: $norm.epsilon,
        }
    };
}

/// The methods that are the same in both precisions.
macro_rules! fused_operators {
    ($E:ty) => {
        const WIDEST_HEAD: Option<usize> = Some(attention::MAX_HEAD_WIDTH);

        fn linear<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            x: &Matrix<$E, Self>,
            weight: &Matrix<$E, Self>,
            bias: &Vector<$E, Self>,
        ) -> Result<Matrix<$E, Self>> {
            linear::linear(self, tape, x, weight, bias, 0..weight.shape().0, None)
        }

        fn linear_rows<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            x: &Matrix<$E, Self>,
            weight: &Matrix<$E, Self>,
            bias: &Vector<$E, Self>,
            rows: Range<usize>,
        ) -> Result<Matrix<$E, Self>> {
            linear::linear(self, tape, x, weight, bias, rows, None)
        }

        fn gelu_linear<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            x: &Matrix<$E, Self>,
            weight: &Matrix<$E, Self>,
            bias: &Vector<$E, Self>,
        ) -> Result<Matrix<$E, Self>> {
            let rows = 0..weight.shape().0;
            linear::linear(self, tape, x, weight, bias, rows, Some(Activation::Gelu))
        }

        fn silu_linear<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            x: &Matrix<$E, Self>,
            weight: &Matrix<$E, Self>,
            bias: &Vector<$E, Self>,
        ) -> Result<Matrix<$E, Self>> {
            let rows = 0..weight.shape().0;
            linear::linear(self, tape, x, weight, bias, rows, Some(Activation::Silu))
        }

        fn silu<T: Tape<$E, Self>>(&self, tape: &mut T, x: &Matrix<$E, Self>) -> Result<Matrix<$E, Self>> {
            activation::activate(self, tape, Activation::Silu, x)
        }

        fn gelu_tanh<T: Tape<$E, Self>>(&self, tape: &mut T, x: &Matrix<$E, Self>) -> Result<Matrix<$E, Self>> {
            activation::activate(self, tape, Activation::Gelu, x)
        }

        fn add<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            a: &Matrix<$E, Self>,
            b: &Matrix<$E, Self>,
        ) -> Result<Matrix<$E, Self>> {
            activation::add(self, tape, a, b)
        }

        fn modulated_layer_norm<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            x: &Matrix<$E, Self>,
            modulation: &Matrix<$E, Self>,
            parts: Modulation,
        ) -> Result<Matrix<$E, Self>> {
            layer_norm::modulated_layer_norm(self, tape, x, modulation, parts)
        }

        fn plain_layer_norm<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            x: &Matrix<$E, Self>,
            epsilon: f64,
        ) -> Result<Matrix<$E, Self>> {
            layer_norm::plain_layer_norm(self, tape, x, epsilon)
        }

        fn layer_norm<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            x: &Matrix<$E, Self>,
            norm: &AffineNorm<$E, Self>,
        ) -> Result<Matrix<$E, Self>> {
            layer_norm::layer_norm(self, tape, x, affine!(norm))
        }

        fn query_key_norm<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            qkv: &Matrix<$E, Self>,
            heads: usize,
            query: &AffineNorm<$E, Self>,
            key: &AffineNorm<$E, Self>,
        ) -> Result<Matrix<$E, Self>> {
            layer_norm::query_key_norm(self, tape, qkv, heads, affine!(query), affine!(key))
        }

        fn gated_residual<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            x: &Matrix<$E, Self>,
            modulation: &Matrix<$E, Self>,
            gate: usize,
            y: &Matrix<$E, Self>,
        ) -> Result<Matrix<$E, Self>> {
            residual::gated_residual(self, tape, x, modulation, gate, y)
        }

        fn self_attention<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            qkv: &Matrix<$E, Self>,
            batch: usize,
            heads: usize,
        ) -> Result<Matrix<$E, Self>> {
            attention::self_attention(self, tape, qkv, batch, heads)
        }

        fn cross_attention<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            q: &Matrix<$E, Self>,
            kv: &Matrix<$E, Self>,
            batch: usize,
            heads: usize,
        ) -> Result<Matrix<$E, Self>> {
            attention::cross_attention(self, tape, q, kv, batch, heads)
        }

        fn concat<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            a: &Matrix<$E, Self>,
            b: &Matrix<$E, Self>,
        ) -> Result<Matrix<$E, Self>> {
            embedding::concat(self, tape, a, b)
        }

        fn add_position<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            tokens: &Matrix<$E, Self>,
            position: &Matrix<$E, Self>,
        ) -> Result<Matrix<$E, Self>> {
            embedding::add_position(self, tape, tokens, position)
        }

        fn embedding<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            table: &Matrix<$E, Self>,
            indices: &[usize],
        ) -> Result<Matrix<$E, Self>> {
            embedding::embedding(self, tape, table, indices)
        }

        fn fourier_features(&self, times: &[f64], frequencies: usize) -> Result<Matrix<$E, Self>> {
            embedding::fourier_features(self, times, frequencies)
        }

        fn mean_squared_error<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            prediction: &Matrix<$E, Self>,
            target: &Matrix<$E, Self>,
        ) -> Result<Scalar<$E, Self>> {
            loss::mean_squared_error(self, tape, prediction, target)
        }

        fn acceleration_loss<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            displacement: &Matrix<$E, Self>,
            velocity: &Matrix<$E, Self>,
            acceleration: &Matrix<$E, Self>,
            times: &[f64],
        ) -> Result<Scalar<$E, Self>> {
            loss::acceleration_loss(self, tape, displacement, velocity, acceleration, times)
        }

        fn cosine_alignment_loss<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            prediction: &Matrix<$E, Self>,
            target: &Matrix<$E, Self>,
        ) -> Result<Scalar<$E, Self>> {
            loss::cosine_alignment_loss(self, tape, prediction, target)
        }

        fn weighted_sum<T: Tape<$E, Self>>(
            &self,
            tape: &mut T,
            terms: &[(Scalar<$E, Self>, f64)],
        ) -> Result<Scalar<$E, Self>> {
            activation::weighted_sum(self, tape, terms)
        }

        fn gradient_square_sum(
            &self,
            gradients: &mut Gradients<$E, Self>,
            parameter: &Vector<$E, Self>,
        ) -> Result<f64> {
            let gradient = address::<$E>(gradients.get_or_alloc_mut(parameter)?);
            step_controller::host_sum_of_squares::<$E>(self, gradient, parameter.shape().0)
        }
    };
}

impl Operators<f32> for Cuda {
    fused_operators!(f32);

    fn adamw(
        &self,
        gradients: &mut Gradients<f32, Self>,
        state: ParameterState<'_, f32, Self>,
        step: &AdamWStep,
    ) -> Result<()> {
        let parts = Parts {
            gradient: address::<f32>(gradients.get_or_alloc_mut(state.parameter)?),
            parameter: pointer(state.parameter),
            first_moment: pointer(state.first_moment),
            second_moment: pointer(state.second_moment),
            ema: pointer(state.ema),
            working: 0,
        };
        optimizer::adamw_from_host(self, parts, step, state.parameter.shape().0)
    }
}

/// The network's working copies in half precision. Their update is [`MasterParameter`](super::MasterParameter)'s: the
/// provided [`Operators::adamw`] would keep moments in f16.
impl Operators<f16> for Cuda {
    fused_operators!(f16);
}
