//! Reading a shard at a position instead of mapping it.
//!
//! A page of a mapping costs a fault at its first use and work to give it back: 2 to 6 microseconds a sample of 16 KiB, the
//! more the larger the data set. Reading the same bytes takes 1.4 whatever the size. A data set whose pages stay mapped
//! from epoch to epoch is the exception, with 0.4.

use crate::{Error, Result};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Files that must remain for everything but shards.
const SPARE_FILES: u64 = 256;

pub(crate) struct PositionedFile {
    file: File,
    length: u64,
    path: PathBuf,
}

impl PositionedFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let length = file.metadata().map_err(Error::io(path, "inspect"))?.len();
        let path = path.to_owned();
        Ok(Self { file, length, path })
    }

    /// Fills `buffer` with the bytes of the range, as far as the file has them.
    pub(crate) fn read(&self, range: &Range<u64>, buffer: &mut Vec<u8>) -> Result<()> {
        buffer.resize(range.end.min(self.length).saturating_sub(range.start) as usize, 0);
        read_exact_at(&self.file, buffer, range.start).map_err(Error::io(&self.path, "read"))
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

/// Whether so many shards can stay open, after asking the system for as many files as it allows.
#[cfg(unix)]
pub(crate) fn can_hold_open(shards: usize) -> bool {
    let allowed = rlimit::increase_nofile_limit(u64::MAX);
    allowed.is_ok_and(|allowed| shards as u64 + SPARE_FILES <= allowed)
}

/// Only Unix reads at a position without moving the one that all threads share.
#[cfg(not(unix))]
fn read_exact_at(_: &File, _: &mut [u8], _: u64) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(not(unix))]
pub(crate) fn can_hold_open(_: usize) -> bool {
    false
}
