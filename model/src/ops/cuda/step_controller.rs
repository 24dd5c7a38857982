//! Clipping and dynamic loss scaling: whether and how a step is taken, decided on the device.
//!
//! A training step: [`StepController::scale_loss`] multiplies what the backward pass starts from;
//! [`StepController::add_gradient`] for every parameter and [`StepController::decide`] measure the norm and decide whether
//! the step is taken; [`MasterParameter::update`](super::MasterParameter::update) for every parameter takes it. Nothing of
//! this waits for the device; [`StepController::entries`] does, and is called when somebody wants to see the numbers.

use cudarc::driver::{CudaSlice, DeviceRepr, DeviceSlice};
use dfdx::prelude::{Gradients, HasShape, Tape, ZerosTensor};
use dfdx::tensor::{Cuda, CudaError};

use super::activation::add_scaled;
use super::communicator::Communicator;
use super::context::{context, Context};
use super::launch::{reduction_blocks, scratch, start, upload, Kernel};
use super::optimizer::UpdateRule;
use super::precision::Precision;
use super::tensor::{address, pointer, take};
use crate::error::ModelError;
use crate::ops::{AdamWStep, Scalar, Vector};
use crate::training::LossScale;

/// Steps whose numbers the device keeps until somebody reads them.
const LOG_STEPS: usize = 1024;

/// How the loss scale behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScaling {
    /// The scale of the first step.
    pub initial: f32,
    /// Taken steps after which the scale is doubled; 0 keeps it fixed.
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

/// What a step did, read from the device.
#[derive(Clone, Debug, PartialEq)]
pub struct StepEntry {
    /// The losses, the last of them what is minimised.
    pub losses: Vec<f32>,
    /// Global norm of the gradients, without the loss scale.
    pub norm: f32,
    /// What the loss was multiplied by.
    pub loss_scale: f32,
    /// Whether the update was made.
    pub taken: bool,
}

/// The twin of `StepState` in kernels/optimizer.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StepState {
    loss_scale: f32,
    steps_since_growth: i32,
    taken: i32,
    gradient_factor: f32,
    bias_correction1: f32,
    bias_correction2: f32,
}

// SAFETY: six 4-byte numbers without padding, as in the kernel.
unsafe impl DeviceRepr for StepState {}

impl StepState {
    /// A step with the factor and the step number that the host has decided on.
    pub(super) fn of_host(step: &AdamWStep) -> Self {
        Self {
            gradient_factor: step.gradient_scale as f32,
            bias_correction1: step.bias_correction1() as f32,
            bias_correction2: step.bias_correction2() as f32,
            ..Self::default()
        }
    }
}

/// Numbers of a step in the log besides its losses: norm, loss scale, whether it was taken.
const FURTHER_NUMBERS: usize = 3;

/// Decides on the device whether and how a step is taken, and keeps there what it did.
pub struct StepController {
    device: Cuda,
    scaling: LossScaling,
    state: CudaSlice<StepState>,
    squares: CudaSlice<f32>,
    used: usize,
    losses: CudaSlice<f32>,
    log: CudaSlice<f32>,
    logged: usize,
}

impl StepController {
    /// A controller for parameters of these sizes and so many losses a step, after `taken` earlier updates with the loss
    /// scale where they left it.
    ///
    /// # Errors
    /// What the driver says, here and below.
    pub fn new(
        device: &Cuda,
        scaling: LossScaling,
        sizes: &[usize],
        losses: usize,
        taken: u64,
        scale: Option<LossScale>,
    ) -> Result<Self, CudaError> {
        let context = context(device)?;
        let scale = scale.unwrap_or(LossScale {
            scale: scaling.initial,
            steps_since_growth: 0,
        });
        let state = StepState {
            loss_scale: scale.scale,
            steps_since_growth: scale.steps_since_growth as i32,
            taken: taken as i32,
            ..StepState::default()
        };
        Ok(Self {
            device: device.clone(),
            scaling,
            state: upload(context, vec![state])?,
            squares: scratch(context, sizes.iter().map(|&size| reduction_blocks(size)).sum())?,
            used: 0,
            losses: context.device.alloc_zeros(losses)?,
            log: scratch(context, LOG_STEPS * (losses + FURTHER_NUMBERS))?,
            logged: 0,
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

    /// Adds `share` times `value` to loss number `term` of this step.
    ///
    /// # Errors
    /// What the driver says.
    pub fn add_loss<E: Precision>(
        &mut self,
        term: usize,
        value: &Scalar<E, Cuda>,
        share: f64,
    ) -> Result<(), CudaError> {
        assert!(term < self.losses.len(), "optimiser: loss {term}");
        Kernel::of::<E>("add_loss")
            .pointer(pointer(value))
            .pointer(start(&self.losses) + (term * size_of::<f32>()) as u64)
            .float(share)
            .over_elements(context(&self.device)?, 1)?;
        Ok(())
    }

    /// Adds up the losses of this step over the processes that train together.
    ///
    /// # Errors
    /// The communicator's.
    pub fn sum_losses(&mut self, communicator: &dyn Communicator) -> Result<(), ModelError> {
        communicator.sum(f32::values(&mut self.losses))
    }

    /// Adds up one parameter's gradient over the processes that train together, and its squares to the norm of this step.
    ///
    /// # Errors
    /// The communicator's, or what the driver says.
    pub fn add_gradient<E: Precision>(
        &mut self,
        communicator: &dyn Communicator,
        gradients: &mut Gradients<E, Cuda>,
        parameter: &Vector<E, Cuda>,
    ) -> Result<(), ModelError> {
        let length = parameter.shape().0;
        let blocks = reduction_blocks(length);
        assert!(
            self.used + blocks <= self.squares.len(),
            "optimiser: more gradients than parameters were announced"
        );
        let gradient = gradients.get_or_alloc_mut(parameter).map_err(ModelError::device)?;
        communicator.sum(E::values(gradient))?;
        let target = start(&self.squares) + (self.used * size_of::<f32>()) as u64;
        context(&self.device)
            .and_then(|context| sum_of_squares::<E>(context, address::<E>(gradient), target, length, blocks))
            .map_err(ModelError::device)?;
        self.used += blocks;
        Ok(())
    }

    /// Ends the measurement: from here on [`MasterParameter::update`](super::MasterParameter::update) takes this step, or skips it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn decide(&mut self, rule: &UpdateRule) -> Result<(), CudaError> {
        assert!(!self.is_full(), "optimiser: nobody reads what the steps did");
        let context = context(&self.device)?;
        let entry = self.logged * (self.losses.len() + FURTHER_NUMBERS) * size_of::<f32>();
        Kernel::named("prepare_step")
            .pointer(start(&self.squares))
            .int(self.used)
            .pointer(start(&self.losses))
            .int(self.losses.len())
            .pointer(start(&self.log) + entry as u64)
            .pointer(start(&self.state))
            .float(rule.clip.unwrap_or(0.0))
            .float(rule.beta1)
            .float(rule.beta2)
            .int(self.scaling.growth_interval)
            .float(f64::from(self.scaling.highest))
            .over_reduction(context, 1)?;
        context.device.memset_zeros(&mut self.losses)?;
        self.logged += 1;
        self.used = 0;
        Ok(())
    }

    /// The device it decides on.
    pub(super) fn device(&self) -> &Cuda {
        &self.device
    }

    /// The address of what was decided, a [`StepState`].
    pub(super) fn decision(&self) -> u64 {
        start(&self.state)
    }

    /// Whether [`entries`](Self::entries) must be read before the next step.
    pub fn is_full(&self) -> bool {
        self.logged == LOG_STEPS
    }

    /// Waits for the device and reads what the steps did that were not read before.
    ///
    /// # Errors
    /// What the driver says.
    pub fn entries(&mut self) -> Result<Vec<StepEntry>, CudaError> {
        if self.logged == 0 {
            return Ok(Vec::new());
        }
        let width = self.losses.len() + FURTHER_NUMBERS;
        let mut numbers = vec![0.0; self.logged * width];
        let device = &context(&self.device)?.device;
        device.dtoh_sync_copy_into(&self.log.slice(..numbers.len()), &mut numbers)?;
        self.logged = 0;
        let entry = |numbers: &[f32]| {
            let (losses, further) = numbers.split_at(width - FURTHER_NUMBERS);
            StepEntry {
                losses: losses.to_vec(),
                norm: further[0],
                loss_scale: further[1],
                taken: further[2] == 1.0,
            }
        };
        Ok(numbers.chunks_exact(width).map(entry).collect())
    }

    /// Waits for the device and reads where the loss scale stands.
    ///
    /// # Errors
    /// What the driver says.
    pub fn loss_scale(&self) -> Result<LossScale, CudaError> {
        let state = context(&self.device)?.device.dtoh_sync_copy(&self.state)?[0];
        Ok(LossScale {
            scale: state.loss_scale,
            steps_since_growth: state.steps_since_growth as u32,
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
        .moves(length)
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
