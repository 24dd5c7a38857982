//! `[train]`: the optimiser and the run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{at_least_one, in_range, Violation};

/// The learning rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Stays (network spec §6).
    #[default]
    Constant,
    /// Half a cosine from `learning_rate` down to `final_learning_rate` at `steps`.
    Cosine,
}

/// What a new run takes from `start_from`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartWith {
    /// The trained weights: fine-tuning.
    #[default]
    Weights,
    /// The averaged weights, the optimiser's moments and the number of steps too: that run goes on, on this one's data.
    Everything,
}

/// What a network computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Single precision everywhere.
    #[default]
    F32,
    /// Half precision with sums, softmax, normalisation, master weights and moments in single precision; on GPUs.
    Mixed,
}

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainConfig {
    /// Optimiser steps of the whole run.
    pub steps: u64,
    /// Samples a step sees, over all parts of `accumulation`.
    pub batch: usize,
    /// Parts a step's batch is computed in, one after the other, to need less memory.
    pub accumulation: usize,
    /// Keeps only the input of every block and computes the block again in the backward pass: less memory for about a
    /// third more time, the same results.
    pub checkpoint_blocks: bool,
    /// What the network computes in; "mixed" needs a GPU.
    pub precision: Precision,
    /// Lets a GPU round the factors of f32 matrix products to TF32.
    pub tf32: bool,
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Learning rate of AdamW after the warm-up.
    pub learning_rate: f64,
    /// What the learning rate does after the warm-up.
    pub schedule: Schedule,
    /// Steps over which the learning rate rises from 0.
    pub warmup_steps: u64,
    /// Where a cosine schedule ends.
    pub final_learning_rate: f64,
    /// Decay of AdamW's first moment.
    pub beta1: f64,
    /// Decay of AdamW's second moment.
    pub beta2: f64,
    /// AdamW's epsilon.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global L2 norm of the gradient; 0 does not clip.
    pub clip_norm: f64,
    /// Decay of the averaged weights.
    pub ema_decay: f64,
    /// Lets the averaged weights follow faster at first: decay min(ema_decay, (1 + step) / (10 + step)).
    pub ema_warmup: bool,
    /// Steps between two lines of metrics.
    pub log_every: u64,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
    /// Checkpoints kept besides those of `keep_every`; 0 keeps all.
    pub keep_last: usize,
    /// Keeps every checkpoint whose step is a multiple of this for ever; 0 keeps none for ever.
    pub keep_every: u64,
    /// Steps between two sheets of sample pictures; 0 makes none.
    pub sample_every: u64,
    /// Pictures on such a sheet.
    pub sample_count: usize,
    /// Steps with a loss or gradient that is not finite, in a row, that end the run.
    pub max_bad_steps: u64,
    /// Run, checkpoint or weights that a new run starts from.
    pub start_from: Option<PathBuf>,
    /// What it takes from there.
    pub start_with: StartWith,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 400_000,
            batch: 256,
            accumulation: 1,
            checkpoint_blocks: false,
            precision: Precision::F32,
            tf32: true,
            seed: 0,
            learning_rate: 1e-4,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            final_learning_rate: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip_norm: 1.0,
            ema_decay: 0.9999,
            ema_warmup: false,
            log_every: 100,
            checkpoint_every: 5000,
            keep_last: 3,
            keep_every: 50_000,
            sample_every: 5000,
            sample_count: 16,
            max_bad_steps: 10,
            start_from: None,
            start_with: StartWith::Weights,
        }
    }
}

impl TrainConfig {
    pub(super) fn check(&self) -> Result<(), Violation> {
        at_least_one("train.batch", self.batch)?;
        at_least_one("train.accumulation", self.accumulation)?;
        if !self.batch.is_multiple_of(self.accumulation) {
            let rule = format!(
                "is {}, expected a divisor of train.batch = {}",
                self.accumulation, self.batch
            );
            return Err(Violation::new("train.accumulation", rule));
        }
        for (key, count) in [
            ("train.steps", self.steps),
            ("train.log_every", self.log_every),
            ("train.checkpoint_every", self.checkpoint_every),
            ("train.max_bad_steps", self.max_bad_steps),
        ] {
            at_least_one(key, usize::try_from(count).unwrap_or(usize::MAX))?;
        }
        in_range("train.learning_rate", self.learning_rate, 0.0, f64::INFINITY)?;
        in_range(
            "train.final_learning_rate",
            self.final_learning_rate,
            0.0,
            f64::INFINITY,
        )?;
        in_range("train.beta1", self.beta1, 0.0, 1.0)?;
        in_range("train.beta2", self.beta2, 0.0, 1.0)?;
        in_range("train.epsilon", self.epsilon, 0.0, f64::INFINITY)?;
        in_range("train.weight_decay", self.weight_decay, 0.0, f64::INFINITY)?;
        in_range("train.clip_norm", self.clip_norm, 0.0, f64::INFINITY)?;
        in_range("train.ema_decay", self.ema_decay, 0.0, 1.0)
    }
}
