//! A folder of shards, on a disk or remote: its index, one shard after the other, and the files beside them.

use crate::remote::RemoteFolder;
use crate::{hash, Error, Index, Limits, RemoteOptions, Result, ShardReader, ShardRecord, INDEX_FILE};
use std::fs;
use std::io::{self, Cursor};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use url::Url;

/// Where the shards of a data set lie: a path, or an address (`file://`, `http(s)://`, `s3://`, `gs://`, `az://`).
///
/// ```
/// use deepflow_datasets::{Limits, RemoteOptions, ShardFolder};
///
/// # let made = tempfile::tempdir()?;
/// # deepflow_datasets::bench::SyntheticDataset { samples: 3, ..Default::default() }.write(made.path())?;
/// # let location = format!("file://{}", made.path().display());
/// let folder = ShardFolder::open(&location, &RemoteOptions::default())?;
/// for record in &folder.index()?.shards {
///     for sample in folder.shard(record, Limits::default())? {
///         println!("{}", sample?.key);
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ShardFolder(Source);

enum Source {
    Local(PathBuf),
    Remote(Box<RemoteFolder>),
}

impl ShardFolder {
    /// Connects to a folder. Nothing is read yet.
    ///
    /// # Errors
    /// [`Error::UnknownLocation`]; [`Error::Io`] if the cache folder cannot be made.
    pub fn open(location: &str, remote: &RemoteOptions) -> Result<Self> {
        if !location.contains("://") {
            return Ok(Self::local(Path::new(location)));
        }
        if location.starts_with("file://") {
            let unknown = || Error::UnknownLocation {
                url: location.to_owned(),
                reason: "it names no file of this machine".to_owned(),
            };
            let path = Url::parse(location).ok().and_then(|url| url.to_file_path().ok());
            return Ok(Self::local(&path.ok_or_else(unknown)?));
        }
        let remote = RemoteFolder::open(location, remote.clone())?;
        Ok(Self(Source::Remote(Box::new(remote))))
    }

    /// A folder on a disk.
    pub fn local(folder: &Path) -> Self {
        Self(Source::Local(folder.to_owned()))
    }

    /// The folder's path, if it is on a disk.
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Source::Local(folder) => Some(folder),
            Source::Remote(_) => None,
        }
    }

    /// The folder's path or address.
    pub fn location(&self) -> String {
        match &self.0 {
            Source::Local(folder) => folder.display().to_string(),
            Source::Remote(remote) => remote.url().to_owned(),
        }
    }

    /// The path or address of a file of the folder.
    pub fn address(&self, name: &str) -> String {
        match &self.0 {
            Source::Local(folder) => folder.join(name).display().to_string(),
            Source::Remote(remote) => remote.address(name),
        }
    }

    /// Reads the index.
    ///
    /// # Errors
    /// [`Error::NoRemoteIndex`], those of [`Index::load`], [`Error::Remote`].
    pub fn index(&self) -> Result<Index> {
        match &self.0 {
            Source::Local(folder) => Index::load(folder),
            Source::Remote(remote) => {
                let bytes = remote.fetch(INDEX_FILE).map_err(|error| match error {
                    Error::NotFound { .. } => Error::NoRemoteIndex {
                        url: remote.url().to_owned(),
                    },
                    other => other,
                })?;
                Index::from_bytes(&bytes, &remote.address(INDEX_FILE))
            }
        }
    }

    /// A small file that may lie beside the shards, such as a codec's weights; `None` if it does not.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Remote`].
    pub fn file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match &self.0 {
            Source::Local(folder) => {
                let path = folder.join(name);
                match fs::read(&path) {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(Error::io(&path, "read")(error)),
                }
            }
            Source::Remote(remote) => match remote.fetch(name) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    /// Reads a shard from its beginning to its end; remote ones are fetched whole and checked first.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::ShardMissing`], [`Error::HashMismatch`], [`Error::Remote`].
    pub fn shard(&self, record: &ShardRecord, limits: Limits) -> Result<ShardReader> {
        match &self.0 {
            Source::Local(folder) => ShardReader::open(&folder.join(&record.name), limits),
            Source::Remote(remote) => {
                let bytes = remote.fetch_shard(record, true, &AtomicBool::new(false))?;
                ShardReader::new(Cursor::new(bytes), &record.name, limits)
            }
        }
    }

    /// The file of a shard, checked against its record if `verify` is set. Fetching gives up soon after `stop` is set.
    pub(crate) fn shard_file(&self, record: &ShardRecord, verify: bool, stop: &AtomicBool) -> Result<Vec<u8>> {
        match &self.0 {
            Source::Local(folder) => {
                let path = folder.join(&record.name);
                let bytes = fs::read(&path).map_err(Error::io(&path, "read"))?;
                if verify {
                    hash::check(&bytes, record)?;
                }
                Ok(bytes)
            }
            Source::Remote(remote) => remote.fetch_shard(record, verify, stop),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn file_addresses_are_decoded_and_other_machines_refused() {
        let open = |location| ShardFolder::open(location, &RemoteOptions::default());
        let path = |location| open(location).unwrap().path().map(Path::to_owned);
        assert_eq!(path("file:///a%20b/c"), Some(PathBuf::from("/a b/c")));
        assert_eq!(path("relative/folder"), Some(PathBuf::from("relative/folder")));
        let error = open("file://elsewhere/a").err().unwrap();
        assert!(matches!(&error, Error::UnknownLocation { .. }), "{error}");
    }
}
