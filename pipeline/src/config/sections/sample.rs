//! `[sample]`: how pictures are generated (network spec §7).

use deepflow_model::NetworkConfig;
use serde::{Deserialize, Serialize};

use super::train::Precision;
use super::{at_least_one, in_range, Violation};

/// The integrator from noise to data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampler {
    /// Euler-Maruyama on the stochastic equation, the paper's.
    #[default]
    Sde,
    /// Euler's method on the ordinary equation.
    Euler,
    /// Heun's method on the ordinary equation.
    Heun,
    /// Dormand-Prince with adaptive steps on the ordinary equation.
    Dopri5,
}

/// `[sample]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SampleConfig {
    /// The integrator.
    pub sampler: Sampler,
    /// Steps of the integrator; `dopri5` chooses its own.
    pub steps: usize,
    /// Scale of classifier-free guidance; 1 is none.
    pub guidance: f64,
    /// Smallest time at which guidance applies.
    pub guidance_low: f64,
    /// Largest time at which guidance applies.
    pub guidance_high: f64,
    /// Seed; sample `i` is a function of the seed, `i` and these settings only.
    pub seed: u64,
    /// Samples computed at once; changes speed and memory, not the samples.
    pub batch: usize,
    /// Samples in a shard: what a stop loses at most.
    pub shard_samples: usize,
    /// What the network computes in; "mixed" needs a GPU.
    pub precision: Precision,
    /// Lets a GPU round the factors of f32 matrix products to TF32.
    pub tf32: bool,
    /// Uses the averaged weights instead of the trained ones.
    pub ema: bool,
    /// Time offset of each branch at inference; empty means none.
    pub branch_times: Vec<f64>,
    /// Relative tolerance of `dopri5`.
    pub relative_tolerance: f64,
    /// Absolute tolerance of `dopri5`.
    pub absolute_tolerance: f64,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            sampler: Sampler::Sde,
            steps: 250,
            guidance: 1.0,
            guidance_low: 0.0,
            guidance_high: 1.0,
            seed: 0,
            batch: 64,
            shard_samples: 256,
            precision: Precision::F32,
            tf32: true,
            ema: true,
            branch_times: Vec::new(),
            relative_tolerance: 1e-3,
            absolute_tolerance: 1e-6,
        }
    }
}

impl SampleConfig {
    pub(super) fn check(&self, model: &NetworkConfig) -> Result<(), Violation> {
        at_least_one("sample.batch", self.batch)?;
        at_least_one("sample.shard_samples", self.shard_samples)?;
        at_least_one("sample.steps", self.steps)?;
        if self.sampler == Sampler::Sde && self.steps < 2 {
            return Err(Violation::new(
                "sample.steps",
                "is 1, expected at least 2 for the sde sampler",
            ));
        }
        in_range("sample.guidance", self.guidance, 0.0, f64::INFINITY)?;
        in_range("sample.guidance_low", self.guidance_low, 0.0, f64::INFINITY)?;
        in_range(
            "sample.guidance_high",
            self.guidance_high,
            self.guidance_low,
            f64::INFINITY,
        )?;
        in_range(
            "sample.relative_tolerance",
            self.relative_tolerance,
            f64::MIN_POSITIVE,
            f64::INFINITY,
        )?;
        in_range(
            "sample.absolute_tolerance",
            self.absolute_tolerance,
            f64::MIN_POSITIVE,
            f64::INFINITY,
        )?;
        let (times, branches) = (self.branch_times.len(), model.branch_ends.len() + 1);
        if times != 0 && times != branches {
            let rule = format!("has {times} values, expected one for each of the {branches} branches of the model");
            return Err(Violation::new("sample.branch_times", rule));
        }
        if self.guidance > 1.0 && model.class_dropout <= 0.0 {
            let rule = format!(
                "is {}, but a model with model.class_dropout = 0 has no \"no class\"",
                self.guidance
            );
            return Err(Violation::new("sample.guidance", rule));
        }
        Ok(())
    }
}
