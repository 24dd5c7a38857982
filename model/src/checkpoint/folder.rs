//! A checkpoint's folder, whole or not there, and its `state.json`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::STATE_FILE;
use crate::config::NetworkConfig;
use crate::training::LossScale;

const FORMAT: u32 = 1;

/// A file or folder that the system refuses, or that holds something else than it should.
#[derive(Debug)]
pub(crate) enum FolderError {
    /// The system refused.
    Io { path: PathBuf, source: io::Error },
    /// What was found and what was expected.
    Content { path: PathBuf, problem: String },
}

impl FolderError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    fn content(path: &Path, problem: impl Into<String>) -> Self {
        Self::Content {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    format: u32,
    pub(crate) step: u64,
    pub(crate) updates: u64,
    pub(crate) seed: u64,
    /// Of mixed precision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loss_scale: Option<LossScale>,
    pub(crate) model: NetworkConfig,
    pub(crate) data: serde_json::Value,
}

impl State {
    pub(crate) fn new(step: u64, updates: u64, seed: u64, model: NetworkConfig, data: serde_json::Value) -> Self {
        Self {
            format: FORMAT,
            step,
            updates,
            seed,
            loss_scale: None,
            model,
            data,
        }
    }

    pub(crate) fn read(folder: &Path) -> Result<Self, FolderError> {
        let path = folder.join(STATE_FILE);
        let text = fs::read_to_string(&path).map_err(FolderError::io(&path))?;
        let state: Self =
            serde_json::from_str(&text).map_err(|error| FolderError::content(&path, error.to_string()))?;
        if state.format != FORMAT {
            let problem = format!("format {}, expected {FORMAT}", state.format);
            return Err(FolderError::content(&path, problem));
        }
        Ok(state)
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<(), FolderError> {
        let path = folder.join(STATE_FILE);
        let text = serde_json::to_vec(self).map_err(|error| FolderError::content(&path, error.to_string()))?;
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()
        });
        written.map_err(FolderError::io(&path))
    }
}

/// Has `write` fill a folder under a temporary name, then gives it its own; what was there before is replaced only then.
/// When anything fails nothing of it stays.
pub(crate) fn write_whole<E: From<FolderError>>(
    folder: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let partial = partial_name(folder)?;
    remove_if_there(&partial)?;
    fs::create_dir_all(&partial).map_err(FolderError::io(&partial))?;
    let written = write(&partial).and_then(|()| {
        sync_folder(&partial)?;
        remove_if_there(folder)?;
        fs::rename(&partial, folder).map_err(FolderError::io(folder))?;
        Ok(sync_folder(folder.parent().unwrap_or(Path::new(".")))?)
    });
    if written.is_err() {
        // The first error is the one to report; what is left is of no use to anybody.
        let _ = fs::remove_dir_all(&partial);
    }
    written
}

/// [`write_whole`] for a file, which `write` makes and syncs.
pub(crate) fn write_file_whole<T, E: From<FolderError>>(
    file: &Path,
    write: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    let partial = partial_name(file)?;
    let written = write(&partial).and_then(|result| {
        fs::rename(&partial, file).map_err(FolderError::io(file))?;
        sync_folder(file.parent().unwrap_or(Path::new(".")))?;
        Ok(result)
    });
    if written.is_err() {
        // The first error is the one to report; what is left is of no use to anybody.
        let _ = fs::remove_file(&partial);
    }
    written
}

/// The hidden name a folder or a file has while it is written.
fn partial_name(folder: &Path) -> Result<PathBuf, FolderError> {
    match folder.file_name() {
        Some(name) => Ok(folder.with_file_name(format!(".{}.partial", name.to_string_lossy()))),
        None => Err(FolderError::content(folder, "expected a path that ends with a name")),
    }
}

fn remove_if_there(folder: &Path) -> Result<(), FolderError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FolderError::io(folder)(error)),
        _ => Ok(()),
    }
}

/// Makes the names inside a folder durable.
fn sync_folder(folder: &Path) -> Result<(), FolderError> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    if cfg!(unix) {
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(FolderError::io(folder))?;
    }
    Ok(())
}
