//! The members of a tar, one after the other, without trusting the tar.
//!
//! The `tar` crate reads the headers; the long names of GNU and PAX are put together here because the crate reads them
//! without a limit, and because the byte offsets of all parts are needed.

use crate::{key, Error, Limits, Place, Result};
use std::io::{self, Read};
use tar::{EntryType, Header, PaxExtensions};

const BLOCK: u64 = 512;

/// Where a tar's bytes come from.
pub(crate) trait TarInput {
    /// Reads until `buffer` is full or the input ends; gives the number of bytes read.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Passes over `count` bytes; gives the number there were.
    fn skip(&mut self, count: u64) -> io::Result<u64>;
}

/// A tar in memory: what is skipped is not touched.
pub(crate) struct SliceInput<'a>(pub &'a [u8]);

impl TarInput for SliceInput<'_> {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.0.len());
        let (head, rest) = self.0.split_at(count);
        buffer[..count].copy_from_slice(head);
        self.0 = rest;
        Ok(count)
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let present = usize::try_from(count).unwrap_or(usize::MAX).min(self.0.len());
        self.0 = &self.0[present..];
        Ok(present as u64)
    }
}

/// A tar that arrives as a stream.
pub(crate) struct StreamInput<R>(pub R);

impl<R: Read> TarInput for StreamInput<R> {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        io::copy(&mut self.0.by_ref().take(count), &mut io::sink())
    }
}

/// A regular file of the tar.
#[derive(Debug)]
pub(crate) struct TarMember {
    pub path: String,
    /// Where the member's first header begins, that of a long name included.
    pub header_offset: u64,
    pub data_offset: u64,
    pub size: u64,
}

/// Walks over the regular files of a tar.
pub(crate) struct TarMembers<I> {
    input: I,
    shard: String,
    limits: Limits,
    position: u64,
    /// Bytes of the current member, padding included, that nobody has read.
    unread: u64,
    members: u64,
    ended: bool,
}

impl<I: TarInput> TarMembers<I> {
    pub(crate) fn new(input: I, shard: &str, limits: Limits) -> Self {
        Self {
            input,
            shard: shard.to_owned(),
            limits,
            position: 0,
            unread: 0,
            members: 0,
            ended: false,
        }
    }

    /// The next regular file; folders and global PAX headers are passed over.
    pub(crate) fn next_member(&mut self) -> Result<Option<TarMember>> {
        let mut long_name: Option<Vec<u8>> = None;
        let mut first_header = None;
        while !self.ended {
            self.pass_unread()?;
            let header_offset = self.position;
            let Some(header) = self.read_header()? else {
                self.ended = true;
                self.drain()?;
                return match first_header {
                    Some(offset) => Err(self.invalid(offset, "a long name is followed by no member")),
                    None => Ok(None),
                };
            };
            let first = *first_header.get_or_insert(header_offset);
            let size = header
                .entry_size()
                .map_err(|error| self.invalid(header_offset, &error.to_string()))?;
            match header.entry_type() {
                EntryType::GNULongName => {
                    let mut name = self.read_extension(size)?;
                    name.truncate(name.iter().position(|&byte| byte == 0).unwrap_or(name.len()));
                    long_name = Some(name);
                }
                EntryType::XHeader => {
                    let records = self.read_extension(size)?;
                    if let Some(path) = self.pax_path(&records, header_offset)? {
                        long_name = Some(path);
                    }
                }
                EntryType::XGlobalHeader => {
                    self.read_extension(size)?;
                    first_header = None;
                }
                EntryType::Directory => {
                    self.set_unread(size)?;
                    long_name = None;
                    first_header = None;
                }
                EntryType::Regular | EntryType::Continuous => {
                    let name = long_name.unwrap_or_else(|| header.path_bytes().into_owned());
                    return self.member(name, first, size).map(Some);
                }
                other => {
                    let name = long_name.unwrap_or_else(|| header.path_bytes().into_owned());
                    return Err(self.refuse_kind(other, &name, first));
                }
            }
        }
        Ok(None)
    }

    /// Reads the content of the member that [`Self::next_member`] has just given.
    pub(crate) fn read_data(&mut self, member: &TarMember) -> Result<Vec<u8>> {
        // The claim may exceed what is there: grow with what arrives.
        let mut data = Vec::new();
        let mut left = member.size;
        while left > 0 {
            let step = left.min(1 << 20) as usize;
            let filled = data.len();
            data.resize(filled + step, 0);
            self.fill_exactly(&mut data[filled..])?;
            left -= step as u64;
        }
        self.unread -= member.size;
        Ok(data)
    }

    fn member(&mut self, name: Vec<u8>, header_offset: u64, size: u64) -> Result<TarMember> {
        let place = || Place::new(&self.shard, "", header_offset);
        let path = String::from_utf8(name).map_err(|error| Error::UnsafeMemberName {
            place: place(),
            name: String::from_utf8_lossy(error.as_bytes()).into_owned(),
            reason: "it is not UTF-8",
        })?;
        if let Some(reason) = key::refusal(&path) {
            return Err(Error::UnsafeMemberName {
                place: place(),
                name: path,
                reason,
            });
        }
        self.check_limit("the size of a member", size, self.limits.member_bytes)?;
        self.members += 1;
        self.check_limit("the number of members", self.members, self.limits.members)?;
        let data_offset = self.position;
        self.set_unread(size)?;
        Ok(TarMember {
            path,
            header_offset,
            data_offset,
            size,
        })
    }

    fn read_header(&mut self) -> Result<Option<Header>> {
        let offset = self.position;
        let mut header = Header::new_old();
        let filled = self.fill(header.as_mut_bytes())?;
        if filled == 0 {
            // A shard that was cut between two members looks whole but for the blocks of zeros at the end.
            return Err(self.truncated(offset, 0, 2 * BLOCK));
        }
        if filled < BLOCK as usize {
            return Err(self.truncated(offset, filled as u64, BLOCK));
        }
        let bytes = header.as_bytes();
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let sum: u32 = bytes
            .iter()
            .enumerate()
            .map(|(i, &b)| if (148..156).contains(&i) { 32 } else { u32::from(b) })
            .sum();
        match header.cksum() {
            Ok(recorded) if recorded == sum => Ok(Some(header)),
            _ => Err(self.invalid(offset, "the checksum does not match")),
        }
    }

    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>> {
        self.check_limit("the length of a member name", size, self.limits.name_bytes)?;
        let mut data = vec![0; size as usize];
        self.fill_exactly(&mut data)?;
        self.set_unread(size)?;
        self.unread -= size;
        Ok(data)
    }

    fn pax_path(&self, records: &[u8], offset: u64) -> Result<Option<Vec<u8>>> {
        let mut path = None;
        for record in PaxExtensions::new(records) {
            let record = record.map_err(|error| self.invalid(offset, &format!("PAX records: {error}")))?;
            match record.key_bytes() {
                b"path" => path = Some(record.value_bytes().to_vec()),
                b"size" => return Err(self.invalid(offset, "a PAX size record: the member is larger than 8 GiB")),
                name if name.starts_with(b"GNU.sparse") => return Err(self.invalid(offset, "a sparse file")),
                _ => {}
            }
        }
        Ok(path)
    }

    fn refuse_kind(&self, kind: EntryType, name: &[u8], offset: u64) -> Error {
        let kind = match kind {
            EntryType::Symlink => "symbolic link",
            EntryType::Link => "hard link",
            EntryType::Char | EntryType::Block => "device",
            EntryType::Fifo => "pipe",
            EntryType::GNUSparse => "sparse file",
            EntryType::GNULongLink => "link with a long name",
            _ => "member of unknown kind",
        };
        let name = String::from_utf8_lossy(name).into_owned();
        Error::UnsafeMemberKind {
            place: Place::new(&self.shard, "", offset),
            name,
            kind,
        }
    }

    /// Passes over what follows the end marks: a compressed stream is checked only when it is read to its end.
    fn drain(&mut self) -> Result<()> {
        let most = self.limits.shard_bytes.saturating_sub(self.position).saturating_add(1);
        let passed = self.input.skip(most).map_err(|error| self.input_error(&error))?;
        self.advance(passed)
    }

    fn set_unread(&mut self, size: u64) -> Result<()> {
        match size.checked_next_multiple_of(BLOCK) {
            Some(padded) => self.unread = padded,
            None => self.check_limit("the size of a member", size, self.limits.member_bytes)?,
        }
        Ok(())
    }

    fn pass_unread(&mut self) -> Result<()> {
        let offset = self.position;
        let count = std::mem::take(&mut self.unread);
        let passed = self.input.skip(count).map_err(|error| self.input_error(&error))?;
        self.advance(passed)?;
        if passed < count {
            return Err(self.truncated(offset, passed, count));
        }
        Ok(())
    }

    fn fill_exactly(&mut self, buffer: &mut [u8]) -> Result<()> {
        let offset = self.position;
        let filled = self.fill(buffer)?;
        if filled < buffer.len() {
            return Err(self.truncated(offset, filled as u64, buffer.len() as u64));
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let filled = self.input.fill(buffer).map_err(|error| self.input_error(&error))?;
        self.advance(filled as u64)?;
        Ok(filled)
    }

    fn advance(&mut self, count: u64) -> Result<()> {
        self.position += count;
        self.check_limit("the size of the shard", self.position, self.limits.shard_bytes)
    }

    fn check_limit(&self, what: &'static str, found: u64, limit: u64) -> Result<()> {
        if found > limit {
            return Err(Error::LimitExceeded {
                place: Place::new(&self.shard, "", self.position),
                what,
                found,
                limit,
            });
        }
        Ok(())
    }

    fn input_error(&self, error: &io::Error) -> Error {
        let place = Place::new(&self.shard, "", self.position);
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Error::TruncatedShard {
                place,
                found: 0,
                expected: BLOCK,
            }
        } else {
            Error::InvalidCompression {
                place,
                reason: error.to_string(),
            }
        }
    }

    fn truncated(&self, offset: u64, found: u64, expected: u64) -> Error {
        Error::TruncatedShard {
            place: Place::new(&self.shard, "", offset),
            found,
            expected,
        }
    }

    fn invalid(&self, offset: u64, reason: &str) -> Error {
        Error::InvalidTar {
            place: Place::new(&self.shard, "", offset),
            reason: reason.to_owned(),
        }
    }
}
