//! Files that are whole or not there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{bail, Context};
use deepflow_datasets::{partial_name, sha256_of_reader, INDEX_FILE};

use crate::codecs::CODEC_FILE;
use crate::config::Config;
use crate::encode::SKIPPED_FILE;

/// As [`deepflow_datasets::write_atomically`]: a reader sees the old content or the new, never a part, whoever else writes
/// the same file at the same time.
///
/// # Errors
/// What the system says, with the path; the old content stays.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    Ok(deepflow_datasets::write_atomically(path, bytes)?)
}

/// As [`write_atomically`] for a file that only one process writes, but survives only the end of the process, not of the
/// machine, until [`sync_folder`] is called: for many small files that are synced together.
///
/// # Errors
/// What the system says, with the path; the old content stays.
pub fn write_atomically_unsynced(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let partial = partial_name(path);
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        fs::rename(&partial, path)
    };
    let written = write();
    if written.is_err() {
        // Half a file helps nobody; the first error is the one to report.
        let _ = fs::remove_file(&partial);
    }
    written.with_context(|| path.display().to_string())
}

/// Waits until everything below `folder` is on the disk.
///
/// # Errors
/// What the system says, with the path.
pub fn sync_folder(folder: &Path) -> anyhow::Result<()> {
    let opened = File::open(folder).with_context(|| folder.display().to_string())?;
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(&opened).with_context(|| folder.display().to_string())?;
    #[cfg(all(unix, not(target_os = "linux")))]
    rustix::fs::sync();
    drop(opened);
    Ok(())
}

/// The SHA-256 of a file in lower-case hexadecimal.
///
/// # Errors
/// What the system says, with the path.
pub fn sha256(path: &Path) -> anyhow::Result<String> {
    let hashed = File::open(path).and_then(sha256_of_reader);
    Ok(hashed.with_context(|| path.display().to_string())?.0)
}

/// Makes a folder and those above it.
///
/// # Errors
/// What the system says, with the path.
pub fn make_folder(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| path.display().to_string())
}

/// Removes a folder with everything in it; one that is not there is removed already.
///
/// # Errors
/// What the system says, with the path.
pub fn remove_folder(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).with_context(|| path.display().to_string()),
        _ => Ok(()),
    }
}

/// Refuses a folder with files of others, so that nothing lands among them: hidden ones may be there, and those whose names
/// are `ours`. A folder that does not exist yet is fine.
///
/// # Errors
/// Names the first file of others.
pub fn refuse_foreign_files(folder: &Path, ours: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| folder.display().to_string())?,
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    let mut names = names
        .collect::<io::Result<Vec<_>>>()
        .with_context(|| folder.display().to_string())?;
    names.sort();
    match names.iter().find(|name| !name.starts_with('.') && !ours(name)) {
        None => Ok(()),
        Some(name) => bail!(
            "{}: holds another run or other files (`{name}`); expected a new or empty folder, or this run's",
            folder.display()
        ),
    }
}

/// As [`refuse_foreign_files`], for a folder of shards called `name`. A folder with an index is left to its own check, which
/// says in what the runs differ.
///
/// # Errors
/// Names the first file of others.
pub fn refuse_foreign_shards(folder: &Path, name: &str) -> anyhow::Result<()> {
    if folder.join(INDEX_FILE).exists() {
        return Ok(());
    }
    let shard = format!("{name}-");
    let beside = [Config::FILE_NAME, CODEC_FILE, SKIPPED_FILE];
    refuse_foreign_files(folder, |file| file.starts_with(&shard) || beside.contains(&file))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn folders_of_others_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = || refuse_foreign_shards(folder.path(), "latents").map_err(|error| error.to_string());
        refuse_foreign_shards(&folder.path().join("new"), "latents").unwrap();
        for name in [
            "latents-000000.tar",
            CODEC_FILE,
            ".latents.plan.json",
            ".latents-000001.tar.partial",
        ] {
            fs::write(folder.path().join(name), "").unwrap();
            refused().unwrap();
        }
        fs::write(folder.path().join("holiday.jpg"), "").unwrap();
        let error = refused().unwrap_err();
        assert!(error.contains("other files (`holiday.jpg`)"), "{error}");
        fs::write(folder.path().join(INDEX_FILE), "").unwrap();
        refused().unwrap();
    }
}
