//! What can go wrong, with the key, tensor or file that is to blame.

use thiserror::Error;

/// A configuration value that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{key} = {found}: {rule}")]
pub struct ConfigError {
    /// Section and key.
    pub key: &'static str,
    /// The value found there.
    pub found: String,
    /// The rule it breaks.
    pub rule: String,
}

/// A failure of the network, its training or its sampling.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ModelError {
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The device failed, as a rule because its memory is full.
    #[error("the device failed: {0}")]
    Device(String),
    /// An input has another size than the configuration says.
    #[error("{what}: found {found}, expected {expected}")]
    Input {
        /// Which input.
        what: &'static str,
        /// What was given.
        found: String,
        /// What the network takes.
        expected: String,
    },
    /// An adaptive sampler cannot go on: its steps became too small, as a rule because the velocity is not finite.
    #[error("dopri5: sample {sample} of the batch cannot go on at t = {time:.4}: no step is small enough")]
    Integration {
        /// Number of the sample in its batch.
        sample: usize,
        /// Time it has come to, from 1 (noise) to 0 (data).
        time: f64,
    },
    /// Weights do not fit the network.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// Weights that do not fit the network of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WeightsError {
    /// A parameter of the network is not there.
    #[error("the weights have no tensor {name}, which the configuration needs with shape {expected:?}")]
    Missing {
        /// Name of the parameter.
        name: String,
        /// Its shape by the configuration.
        expected: Vec<usize>,
    },
    /// A parameter has another shape.
    #[error("tensor {name} has shape {found:?}, the configuration needs {expected:?}")]
    Shape {
        /// Name of the parameter.
        name: String,
        /// Its shape in the weights.
        found: Vec<usize>,
        /// Its shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor that the network has no place for.
    #[error("the weights have a tensor {name} with shape {found:?} that the configuration has no place for")]
    Unexpected {
        /// Name of the tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A tensor of a type that no weights have.
    #[error("tensor {name} holds {found} values, expected F32, F64, F16 or BF16")]
    DataType {
        /// Name of the tensor.
        name: String,
        /// Its data type.
        found: String,
    },
    /// Weights of another network, whose parameters have the same names and shapes.
    #[error("the weights are of a network with {key} = {found}, expected {expected} by the configuration")]
    Network {
        /// Section and key.
        key: &'static str,
        /// What the weights were trained with.
        found: String,
        /// What the configuration says.
        expected: String,
    },
    /// A tensor that is there but cannot be read.
    #[error("tensor {name} cannot be read: {problem}")]
    Unreadable {
        /// Name of the tensor.
        name: String,
        /// What the system or the file's format says.
        problem: String,
    },
}

impl ModelError {
    /// Wraps a device's own error.
    pub fn device(error: impl std::fmt::Display) -> Self {
        Self::Device(error.to_string())
    }
}
