//! What is said about the steps since the last line of metrics.

use std::time::{Duration, Instant};

use deepflow_model::training::{LossValues, StepOutcome, StepRates, StepReport, StepTimes};
use serde::Serialize;

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, Serialize)]
pub struct Metrics {
    /// The last step the line speaks of.
    pub step: u64,
    /// Samples the run has seen.
    pub samples: u64,
    /// Pass over the data of the last sample, counted from 0.
    pub epoch: u32,
    /// Mean losses since the last line.
    pub loss: LossMetrics,
    /// Mean global L2 norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate of the last step.
    pub learning_rate: f64,
    /// Training speed since the last line.
    pub images_per_s: f64,
    /// Where the time since the last line went, in seconds a step.
    pub seconds: TimeMetrics,
    /// Steps of the whole run that were skipped for a loss or gradient that is not finite; in mixed precision also those in
    /// which only the scaled gradient was not.
    pub skipped_steps: u64,
    /// What the loss of the last step was multiplied by, in mixed precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f32>,
    /// Samples that could not be read, since the program started.
    pub skipped_samples: u64,
}

/// Losses, unweighted but for the total.
#[derive(Clone, Debug, Serialize)]
pub struct LossMetrics {
    /// The weighted sum that is minimised.
    pub total: f64,
    /// Velocity loss of each branch.
    pub velocity: Vec<f64>,
    /// Acceleration loss, summed over the inner branches.
    pub acceleration: f64,
    /// Alignment loss, averaged over the inner branches.
    pub alignment: f64,
}

/// Seconds a step.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TimeMetrics {
    /// Waiting for data.
    pub data: f64,
    /// Forward passes.
    pub forward: f64,
    /// Backward passes.
    pub backward: f64,
    /// Clipping, AdamW, moving average.
    pub update: f64,
}

impl Metrics {
    /// The numbers by TensorBoard tag.
    #[must_use]
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let velocity = self.loss.velocity.iter().enumerate();
        let mut scalars = vec![("loss/total".to_owned(), self.loss.total)];
        scalars.extend(velocity.map(|(branch, &loss)| (format!("loss/velocity_{branch}"), loss)));
        let rest = [
            ("loss/acceleration", self.loss.acceleration),
            ("loss/alignment", self.loss.alignment),
            ("gradient_norm", self.gradient_norm),
            ("learning_rate", self.learning_rate),
            ("images_per_s", self.images_per_s),
            ("seconds/data", self.seconds.data),
            ("seconds/forward", self.seconds.forward),
            ("seconds/backward", self.seconds.backward),
            ("seconds/update", self.seconds.update),
        ];
        scalars.extend(rest.map(|(tag, value)| (tag.to_owned(), value)));
        scalars.extend(self.loss_scale.map(|scale| ("loss_scale".to_owned(), scale.into())));
        scalars
    }
}

/// The steps since the last line of metrics.
#[derive(Debug)]
pub struct Window {
    start: Instant,
    steps: u64,
    samples: usize,
    updates: u64,
    losses: LossValues,
    gradient_norm: f64,
    loss_scale: Option<f32>,
    times: StepTimes,
    data: Duration,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            steps: 0,
            samples: 0,
            updates: 0,
            losses: LossValues::default(),
            gradient_norm: 0.0,
            loss_scale: None,
            times: StepTimes::default(),
            data: Duration::ZERO,
        }
    }
}

impl Window {
    /// Adds a step on `samples` samples for which training waited `data`. Skipped steps count for the time alone.
    pub fn add(&mut self, report: &StepReport, samples: usize, data: Duration) {
        self.steps += 1;
        self.samples += samples;
        self.data += data;
        self.loss_scale = report.loss_scale;
        self.times.forward += report.times.forward;
        self.times.backward += report.times.backward;
        self.times.update += report.times.update;
        if report.outcome == StepOutcome::Updated {
            self.updates += 1;
            self.gradient_norm += report.gradient_norm;
            let losses = &mut self.losses;
            losses.total += report.losses.total;
            losses.acceleration += report.losses.acceleration;
            losses.alignment += report.losses.alignment;
            losses.velocity.resize(report.losses.velocity.len(), 0.0);
            losses
                .velocity
                .iter_mut()
                .zip(&report.losses.velocity)
                .for_each(|(sum, loss)| *sum += loss);
        }
    }

    /// Whether no step was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps == 0
    }

    /// Images a second.
    #[must_use]
    pub fn images_per_s(&self) -> f64 {
        self.samples as f64 / self.start.elapsed().as_secs_f64().max(1e-9)
    }

    /// Share of the time that went by waiting for data, in percent.
    #[must_use]
    pub fn waiting_percent(&self) -> f64 {
        100.0 * self.data.as_secs_f64() / self.start.elapsed().as_secs_f64().max(1e-9)
    }

    /// Mean total loss of the steps that updated.
    #[must_use]
    pub fn loss(&self) -> f64 {
        self.losses.total / self.updates as f64
    }

    /// The line of metrics up to the step of `place`.
    #[must_use]
    pub fn metrics(&self, place: Place, rates: StepRates) -> Metrics {
        let mean = |sum: f64| sum / self.updates as f64;
        let seconds = |sum: Duration| sum.as_secs_f64() / self.steps as f64;
        Metrics {
            step: place.step,
            samples: place.samples,
            epoch: place.epoch,
            loss: LossMetrics {
                total: mean(self.losses.total),
                velocity: self.losses.velocity.iter().copied().map(mean).collect(),
                acceleration: mean(self.losses.acceleration),
                alignment: mean(self.losses.alignment),
            },
            gradient_norm: mean(self.gradient_norm),
            learning_rate: rates.learning_rate,
            images_per_s: self.images_per_s(),
            seconds: TimeMetrics {
                data: seconds(self.data),
                forward: seconds(self.times.forward),
                backward: seconds(self.times.backward),
                update: seconds(self.times.update),
            },
            skipped_steps: place.skipped_steps,
            loss_scale: self.loss_scale,
            skipped_samples: place.skipped_samples,
        }
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Steps done.
    pub step: u64,
    /// Samples seen.
    pub samples: u64,
    /// Pass over the data, counted from 0.
    pub epoch: u32,
    /// Steps skipped in the whole run.
    pub skipped_steps: u64,
    /// Samples left out since the program started.
    pub skipped_samples: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_steps_do_not_enter_the_means() {
        let report = |total: f64, outcome| StepReport {
            step: 1,
            losses: LossValues {
                velocity: vec![total],
                acceleration: 0.0,
                alignment: 0.0,
                total,
            },
            gradient_norm: total,
            outcome,
            loss_scale: None,
            times: StepTimes::default(),
        };
        let mut window = Window::default();
        window.add(&report(2.0, StepOutcome::Updated), 4, Duration::ZERO);
        window.add(&report(f64::NAN, StepOutcome::Skipped), 4, Duration::ZERO);
        window.add(&report(4.0, StepOutcome::Updated), 4, Duration::ZERO);
        let place = Place {
            step: 3,
            samples: 12,
            epoch: 0,
            skipped_steps: 1,
            skipped_samples: 0,
        };
        let metrics = window.metrics(place, StepRates::default());
        assert_eq!((metrics.loss.total, metrics.gradient_norm), (3.0, 3.0));
        assert_eq!(metrics.loss.velocity, [3.0]);
    }
}
