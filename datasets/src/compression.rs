//! Compression of whole shards: recognised by the first bytes, never by the name.

use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read};

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// zstd's skippable frames, 0x184D2A50 to 0x184D2A5F, may come before the first frame of data.
const SKIPPABLE_MAGIC: [u8; 3] = [0x2a, 0x4d, 0x18];

/// How shards are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Plain `.tar`: any sample can be read without the others.
    #[default]
    None,
    /// `.tar.zst` at a level from 1 to 22.
    Zstd(i32),
}

impl Compression {
    /// The end of a shard's file name.
    pub fn extension(self) -> &'static str {
        match self {
            Self::None => "tar",
            Self::Zstd(_) => "tar.zst",
        }
    }
}

/// Whether bytes are the beginning of a zstd stream.
pub(crate) fn is_zstd(head: &[u8]) -> bool {
    head.starts_with(&ZSTD_MAGIC) || head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == SKIPPABLE_MAGIC
}

/// A tar stream, decompressed if it is compressed.
pub(crate) fn decompressed(reader: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    let mut reader = BufReader::with_capacity(256 << 10, reader);
    if is_zstd(reader.fill_buf()?) {
        Ok(Box::new(zstd::Decoder::with_buffer(reader)?))
    } else {
        Ok(Box::new(reader))
    }
}
