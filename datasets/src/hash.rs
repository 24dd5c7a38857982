//! SHA-256 of what passes by.

use crate::{Error, Result, ShardRecord};
use sha2::{Digest, Sha256};
use std::io::{self, Read, Write};

/// A hash in lower-case hexadecimal digits, as indices and records hold it.
#[must_use]
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of bytes in memory.
pub(crate) fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Compares a shard, as it lies on disk, with what the index records.
///
/// # Errors
/// [`Error::HashMismatch`].
pub(crate) fn check(bytes: &[u8], record: &ShardRecord) -> Result<()> {
    let found = hex(&digest(bytes));
    if found == record.sha256 {
        return Ok(());
    }
    Err(Error::HashMismatch {
        shard: record.name.clone(),
        found,
        expected: record.sha256.clone(),
    })
}

/// The SHA-256 and the length of everything a reader gives.
///
/// # Errors
/// Those of the reader.
pub fn sha256_of_reader(mut reader: impl Read) -> io::Result<(String, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((hex(&hasher.finalize()), length)),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                length += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Hashes and counts what is written through it.
pub(crate) struct HashingWriter<W> {
    inner: W,
    hasher: Sha256,
    length: u64,
}

impl<W: Write> HashingWriter<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            length: 0,
        }
    }

    /// The writer beneath, the hash and the length.
    pub(crate) fn finish(self) -> (W, String, u64) {
        (self.inner, hex(&self.hasher.finalize()), self.length)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
