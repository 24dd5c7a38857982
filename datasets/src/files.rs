//! Files that are either whole or not there.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The name a file has while it is written: `.NAME.partial` in the same folder.
pub(crate) fn partial(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}

/// Writes, syncs and renames a small file.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = partial(path);
    let mut file = File::create(&temporary).map_err(Error::io(&temporary, "create"))?;
    file.write_all(bytes).map_err(Error::io(&temporary, "write"))?;
    commit(file, &temporary, path)
}

/// Syncs a finished file and gives it its name.
pub(crate) fn commit(file: File, temporary: &Path, path: &Path) -> Result<()> {
    file.sync_all().map_err(Error::io(temporary, "sync"))?;
    drop(file);
    fs::rename(temporary, path).map_err(Error::io(path, "rename to"))?;
    sync_folder(path)
}

/// Makes the renaming survive a loss of power. Not every file system can; those keep what they promise anyway.
fn sync_folder(path: &Path) -> Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    if let Ok(handle) = File::open(folder) {
        let _ = handle.sync_all();
    }
    Ok(())
}
