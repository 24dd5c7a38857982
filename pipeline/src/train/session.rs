//! The loop: batch after batch until the last step, with reports, sample pictures and checkpoints on the way.

use std::time::Instant;

use anyhow::bail;
use deepflow_datasets::LoaderState;
use deepflow_model::ops::Operators;
use deepflow_model::training::{StepOutcome, StepRates, StepReport, Trainer};
use serde_json::json;

use super::data::{Fed, Feed};
use super::preview::Preview;
use super::rates::rates;
use super::report::{Place, Window};
use super::run_directory::RunDirectory;
use crate::config::Config;
use crate::interrupt::{Interrupt, Interrupted};
use crate::metrics::{EventFile, MetricsLog};
use crate::progress::Progress;

/// At most this many keys of a batch are named in a report.
const NAMED_KEYS: usize = 8;

/// A run in progress.
pub struct Session<'a, D: Operators<f32>> {
    config: &'a Config,
    run: RunDirectory,
    trainer: Trainer<f32, D>,
    feed: Feed,
    /// Where in the data the next batch starts.
    place: LoaderState,
    log: MetricsLog,
    events: EventFile,
    /// Begun at the first step that is skipped.
    bad_steps: Option<MetricsLog>,
    preview: Preview,
    window: Window,
    bad_in_a_row: u64,
    saved: u64,
}

impl<'a, D: Operators<f32>> Session<'a, D> {
    /// Prepares the reports of a run whose trainer and feed stand at the same step.
    pub fn start(
        config: &'a Config,
        run: RunDirectory,
        trainer: Trainer<f32, D>,
        feed: Feed,
        place: LoaderState,
    ) -> anyhow::Result<Self> {
        let step = trainer.step_count();
        Ok(Self {
            log: MetricsLog::continue_after(&run.metrics_file(), step)?,
            events: EventFile::continue_after(run.root(), step)?,
            bad_steps: None,
            preview: Preview::open(config, &run, feed.record()),
            config,
            run,
            trainer,
            feed,
            place,
            window: Window::default(),
            bad_in_a_row: 0,
            saved: step,
        })
    }

    /// Trains up to the last step.
    pub fn run(mut self, interrupt: &Interrupt) -> anyhow::Result<()> {
        let train = &self.config.train;
        let progress = Progress::start("training", "steps", self.trainer.step_count(), train.steps);
        while self.trainer.step_count() < train.steps {
            if interrupt.is_requested() {
                self.save()?;
                return Err(Interrupted.into());
            }
            let Some((report, rates)) = self.step(interrupt)? else {
                continue;
            };
            let step = report.step;
            let last = step == train.steps;
            if step % train.log_every == 0 || last {
                self.log(rates)?;
            }
            if train.sample_every > 0 && (step % train.sample_every == 0 || last) {
                self.preview
                    .draw(&self.trainer, &self.run, &mut self.events, interrupt)?;
            }
            if step % train.checkpoint_every == 0 || last {
                self.save()?;
            }
            progress.set(step);
            progress.note(self.note());
        }
        Ok(())
    }

    /// One step; `None` when the work is to stop and no batch has arrived.
    fn step(&mut self, interrupt: &Interrupt) -> anyhow::Result<Option<(StepReport, StepRates)>> {
        let start = Instant::now();
        let Some(Fed { batch, keys, next }) = self.feed.next(interrupt)? else {
            return Ok(None);
        };
        let waited = start.elapsed();
        let rates = rates(&self.config.train, self.trainer.step_count() + 1);
        let report = self.trainer.step(&batch, rates)?;
        self.place = next;
        self.window.add(&report, batch.len(), waited);
        match report.outcome {
            StepOutcome::Updated => self.bad_in_a_row = 0,
            StepOutcome::Skipped => self.skipped(&report, &keys)?,
        }
        Ok(Some((report, rates)))
    }

    fn skipped(&mut self, report: &StepReport, keys: &[String]) -> anyhow::Result<()> {
        self.bad_in_a_row += 1;
        self.log_bad_step(report, keys)?;
        let named = keys
            .iter()
            .take(NAMED_KEYS)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        let more = if keys.len() > NAMED_KEYS {
            format!(" and {} more", keys.len() - NAMED_KEYS)
        } else {
            String::new()
        };
        let what = format!(
            "step {}: loss {} with gradient norm {} on samples {named}{more}",
            report.step, report.losses.total, report.gradient_norm
        );
        let limit = self.config.train.max_bad_steps;
        if self.bad_in_a_row >= limit {
            bail!("{what}; stopped after {limit} such steps in a row (train.max_bad_steps)");
        }
        tracing::warn!("{what}; skipped");
        Ok(())
    }

    /// Keeps all keys of the batch: the line on stderr has no place for them.
    fn log_bad_step(&mut self, report: &StepReport, keys: &[String]) -> anyhow::Result<()> {
        let log = match &mut self.bad_steps {
            Some(log) => log,
            none => none.insert(MetricsLog::continue_after(&self.run.bad_steps_file(), report.step - 1)?),
        };
        log.write(&json!({
            "step": report.step,
            "loss": report.losses.total,
            "gradient_norm": report.gradient_norm,
            "keys": keys,
        }))
    }

    fn log(&mut self, rates: StepRates) -> anyhow::Result<()> {
        let window = std::mem::take(&mut self.window);
        let place = Place {
            step: self.trainer.step_count(),
            samples: self.trainer.step_count() * self.config.train.batch as u64,
            epoch: self.place.epoch,
            skipped_steps: self.trainer.step_count() - self.trainer.update_count(),
            skipped_samples: self.feed.skipped(),
        };
        let metrics = window.metrics(place, rates);
        self.log.write(&metrics)?;
        let scalars = metrics.scalars();
        self.events
            .scalars(metrics.step, scalars.iter().map(|(tag, value)| (tag.as_str(), *value)))?;
        Ok(())
    }

    fn note(&self) -> String {
        let window = &self.window;
        if window.is_empty() {
            return String::new();
        }
        let skipped = match self.feed.skipped() {
            0 => String::new(),
            skipped => format!(", {skipped} samples skipped"),
        };
        format!(
            "loss {:.4}, {:.1} images/s, waiting for data {:.1} %{skipped}",
            window.loss(),
            window.images_per_s(),
            window.waiting_percent()
        )
    }

    fn save(&mut self) -> anyhow::Result<()> {
        let step = self.trainer.step_count();
        if step == self.saved {
            return Ok(());
        }
        self.trainer
            .save(&self.run.checkpoint(step), &serde_json::to_value(self.place)?)?;
        self.run
            .checkpoint_written(step, self.config.train.keep_last, self.config.train.keep_every)?;
        self.saved = step;
        Ok(())
    }
}
