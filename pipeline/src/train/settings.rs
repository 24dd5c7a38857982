//! From the configuration's sections to what the model's trainer takes.

use deepflow_model::training::{self, LossSettings, OptimizerSettings, TimeDistribution};

use crate::config::{FlowPath, LossConfig, TrainConfig, TrainingTimes};

impl From<FlowPath> for training::Path {
    fn from(path: FlowPath) -> Self {
        match path {
            FlowPath::Linear => Self::Linear,
            FlowPath::Cosine => Self::Cosine,
        }
    }
}

/// The losses of a network with `branches` branches.
#[must_use]
pub fn loss_settings(config: &LossConfig, branches: usize) -> LossSettings {
    LossSettings {
        path: config.path.into(),
        times: match config.times {
            TrainingTimes::Lognormal => TimeDistribution::LogitNormal,
            TrainingTimes::Uniform => TimeDistribution::Uniform,
        },
        time_gap: config.time_gap,
        branch_weights: config.weights(branches),
        acceleration: config.acceleration,
        alignment: config.alignment,
    }
}

/// AdamW and clipping.
#[must_use]
pub fn optimizer_settings(config: &TrainConfig) -> OptimizerSettings {
    OptimizerSettings {
        beta1: config.beta1,
        beta2: config.beta2,
        epsilon: config.epsilon,
        weight_decay: config.weight_decay,
        clip_norm: (config.clip_norm > 0.0).then_some(config.clip_norm),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_published_recipe() {
        assert_eq!(loss_settings(&LossConfig::default(), 3), LossSettings::published(3));
        assert_eq!(
            optimizer_settings(&TrainConfig::default()),
            OptimizerSettings::default()
        );
    }
}
