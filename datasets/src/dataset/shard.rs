//! A shard that is ready to be read at random: its bytes and its offset table.

use super::bytes::ShardBytes;
use super::positioned::PositionedFile;
use crate::sample::{array_error, invalid_class, parse_class, CLASS};
use crate::{ArrayHeader, Error, NpyError, OffsetTable, Place, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) struct LoadedShard {
    name: String,
    content: Content,
    table: OffsetTable,
    touched: AtomicBool,
}

enum Content {
    /// All of it can be looked at.
    Whole(ShardBytes),
    /// Every sample is read when it is wanted.
    Positioned(PositionedFile),
}

impl LoadedShard {
    pub(crate) fn new(name: String, bytes: ShardBytes, table: OffsetTable) -> Self {
        Self::with_content(name, Content::Whole(bytes), table)
    }

    pub(crate) fn positioned(name: String, file: PositionedFile, table: OffsetTable) -> Self {
        Self::with_content(name, Content::Positioned(file), table)
    }

    fn with_content(name: String, content: Content, table: OffsetTable) -> Self {
        Self {
            name,
            content,
            table,
            touched: AtomicBool::new(false),
        }
    }

    pub(crate) fn table(&self) -> &OffsetTable {
        &self.table
    }

    pub(crate) fn is_mapped(&self) -> bool {
        matches!(self.content, Content::Whole(ShardBytes::Mapped(_)))
    }

    /// True the first time after the shard's pages were released.
    pub(crate) fn mark_touched(&self) -> bool {
        !self.touched.load(Ordering::Relaxed) && !self.touched.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn release_pages(&self) {
        self.touched.store(false, Ordering::Relaxed);
        if let Content::Whole(bytes) = &self.content {
            bytes.release_pages();
        }
    }

    /// The sample at a place of the shard. `buffer` holds its bytes where they have to be read.
    pub(crate) fn sample<'a>(&'a self, index: usize, buffer: &'a mut Vec<u8>) -> Result<SampleRef<'a>> {
        let (bytes, base) = match &self.content {
            Content::Whole(bytes) => (&**bytes, 0),
            Content::Positioned(file) => {
                let range = self.range(index);
                file.read(&range, buffer)?;
                (buffer.as_slice(), range.start)
            }
        };
        let shard = self;
        Ok(SampleRef {
            shard,
            index,
            bytes,
            base,
        })
    }

    /// From the beginning of the sample's first content to the end of its last.
    fn range(&self, index: usize) -> Range<u64> {
        let members = || self.table.members(index);
        let start = members().map(|member| member.offset).min().unwrap_or(0);
        let end = members().map(|member| member.offset + u64::from(member.size)).max();
        start..end.unwrap_or(start)
    }
}

/// One sample of a loaded shard.
#[derive(Clone, Copy)]
pub(crate) struct SampleRef<'a> {
    shard: &'a LoadedShard,
    index: usize,
    /// The shard from `base` on, at least to the sample's end unless the shard is truncated.
    bytes: &'a [u8],
    base: u64,
}

/// The content of a member and where it is.
#[derive(Clone, Copy)]
pub(crate) struct MemberRef<'a> {
    pub(crate) extension: &'a str,
    pub(crate) bytes: &'a [u8],
    pub(crate) offset: u64,
}

impl<'a> SampleRef<'a> {
    pub(crate) fn key(&self) -> &'a str {
        self.shard.table.key(self.index)
    }

    pub(crate) fn place(&self, offset: u64) -> Place {
        Place::new(&self.shard.name, self.key(), offset)
    }

    /// Where the sample's first content lies.
    pub(crate) fn offset(&self) -> u64 {
        self.shard
            .table
            .members(self.index)
            .next()
            .map_or(0, |member| member.offset)
    }

    /// The size of all contents.
    pub(crate) fn bytes(&self) -> u64 {
        self.shard
            .table
            .members(self.index)
            .map(|member| u64::from(member.size))
            .sum()
    }

    pub(crate) fn member(&self, extension: &'a str) -> Result<Option<MemberRef<'a>>> {
        let Some(span) = self.shard.table.member(self.index, extension) else {
            return Ok(None);
        };
        let start = (span.offset - self.base) as usize;
        match self.bytes.get(start..start + span.size as usize) {
            Some(bytes) => Ok(Some(MemberRef {
                extension,
                bytes,
                offset: span.offset,
            })),
            None => Err(Error::TruncatedShard {
                place: self.place(span.offset),
                found: (self.base + self.bytes.len() as u64).saturating_sub(span.offset),
                expected: u64::from(span.size),
            }),
        }
    }

    pub(crate) fn required(&self, extension: &'a str) -> Result<MemberRef<'a>> {
        self.member(extension)?.ok_or_else(|| self.missing(extension))
    }

    pub(crate) fn missing(&self, extension: &str) -> Error {
        let found: Vec<&str> = self
            .shard
            .table
            .members(self.index)
            .map(|member| member.extension)
            .collect();
        Error::MissingMember {
            place: self.place(self.offset()),
            member: extension.to_owned(),
            found: found.join(", "),
        }
    }

    pub(crate) fn class(&self) -> Result<u32> {
        let member = self.required(CLASS)?;
        parse_class(member.bytes)
            .ok_or_else(|| invalid_class(member.bytes, &self.shard.name, self.key(), member.offset))
    }

    pub(crate) fn array_header(&self, member: MemberRef<'_>) -> Result<ArrayHeader> {
        ArrayHeader::parse(member.bytes).map_err(|error| self.array_error(error, member))
    }

    fn array_error(&self, error: NpyError, member: MemberRef<'_>) -> Error {
        array_error(error, self.place(member.offset), member.extension)
    }
}
