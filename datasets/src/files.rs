//! Files that are either whole or not there.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The name a large file has while one process writes it: `.NAME.partial` in the same folder.
#[must_use]
pub fn partial_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}

/// Writes, syncs and renames a small file. Processes that share the work may write the same one at the same time, so each
/// has a temporary name of its own: `.NAME.….partial`, hidden, so that what a killed process leaves is not taken for a file
/// of somebody else.
///
/// # Errors
/// [`Error::Io`]; the old content stays.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let prefix = format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let mut temporary = tempfile::Builder::new();
    temporary.prefix(&prefix).suffix(".partial");
    #[cfg(unix)]
    temporary.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = temporary
        .tempfile_in(folder_of(path))
        .map_err(Error::io(path, "create"))?;
    file.write_all(bytes).map_err(Error::io(path, "write"))?;
    file.as_file().sync_all().map_err(Error::io(path, "sync"))?;
    file.persist(path)
        .map_err(|error| Error::io(path, "rename to")(error.error))?;
    sync_folder(path)
}

/// Syncs a finished file and gives it its name.
///
/// # Errors
/// [`Error::Io`].
pub fn commit(file: File, temporary: &Path, path: &Path) -> Result<()> {
    file.sync_all().map_err(Error::io(temporary, "sync"))?;
    drop(file);
    fs::rename(temporary, path).map_err(Error::io(path, "rename to"))?;
    sync_folder(path)
}

/// Makes the renaming survive a loss of power. Not every file system can; those keep what they promise anyway.
fn sync_folder(path: &Path) -> Result<()> {
    if let Ok(handle) = File::open(folder_of(path)) {
        let _ = handle.sync_all();
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}
