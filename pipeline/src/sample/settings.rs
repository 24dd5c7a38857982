//! From the configuration to what the model's samplers take.

use deepflow_model::sampling::{Method, SamplerSettings};

use crate::config::{Config, Sampler};

/// The samplers' settings, for a network trained by the same configuration.
#[must_use]
pub fn sampler_settings(config: &Config) -> SamplerSettings {
    let Config {
        loss, sample: config, ..
    } = config;
    SamplerSettings {
        path: loss.path.into(),
        method: match config.sampler {
            Sampler::Sde => Method::Sde,
            Sampler::Euler => Method::Euler,
            Sampler::Heun => Method::Heun,
            Sampler::Dopri5 => Method::Dopri5,
        },
        steps: config.steps,
        guidance: config.guidance,
        guidance_interval: (config.guidance_low, config.guidance_high),
        branch_times: config.branch_times.clone(),
        relative_tolerance: config.relative_tolerance,
        absolute_tolerance: config.absolute_tolerance,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_published_ones() {
        assert_eq!(sampler_settings(&Config::default()), SamplerSettings::default());
    }
}
