//! What is wrong with a source of pictures.

use std::io;
use std::path::{Path, PathBuf};

/// Why the pictures cannot be listed or read. Every message is one line.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file system refused.
    #[error("{}: cannot {action}: {reason}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        reason: io::Error,
    },
    /// No pictures.
    #[error("{}: no pictures found; expected JPEG, PNG or WebP files, class folders of them, or tars", path.display())]
    Empty {
        /// The folder or archive.
        path: PathBuf,
    },
    /// A class that would have no samples.
    #[error("{}: class folder {class:?} has no pictures; remove it or fill it, for it shifts the class numbers", path.display())]
    EmptyClass {
        /// The folder or archive.
        path: PathBuf,
        /// The class.
        class: String,
    },
    /// Some pictures have a class and some have none.
    #[error("{}: {name} has no class, but others have one; expected a .cls or .json member, or a folder, for each", path.display())]
    MissingClass {
        /// The folder or archive.
        path: PathBuf,
        /// The picture.
        name: String,
    },
    /// A class label that means nothing here.
    #[error("{}: {name}: class is {found:?}, expected {expected}", path.display())]
    InvalidClass {
        /// The file that says so.
        path: PathBuf,
        /// The picture or line.
        name: String,
        /// The label.
        found: String,
        /// What would do.
        expected: String,
    },
    /// A label file that does not fit the pictures.
    #[error("{}: {found}, expected {expected}", path.display())]
    Labels {
        /// The label file.
        path: PathBuf,
        /// What it has.
        found: String,
        /// What it should have.
        expected: String,
    },
    /// An archive or IDX file of another form.
    #[error("{}: {found}; expected {expected}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
}

impl SourceError {
    pub(super) fn io<'a>(path: &'a Path, action: &'static str) -> impl FnOnce(io::Error) -> Self + 'a {
        move |reason| Self::Io {
            path: path.to_owned(),
            action,
            reason,
        }
    }
}
