//! The offset table of a shard: where every member of every sample lies, so that any of them can be read at once.
//!
//! It is made while a shard is written, or by a scan of shards that others wrote, and kept in a sidecar file
//! `SHARD.offsets`; `docs/shards.md` gives the bytes.

use crate::tar_members::{SliceInput, StreamInput, TarInput, TarMembers};
use crate::{hash, key, Error, Limits, Place, Result};
use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"DFOFFSET";
const VERSION: u32 = 1;
const BLOCK: u64 = 512;
const DIGEST: usize = 32;

/// Where one member's content lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberSpan<'a> {
    /// The member's extension.
    pub extension: &'a str,
    /// Where its content begins in the (decompressed) tar.
    pub offset: u64,
    /// Its length in bytes.
    pub size: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MemberEntry {
    /// In blocks of 512 bytes, as tar places everything.
    block: u32,
    size: u32,
    extension: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SampleEntry {
    /// The end of its members in `members`; they begin where the previous sample's end.
    members_end: u32,
    /// The end of its key in `keys`.
    key_end: u32,
}

/// The samples of a shard and the places of their members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffsetTable {
    /// The shard's size as a file, compressed if it is compressed; 0 if unknown.
    pub shard_bytes: u64,
    /// The shard's SHA-256 as a file; empty if unknown.
    pub shard_sha256: String,
    /// When the shard was last changed, in nanoseconds since 1970, for shards that nobody hashed; 0 if unknown.
    pub shard_modified: u64,
    samples: Vec<SampleEntry>,
    members: Vec<MemberEntry>,
    extensions: Arc<Vec<String>>,
    keys: String,
}

impl OffsetTable {
    /// The number of samples.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether the shard has no samples.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The key of a sample.
    pub fn key(&self, sample: usize) -> &str {
        let start = sample
            .checked_sub(1)
            .map_or(0, |previous| self.samples[previous].key_end);
        &self.keys[start as usize..self.samples[sample].key_end as usize]
    }

    /// The members of a sample, in the order they are stored.
    pub fn members(&self, sample: usize) -> impl Iterator<Item = MemberSpan<'_>> {
        self.entries(sample).iter().map(|entry| self.span(entry))
    }

    /// One member of a sample, by its extension.
    pub fn member(&self, sample: usize, extension: &str) -> Option<MemberSpan<'_>> {
        self.members(sample).find(|member| member.extension == extension)
    }

    /// Looks at the entries of a sample, so that the processor has them at hand when they are wanted.
    pub(crate) fn fetch(&self, sample: usize) {
        let size: u32 = self.entries(sample).iter().map(|entry| entry.size).sum();
        std::hint::black_box((size, self.key(sample).as_bytes().first()));
    }

    /// Holds the names of extensions in one place with the table that was seen before, where they are the same.
    pub(crate) fn share_extensions(&mut self, seen: &mut Arc<Vec<String>>) {
        if *seen == self.extensions {
            self.extensions = Arc::clone(seen);
        } else {
            *seen = Arc::clone(&self.extensions);
        }
    }

    fn entries(&self, sample: usize) -> &[MemberEntry] {
        let start = sample
            .checked_sub(1)
            .map_or(0, |previous| self.samples[previous].members_end);
        &self.members[start as usize..self.samples[sample].members_end as usize]
    }

    fn span(&self, entry: &MemberEntry) -> MemberSpan<'_> {
        MemberSpan {
            extension: &self.extensions[usize::from(entry.extension)],
            offset: u64::from(entry.block) * BLOCK,
            size: entry.size,
        }
    }

    /// Makes the table of a tar in memory. The contents of members are passed over, not touched.
    ///
    /// # Errors
    /// The faults of tars: truncation, damage, unsafe members, duplicate keys, limits.
    pub fn of_tar(tar: &[u8], shard: &str, limits: Limits) -> Result<Self> {
        Self::scan(SliceInput(tar), shard, limits)
    }

    /// Makes the table of a tar that arrives as a stream.
    pub(crate) fn of_stream(tar: impl Read, shard: &str, limits: Limits) -> Result<Self> {
        Self::scan(StreamInput(tar), shard, limits)
    }

    fn scan(input: impl TarInput, shard: &str, limits: Limits) -> Result<Self> {
        let mut builder = OffsetTableBuilder::new(shard);
        let mut members = TarMembers::new(input, shard, limits);
        while let Some(member) = members.next_member()? {
            if let Some((key, extension)) = key::split(&member.path) {
                builder.push(key, &extension, member.header_offset, member.data_offset, member.size)?;
            }
        }
        Ok(builder.finish())
    }

    /// The bytes of the sidecar file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96 + self.samples.len() * 8 + self.members.len() * 10 + self.keys.len());
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((self.samples.len() as u32).to_le_bytes());
        out.extend((self.members.len() as u32).to_le_bytes());
        out.extend((self.extensions.len() as u32).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        out.extend(self.shard_bytes.to_le_bytes());
        out.extend(self.shard_modified.to_le_bytes());
        put_text(&mut out, &self.shard_sha256);
        for extension in self.extensions.iter() {
            put_text(&mut out, extension);
        }
        for sample in &self.samples {
            out.extend(sample.members_end.to_le_bytes());
            out.extend(sample.key_end.to_le_bytes());
        }
        for member in &self.members {
            out.extend(member.block.to_le_bytes());
            out.extend(member.size.to_le_bytes());
            out.extend(member.extension.to_le_bytes());
        }
        out.extend(self.keys.as_bytes());
        let digest = hash::digest(&out);
        out.extend(digest);
        out
    }

    /// Reads a sidecar file; `path` names it in errors.
    ///
    /// # Errors
    /// [`Error::InvalidOffsetTable`] unless the bytes are exactly what [`Self::to_bytes`] writes.
    pub fn from_bytes(bytes: &[u8], path: &str) -> Result<Self> {
        Self::parse(bytes).map_err(|reason| Error::InvalidOffsetTable {
            path: path.to_owned(),
            reason,
        })
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let content = bytes
            .len()
            .checked_sub(DIGEST)
            .map(|end| &bytes[..end])
            .ok_or("it is too short")?;
        let mut input = Input(content);
        if input.take(MAGIC.len())? != MAGIC {
            return Err("no DFOFFSET magic at the beginning".to_owned());
        }
        let version = input.u32()?;
        if version != VERSION {
            return Err(format!("version {version}, this program reads version {VERSION}"));
        }
        if hash::digest(content) != bytes[content.len()..] {
            return Err("its own hash does not match".to_owned());
        }
        let (samples, members, extensions) = (input.u32()? as usize, input.u32()? as usize, input.u32()? as usize);
        let keys = usize::try_from(input.u64()?).map_err(|_| "keys too long")?;
        // Every count is bounded by the bytes there are before anything is reserved for it.
        let needed = samples as u128 * 8 + members as u128 * 10 + extensions as u128 * 2 + keys as u128;
        if needed > input.0.len() as u128 {
            return Err(format!("it claims {needed} bytes of entries and has {}", input.0.len()));
        }
        let mut table = Self {
            shard_bytes: input.u64()?,
            shard_modified: input.u64()?,
            ..Self::default()
        };
        table.shard_sha256 = input.text()?;
        let names = (0..extensions).map(|_| input.text());
        table.extensions = Arc::new(names.collect::<std::result::Result<_, _>>()?);
        for _ in 0..samples {
            table.samples.push(SampleEntry {
                members_end: input.u32()?,
                key_end: input.u32()?,
            });
        }
        for _ in 0..members {
            table.members.push(MemberEntry {
                block: input.u32()?,
                size: input.u32()?,
                extension: input.u16()?,
            });
        }
        table.keys = std::str::from_utf8(input.take(keys)?)
            .map_err(|_| "keys are not UTF-8")?
            .to_owned();
        if !input.0.is_empty() {
            return Err(format!("{} bytes too many", input.0.len()));
        }
        table.check()?;
        Ok(table)
    }

    /// What every access relies on: ends ascend, stay inside, and cut the keys between characters.
    fn check(&self) -> std::result::Result<(), String> {
        let (mut members_end, mut key_end) = (0, 0);
        for sample in &self.samples {
            if sample.members_end < members_end || sample.key_end < key_end {
                return Err("its samples do not ascend".to_owned());
            }
            if !self.keys.is_char_boundary(sample.key_end as usize) {
                return Err("a key ends inside a character".to_owned());
            }
            (members_end, key_end) = (sample.members_end, sample.key_end);
        }
        if members_end as usize != self.members.len() || key_end as usize != self.keys.len() {
            return Err("its samples do not cover its members".to_owned());
        }
        if self
            .members
            .iter()
            .any(|member| usize::from(member.extension) >= self.extensions.len())
        {
            return Err("a member has no extension".to_owned());
        }
        Ok(())
    }
}

/// Collects the members of a shard in the order they come.
pub(crate) struct OffsetTableBuilder {
    shard: String,
    table: OffsetTable,
    extensions: HashMap<String, u16>,
    /// Every key so far, and where its sample begins.
    starts: HashMap<String, u64>,
    current: Option<String>,
}

impl OffsetTableBuilder {
    pub(crate) fn new(shard: &str) -> Self {
        Self {
            shard: shard.to_owned(),
            table: OffsetTable::default(),
            extensions: HashMap::new(),
            starts: HashMap::new(),
            current: None,
        }
    }

    /// Adds a member.
    ///
    /// # Errors
    /// [`Error::DuplicateKey`] if the sample has such a member, or if a sample with this key has ended before.
    pub(crate) fn push(&mut self, key: &str, extension: &str, header: u64, data: u64, size: u64) -> Result<()> {
        let duplicate = |what: String, first| {
            let place = Place::new(&self.shard, key, header);
            Err(Error::DuplicateKey { place, what, first })
        };
        if self.current.as_deref() == Some(key) {
            let sample = self.table.samples.len() - 1;
            let earlier = self.table.members(sample).find(|member| member.extension == extension);
            if let Some(earlier) = earlier {
                return duplicate(format!("member {extension}"), earlier.offset);
            }
        } else {
            if let Some(&first) = self.starts.get(key) {
                return duplicate(format!("key {key}"), first);
            }
            self.starts.insert(key.to_owned(), header);
            self.current = Some(key.to_owned());
            self.table.keys.push_str(key);
            let key_end = self.bounded("the length of all keys", self.table.keys.len() as u64)?;
            self.table.samples.push(SampleEntry {
                members_end: self.table.members.len() as u32,
                key_end,
            });
        }
        let entry = MemberEntry {
            block: self.bounded("the number of blocks", data / BLOCK)?,
            size: self.bounded("the size of a member", size)?,
            extension: self.extension(extension)?,
        };
        self.table.members.push(entry);
        if let Some(sample) = self.table.samples.last_mut() {
            sample.members_end += 1;
        }
        Ok(())
    }

    fn extension(&mut self, extension: &str) -> Result<u16> {
        if let Some(&id) = self.extensions.get(extension) {
            return Ok(id);
        }
        let id = self.table.extensions.len();
        let limit = u64::from(u16::MAX);
        if id as u64 >= limit || extension.len() > usize::from(u16::MAX) {
            let what = "the number or length of extensions";
            let place = Place::new(&self.shard, "", 0);
            return Err(Error::LimitExceeded {
                place,
                what,
                found: id.max(extension.len()) as u64,
                limit,
            });
        }
        Arc::make_mut(&mut self.table.extensions).push(extension.to_owned());
        self.extensions.insert(extension.to_owned(), id as u16);
        Ok(id as u16)
    }

    fn bounded(&self, what: &'static str, found: u64) -> Result<u32> {
        u32::try_from(found).map_err(|_| Error::LimitExceeded {
            place: Place::new(&self.shard, self.current.as_deref().unwrap_or_default(), 0),
            what,
            found,
            limit: u64::from(u32::MAX),
        })
    }

    pub(crate) fn finish(self) -> OffsetTable {
        self.table
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Little-endian numbers from a slice that may be too short.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> std::result::Result<&'a [u8], String> {
        let (head, rest) = self.0.split_at_checked(count).ok_or("it is too short")?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> std::result::Result<[u8; N], String> {
        let (head, rest) = self.0.split_first_chunk().ok_or("it is too short")?;
        self.0 = rest;
        Ok(*head)
    }

    fn u16(&mut self) -> std::result::Result<u16, String> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> std::result::Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> std::result::Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> std::result::Result<String, String> {
        let length = self.u16()?;
        let bytes = self.take(usize::from(length))?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| "a name is not UTF-8".to_owned())
    }
}
