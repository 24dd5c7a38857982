//! `[loss]`: what is minimised (network spec §4).

use deepflow_model::NetworkConfig;
use serde::{Deserialize, Serialize};

use super::{in_range, Violation};

/// The way from data to noise (network spec §1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// `(1-t)·data + t·noise`
    #[default]
    Linear,
    /// `cos(πt/2)·data + sin(πt/2)·noise`
    Cosine,
}

/// How the first branch's time is drawn in training (network spec §4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrainingTimes {
    /// `sigmoid(N(0,1))`
    #[default]
    Lognormal,
    /// `U(0,1)`
    Uniform,
}

/// `[loss]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LossConfig {
    /// The way from data to noise.
    pub path: Path,
    /// How the first branch's time is drawn.
    pub times: TrainingTimes,
    /// Largest gap between the times of neighbouring branches (β).
    pub time_gap: f64,
    /// Weight of each branch's velocity loss; empty means 0.2 for inner branches and 1 for the last.
    pub branch_weights: Vec<f64>,
    /// Weight of the acceleration loss (λ_acc).
    pub acceleration: f64,
    /// Weight of the alignment loss (λ_align).
    pub alignment: f64,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            path: Path::Linear,
            times: TrainingTimes::Lognormal,
            time_gap: 0.01,
            branch_weights: Vec::new(),
            acceleration: 1.0,
            alignment: 0.5,
        }
    }
}

impl LossConfig {
    /// A weight for each of `branches` branches.
    #[must_use]
    pub fn weights(&self, branches: usize) -> Vec<f64> {
        if self.branch_weights.is_empty() {
            (1..=branches)
                .map(|branch| if branch == branches { 1.0 } else { 0.2 })
                .collect()
        } else {
            self.branch_weights.clone()
        }
    }

    pub(super) fn check(&self, model: &NetworkConfig) -> Result<(), Violation> {
        let (weights, branches) = (self.branch_weights.len(), model.branch_ends.len() + 1);
        if weights != 0 && weights != branches {
            let rule = format!("has {weights} values, expected one for each of the {branches} branches of the model");
            return Err(Violation::new("loss.branch_weights", rule));
        }
        for &weight in &self.branch_weights {
            in_range("loss.branch_weights", weight, 0.0, f64::INFINITY)?;
        }
        in_range("loss.time_gap", self.time_gap, 0.0, 1.0)?;
        in_range("loss.acceleration", self.acceleration, 0.0, f64::INFINITY)?;
        in_range("loss.alignment", self.alignment, 0.0, f64::INFINITY)
    }
}
