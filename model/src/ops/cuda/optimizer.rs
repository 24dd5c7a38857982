//! AdamW and the moving average of the weights: the update of a parameter, made on the device.

use cudarc::driver::{CudaSlice, DeviceSlice};
use dfdx::prelude::{Gradients, HasShape, ZerosTensor};
use dfdx::tensor::{Cuda, CudaError};

use super::context::{context, Context};
use super::launch::{place, start, upload, Kernel};
use super::precision::Precision;
use super::step_controller::{StepController, StepState};
use super::tensor::{address, pointer};
use crate::ops::{AdamWStep, Vector};

/// The constants of an update (network spec §6).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateRule {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the moving average.
    pub ema_decay: f64,
    /// Largest global norm of the gradients.
    pub clip: Option<f64>,
}

/// A parameter's weights, moments and moving average in f32, and the working copy the network computes with.
pub struct MasterParameter<E: Precision> {
    working: Vector<E, Cuda>,
    /// Absent where the working copy is in f32 itself.
    master: Option<CudaSlice<f32>>,
    first_moment: CudaSlice<f32>,
    second_moment: CudaSlice<f32>,
    ema: CudaSlice<f32>,
}

/// A parameter's numbers on the host, as checkpoints hold them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MasterState {
    /// The weights.
    pub parameter: Vec<f32>,
    /// Running mean of the gradient.
    pub first_moment: Vec<f32>,
    /// Running mean of the squared gradient.
    pub second_moment: Vec<f32>,
    /// Moving average of the weights.
    pub ema: Vec<f32>,
}

impl<E: Precision> MasterParameter<E> {
    /// A parameter at `state`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(device: &Cuda, state: MasterState) -> Result<Self, CudaError> {
        let context = context(device)?;
        let length = state.parameter.len();
        for values in [&state.first_moment, &state.second_moment, &state.ema] {
            assert_eq!(values.len(), length, "optimiser: values of a parameter");
        }
        let weights = place(context, &state.parameter)?;
        let working = rounded::<E>(device, &weights)?;
        Ok(Self {
            master: (!E::IS_SINGLE).then_some(weights),
            working,
            first_moment: place(context, &state.first_moment)?,
            second_moment: place(context, &state.second_moment)?,
            ema: place(context, &state.ema)?,
        })
    }

    /// What the network computes with; it changes in place with every update.
    pub fn working(&self) -> &Vector<E, Cuda> {
        &self.working
    }

    /// The moving average in the network's precision.
    ///
    /// # Errors
    /// What the driver says.
    pub fn ema(&self, device: &Cuda) -> Result<Vector<E, Cuda>, CudaError> {
        rounded::<E>(device, &self.ema)
    }

    /// Takes the step the controller has decided on: AdamW, the moving average, the new working copy.
    ///
    /// # Errors
    /// What the driver says.
    pub fn update(
        &mut self,
        controller: &StepController,
        gradients: &mut Gradients<E, Cuda>,
        rule: &UpdateRule,
    ) -> Result<(), CudaError> {
        let gradient = address::<E>(gradients.get_or_alloc_mut(&self.working)?);
        let working = pointer(&self.working);
        let parts = Parts {
            gradient,
            parameter: self.master.as_ref().map_or(working, start),
            first_moment: start(&self.first_moment),
            second_moment: start(&self.second_moment),
            ema: start(&self.ema),
            working: if self.master.is_some() { working } else { 0 },
        };
        let context = context(controller.device())?;
        adamw::<E>(context, parts, controller.decision(), rule, self.working.shape().0)
    }

    /// Waits for the device and copies everything to the host.
    ///
    /// # Errors
    /// What the driver says.
    pub fn state(&self) -> Result<MasterState, CudaError> {
        Ok(MasterState {
            parameter: self.weights()?,
            first_moment: self.first_moment()?,
            second_moment: self.second_moment()?,
            ema: self.moving_average()?,
        })
    }

    /// Waits for the device and copies the weights to the host.
    ///
    /// # Errors
    /// What the driver says, here and below.
    pub fn weights(&self) -> Result<Vec<f32>, CudaError> {
        match &self.master {
            Some(master) => to_host(master),
            None => {
                let mut values = vec![E::default(); self.working.shape().0];
                self.working.copy_into(&mut values);
                // A working copy without a master is in f32.
                Ok(values.iter().map(|value| value.to_f32().unwrap_or(f32::NAN)).collect())
            }
        }
    }

    /// Waits for the device and copies the running mean of the gradient to the host.
    ///
    /// # Errors
    /// What the driver says.
    pub fn first_moment(&self) -> Result<Vec<f32>, CudaError> {
        to_host(&self.first_moment)
    }

    /// Waits for the device and copies the running mean of the squared gradient to the host.
    ///
    /// # Errors
    /// What the driver says.
    pub fn second_moment(&self) -> Result<Vec<f32>, CudaError> {
        to_host(&self.second_moment)
    }

    /// Waits for the device and copies the moving average to the host.
    ///
    /// # Errors
    /// What the driver says.
    pub fn moving_average(&self) -> Result<Vec<f32>, CudaError> {
        to_host(&self.ema)
    }
}

fn to_host(values: &CudaSlice<f32>) -> Result<Vec<f32>, CudaError> {
    Ok(values.device().dtoh_sync_copy(values)?)
}

/// A copy in the network's precision.
fn rounded<E: Precision>(device: &Cuda, values: &CudaSlice<f32>) -> Result<Vector<E, Cuda>, CudaError> {
    let out: Vector<E, Cuda> = device.try_zeros_like(&(values.len(),))?;
    let kernel = if E::IS_SINGLE {
        Kernel::named("add_scaled_f32")
            .pointer(start(values))
            .pointer(pointer(&out))
            .float(1.0)
    } else {
        Kernel::named(format!("cast_f32_to_{}", E::NAME))
            .pointer(start(values))
            .pointer(pointer(&out))
    };
    kernel
        .length(values.len())
        .over_elements(context(device)?, values.len())?;
    Ok(out)
}

/// The addresses an update works on; `working` is 0 where the parameter has no working copy.
pub(super) struct Parts {
    pub gradient: u64,
    pub parameter: u64,
    pub first_moment: u64,
    pub second_moment: u64,
    pub ema: u64,
    pub working: u64,
}

fn adamw<E: Precision>(
    context: &Context,
    parts: Parts,
    state: u64,
    rule: &UpdateRule,
    length: usize,
) -> Result<(), CudaError> {
    Kernel::of::<E>("adamw")
        .pointer(parts.gradient)
        .pointer(parts.parameter)
        .pointer(parts.first_moment)
        .pointer(parts.second_moment)
        .pointer(parts.ema)
        .pointer(parts.working)
        .pointer(state)
        .float(rule.learning_rate)
        .float(rule.beta1)
        .float(rule.beta2)
        .float(rule.epsilon)
        .float(rule.weight_decay)
        .float(rule.ema_decay)
        .length(length)
        .moves(if parts.working == 0 { 1 } else { 2 } * length)
        .moves_floats(8 * length)
        .over_elements(context, length)?;
    Ok(())
}

/// One update in f32 with the factor and the step number the host has decided on.
pub(super) fn adamw_from_host(device: &Cuda, parts: Parts, step: &AdamWStep, length: usize) -> Result<(), CudaError> {
    let context = context(device)?;
    let state = upload(context, vec![StepState::of_host(step)])?;
    let rule = UpdateRule {
        learning_rate: step.learning_rate,
        beta1: step.beta1,
        beta2: step.beta2,
        epsilon: step.epsilon,
        weight_decay: step.weight_decay,
        ema_decay: step.ema_decay,
        clip: None,
    };
    adamw::<f32>(context, parts, start(&state), &rule, length)
}
