//! One update of the weights after the other.

use std::any::Any;
use std::ops::Range;
use std::time::{Duration, Instant};

use dfdx::prelude::{Backward, Cpu, Dtype, Gradients, PutTape};

use super::gradients::{keep_parameters, receives_gradient, tape_with};
use super::inputs::{Batch, TrainingInputs};
use super::losses::{batch_losses, LossValues};
use super::settings::{LossSettings, OptimizerSettings, StepRates};
use super::state::{LossScale, OptimizerState};
use crate::checkpoint::{AdamWRecord, State};
use crate::error::ModelError;
use crate::network::Network;
use crate::ops::cpu::on_awake_pool;
use crate::ops::{AdamWStep, Operators, ParameterState};

/// Added to the norm before the clipping factor is computed, as torch does.
const CLIP_EPSILON: f64 = 1e-6;

/// A network in training: weights, moments, moving average and the number of steps.
#[derive(Debug)]
pub struct Trainer<E: Dtype, D: Operators<E>> {
    pub(super) network: Network<E, D>,
    pub(super) state: OptimizerState<E, D>,
    pub(super) loss: LossSettings,
    pub(super) optimizer: OptimizerSettings,
    pub(super) micro_batch: usize,
    pub(super) seed: u64,
    pub(super) step: u64,
    pub(super) updates: u64,
    /// Of the last step.
    pub(super) learning_rate: f64,
    /// Of a checkpoint of mixed precision, for whom it concerns.
    pub(super) loss_scale: Option<LossScale>,
    /// Reports that [`Training`](super::Training) has not told yet.
    pub(super) untold: Vec<StepReport>,
}

/// Whether a step changed the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// Weights, moments and moving average took the step.
    Updated,
    /// The loss or the gradient was not finite; everything is as before.
    Skipped,
    /// The gradient, multiplied by the loss scale, was too large for half precision; everything is as before but the
    /// scale, which is halved. Mixed precision finds its scale that way.
    Overflowed,
}

/// Where the time of a step went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Drawing times and noise, and the forward passes.
    pub forward: Duration,
    /// The backward passes.
    pub backward: Duration,
    /// Norm, clipping, AdamW and moving average.
    pub update: Duration,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Number of this step, starting with 1; skipped steps count.
    pub step: u64,
    /// The losses of the whole batch.
    pub losses: LossValues,
    /// Global L2 norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Whether the weights changed.
    pub outcome: StepOutcome,
    /// What the loss was multiplied by, in mixed precision.
    pub loss_scale: Option<f32>,
    /// Where the time went.
    pub times: StepTimes,
}

impl<E: Dtype, D: Operators<E>> Trainer<E, D> {
    /// Starts training `network` as it is. `seed` decides noise, times and dropped labels together with each sample's
    /// place; a batch is computed in parts of at most `micro_batch` samples.
    ///
    /// # Errors
    /// [`ModelError::Config`] when the settings do not fit the network, [`ModelError::Device`].
    pub fn new(
        network: Network<E, D>,
        loss: LossSettings,
        optimizer: OptimizerSettings,
        micro_batch: usize,
        seed: u64,
    ) -> Result<Self, ModelError> {
        loss.validate(network.config())?;
        Ok(Self {
            state: OptimizerState::new(&network)?,
            network,
            loss,
            optimizer,
            micro_batch: micro_batch.max(1),
            seed,
            step: 0,
            updates: 0,
            learning_rate: StepRates::default().learning_rate,
            loss_scale: None,
            untold: Vec::new(),
        })
    }

    /// The network with its current weights.
    pub fn network(&self) -> &Network<E, D> {
        &self.network
    }

    /// The network in training, to be changed between steps.
    pub fn network_mut(&mut self) -> &mut Network<E, D> {
        &mut self.network
    }

    /// A network with the moving average as its weights.
    pub fn ema_network(&self) -> Network<E, D> {
        let mut network = self.network.clone();
        for (parameter, ema) in network.parameters_mut().into_iter().zip(&self.state.ema) {
            parameter.values = ema.clone();
        }
        network
    }

    /// Weights, moments and moving average, to be put back as a checkpoint has them.
    pub(crate) fn parts_mut(&mut self) -> (&mut Network<E, D>, &mut OptimizerState<E, D>) {
        (&mut self.network, &mut self.state)
    }

    /// Counts on from a checkpoint.
    pub(crate) fn go_on_after(&mut self, state: &State, optimizer: Option<AdamWRecord>) {
        self.step = state.step;
        self.updates = state.updates;
        self.loss_scale = state.loss_scale;
        if let Some(AdamWRecord { learning_rate, .. }) = optimizer {
            self.learning_rate = learning_rate;
        }
    }

    /// The optimiser's settings at the last step.
    pub(crate) fn adamw_record(&self) -> AdamWRecord {
        AdamWRecord::new(self.optimizer, self.learning_rate)
    }

    /// Moments and moving average.
    pub fn state(&self) -> &OptimizerState<E, D> {
        &self.state
    }

    /// Steps done so far, skipped ones included.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Updates done so far: steps without the skipped ones.
    pub fn update_count(&self) -> u64 {
        self.updates
    }

    /// The seed of noise, times and dropped labels.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// One step on a batch.
    ///
    /// # Errors
    /// [`ModelError::Input`] for a batch that does not fit the network, [`ModelError::Device`]. A loss or gradient that
    /// is not finite is no error but [`StepOutcome::Skipped`].
    pub fn step(&mut self, batch: &Batch, rates: StepRates) -> Result<StepReport, ModelError> {
        // On the CPU all of a step runs on a thread of rayon's pool: from any other thread every parallel loop would be handed
        // over to the pool and waited for, which takes longer than the loops of a small network.
        let any: &mut dyn Any = self;
        match any.downcast_mut::<Trainer<f32, Cpu>>() {
            Some(trainer) => on_awake_pool(|| trainer.step_here(batch, rates)),
            None => self.step_here(batch, rates),
        }
    }

    fn step_here(&mut self, batch: &Batch, rates: StepRates) -> Result<StepReport, ModelError> {
        batch.check(self.network.config())?;
        let parts = parts_of(batch, self.micro_batch)?;
        self.advance(parts, batch.features.is_some(), rates, |trainer, part| {
            let (config, device) = (trainer.network.config(), trainer.network.device());
            batch
                .draw(part, config, &trainer.loss, trainer.seed, trainer.step, device)
                .map_err(ModelError::device)
        })
    }

    /// One step on inputs whose noise, times and labels are already drawn.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_on(&mut self, inputs: &TrainingInputs<E, D>, rates: StepRates) -> Result<StepReport, ModelError> {
        let whole = 0..inputs.labels.len();
        self.advance(vec![whole], inputs.features.is_some(), rates, |_, _| Ok(inputs.clone()))
    }

    fn advance(
        &mut self,
        parts: Vec<Range<usize>>,
        aligned: bool,
        rates: StepRates,
        draw: impl Fn(&Self, Range<usize>) -> Result<TrainingInputs<E, D>, ModelError>,
    ) -> Result<StepReport, ModelError> {
        let mut times = StepTimes::default();
        let (losses, mut gradients) = self.gradients(parts, &mut times, draw)?;

        let started = Instant::now();
        let gradient_norm = self
            .gradient_norm(&mut gradients, aligned)
            .map_err(ModelError::device)?;
        let finite = losses.total.is_finite() && gradient_norm.is_finite();
        if finite {
            self.update(&mut gradients, gradient_norm, aligned, rates)
                .map_err(ModelError::device)?;
            self.updates += 1;
        }
        self.step += 1;
        self.learning_rate = rates.learning_rate;
        times.update = started.elapsed();
        Ok(StepReport {
            step: self.step,
            losses,
            gradient_norm,
            outcome: if finite {
                StepOutcome::Updated
            } else {
                StepOutcome::Skipped
            },
            loss_scale: None,
            times,
        })
    }

    /// Losses and gradients of a batch, added up over its parts.
    fn gradients(
        &self,
        parts: Vec<Range<usize>>,
        times: &mut StepTimes,
        draw: impl Fn(&Self, Range<usize>) -> Result<TrainingInputs<E, D>, ModelError>,
    ) -> Result<(LossValues, Gradients<E, D>), ModelError> {
        let samples: usize = parts.iter().map(Range::len).sum();
        let last = parts.len() - 1;
        let mut losses = LossValues::default();
        let mut gradients = Gradients::leaky();
        for (index, part) in parts.into_iter().enumerate() {
            let started = Instant::now();
            let share = part.len() as f64 / samples as f64;
            let inputs = draw(self, part)?;
            let mut tape = tape_with(self.network.device(), gradients).map_err(ModelError::device)?;
            let terms = batch_losses(&self.network, &mut tape, &inputs, &self.loss, share)?;
            losses.add_part(&terms.values(), share);
            times.forward += started.elapsed();

            let started = Instant::now();
            gradients = terms.total.put_tape(tape).try_backward().map_err(ModelError::device)?;
            if index < last {
                gradients = keep_parameters(&self.network, gradients).map_err(ModelError::device)?;
            }
            times.backward += started.elapsed();
        }
        Ok((losses, gradients))
    }

    fn gradient_norm(&self, gradients: &mut Gradients<E, D>, aligned: bool) -> Result<f64, D::Err> {
        let parameters = self.network.parameters().into_iter();
        let moving: Vec<_> = parameters
            .filter(|parameter| receives_gradient(parameter, &self.loss, aligned))
            .map(|parameter| &parameter.values)
            .collect();
        let squares = self.network.device().global_square_sum(gradients, &moving)?;
        Ok(squares.sqrt())
    }

    fn update(
        &mut self,
        gradients: &mut Gradients<E, D>,
        gradient_norm: f64,
        aligned: bool,
        rates: StepRates,
    ) -> Result<(), D::Err> {
        let clip = |limit: f64| (limit / (gradient_norm + CLIP_EPSILON)).min(1.0);
        let step = AdamWStep {
            learning_rate: rates.learning_rate,
            beta1: self.optimizer.beta1,
            beta2: self.optimizer.beta2,
            epsilon: self.optimizer.epsilon,
            weight_decay: self.optimizer.weight_decay,
            step: self.updates + 1,
            gradient_scale: self.optimizer.clip_norm.map_or(1.0, clip),
            ema_decay: rates.ema_decay,
        };
        let device = self.network.device().clone();
        let state = &mut self.state;
        let moments = state.first_moments.iter_mut().zip(&mut state.second_moments);
        let parameters = self.network.parameters_mut().into_iter();
        // A parameter without a gradient does not move, and neither does its average.
        let states = parameters
            .zip(moments)
            .zip(&mut state.ema)
            .filter(|((parameter, _), _)| receives_gradient(parameter, &self.loss, aligned))
            .map(|((parameter, (first_moment, second_moment)), ema)| ParameterState {
                parameter: &mut parameter.values,
                first_moment,
                second_moment,
                ema,
            });
        device.adamw_of_all(gradients, states.collect(), &step)
    }
}

/// The parts in which a batch is computed, of at most `micro_batch` samples.
pub(super) fn parts_of(batch: &Batch, micro_batch: usize) -> Result<Vec<Range<usize>>, ModelError> {
    if batch.is_empty() {
        return Err(ModelError::Input {
            what: "batch",
            found: "no sample".into(),
            expected: "at least one".into(),
        });
    }
    Ok((0..batch.len())
        .step_by(micro_batch)
        .map(|start| start..batch.len().min(start + micro_batch))
        .collect())
}
