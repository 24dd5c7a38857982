//! Why weights cannot be converted.

use crate::checkpoint::FolderError;
use crate::torch_pickle::TorchFileError;
use std::io;
use std::path::PathBuf;

/// Why weights cannot be converted. Every message is one line that starts with the file.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A torch file is unreadable or hostile.
    #[error(transparent)]
    Torch(#[from] TorchFileError),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A safetensors file is malformed.
    #[error("{path}: not a safetensors file: {problem}")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The file holds something else than weights.
    #[error("{path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },
    /// A tensor has a name or shape that the network does not have.
    #[error("{path}: tensor `{tensor}`: {problem}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What was found and what was expected.
        problem: String,
    },
    /// The name of the output says no known format.
    #[error(
        "{path}: `{found}` says no format; expected .safetensors, .pt, .pth, .ckpt, or no ending for a checkpoint's folder"
    )]
    Output {
        /// The output.
        path: PathBuf,
        /// Its extension.
        found: String,
    },
}

impl From<FolderError> for ConvertError {
    fn from(error: FolderError) -> Self {
        match error {
            FolderError::Io { path, source } => Self::Io { path, source },
            FolderError::Content { path, problem } => Self::Content { path, problem },
        }
    }
}

impl ConvertError {
    pub(super) fn content(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::Content {
            path: path.into(),
            problem: problem.into(),
        }
    }

    pub(super) fn tensor(path: impl Into<PathBuf>, tensor: &str, problem: impl Into<String>) -> Self {
        Self::Tensor {
            path: path.into(),
            tensor: tensor.to_owned(),
            problem: problem.into(),
        }
    }
}
