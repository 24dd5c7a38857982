//! What training is told besides the network's configuration.

use super::path::Path;
use crate::config::NetworkConfig;
use crate::error::ConfigError;

/// How the first branch's time is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeDistribution {
    /// `sigmoid(N(0,1))`.
    #[default]
    LogitNormal,
    /// `U(0,1)`.
    Uniform,
}

/// What is minimised (network spec §4).
#[derive(Clone, Debug, PartialEq)]
pub struct LossSettings {
    /// The way from data to noise.
    pub path: Path,
    /// How the first branch's time is drawn.
    pub times: TimeDistribution,
    /// Largest gap β between the times of neighbouring branches.
    pub time_gap: f64,
    /// Weight of every branch's velocity loss, K of them.
    pub branch_weights: Vec<f64>,
    /// Weight λ_acc of the acceleration loss; 0 leaves it out.
    pub acceleration: f64,
    /// Weight λ_align of the alignment loss; 0 leaves it out.
    pub alignment: f64,
}

impl LossSettings {
    /// The published settings for a number of branches.
    pub fn published(branches: usize) -> Self {
        let inner = branches.saturating_sub(1);
        let mut branch_weights = vec![0.2; inner];
        branch_weights.push(1.0);
        Self {
            path: Path::Linear,
            times: TimeDistribution::LogitNormal,
            time_gap: 0.01,
            branch_weights,
            acceleration: 1.0,
            alignment: 0.5,
        }
    }

    /// Checks that the settings fit the network.
    ///
    /// # Errors
    /// The key that does not fit, and the rule.
    pub fn validate(&self, network: &NetworkConfig) -> Result<(), ConfigError> {
        if self.branch_weights.len() == network.branches() {
            return Ok(());
        }
        Err(ConfigError {
            key: "loss.branch_weights",
            found: format!("{:?}", self.branch_weights),
            rule: format!("must hold one weight for each of the {} branches", network.branches()),
        })
    }
}

/// AdamW, clipping and moving average (network spec §6). The default is the published recipe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global L2 norm of the gradient; absent: no clipping.
    pub clip_norm: Option<f64>,
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip_norm: Some(1.0),
        }
    }
}

/// What may differ from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepRates {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the moving average at this step.
    pub ema_decay: f64,
}

impl Default for StepRates {
    fn default() -> Self {
        Self {
            learning_rate: 1e-4,
            ema_decay: 0.9999,
        }
    }
}
