//! The norm for clipping, and AdamW with the moving average of the weights (network spec §6).

use dfdx::prelude::{Device, Dtype, Gradients, TryAdd, TryDiv, TryMul, TrySub};

use crate::ops::{scalar, AdamWStep, ParameterState, Vector};

/// Sum of the squares of a gradient. Blocks of 4096 values are added first, so that the result is independent of how the
/// work is shared.
pub fn gradient_square_sum<E: Dtype, D: Device<E>>(
    _device: &D,
    gradients: &mut Gradients<E, D>,
    parameter: &Vector<E, D>,
) -> Result<f64, D::Err> {
    gradients.get_or_alloc_mut(parameter)?;
    let values = gradients.get(parameter).as_vec();
    let square = |value: &E| value.to_f64().map_or(f64::NAN, |value| value * value);
    Ok(values
        .chunks(4096)
        .map(|block| block.iter().map(square).sum::<f64>())
        .sum())
}

/// AdamW as torch defines it, then the moving average.
pub fn adamw<E: Dtype, D: Device<E>>(
    gradients: &mut Gradients<E, D>,
    state: ParameterState<'_, E, D>,
    step: &AdamWStep,
) -> Result<(), D::Err> {
    gradients.get_or_alloc_mut(state.parameter)?;
    let gradient = gradients
        .get(state.parameter)
        .try_mul(scalar::<E>(step.gradient_scale))?;
    let blend = |old: &Vector<E, D>, new: Vector<E, D>, keep: f64| {
        old.clone()
            .try_mul(scalar::<E>(keep))?
            .try_add(new.try_mul(scalar::<E>(1.0 - keep))?)
    };
    *state.first_moment = blend(state.first_moment, gradient.clone(), step.beta1)?;
    *state.second_moment = blend(state.second_moment, gradient.try_square()?, step.beta2)?;
    let denominator = state
        .second_moment
        .clone()
        .try_sqrt()?
        .try_mul(scalar::<E>(step.bias_correction2().sqrt().recip()))?
        .try_add(scalar::<E>(step.epsilon))?;
    let update = state
        .first_moment
        .clone()
        .try_div(denominator)?
        .try_mul(scalar::<E>(step.learning_rate / step.bias_correction1()))?;
    let decay = scalar::<E>(1.0 - step.learning_rate * step.weight_decay);
    *state.parameter = state.parameter.clone().try_mul(decay)?.try_sub(update)?;
    *state.ema = blend(state.ema, state.parameter.clone(), step.ema_decay)?;
    Ok(())
}
