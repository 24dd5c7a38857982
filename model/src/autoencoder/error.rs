//! Why an autoencoder cannot be loaded or used.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::convert::ConvertError;
use crate::error::ModelError;
use crate::ops::conv::ConvolutionError;
use crate::torch_pickle::TorchFileError;

/// Why an autoencoder cannot be loaded or used. Every message is one line.
#[derive(Debug, Error)]
pub enum AutoencoderError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The configuration is not one of an AutoencoderKL this crate can run.
    #[error("{path}: {key}: {problem}")]
    Config {
        /// `config.json`.
        path: PathBuf,
        /// The key to blame.
        key: &'static str,
        /// What was found and what was expected.
        problem: String,
    },
    /// The folder or file holds no weights.
    #[error("{path}: {problem}")]
    NoWeights {
        /// The folder or file.
        path: PathBuf,
        /// What was looked for.
        problem: String,
    },
    /// A torch file is unreadable or hostile.
    #[error(transparent)]
    Torch(#[from] TorchFileError),
    /// A safetensors file is unreadable.
    #[error(transparent)]
    Safetensors(#[from] ConvertError),
    /// Tensors are missing, left over, or of another shape or type.
    #[error("{path}: the weights do not fit the configuration: {problems}")]
    Misfit {
        /// The folder or file.
        path: PathBuf,
        /// The first few tensors and what is wrong with them, and how many more there are.
        problems: String,
    },
    /// A picture or latent of a size the network cannot take.
    #[error("{what} has {found}, expected {expected}")]
    Size {
        /// Picture or latent.
        what: &'static str,
        /// Its size.
        found: String,
        /// The size that fits.
        expected: String,
    },
    /// An operator was given what it cannot take.
    #[error(transparent)]
    Operator(#[from] ConvolutionError),
    /// The GPU is short of memory or does not answer.
    #[error(transparent)]
    Device(ModelError),
}
