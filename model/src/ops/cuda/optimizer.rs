//! Clipping, AdamW, the moving average and dynamic loss scaling, decided and done on the device.
//!
//! A training step with half-precision gradients: [`StepController::scale_loss`] multiplies what the backward pass
//! starts from; [`StepController::add_gradient`] for every parameter and [`StepController::decide`] measure the norm and
//! decide whether the step is taken; [`MasterParameter::update`] for every parameter takes it. Nothing of this waits for
//! the device; [`StepController::report`] does, and is called when somebody wants to see the numbers.

use cudarc::driver::{CudaSlice, DeviceRepr, DeviceSlice};
use dfdx::prelude::{Gradients, HasShape, Shape, Tape, Tensor, ZerosTensor};
use dfdx::tensor::{Cuda, CudaError};

use super::activation::add_scaled;
use super::context::{context, Context};
use super::launch::{reduction_blocks, scratch, start, upload, Kernel};
use super::precision::Precision;
use super::tensor::{address, pointer, take};
use crate::ops::{AdamWStep, Scalar};

/// How the loss scale behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScaling {
    /// The scale of the first step.
    pub initial: f32,
    /// Finite steps after which the scale is doubled; 0 keeps it fixed.
    pub growth_interval: usize,
    /// The scale is not doubled beyond this.
    pub highest: f32,
}

impl LossScaling {
    /// Gradients in f32 need no scale; a step that is not finite is skipped and counted all the same.
    pub const NONE: Self = Self {
        initial: 1.0,
        growth_interval: 0,
        highest: 1.0,
    };
    /// For gradients in f16: the scale itself must be a number of that precision.
    pub const DYNAMIC: Self = Self {
        initial: 32768.0,
        growth_interval: 2000,
        highest: 32768.0,
    };
}

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

/// What happened so far, read from the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// What the next loss is multiplied by.
    pub loss_scale: f32,
    /// Updates made.
    pub taken: usize,
    /// Updates dropped because a gradient was not finite.
    pub skipped: usize,
    /// Global norm of the last gradients, without the loss scale; not finite for a skipped step.
    pub norm: f32,
}

/// The twin of `StepState` in kernels/optimizer.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct StepState {
    loss_scale: f32,
    steps_since_growth: i32,
    taken: i32,
    skipped: i32,
    norm: f32,
    gradient_factor: f32,
    bias_correction1: f32,
    bias_correction2: f32,
}

// SAFETY: eight 4-byte numbers without padding, as in the kernel.
unsafe impl DeviceRepr for StepState {}

/// Decides on the device whether and how a step is taken.
pub struct StepController {
    device: Cuda,
    scaling: LossScaling,
    state: CudaSlice<StepState>,
    squares: CudaSlice<f32>,
    used: usize,
}

impl StepController {
    /// A controller for parameters of these sizes, after `taken` earlier updates.
    ///
    /// # Errors
    /// What the driver says, here and below.
    pub fn new(device: &Cuda, scaling: LossScaling, sizes: &[usize], taken: usize) -> Result<Self, CudaError> {
        let context = context(device)?;
        let state = StepState {
            loss_scale: scaling.initial,
            taken: taken as i32,
            ..StepState::default()
        };
        Ok(Self {
            device: device.clone(),
            scaling,
            state: upload(context, vec![state])?,
            squares: scratch(context, sizes.iter().map(|&size| reduction_blocks(size)).sum())?,
            used: 0,
        })
    }

    /// The loss again, with a backward pass that starts from the loss scale.
    ///
    /// # Errors
    /// What the driver says.
    pub fn scale_loss<E: Precision, T: Tape<E, Cuda>>(
        &self,
        tape: &mut T,
        loss: &Scalar<E, Cuda>,
    ) -> Result<Scalar<E, Cuda>, CudaError> {
        let context = context(&self.device)?;
        let same: Scalar<E, Cuda> = self.device.try_zeros_like(&())?;
        add_scaled::<E>(&self.device, pointer(loss), pointer(&same), 1.0, 1)?;
        if T::OWNS_TAPE {
            let (device, loss, ghost) = (self.device.clone(), loss.ghost(), same.ghost());
            // The state's buffer lives as long as the controller, which the trainer keeps for the whole run; the copy
            // made here is what this step's backward pass reads.
            let state = self.state.try_clone()?;
            tape.add_backward_op(move |gradients| {
                let upstream = take::<E>(&device, gradients.get_or_alloc_mut(&ghost)?)?;
                Kernel::of::<E>("scale_loss_gradient")
                    .pointer(address::<E>(&upstream))
                    .pointer(address::<E>(gradients.get_or_alloc_mut(&loss)?))
                    .pointer(start(&state))
                    .over_elements(context, 1)?;
                Ok(())
            });
        }
        Ok(same)
    }

    /// Adds the squares of one parameter's gradient to the norm of this step.
    ///
    /// # Errors
    /// What the driver says.
    pub fn add_gradient<S: Shape, E: Precision>(
        &mut self,
        gradients: &mut Gradients<E, Cuda>,
        parameter: &Tensor<S, E, Cuda>,
    ) -> Result<(), CudaError> {
        let length = parameter.shape().num_elements();
        let blocks = reduction_blocks(length);
        assert!(
            self.used + blocks <= self.squares.len(),
            "optimiser: more gradients than parameters were announced"
        );
        let gradient = address::<E>(gradients.get_or_alloc_mut(parameter)?);
        let target = start(&self.squares) + (self.used * size_of::<f32>()) as u64;
        sum_of_squares::<E>(context(&self.device)?, gradient, target, length, blocks)?;
        self.used += blocks;
        Ok(())
    }

    /// Ends the measurement: from here on [`MasterParameter::update`] takes this step, or skips it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn decide(&mut self, rule: &UpdateRule) -> Result<(), CudaError> {
        Kernel::named("prepare_step")
            .pointer(start(&self.squares))
            .int(self.used)
            .pointer(start(&self.state))
            .float(rule.clip.unwrap_or(0.0))
            .float(rule.beta1)
            .float(rule.beta2)
            .int(self.scaling.growth_interval)
            .float(f64::from(self.scaling.highest))
            .over_reduction(context(&self.device)?, 1)?;
        self.used = 0;
        Ok(())
    }

    /// Waits for the device and reads what happened.
    ///
    /// # Errors
    /// What the driver says.
    pub fn report(&self) -> Result<StepReport, CudaError> {
        let state = context(&self.device)?.device.dtoh_sync_copy(&self.state)?[0];
        Ok(StepReport {
            loss_scale: state.loss_scale,
            taken: state.taken as usize,
            skipped: state.skipped as usize,
            norm: state.norm,
        })
    }
}

fn sum_of_squares<E: Precision>(
    context: &Context,
    x: u64,
    partial: u64,
    length: usize,
    blocks: usize,
) -> Result<(), CudaError> {
    Kernel::of::<E>("sum_of_squares")
        .pointer(x)
        .pointer(partial)
        .length(length)
        .over_reduction(context, blocks)?;
    Ok(())
}

/// The sum of squares of `length` values, added up by the host in f64.
pub(super) fn host_sum_of_squares<E: Precision>(device: &Cuda, x: u64, length: usize) -> Result<f64, CudaError> {
    let context = context(device)?;
    let blocks = reduction_blocks(length);
    let partial = scratch(context, blocks)?;
    sum_of_squares::<E>(context, x, start(&partial), length, blocks)?;
    let partial = context.device.dtoh_sync_copy(&partial)?;
    Ok(partial.into_iter().map(f64::from).sum())
}

/// A parameter's master weights, moments and moving average in f32, beside the working copy the network computes with.
pub struct MasterParameter<S: Shape> {
    working: Tensor<S, half::f16, Cuda>,
    master: CudaSlice<f32>,
    first_moment: CudaSlice<f32>,
    second_moment: CudaSlice<f32>,
    ema: CudaSlice<f32>,
}

/// A parameter's state on the host, as checkpoints hold it.
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

impl<S: Shape> MasterParameter<S> {
    /// A parameter at `state`, with a working copy of the given shape.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(device: &Cuda, shape: S, state: MasterState) -> Result<Self, CudaError> {
        let context = context(device)?;
        let length = shape.num_elements();
        for values in [&state.parameter, &state.first_moment, &state.second_moment, &state.ema] {
            assert_eq!(values.len(), length, "optimiser: values of a parameter");
        }
        let parameter = Self {
            working: device.try_zeros_like(&shape)?,
            master: upload(context, state.parameter)?,
            first_moment: upload(context, state.first_moment)?,
            second_moment: upload(context, state.second_moment)?,
            ema: upload(context, state.ema)?,
        };
        Kernel::named("cast_f32_to_f16")
            .pointer(start(&parameter.master))
            .pointer(pointer(&parameter.working))
            .length(length)
            .over_elements(context, length)?;
        Ok(parameter)
    }

    /// The copy in half precision; it changes in place with every update.
    pub fn working(&self) -> &Tensor<S, half::f16, Cuda> {
        &self.working
    }

    /// Takes the step the controller has decided on: AdamW, the moving average, the new working copy.
    ///
    /// # Errors
    /// What the driver says.
    pub fn update(
        &mut self,
        controller: &StepController,
        gradients: &mut Gradients<half::f16, Cuda>,
        rule: &UpdateRule,
    ) -> Result<(), CudaError> {
        let length = self.working.shape().num_elements();
        let gradient = address::<half::f16>(gradients.get_or_alloc_mut(&self.working)?);
        let parts = Parts {
            gradient,
            parameter: start(&self.master),
            first_moment: start(&self.first_moment),
            second_moment: start(&self.second_moment),
            ema: start(&self.ema),
            working: pointer(&self.working),
        };
        adamw::<half::f16>(
            context(&controller.device)?,
            parts,
            start(&controller.state),
            rule,
            length,
        )
    }

    /// Waits for the device and copies the state to the host.
    ///
    /// # Errors
    /// What the driver says.
    pub fn state(&self) -> Result<MasterState, CudaError> {
        let device = self.master.device();
        Ok(MasterState {
            parameter: device.dtoh_sync_copy(&self.master)?,
            first_moment: device.dtoh_sync_copy(&self.first_moment)?,
            second_moment: device.dtoh_sync_copy(&self.second_moment)?,
            ema: device.dtoh_sync_copy(&self.ema)?,
        })
    }
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
        .over_elements(context, length)?;
    Ok(())
}

/// One update in f32 with the factor and the step number the host has decided on.
pub(super) fn adamw_from_host(device: &Cuda, parts: Parts, step: &AdamWStep, length: usize) -> Result<(), CudaError> {
    let context = context(device)?;
    let state = upload(
        context,
        vec![StepState {
            gradient_factor: step.gradient_scale as f32,
            bias_correction1: step.bias_correction1() as f32,
            bias_correction2: step.bias_correction2() as f32,
            ..StepState::default()
        }],
    )?;
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
