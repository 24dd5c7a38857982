//! The layers with names that the parts of the network share: linear maps and affine norms.

use std::ops::Range;

use dfdx::prelude::{Dtype, Tape};

use crate::init::Initial;
use crate::ops::{AffineNorm, LinearMap, Matrix, Modulation, Operators};
use crate::parameters::{parameters_of, Builder, Parameter};

/// A linear map with bias: names `weight` (out, in) and `bias` (out).
#[derive(Clone, Debug)]
pub(crate) struct Linear<E: Dtype, D: Operators<E>> {
    weight: Parameter<E, D>,
    bias: Parameter<E, D>,
}

parameters_of!(Linear: weight, bias);

impl<E: Dtype, D: Operators<E>> Linear<E, D> {
    /// Xavier-uniform weight, zero bias.
    pub(crate) fn xavier(at: &Builder<'_, E, D>, inputs: usize, outputs: usize) -> Result<Self, D::Err> {
        Self::new(at, &[outputs, inputs], Initial::XavierUniform)
    }

    /// Weight and bias zero: the map starts as the constant 0.
    pub(crate) fn zero(at: &Builder<'_, E, D>, inputs: usize, outputs: usize) -> Result<Self, D::Err> {
        Self::new(at, &[outputs, inputs], Initial::Zeros)
    }

    /// A weight of any shape `(outputs, …)`, seen as a matrix; zero bias.
    pub(crate) fn new(at: &Builder<'_, E, D>, shape: &[usize], weight: Initial) -> Result<Self, D::Err> {
        Self::named(at, "weight", "bias", shape, weight)
    }

    /// The same under other names than `weight` and `bias`.
    pub(crate) fn named(
        at: &Builder<'_, E, D>,
        weight_name: &str,
        bias_name: &str,
        shape: &[usize],
        weight: Initial,
    ) -> Result<Self, D::Err> {
        Ok(Self {
            weight: at.parameter(weight_name, shape, weight)?,
            bias: at.parameter(bias_name, &shape[..1], Initial::Zeros)?,
        })
    }

    /// The weights, for operators that are more than this layer.
    pub(crate) fn map(&self) -> Result<LinearMap<E, D>, D::Err> {
        Ok(LinearMap {
            weight: self.weight.matrix()?,
            bias: self.bias.vector().clone(),
        })
    }

    pub(crate) fn forward<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        x: &Matrix<E, D>,
    ) -> Result<Matrix<E, D>, D::Err> {
        device.linear(tape, x, &self.weight.matrix()?, self.bias.vector())
    }

    pub(crate) fn forward_rows<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        x: &Matrix<E, D>,
        rows: Range<usize>,
    ) -> Result<Matrix<E, D>, D::Err> {
        device.linear_rows(tape, x, &self.weight.matrix()?, self.bias.vector(), rows)
    }

    /// `linear(LN(x)·(1 + scale) + shift)`.
    pub(crate) fn after_modulated_norm<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        x: &Matrix<E, D>,
        modulation: &Matrix<E, D>,
        parts: Modulation,
    ) -> Result<Matrix<E, D>, D::Err> {
        device.modulated_linear(tape, x, modulation, parts, &self.weight.matrix()?, self.bias.vector())
    }

    /// `linear(gelu_tanh(x))`.
    pub(crate) fn after_gelu<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        x: &Matrix<E, D>,
    ) -> Result<Matrix<E, D>, D::Err> {
        device.gelu_linear(tape, x, &self.weight.matrix()?, self.bias.vector())
    }

    /// `linear(silu(x))`.
    pub(crate) fn after_silu<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        x: &Matrix<E, D>,
    ) -> Result<Matrix<E, D>, D::Err> {
        device.silu_linear(tape, x, &self.weight.matrix()?, self.bias.vector())
    }
}

/// The weights of several layers.
pub(crate) fn maps<E: Dtype, D: Operators<E>, const N: usize>(
    layers: [&Linear<E, D>; N],
) -> Result<Vec<LinearMap<E, D>>, D::Err> {
    layers.into_iter().map(Linear::map).collect()
}

/// An affine LayerNorm: names `weight` and `bias`.
#[derive(Clone, Debug)]
pub(crate) struct LayerNorm<E: Dtype, D: Operators<E>> {
    weight: Parameter<E, D>,
    bias: Parameter<E, D>,
}

parameters_of!(LayerNorm: weight, bias);

impl<E: Dtype, D: Operators<E>> LayerNorm<E, D> {
    const EPSILON: f64 = 1e-5;

    pub(crate) fn new(at: &Builder<'_, E, D>, width: usize) -> Result<Self, D::Err> {
        Ok(Self {
            weight: at.parameter("weight", &[width], Initial::Ones)?,
            bias: at.parameter("bias", &[width], Initial::Zeros)?,
        })
    }

    pub(crate) fn norm(&self) -> AffineNorm<E, D> {
        AffineNorm {
            weight: self.weight.values.clone(),
            bias: self.bias.values.clone(),
            epsilon: Self::EPSILON,
        }
    }

    pub(crate) fn forward<T: Tape<E, D>>(
        &self,
        device: &D,
        tape: &mut T,
        x: &Matrix<E, D>,
    ) -> Result<Matrix<E, D>, D::Err> {
        device.layer_norm(tape, x, &self.norm())
    }
}
