//! SiLU and tanh-GELU with their derivatives, vectorised.
//!
//! Both are a logistic function: `silu(x) = x·σ(x)`, and since `(1 + tanh(u))/2 = σ(2u)`,
//! `gelu_tanh(x) = x·σ(2·√(2/π)·(x + 0.044715·x³))`. So one polynomial for `exp` serves both.

use super::parallel::{for_each_chunk, ELEMENTS_PER_TASK};
use super::simd::{for_each_level, multiply_add};

/// A function applied to every value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// The value itself.
    #[default]
    Identity,
    /// `x·σ(x)`.
    Silu,
    /// `½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
    GeluTanh,
}

/// `2·√(2/π)`.
const GELU_SLOPE: f32 = 1.595_769;
/// `2·√(2/π)·0.044715`.
const GELU_CUBIC: f32 = 0.071_354_814;

/// `e^x` for `x ≤ 88`, with a relative error below 2e-7; smaller than `e^-87` becomes about `e^-87`.
#[inline(always)]
pub(crate) fn exp<const FUSED: bool>(x: f32) -> f32 {
    // 1.5·2^23: adding it leaves the nearest integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = multiply_add::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let whole = shifted - ROUND;
    // ln 2 in two parts, so that the product with `whole` is exact enough.
    let rest = multiply_add::<FUSED>(whole, -0.693_359_4, x);
    let rest = multiply_add::<FUSED>(whole, 2.121_944_4e-4, rest);
    let mut polynomial = 1.987_569_1e-4;
    polynomial = multiply_add::<FUSED>(polynomial, rest, 1.398_199_9e-3);
    polynomial = multiply_add::<FUSED>(polynomial, rest, 8.333_452e-3);
    polynomial = multiply_add::<FUSED>(polynomial, rest, 4.166_579_6e-2);
    polynomial = multiply_add::<FUSED>(polynomial, rest, 1.666_666_5e-1);
    polynomial = multiply_add::<FUSED>(polynomial, rest, 0.5);
    let mantissa = multiply_add::<FUSED>(polynomial, rest * rest, rest + 1.0);
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    mantissa * power
}

/// `σ(x) = 1/(1 + e^-x)`.
#[inline(always)]
pub(crate) fn logistic<const FUSED: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FUSED>(-x))
}

#[inline(always)]
fn gelu_argument<const FUSED: bool>(x: f32) -> f32 {
    x * multiply_add::<FUSED>(GELU_CUBIC, x * x, GELU_SLOPE)
}

for_each_level! {
    /// `x ← silu(x)`.
    fn silu_in_place(values: &mut [f32]) {
        for x in values {
            *x *= logistic::<FUSED>(*x);
        }
    }

    /// `x ← gelu_tanh(x)`.
    fn gelu_in_place(values: &mut [f32]) {
        for x in values {
            *x *= logistic::<FUSED>(gelu_argument::<FUSED>(*x));
        }
    }

    /// `g ← g·silu'(x)`.
    fn silu_gradient(gradient: &mut [f32], x: &[f32]) {
        for (g, &x) in gradient.iter_mut().zip(x) {
            let s = logistic::<FUSED>(x);
            *g *= multiply_add::<FUSED>(x * s, 1.0 - s, s);
        }
    }

    /// `g ← g·gelu_tanh'(x)`.
    fn gelu_gradient(gradient: &mut [f32], x: &[f32]) {
        for (g, &x) in gradient.iter_mut().zip(x) {
            let s = logistic::<FUSED>(gelu_argument::<FUSED>(x));
            let slope = multiply_add::<FUSED>(3.0 * GELU_CUBIC, x * x, GELU_SLOPE);
            *g *= multiply_add::<FUSED>(x * s * (1.0 - s), slope, s);
        }
    }
}

impl Activation {
    /// Applies the function to every value, on the calling thread.
    pub fn apply(self, values: &mut [f32]) {
        match self {
            Self::Identity => {}
            Self::Silu => silu_in_place(values),
            Self::GeluTanh => gelu_in_place(values),
        }
    }

    /// Multiplies every value of `gradient` with the function's derivative at `x`, on the calling thread.
    pub fn multiply_derivative(self, gradient: &mut [f32], x: &[f32]) {
        debug_assert_eq!(gradient.len(), x.len());
        match self {
            Self::Identity => {}
            Self::Silu => silu_gradient(gradient, x),
            Self::GeluTanh => gelu_gradient(gradient, x),
        }
    }

    /// The function of every value of `x`.
    pub fn forward(self, x: &[f32]) -> Vec<f32> {
        let mut y = x.to_vec();
        for_each_chunk(&mut y, ELEMENTS_PER_TASK, |_, y| self.apply(y));
        y
    }

    /// Turns the gradient of the output into that of the input, in place.
    pub fn backward(self, gradient: &mut [f32], x: &[f32]) {
        assert_eq!(gradient.len(), x.len(), "an activation's gradient has its input's size");
        for_each_chunk(gradient, ELEMENTS_PER_TASK, |task, gradient| {
            self.multiply_derivative(gradient, &x[task * ELEMENTS_PER_TASK..][..gradient.len()]);
        });
    }
}
