//! Reading a shard from its beginning to its end.

use crate::compression::decompressed;
use crate::tar_members::{StreamInput, TarMember, TarMembers};
use crate::{key, Error, Limits, Member, Place, Result, Sample};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The samples of one shard in the order they are stored, from a `.tar` or a `.tar.zst` (told apart by content).
///
/// ```no_run
/// use deepflow_datasets::{Limits, ShardReader};
///
/// for sample in ShardReader::open("latents-000000.tar".as_ref(), Limits::default())? {
///     let sample = sample?;
///     println!("{}: {} members", sample.key, sample.members.len());
/// }
/// # Ok::<(), deepflow_datasets::Error>(())
/// ```
pub struct ShardReader {
    members: TarMembers<StreamInput<Box<dyn Read + Send>>>,
    shard: String,
    /// The first member of the next sample, met while the previous one was completed.
    ahead: Option<(String, String, TarMember)>,
    keys: HashMap<String, u64>,
    failed: bool,
}

impl ShardReader {
    /// Opens a shard file.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read.
    pub fn open(path: &Path, limits: Limits) -> Result<Self> {
        Ok(Self::over(Self::stream(path)?, &path.to_string_lossy(), limits))
    }

    /// Reads a shard from any stream; `shard` names it in errors.
    ///
    /// # Errors
    /// [`Error::Io`] if the stream cannot be read.
    pub fn new(stream: impl Read + Send + 'static, shard: &str, limits: Limits) -> Result<Self> {
        Ok(Self::over(
            decompressed(stream).map_err(Error::io(shard, "read"))?,
            shard,
            limits,
        ))
    }

    fn over(stream: Box<dyn Read + Send>, shard: &str, limits: Limits) -> Self {
        let members = TarMembers::new(StreamInput(stream), shard, limits);
        Self {
            members,
            shard: shard.to_owned(),
            ahead: None,
            keys: HashMap::new(),
            failed: false,
        }
    }

    /// The decompressed bytes of a shard file.
    pub(crate) fn stream(path: &Path) -> Result<Box<dyn Read + Send>> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        decompressed(file).map_err(Error::io(path, "read"))
    }

    fn next_sample(&mut self) -> Result<Option<Sample>> {
        let Some((key, extension, first)) = self.take_member()? else {
            return Ok(None);
        };
        let start = first.header_offset;
        if let Some(&earlier) = self.keys.get(&key) {
            return Err(self.duplicate(&key, start, format!("key {key}"), earlier));
        }
        self.keys.insert(key.clone(), start);
        let mut sample = Sample::new(key);
        self.push(&mut sample, extension, &first)?;
        while let Some((key, extension, member)) = self.take_member()? {
            if key != sample.key {
                self.ahead = Some((key, extension, member));
                break;
            }
            self.push(&mut sample, extension, &member)?;
        }
        Ok(Some(sample))
    }

    fn push(&mut self, sample: &mut Sample, extension: String, member: &TarMember) -> Result<()> {
        if let Some(earlier) = sample.member(&extension) {
            return Err(self.duplicate(
                &sample.key,
                member.data_offset,
                format!("member {extension}"),
                earlier.offset,
            ));
        }
        let data = self.members.read_data(member)?;
        sample.members.push(Member {
            extension,
            data,
            offset: member.data_offset,
        });
        Ok(())
    }

    fn take_member(&mut self) -> Result<Option<(String, String, TarMember)>> {
        if let Some(ahead) = self.ahead.take() {
            return Ok(Some(ahead));
        }
        while let Some(member) = self.members.next_member()? {
            if let Some((key, extension)) = key::split(&member.path) {
                return Ok(Some((key.to_owned(), extension, member)));
            }
        }
        Ok(None)
    }

    fn duplicate(&self, key: &str, offset: u64, what: String, first: u64) -> Error {
        Error::DuplicateKey {
            place: Place::new(&self.shard, key, offset),
            what,
            first,
        }
    }
}

impl Iterator for ShardReader {
    type Item = Result<Sample>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_sample().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}
