//! SiLU and GELU.

use dfdx::prelude::{Device, Dtype, Tape, TryMul};

use super::record::record;
use crate::ops::Matrix;

/// `x·sigmoid(x)`.
pub fn silu<E: Dtype, D: Device<E>, T: Tape<E, D>>(tape: &mut T, x: &Matrix<E, D>) -> Result<Matrix<E, D>, D::Err> {
    record(tape, x, |taped| taped.try_sigmoid()?.try_mul(x.clone()))
}

/// The tanh approximation of GELU (what dfdx calls fast).
pub fn gelu_tanh<E: Dtype, D: Device<E>, T: Tape<E, D>>(
    tape: &mut T,
    x: &Matrix<E, D>,
) -> Result<Matrix<E, D>, D::Err> {
    record(tape, x, |x| x.try_fast_gelu())
}
