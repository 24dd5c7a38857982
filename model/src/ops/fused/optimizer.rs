//! The optimiser on dfdx's tensors: every gradient is taken out of the store, so that all can be read at once.

use dfdx::prelude::{Cpu, CpuError, Gradients};

use super::access::{taken, ValuesMut};
use crate::ops::cpu::optimizer::{self, Update};
use crate::ops::{AdamWStep, ParameterState, Vector};

/// Sum of the squares of all gradients.
pub(super) fn square_sum(
    gradients: &mut Gradients<f32, Cpu>,
    parameters: &[&Vector<f32, Cpu>],
) -> Result<f64, CpuError> {
    let taken = parameters
        .iter()
        .map(|parameter| taken(gradients, parameter))
        .collect::<Result<Vec<_>, _>>()?;
    let sum = optimizer::square_sum(taken.iter().map(Vec::as_slice));
    for (parameter, gradient) in parameters.iter().zip(taken) {
        **gradients.get_or_alloc_mut(*parameter)? = gradient;
    }
    Ok(sum)
}

/// One update of all parameters, which frees their gradients.
pub(super) fn adamw(
    gradients: &mut Gradients<f32, Cpu>,
    mut states: Vec<ParameterState<'_, f32, Cpu>>,
    step: &AdamWStep,
) -> Result<(), CpuError> {
    let taken = states
        .iter()
        .map(|state| taken(gradients, state.parameter))
        .collect::<Result<Vec<_>, _>>()?;
    let updates = states.iter_mut().zip(&taken).map(|(state, gradient)| Update {
        parameter: state.parameter.values_mut(),
        first_moment: state.first_moment.values_mut(),
        second_moment: state.second_moment.values_mut(),
        ema: state.ema.values_mut(),
        gradient,
    });
    optimizer::adamw(updates.collect(), step);
    Ok(())
}
