//! Fetched shards on a local disk, within a size, shared by any number of processes.
//!
//! A file is named after its content, `SHA256.shard`, and appears whole by renaming; its content is checked when it is
//! used. Making room removes the files used longest ago, and only files of that name: nothing else in the folder is
//! ever touched. Making room and writing happen under a lock on the folder. A process that reads a file another one removes keeps what it has opened, or fetches again.

use crate::{files, hash, Error, Result, ShardRecord};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const EXTENSION: &str = ".shard";
const LOCK: &str = ".deepflow-shards.lock";

/// Where fetched shards are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// The folder, created if need be.
    pub folder: PathBuf,
    /// The most bytes the shards in it may take.
    pub bytes: u64,
}

pub(super) struct ShardCache {
    options: CacheOptions,
}

impl ShardCache {
    pub(super) fn new(options: CacheOptions) -> Result<Self> {
        fs::create_dir_all(&options.folder).map_err(Error::io(&options.folder, "create"))?;
        Ok(Self { options })
    }

    pub(super) fn get(&self, record: &ShardRecord) -> Option<Vec<u8>> {
        let path = self.path(record);
        let bytes = fs::read(&path).ok()?;
        if hash::hex(&hash::digest(&bytes)) != record.sha256 {
            tracing::warn!("{}: damaged; fetching the shard again", path.display());
            return None;
        }
        // The time of use decides what makes room; a file system that keeps none forgets in the order of arrival.
        if let Ok(file) = File::options().append(true).open(&path) {
            let _ = file.set_modified(SystemTime::now());
        }
        Some(bytes)
    }

    /// Keeps a shard if it is what it should be and fits. Failing to is no error.
    pub(super) fn put(&self, record: &ShardRecord, bytes: &[u8]) {
        if bytes.len() as u64 > self.options.bytes || hash::hex(&hash::digest(bytes)) != record.sha256 {
            return;
        }
        if let Err(error) = self.store(record, bytes) {
            tracing::debug!("{error}; the shard is not kept");
        }
    }

    fn store(&self, record: &ShardRecord, bytes: &[u8]) -> Result<()> {
        let lock_path = self.options.folder.join(LOCK);
        let lock = File::create(&lock_path).map_err(Error::io(&lock_path, "create"))?;
        lock.lock().map_err(Error::io(&lock_path, "lock"))?;
        self.make_room(bytes.len() as u64);
        files::write_atomically(&self.path(record), bytes)
        // Closing the file ends the lock, also when the process is killed.
    }

    fn make_room(&self, needed: u64) {
        let Ok(entries) = fs::read_dir(&self.options.folder) else {
            return;
        };
        let mut shards: Vec<(SystemTime, u64, PathBuf)> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| is_cached_shard(path))
            .filter_map(|path| {
                let metadata = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
                Some((metadata.modified().ok()?, metadata.len(), path))
            })
            .collect();
        shards.sort();
        let mut total: u64 = shards.iter().map(|shard| shard.1).sum();
        for (_, size, path) in shards {
            if total + needed <= self.options.bytes {
                break;
            }
            // Another process may have removed it: the room is there either way.
            let _ = fs::remove_file(path);
            total -= size;
        }
    }

    fn path(&self, record: &ShardRecord) -> PathBuf {
        self.options
            .folder
            .join(format!("{}{EXTENSION}", record.sha256.to_ascii_lowercase()))
    }
}

fn is_cached_shard(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_suffix(EXTENSION));
    name.is_some_and(|digest| digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
