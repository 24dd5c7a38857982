//! The loop: batch after batch until the last step, with reports, sample pictures and checkpoints on the way.
//!
//! A GPU is asked what its steps did only when there is something to write: until then it works while the next batches are
//! read.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::bail;
use deepflow_datasets::LoaderState;
use deepflow_model::training::{StepOutcome, StepRates, StepReport, Training};
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
pub struct Session<'a> {
    config: &'a Config,
    run: RunDirectory,
    trainer: Box<dyn Training>,
    feed: Feed,
    /// Steps that were begun and not told of yet.
    begun: VecDeque<Begun>,
    /// Where in the data the next batch starts.
    place: LoaderState,
    log: MetricsLog,
    events: EventFile,
    /// Begun at the first step that is skipped.
    bad_steps: Option<MetricsLog>,
    preview: Preview,
    window: Window,
    note: String,
    bad_in_a_row: u64,
    saved: u64,
}

/// What is known of a step when it begins.
struct Begun {
    keys: Vec<String>,
    samples: usize,
    /// Time that went by waiting for data.
    waited: Duration,
}

impl<'a> Session<'a> {
    /// Prepares the reports of a run whose trainer and feed stand at the same step.
    pub fn start(
        config: &'a Config,
        run: RunDirectory,
        trainer: Box<dyn Training>,
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
            begun: VecDeque::new(),
            place,
            window: Window::default(),
            note: String::new(),
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
                self.hear(true)?;
                self.save()?;
                return Err(Interrupted.into());
            }
            let Some(rates) = self.step(interrupt)? else {
                continue;
            };
            let step = self.trainer.step_count();
            let last = step == train.steps;
            let is_due = |every: u64| every > 0 && (step.is_multiple_of(every) || last);
            let due = [train.log_every, train.sample_every, train.checkpoint_every].map(is_due);
            self.hear(due.contains(&true))?;
            progress.set(step);
            progress.note(self.note());
            let [log, sheet, checkpoint] = due;
            if log {
                self.log(rates)?;
            }
            if sheet {
                self.preview
                    .draw(self.trainer.as_ref(), &self.run, &mut self.events, interrupt)?;
            }
            if checkpoint {
                self.save()?;
            }
        }
        Ok(())
    }

    /// Begins one step; `None` when the work is to stop and no batch has arrived.
    fn step(&mut self, interrupt: &Interrupt) -> anyhow::Result<Option<StepRates>> {
        let start = Instant::now();
        let Some(Fed { batch, keys, next }) = self.feed.next(interrupt)? else {
            return Ok(None);
        };
        let waited = start.elapsed();
        let rates = rates(&self.config.train, self.trainer.step_count() + 1);
        self.trainer.take_step(&batch, rates)?;
        self.place = next;
        self.begun.push_back(Begun {
            keys,
            samples: batch.len(),
            waited,
        });
        Ok(Some(rates))
    }

    /// Takes note of what the steps did: of all of them with `wait`, else of those that are known.
    fn hear(&mut self, wait: bool) -> anyhow::Result<()> {
        for report in self.trainer.reports(wait)? {
            let Some(begun) = self.begun.pop_front() else {
                bail!("step {}: reported twice", report.step);
            };
            self.window.add(&report, begun.samples, begun.waited);
            match report.outcome {
                StepOutcome::Updated => self.bad_in_a_row = 0,
                StepOutcome::Skipped => self.skipped(&report, &begun.keys)?,
                StepOutcome::Overflowed => tracing::debug!(
                    "step {}: the gradient overflowed under a loss scale of {:?}; skipped, the scale is halved",
                    report.step,
                    report.loss_scale
                ),
            }
        }
        Ok(())
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

    /// The newest there is to say beside the progress.
    fn note(&mut self) -> String {
        let window = &self.window;
        if window.is_empty() {
            return self.note.clone();
        }
        let skipped = match self.feed.skipped() {
            0 => String::new(),
            skipped => format!(", {skipped} samples skipped"),
        };
        self.note = format!(
            "loss {:.4}, {:.1} images/s, waiting for data {:.1} %{skipped}",
            window.loss(),
            window.images_per_s(),
            window.waiting_percent()
        );
        self.note.clone()
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
