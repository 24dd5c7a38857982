//! `deepflow-evaluate fit-features`: trains the classifier.

use super::latents::LatentSet;
use super::network::{Classifier, ClassifierFacts};
use crate::device::ThreadArgs;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use anyhow::ensure;
use clap::Args;
use deepflow_datasets::random::{Purpose, Stream};
use deepflow_model::ops::AdamWStep;
use std::io::Write;
use std::path::PathBuf;

/// One sample in so many is held out.
const HELD_OUT: usize = 10;
const BATCH: usize = 128;
const WARM_UP: u64 = 100;
const EMA_DECAY: f64 = 0.99;

/// Train a classifier on encoded shards, whose features then judge generated latents
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  deepflow evaluate fit-features latents judge.safetensors")]
pub struct FitArgs {
    /// Folder of encoded shards with classes
    data: PathBuf,
    /// Where to write the classifier (.safetensors)
    output: PathBuf,
    /// Optimiser steps of 128 samples
    #[arg(long, default_value_t = 4000)]
    steps: u64,
    /// Learning rate after warm-up; it falls to zero along a cosine
    #[arg(long, default_value_t = 1e-3)]
    learning_rate: f64,
    /// Weight decay
    #[arg(long, default_value_t = 0.05)]
    weight_decay: f64,
    /// Use at most so many samples, the first ones; they are kept in memory
    #[arg(long, default_value_t = 100_000)]
    samples: usize,
    /// Seed of the initial weights, the order and the held-out tenth
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    threads: ThreadArgs,
}

impl FitArgs {
    /// Trains, prints the held-out accuracy, and writes the classifier with it.
    ///
    /// # Errors
    /// The shards are unreadable or without classes; the user interrupts.
    pub fn run(&self, interrupt: &Interrupt) -> anyhow::Result<()> {
        self.threads.start()?;
        let set = LatentSet::read(&self.data, self.samples, interrupt)?;
        let count = set.classes.iter().max().map_or(0, |&largest| largest + 1);
        ensure!(count > 1, "{}: {count} class, expected at least 2", self.data.display());
        ensure!(
            set.len() >= 10 * HELD_OUT,
            "{}: {} samples, expected at least {}",
            self.data.display(),
            set.len(),
            10 * HELD_OUT
        );
        let split = Stream::new(self.seed, Purpose::Split, 0, 0);
        let (held_out, training): (Vec<usize>, Vec<usize>) =
            (0..set.len()).partition(|&sample| split.below(sample, HELD_OUT as u64) == 0);
        let facts = ClassifierFacts {
            latent_shape: set.shape,
            classes: count,
            held_out_accuracy: 0.0,
            training_samples: training.len(),
            steps: self.steps,
        };
        let mut network = Classifier::new(facts, &set.values, self.seed);
        self.train(&mut network, &set, &training, interrupt)?;

        let width = set.width();
        let mut right = 0;
        for batch in held_out.chunks(BATCH) {
            let values: Vec<f32> = batch
                .iter()
                .flat_map(|&sample| &set.values[sample * width..][..width])
                .copied()
                .collect();
            let seen = network.look(&values)?;
            right += seen
                .classes
                .iter()
                .zip(batch)
                .filter(|(&found, &sample)| found == set.classes[sample])
                .count();
        }
        network.facts.held_out_accuracy = right as f64 / held_out.len().max(1) as f64;
        network.save(&self.output)?;
        writeln!(
            std::io::stdout(),
            "{}: right on {:.2}% of {} held-out samples of {count} classes",
            self.output.display(),
            100.0 * network.facts.held_out_accuracy,
            held_out.len()
        )?;
        Ok(())
    }

    fn train(
        &self,
        network: &mut Classifier,
        set: &LatentSet,
        training: &[usize],
        interrupt: &Interrupt,
    ) -> anyhow::Result<()> {
        let width = set.width();
        let progress = Progress::start("fit-features", "steps", 0, self.steps);
        for step in 1..=self.steps {
            interrupt.check()?;
            // Drawn with replacement: the order is a function of the seed and the step alone.
            let draw = Stream::new(self.seed, Purpose::Order, 0, step);
            let batch: Vec<usize> = (0..BATCH)
                .map(|place| training[draw.below(place, training.len() as u64) as usize])
                .collect();
            let values: Vec<f32> = batch
                .iter()
                .flat_map(|&sample| &set.values[sample * width..][..width])
                .copied()
                .collect();
            let labels: Vec<usize> = batch.iter().map(|&sample| set.classes[sample]).collect();
            let loss = network.train_step(&values, &labels, &self.adamw_step(step))?;
            ensure!(
                loss.is_finite(),
                "the loss is not finite at step {step}; try a smaller --learning-rate"
            );
            progress.note(format!("loss {loss:.3}"));
            progress.advance(1);
        }
        Ok(())
    }

    fn adamw_step(&self, step: u64) -> AdamWStep {
        let warm_up = (step as f64 / WARM_UP as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / self.steps as f64).cos());
        AdamWStep {
            learning_rate: self.learning_rate * warm_up * cosine,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: self.weight_decay,
            step,
            gradient_scale: 1.0,
            ema_decay: EMA_DECAY,
        }
    }
}
