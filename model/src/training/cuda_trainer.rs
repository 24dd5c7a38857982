//! Training on a GPU, in single or mixed precision: nothing of a step waits for the device.

use std::ops::Range;
use std::path::Path;

use dfdx::prelude::{Backward, Cpu, Gradients, PutTape};
use dfdx::tensor::Cuda;

use super::device_batch::DeviceBatch;
use super::gradients::{keep_parameters, receives_gradient, tape_with};
use super::inputs::{Batch, TrainingInputs};
use super::losses::{batch_losses, LossTerms, LossValues};
use super::run::{Progress, Training};
use super::settings::{LossSettings, OptimizerSettings, StepRates};
use super::trainer::{parts_of, StepOutcome, StepReport, StepTimes, Trainer};
use crate::checkpoint::{self, AdamWRecord, CheckpointError, Part, State};
use crate::convert::ConvertError;
use crate::error::ModelError;
use crate::network::Network;
use crate::ops::cuda::{
    mark, Communicator, LossScaling, Mark, MasterParameter, MasterState, Precision, StepController, StepEntry,
    UpdateRule,
};
use crate::ops::Operators;
use crate::sampling::{sample, IndexedNoise, SamplerSettings};

/// A network in training on a GPU. It computes in `E`; weights, moments and moving average are in f32 whatever that is,
/// and in half precision the loss is scaled.
///
/// What a step did stays on the device until [`reports`](Training::reports) is asked to wait for it.
pub struct CudaTrainer<E: Precision>
where
    Cuda: Operators<E>,
{
    /// Its parameters are the working copies of `masters`.
    network: Network<E, Cuda>,
    masters: Vec<MasterParameter<E>>,
    controller: StepController,
    communicator: Box<dyn Communicator>,
    batches: DeviceBatch,
    loss: LossSettings,
    optimizer: OptimizerSettings,
    micro_batch: usize,
    seed: u64,
    step: u64,
    updates: u64,
    /// Of the last step.
    learning_rate: f64,
    /// Of the steps whose numbers are still on the device.
    times: Vec<StepMarks>,
    /// Read, and not yet told.
    untold: Vec<StepReport>,
}

/// When the parts of a step began.
#[derive(Default)]
struct StepMarks(Vec<(Phase, Mark)>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Forward,
    Backward,
    Update,
    End,
}

impl<E: Precision> CudaTrainer<E>
where
    Cuda: Operators<E>,
{
    /// Goes on, on a GPU, with training that has begun (or was resumed) on the host.
    ///
    /// # Errors
    /// [`ModelError::Config`] when the network has what the GPU does not compute, [`ModelError::Device`] when its memory
    /// is short.
    pub fn new(
        begun: Trainer<f32, Cpu>,
        device: Cuda,
        communicator: Box<dyn Communicator>,
    ) -> Result<Self, ModelError> {
        let scaling = if E::IS_SINGLE {
            LossScaling::NONE
        } else {
            LossScaling::DYNAMIC
        };
        Self::with_scaling(begun, device, communicator, scaling)
    }

    /// [`new`](Self::new) with another behaviour of the loss scale.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_scaling(
        begun: Trainer<f32, Cpu>,
        device: Cuda,
        communicator: Box<dyn Communicator>,
        scaling: LossScaling,
    ) -> Result<Self, ModelError> {
        let mut network = Network::<E, Cuda>::outline(begun.network.config().clone(), device.clone())?;
        network.set_checkpoint_blocks(begun.network.checkpoint_blocks());
        let mut masters = Vec::new();
        let weights = begun.network.parameters();
        let state = &begun.state;
        let moments = state.first_moments.iter().zip(&state.second_moments);
        for ((weights, (first_moment, second_moment)), ema) in weights.into_iter().zip(moments).zip(&state.ema) {
            let state = MasterState {
                parameter: weights.values.as_vec(),
                first_moment: first_moment.as_vec(),
                second_moment: second_moment.as_vec(),
                ema: ema.as_vec(),
            };
            masters.push(MasterParameter::new(&device, state).map_err(ModelError::device)?);
        }
        for (parameter, master) in network.parameters_mut().into_iter().zip(&masters) {
            parameter.values = master.working().clone();
        }
        let sizes: Vec<usize> = network.parameters().iter().map(|parameter| parameter.len()).collect();
        let losses = network.config().branches() + SUMMED_LOSSES;
        let controller = StepController::new(&device, scaling, &sizes, losses, begun.updates, begun.loss_scale);
        Ok(Self {
            controller: controller.map_err(ModelError::device)?,
            batches: DeviceBatch::new(&device).map_err(ModelError::device)?,
            network,
            masters,
            communicator,
            loss: begun.loss,
            optimizer: begun.optimizer,
            micro_batch: begun.micro_batch,
            seed: begun.seed,
            step: begun.step,
            updates: begun.updates,
            learning_rate: begun.learning_rate,
            times: Vec::new(),
            untold: Vec::new(),
        })
    }

    /// The network with its current weights; those change in place with every step.
    pub fn network(&self) -> &Network<E, Cuda> {
        &self.network
    }

    /// Weights, moments and moving averages, in the order of the network's parameters.
    pub fn masters(&self) -> &[MasterParameter<E>] {
        &self.masters
    }

    /// A network with the moving average as its weights.
    ///
    /// # Errors
    /// [`ModelError::Device`] when memory is short.
    pub fn ema_network(&self) -> Result<Network<E, Cuda>, ModelError> {
        let mut network = self.network.clone();
        let device = network.device().clone();
        for (parameter, master) in network.parameters_mut().into_iter().zip(&self.masters) {
            parameter.values = master.ema(&device).map_err(ModelError::device)?;
        }
        Ok(network)
    }

    /// One step on inputs whose noise, times and labels are already drawn.
    ///
    /// # Errors
    /// As [`take_step`](Training::take_step).
    pub fn step_on(&mut self, inputs: &TrainingInputs<E, Cuda>, rates: StepRates) -> Result<(), ModelError> {
        let whole = 0..inputs.labels.len();
        self.advance(vec![whole], inputs.features.is_some(), rates, |_, _| Ok(inputs.clone()))
    }

    fn advance(
        &mut self,
        parts: Vec<Range<usize>>,
        aligned: bool,
        rates: StepRates,
        draw: impl Fn(&Self, Range<usize>) -> Result<TrainingInputs<E, Cuda>, ModelError>,
    ) -> Result<(), ModelError> {
        if self.controller.is_full() {
            self.read()?;
        }
        let mut marks = StepMarks::default();
        let mut gradients = self.gradients(parts, &mut marks, draw)?;
        marks.add(Phase::Update, self.network.device())?;
        self.measure(&mut gradients, aligned)?;
        self.update(&mut gradients, aligned, rates)
            .map_err(ModelError::device)?;
        marks.add(Phase::End, self.network.device())?;
        self.times.push(marks);
        self.step += 1;
        self.learning_rate = rates.learning_rate;
        Ok(())
    }

    /// Gradients of the loss times its scale, added up over the parts of a batch.
    fn gradients(
        &mut self,
        parts: Vec<Range<usize>>,
        marks: &mut StepMarks,
        draw: impl Fn(&Self, Range<usize>) -> Result<TrainingInputs<E, Cuda>, ModelError>,
    ) -> Result<Gradients<E, Cuda>, ModelError> {
        let samples = parts.iter().map(Range::len).sum::<usize>() * self.communicator.world();
        let last = parts.len() - 1;
        let mut gradients = Gradients::leaky();
        for (index, part) in parts.into_iter().enumerate() {
            marks.add(Phase::Forward, self.network.device())?;
            let share = part.len() as f64 / samples as f64;
            let inputs = draw(self, part)?;
            let mut tape = tape_with(self.network.device(), gradients).map_err(ModelError::device)?;
            let terms = batch_losses(&self.network, &mut tape, &inputs, &self.loss, share)?;
            self.note(&terms, share).map_err(ModelError::device)?;
            let scaled = self.controller.scale_loss(&mut tape, &terms.total);
            let scaled = scaled.map_err(ModelError::device)?;

            marks.add(Phase::Backward, self.network.device())?;
            gradients = scaled.put_tape(tape).try_backward().map_err(ModelError::device)?;
            if index < last {
                gradients = keep_parameters(&self.network, gradients).map_err(ModelError::device)?;
            }
        }
        Ok(gradients)
    }

    /// Adds the losses of a part to those of the step.
    fn note(&mut self, terms: &LossTerms<E, Cuda>, share: f64) -> Result<(), dfdx::tensor::CudaError> {
        let branches = self.network.config().branches();
        let controller = &mut self.controller;
        for (branch, loss) in terms.velocity.iter().enumerate() {
            controller.add_loss(branch, loss, share)?;
        }
        for loss in &terms.acceleration {
            controller.add_loss(branches, loss, share)?;
        }
        for loss in &terms.alignment {
            controller.add_loss(branches + 1, loss, share / terms.alignment.len() as f64)?;
        }
        // The total carries its share already.
        controller.add_loss(branches + 2, &terms.total, 1.0)
    }

    /// Adds up losses and gradients over the processes, and measures the gradients.
    fn measure(&mut self, gradients: &mut Gradients<E, Cuda>, aligned: bool) -> Result<(), ModelError> {
        self.controller.sum_losses(self.communicator.as_ref())?;
        for parameter in self.network.parameters() {
            if receives_gradient(parameter, &self.loss, aligned) {
                let communicator = self.communicator.as_ref();
                self.controller
                    .add_gradient(communicator, &mut *gradients, &parameter.values)?;
            }
        }
        Ok(())
    }

    fn update(
        &mut self,
        gradients: &mut Gradients<E, Cuda>,
        aligned: bool,
        rates: StepRates,
    ) -> Result<(), dfdx::tensor::CudaError> {
        let rule = UpdateRule {
            learning_rate: rates.learning_rate,
            beta1: self.optimizer.beta1,
            beta2: self.optimizer.beta2,
            epsilon: self.optimizer.epsilon,
            weight_decay: self.optimizer.weight_decay,
            ema_decay: rates.ema_decay,
            clip: self.optimizer.clip_norm,
        };
        self.controller.decide(&rule)?;
        for (parameter, master) in self.network.parameters().into_iter().zip(&mut self.masters) {
            // A parameter without a gradient does not move, and neither does its average.
            if receives_gradient(parameter, &self.loss, aligned) {
                master.update(&self.controller, gradients, &rule)?;
            }
        }
        Ok(())
    }

    /// Waits for the device and reads what the steps did.
    fn read(&mut self) -> Result<(), ModelError> {
        let entries = self.controller.entries().map_err(ModelError::device)?;
        let first = self.step - self.times.len() as u64 + 1;
        let branches = self.network.config().branches();
        for ((step, entry), marks) in (first..).zip(entries).zip(self.times.drain(..)) {
            self.updates += u64::from(entry.taken);
            self.untold.push(StepReport {
                step,
                losses: losses(&entry, branches),
                gradient_norm: entry.norm.into(),
                outcome: outcome(&entry),
                loss_scale: (!E::IS_SINGLE).then_some(entry.loss_scale),
                times: marks.times().map_err(ModelError::device)?,
            });
        }
        Ok(())
    }
}

/// Losses of a step besides one for each branch: accelerations, alignments, total.
const SUMMED_LOSSES: usize = 3;

fn losses(entry: &StepEntry, branches: usize) -> LossValues {
    let (velocity, sums) = entry.losses.split_at(branches);
    LossValues {
        velocity: velocity.iter().map(|&loss| loss.into()).collect(),
        acceleration: sums[0].into(),
        alignment: sums[1].into(),
        total: sums[2].into(),
    }
}

fn outcome(entry: &StepEntry) -> StepOutcome {
    let finite_loss = entry.losses.last().is_some_and(|total| total.is_finite());
    match entry.taken {
        true => StepOutcome::Updated,
        false if finite_loss && entry.loss_scale > 1.0 => StepOutcome::Overflowed,
        false => StepOutcome::Skipped,
    }
}

impl StepMarks {
    fn add(&mut self, phase: Phase, device: &Cuda) -> Result<(), ModelError> {
        self.0.push((phase, mark(device).map_err(ModelError::device)?));
        Ok(())
    }

    fn times(&self) -> Result<StepTimes, dfdx::tensor::CudaError> {
        let mut times = StepTimes::default();
        for pair in self.0.windows(2) {
            let [(phase, from), (_, to)] = pair else { continue };
            let time = from.until(to)?;
            match phase {
                Phase::Forward => times.forward += time,
                Phase::Backward => times.backward += time,
                Phase::Update => times.update += time,
                Phase::End => {}
            }
        }
        Ok(times)
    }
}

impl<E: Precision> Training for CudaTrainer<E>
where
    Cuda: Operators<E>,
{
    fn step_count(&self) -> u64 {
        self.step
    }

    fn update_count(&self) -> u64 {
        self.updates
    }

    fn take_step(&mut self, batch: &Batch, rates: StepRates) -> Result<(), ModelError> {
        batch.check(self.network.config())?;
        let parts = parts_of(batch, self.micro_batch)?;
        self.batches.send(batch).map_err(ModelError::device)?;
        self.advance(parts, batch.features.is_some(), rates, |trainer, part| {
            trainer
                .batches
                .draw(batch, part, &trainer.network, &trainer.loss, trainer.seed, trainer.step)
                .map_err(ModelError::device)
        })
    }

    fn reports(&mut self, wait: bool) -> Result<Vec<StepReport>, ModelError> {
        if wait {
            self.read()?;
        }
        Ok(std::mem::take(&mut self.untold))
    }

    fn generate(
        &self,
        averaged: bool,
        settings: &SamplerSettings,
        labels: &[usize],
        noise: &IndexedNoise,
        on_progress: Progress<'_>,
    ) -> Result<Option<Vec<f64>>, ModelError> {
        let network = if averaged {
            self.ema_network()?
        } else {
            self.network.clone()
        };
        sample(&network, settings, labels, noise, on_progress)
    }

    fn save(&self, folder: &Path, data: &serde_json::Value) -> Result<(), CheckpointError> {
        let device = |error| ConvertError::Content {
            path: folder.to_owned(),
            problem: ModelError::device(error).to_string(),
        };
        let loss_scale = self.controller.loss_scale().map_err(device)?;
        let config = self.network.config().clone();
        let mut state = State::new(self.step, self.updates, self.seed, config, data.clone());
        state.loss_scale = (!E::IS_SINGLE).then_some(loss_scale);
        let optimizer = AdamWRecord::new(self.optimizer, self.learning_rate);
        checkpoint::write(folder, &state, optimizer, &self.network, &|part, index| {
            let master = &self.masters[index];
            let values = match part {
                Part::Weights => master.weights(),
                Part::Average => master.moving_average(),
                Part::FirstMoment => master.first_moment(),
                Part::SecondMoment => master.second_moment(),
            };
            Ok(values.map_err(device)?.into_iter().flat_map(f32::to_le_bytes).collect())
        })
    }
}
