//! Where offset tables come from: the sidecar file beside the shard, the cache folder, or a scan.

use super::OpenOptions;
use crate::compression::is_zstd;
use crate::shard_writer::table_path;
use crate::{files, hash, Error, OffsetTable, Result, ShardReader, ShardRecord};
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// `deepflow/offsets` in the user's cache folder, if there is one.
pub(super) fn default_cache() -> Option<PathBuf> {
    Some(cache_folder()?.join("offsets"))
}

/// `deepflow` in the user's cache folder (`$XDG_CACHE_HOME` or `~/.cache`); `None` where neither variable names one.
#[must_use]
pub fn cache_folder() -> Option<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("deepflow"))
}

/// The table of a plain shard.
pub(super) fn of_plain_shard(path: &Path, record: Option<&ShardRecord>, options: &OpenOptions) -> Result<OffsetTable> {
    let metadata = fs::metadata(path).map_err(Error::io(path, "inspect"))?;
    if let Some(table) = stored(path, &metadata, record, options) {
        return Ok(table);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut table = OffsetTable::of_tar(&super::ShardBytes::map(path)?, &name, options.limits)?;
    table.shard_bytes = metadata.len();
    table.shard_modified = modified(&metadata);
    table.shard_sha256 = record.map(|record| record.sha256.clone()).unwrap_or_default();
    store(path, &table, options);
    Ok(table)
}

/// The number of samples of a foreign shard, and whether it is compressed. Scans the shard the first time.
pub(super) fn count_samples(path: &Path, options: &OpenOptions) -> Result<(u64, bool)> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut head = Vec::new();
    file.by_ref()
        .take(4)
        .read_to_end(&mut head)
        .map_err(Error::io(path, "read"))?;
    let compressed = is_zstd(&head);
    let metadata = file.metadata().map_err(Error::io(path, "inspect"))?;
    if let Some(table) = stored(path, &metadata, None, options) {
        return Ok((table.len() as u64, compressed));
    }
    if !compressed {
        return Ok((of_plain_shard(path, None, options)?.len() as u64, false));
    }
    let mut table = OffsetTable::of_stream(ShardReader::stream(path)?, &path.to_string_lossy(), options.limits)?;
    table.shard_bytes = metadata.len();
    table.shard_modified = modified(&metadata);
    store(path, &table, options);
    Ok((table.len() as u64, true))
}

/// A table that was stored for exactly this shard.
fn stored(
    path: &Path,
    metadata: &Metadata,
    record: Option<&ShardRecord>,
    options: &OpenOptions,
) -> Option<OffsetTable> {
    let places = std::iter::once(table_path(path)).chain(cached_path(path, options));
    places.into_iter().find_map(|place| {
        let bytes = fs::read(&place).ok()?;
        match OffsetTable::from_bytes(&bytes, &place.to_string_lossy()) {
            Ok(table) => {
                let same_content = record.is_some_and(|record| record.sha256 == table.shard_sha256);
                let unchanged = table.shard_modified != 0 && table.shard_modified == modified(metadata);
                (table.shard_bytes == metadata.len() && (same_content || unchanged)).then_some(table)
            }
            Err(error) => {
                tracing::warn!("{error}; scanning the shard again");
                None
            }
        }
    })
}

/// Keeps a table beside its shard or in the cache folder. Failing to is no error: the next run scans again.
fn store(path: &Path, table: &OffsetTable, options: &OpenOptions) {
    let bytes = table.to_bytes();
    if files::write_atomically(&table_path(path), &bytes).is_ok() {
        return;
    }
    let Some(cached) = cached_path(path, options) else {
        return;
    };
    let folder = cached.parent().unwrap_or(Path::new("."));
    let kept = fs::create_dir_all(folder).map_err(Error::io(folder, "create"));
    if let Err(error) = kept.and_then(|()| files::write_atomically(&cached, &bytes)) {
        tracing::debug!("{error}; the offset table of {} is not kept", path.display());
    }
}

fn cached_path(path: &Path, options: &OpenOptions) -> Option<PathBuf> {
    let absolute = fs::canonicalize(path).ok()?;
    let name = hash::hex(&hash::digest(absolute.to_string_lossy().as_bytes()));
    Some(options.table_cache.as_ref()?.join(format!("{name}.offsets")))
}

fn modified(metadata: &Metadata) -> u64 {
    let since_1970 = metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since_1970.map_or(0, |duration| duration.as_nanos() as u64)
}
