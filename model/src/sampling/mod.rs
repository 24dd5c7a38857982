//! Samplers: from noise to latents (network spec §7). The state is kept in f64, the network computes in its own
//! precision.
//!
//! A sample depends on the settings, its label and its own noise only, never on the other samples of its batch.

mod dopri5;
mod field;
mod fixed_step;
mod noise;

use std::ops::ControlFlow;

use dfdx::prelude::Dtype;

use crate::config::NetworkConfig;
use crate::error::{ConfigError, ModelError};
use crate::network::Network;
use crate::ops::Operators;
use crate::training::Path;

use field::VelocityField;
pub use noise::{IndexedNoise, NoiseSource};

/// How the equation is integrated from t = 1 (noise) to t = 0 (data).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Euler–Maruyama on the stochastic equation, the paper's.
    #[default]
    Sde,
    /// Euler's method on the ordinary equation.
    Euler,
    /// Heun's method on the ordinary equation.
    Heun,
    /// Dormand–Prince with adaptive steps, chosen for every sample by itself.
    Dopri5,
}

/// What a sampler is told. The default is the published one: 250 stochastic steps without guidance.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerSettings {
    /// The way from data to noise that the network was trained on; [`Method::Sde`] needs it.
    pub path: Path,
    /// How the equation is integrated.
    pub method: Method,
    /// Number of steps; [`Method::Dopri5`] chooses its own.
    pub steps: usize,
    /// Scale of classifier-free guidance; not above 1 is none.
    pub guidance: f64,
    /// Smallest and largest time at which guidance applies.
    pub guidance_interval: (f64, f64),
    /// Time offset of every branch, K of them, or empty for none: branch k sees `clamp(t + offset, 0, 1)`.
    pub branch_times: Vec<f64>,
    /// Relative tolerance of [`Method::Dopri5`].
    pub relative_tolerance: f64,
    /// Absolute tolerance of [`Method::Dopri5`].
    pub absolute_tolerance: f64,
}

impl Default for SamplerSettings {
    fn default() -> Self {
        Self {
            path: Path::Linear,
            method: Method::Sde,
            steps: 250,
            guidance: 1.0,
            guidance_interval: (0.0, 1.0),
            branch_times: Vec::new(),
            relative_tolerance: 1e-3,
            absolute_tolerance: 1e-6,
        }
    }
}

impl SamplerSettings {
    /// Checks that the settings fit the network.
    ///
    /// # Errors
    /// The key that does not fit, and the rule.
    pub fn validate(&self, network: &NetworkConfig) -> Result<(), ConfigError> {
        let refuse = |key, found: String, rule: String| Err(ConfigError { key, found, rule });
        let fewest = if self.method == Method::Sde { 2 } else { 1 };
        if self.method != Method::Dopri5 && self.steps < fewest {
            return refuse(
                "sample.steps",
                self.steps.to_string(),
                format!("must be at least {fewest}"),
            );
        }
        if self.guidance > 1.0 && network.no_class().is_none() {
            let rule = "needs a network trained with model.class_dropout above 0".into();
            return refuse("sample.guidance", self.guidance.to_string(), rule);
        }
        if !self.branch_times.is_empty() && self.branch_times.len() != network.branches() {
            let rule = format!("must hold one offset for each of the {} branches", network.branches());
            return refuse("sample.branch_times", format!("{:?}", self.branch_times), rule);
        }
        for (key, tolerance) in [
            ("sample.relative_tolerance", self.relative_tolerance),
            ("sample.absolute_tolerance", self.absolute_tolerance),
        ] {
            if tolerance.is_nan() || tolerance <= 0.0 {
                return refuse(key, tolerance.to_string(), "must be above 0".into());
            }
        }
        Ok(())
    }
}

/// Generates one latent per label, (B,C,S,S). `on_progress` is told the share that is done after every step and can
/// break off; then the result is `None`.
///
/// # Errors
/// [`ModelError::Config`] for settings that do not fit, [`ModelError::Input`] for labels that do not exist,
/// [`ModelError::Integration`] when adaptive steps become too small, [`ModelError::Device`].
pub fn sample<E: Dtype, D: Operators<E>>(
    network: &Network<E, D>,
    settings: &SamplerSettings,
    labels: &[usize],
    noise: &impl NoiseSource,
    on_progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
) -> Result<Option<Vec<f64>>, ModelError> {
    settings.validate(network.config())?;
    let field = VelocityField::new(network, settings, labels);
    let values = network.config().latent_values();
    let mut x = vec![0.0; labels.len() * values];
    for (sample, x) in x.chunks_exact_mut(values).enumerate() {
        noise.initial(sample, x);
    }
    let flow = match settings.method {
        Method::Sde => fixed_step::sde(&field, settings, &mut x, noise, on_progress)?,
        Method::Euler => fixed_step::euler(&field, settings.steps, &mut x, on_progress)?,
        Method::Heun => fixed_step::heun(&field, settings.steps, &mut x, on_progress)?,
        Method::Dopri5 => dopri5::dopri5(&field, settings, &mut x, on_progress)?,
    };
    Ok(match flow {
        ControlFlow::Continue(()) => Some(x),
        ControlFlow::Break(()) => None,
    })
}
