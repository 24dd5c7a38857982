//! Why Inception-v3 cannot be loaded or run.

use crate::convert::ConvertError;
use crate::ops::conv::ConvolutionError;
use std::path::PathBuf;

/// Why Inception-v3 cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum InceptionError {
    /// The file of weights cannot be read.
    #[error(transparent)]
    File(#[from] ConvertError),
    /// A weight is missing or has another shape.
    #[error(
        "{path}: tensor `{tensor}` {found}, expected {expected:?} (Inception-v3 with the FID weights under torchvision's names)"
    )]
    Weight {
        /// The file.
        path: PathBuf,
        /// torchvision's name of the tensor.
        tensor: String,
        /// What is there instead.
        found: String,
        /// Its shape.
        expected: Vec<usize>,
    },
    /// The input is no batch of pictures of the network's size.
    #[error("{found} numbers are no batch of 3x299x299 pictures")]
    Input {
        /// How many numbers were given.
        found: usize,
    },
    /// A layer was refused.
    #[error("Inception-v3: {0}")]
    Layer(#[from] ConvolutionError),
}
