//! Why a torch file is refused.

use std::io;
use std::path::PathBuf;

/// Why a pickle was refused; [`TorchFileError`] adds the file.
#[derive(Debug, thiserror::Error)]
pub enum PickleError {
    /// The pickle names a function or type that is not on the allow-list.
    #[error(
        "the pickle asks for `{global}`, which is not a type a checkpoint needs; nothing of it was executed \
         (save only tensors, for example `torch.save(model.state_dict(), …)`)"
    )]
    ForbiddenGlobal {
        /// `module.name` as the file spells it.
        global: String,
    },
    /// An allowed type was called in a way that building plain data never needs.
    #[error("the pickle calls `{global}` with {found}, expected {expected}; nothing of it was executed")]
    UnexpectedCall {
        /// `module.name` of the callee.
        global: String,
        /// What the arguments are.
        found: String,
        /// What they should be.
        expected: &'static str,
    },
    /// The byte stream is not a well-formed pickle.
    #[error("malformed pickle at byte {position}: {problem}")]
    Malformed {
        /// Offset from the start of this pickle.
        position: u64,
        /// What is wrong there.
        problem: String,
    },
    /// The pickle is larger than any checkpoint's description of its tensors.
    #[error("the pickle holds more than {limit} {what}; a checkpoint's is far smaller, so this is not read")]
    TooLarge {
        /// The limit that was reached.
        limit: u64,
        /// What was counted.
        what: &'static str,
    },
    /// The stream broke while it was read.
    #[error("cannot read the pickle: {0}")]
    Read(#[from] io::Error),
}

/// Why a torch file cannot be read. Every message is one line that starts with the file.
#[derive(Debug, thiserror::Error)]
pub enum TorchFileError {
    /// The file cannot be opened or read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is neither of torch's two containers.
    #[error("{path}: not a torch.save file: {problem}")]
    Container {
        /// The file.
        path: PathBuf,
        /// What was found instead.
        problem: String,
    },
    /// The pickle inside was refused.
    #[error("{path}: {source}")]
    Pickle {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: PickleError,
    },
    /// A tensor does not fit the storage it points into, or the storage is missing or damaged.
    #[error("{path}: tensor storage `{storage}`: {problem}")]
    Storage {
        /// The file.
        path: PathBuf,
        /// The storage's key in the archive.
        storage: String,
        /// What was found and what was expected.
        problem: String,
    },
}
