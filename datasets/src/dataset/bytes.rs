//! The bytes of a shard: mapped from a file, or in memory.

use crate::{Error, Result};
use memmap2::{Mmap, UncheckedAdvice};
use std::fs::File;
use std::ops::Deref;
use std::path::Path;

pub(crate) enum ShardBytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl ShardBytes {
    /// Maps a file.
    pub(crate) fn map(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        // SAFETY: a mapping is undefined behaviour only if the file changes beneath it. Shards are written under another
        // name and renamed when they are whole, never changed in place, by this crate and by every other writer of
        // WebDataset shards; a shard that someone replaces keeps its old content in the mapping.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        Ok(Self::Mapped(map))
    }

    /// Takes the pages of a mapping out of this process; they stay in the system's cache and come back when touched.
    pub(crate) fn release_pages(&self) {
        if let Self::Mapped(map) = self {
            // SAFETY: for a read-only mapping of a file this only empties the page table; the content is read from the
            // file again on the next access, so that slices into the mapping keep their values.
            let released = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
            if let Err(error) = released {
                tracing::debug!("pages of a mapped shard were not released: {error}");
            }
        }
    }
}

impl Deref for ShardBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}
