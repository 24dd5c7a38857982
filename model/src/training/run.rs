//! What drives a training run does not see what it computes on.

use std::ops::ControlFlow;
use std::path::Path;

use super::inputs::Batch;
use super::settings::StepRates;
use super::trainer::{StepReport, Trainer};
use crate::checkpoint::CheckpointError;
use crate::error::ModelError;
use crate::ops::Operators;
use crate::sampling::{sample, IndexedNoise, SamplerSettings};

/// Is told the share that is done, and can break off.
pub type Progress<'a> = &'a mut dyn FnMut(f64) -> ControlFlow<()>;

/// A network in training: on the processor a [`Trainer`], on a GPU a `CudaTrainer`.
pub trait Training {
    /// Steps begun so far, skipped ones included.
    fn step_count(&self) -> u64;

    /// Updates made so far, as far as [`reports`](Self::reports) has told.
    fn update_count(&self) -> u64;

    /// Does one step on a batch, or begins it: what it did is told by [`reports`](Self::reports).
    ///
    /// # Errors
    /// [`ModelError::Input`] for a batch that does not fit the network, [`ModelError::Device`].
    fn take_step(&mut self, batch: &Batch, rates: StepRates) -> Result<(), ModelError>;

    /// What the steps did that was not told before, in their order: all of them with `wait`, else those that are known
    /// without waiting for a device.
    ///
    /// # Errors
    /// [`ModelError::Device`].
    fn reports(&mut self, wait: bool) -> Result<Vec<StepReport>, ModelError>;

    /// [`sample`] with the current weights, or with their moving average.
    ///
    /// # Errors
    /// As [`sample`].
    fn generate(
        &self,
        averaged: bool,
        settings: &SamplerSettings,
        labels: &[usize],
        noise: &IndexedNoise,
        on_progress: Progress<'_>,
    ) -> Result<Option<Vec<f64>>, ModelError>;

    /// Writes a checkpoint: everything that [`Trainer::resume`] needs to go on as if training had never stopped. `data` is
    /// the caller's own: the place in the data, as a rule. All reports must have been read.
    ///
    /// # Errors
    /// What the system says, with the file. Nothing is left under `folder` then, and other checkpoints are untouched.
    fn save(&self, folder: &Path, data: &serde_json::Value) -> Result<(), CheckpointError>;
}

impl<D: Operators<f32>> Training for Trainer<f32, D> {
    fn step_count(&self) -> u64 {
        Self::step_count(self)
    }

    fn update_count(&self) -> u64 {
        Self::update_count(self)
    }

    fn take_step(&mut self, batch: &Batch, rates: StepRates) -> Result<(), ModelError> {
        let report = self.step(batch, rates)?;
        self.untold.push(report);
        Ok(())
    }

    fn reports(&mut self, _: bool) -> Result<Vec<StepReport>, ModelError> {
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
            self.ema_network()
        } else {
            self.network().clone()
        };
        sample(&network, settings, labels, noise, on_progress)
    }

    fn save(&self, folder: &Path, data: &serde_json::Value) -> Result<(), CheckpointError> {
        Self::save(self, folder, data)
    }
}
