//! Fetched shards on a local disk, within a size, shared by any number of processes.
//!
//! A file is named after its content, `SHA256.shard`, and appears whole by renaming; its content is checked when it is
//! used. Making room removes the files used longest ago, and only files of that name: nothing else in the folder is
//! ever touched. Making room and writing happen under a lock on the folder, fetching a shard under a lock on its name. A
//! process that reads a file another one removes keeps what it has opened, or fetches again. The locks are those of the
//! operating system: they end with the process that holds them, however it ends.

use crate::{files, hash, Error, Result, ShardRecord};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

const EXTENSION: &str = ".shard";
const LOCK: &str = ".deepflow-shards.lock";
/// How often a process looks whether another one has fetched a shard.
const CLAIM_INTERVAL: Duration = Duration::from_millis(20);

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
    /// Makes the folder, or the one that is there fit its size.
    pub(super) fn new(options: CacheOptions) -> Result<Self> {
        fs::create_dir_all(&options.folder).map_err(Error::io(&options.folder, "create"))?;
        let cache = Self { options };
        match cache.lock() {
            Ok(_lock) => cache.make_room(0),
            // A cache that can only be read is of use too.
            Err(error) => tracing::debug!("{error}; nothing new is kept"),
        }
        Ok(cache)
    }

    /// The lock on the folder. Closing the file ends it, also when the process is killed.
    fn lock(&self) -> Result<File> {
        let path = self.options.folder.join(LOCK);
        let lock = File::create(&path).map_err(Error::io(&path, "create"))?;
        lock.lock().map_err(Error::io(&path, "lock"))?;
        Ok(lock)
    }

    pub(super) fn get(&self, record: &ShardRecord) -> Option<Vec<u8>> {
        let path = self.path(record);
        let bytes = fs::read(&path).ok()?;
        if hash::check(&bytes, record).is_err() {
            tracing::warn!("{}: damaged; fetching the shard again", path.display());
            return None;
        }
        // The time of use decides what makes room; a file system that keeps none forgets in the order of arrival.
        if let Ok(file) = File::options().append(true).open(&path) {
            let _ = file.set_modified(SystemTime::now());
        }
        Some(bytes)
    }

    /// Waits until no other process fetches this shard, and keeps others from it as long as the claim lives. `None` where
    /// the folder takes no locks: then everyone fetches for itself.
    ///
    /// # Errors
    /// [`Error::Stopped`] soon after `stop` is set.
    pub(super) fn claim(&self, record: &ShardRecord, stop: &AtomicBool) -> Result<Option<Claim>> {
        let path = self.options.folder.join(format!(".{}.fetching", record.sha256));
        let Ok(file) = File::create(&path) else {
            return Ok(None);
        };
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Claim { path, _lock: file })),
                Err(TryLockError::Error(_)) => return Ok(None),
                Err(TryLockError::WouldBlock) if stop.load(Ordering::Relaxed) => return Err(Error::Stopped),
                Err(TryLockError::WouldBlock) => thread::sleep(CLAIM_INTERVAL),
            }
        }
    }

    /// Keeps a shard whose content was checked, if it fits. Failing to is no error.
    pub(super) fn put(&self, record: &ShardRecord, bytes: &[u8]) {
        if bytes.len() as u64 > self.options.bytes {
            return;
        }
        if let Err(error) = self.store(record, bytes) {
            tracing::debug!("{error}; the shard is not kept");
        }
    }

    fn store(&self, record: &ShardRecord, bytes: &[u8]) -> Result<()> {
        let _lock = self.lock()?;
        self.make_room(bytes.len() as u64);
        files::write_atomically(&self.path(record), bytes)
    }

    fn make_room(&self, needed: u64) {
        let Ok(entries) = fs::read_dir(&self.options.folder) else {
            return;
        };
        let (partial, whole): (Vec<PathBuf>, Vec<PathBuf>) = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| is_cached_shard(path) || is_partial_shard(path))
            .partition(|path| is_partial_shard(path));
        for path in partial {
            // Whoever writes holds the lock that we hold: this one was killed while it wrote.
            let _ = fs::remove_file(path);
        }
        let mut shards: Vec<(SystemTime, u64, PathBuf)> = whole
            .into_iter()
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
        self.options.folder.join(format!("{}{EXTENSION}", record.sha256))
    }
}

/// The right to fetch a shard, until it is dropped.
pub(super) struct Claim {
    path: PathBuf,
    _lock: File,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Those who wait on the file that is removed get its lock next, and find the shard in the cache.
        let _ = fs::remove_file(&self.path);
    }
}

fn is_cached_shard(path: &Path) -> bool {
    file_name(path)
        .strip_suffix(EXTENSION)
        .is_some_and(|digest| digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn is_partial_shard(path: &Path) -> bool {
    let whole = file_name(path)
        .strip_prefix('.')
        .and_then(|name| name.strip_suffix(".partial"));
    whole.is_some_and(|name| is_cached_shard(Path::new(name)))
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
