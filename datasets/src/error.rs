//! The ways a data set can be wrong, each with its own name.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// The result of everything in this crate that reads or writes.
pub type Result<T> = std::result::Result<T, Error>;

/// Where in a data set something is: the shard, the sample's key if it is known, and the byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The shard's file name or address.
    pub shard: Box<str>,
    /// The sample's key; empty if the fault lies before any key is known.
    pub key: Box<str>,
    /// Byte offset into the (decompressed) shard.
    pub offset: u64,
}

impl Place {
    pub(crate) fn new(shard: &str, key: &str, offset: u64) -> Self {
        Self {
            shard: shard.into(),
            key: key.into(),
            offset,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {}, ", self.shard)?;
        if !self.key.is_empty() {
            write!(f, "key {}, ", self.key)?;
        }
        write!(f, "byte {}", self.offset)
    }
}

/// What can go wrong with shards, their index and the loader. Every message is one line.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file system refused.
    #[error("{}: cannot {action}: {reason}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as in "cannot …".
        action: &'static str,
        /// The system's kind of error.
        kind: io::ErrorKind,
        /// The system's reason.
        reason: String,
    },
    /// A remote store refused, after all retries.
    #[error("{url}: {reason} (after {attempts} attempts)")]
    Remote {
        /// The address.
        url: String,
        /// The last reason.
        reason: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// A file that is not at its address.
    #[error("{url}: there is no such file")]
    NotFound {
        /// The address.
        url: String,
    },
    /// A server that answers a request for a part with something else.
    #[error("{url}: the server does not serve parts of files")]
    RangesNotServed {
        /// The address.
        url: String,
    },
    /// A remote folder without an index, whose shards cannot be listed.
    #[error("{url}: no index.json; remote shards can only be read with the index that was written with them")]
    NoRemoteIndex {
        /// The address of the folder.
        url: String,
    },
    /// An address the crate cannot read.
    #[error("{url}: {reason}; expected a folder or file://, http(s)://, s3://, gs:// or az://")]
    UnknownLocation {
        /// The address as given.
        url: String,
        /// Why it is not one.
        reason: String,
    },
    /// The shard ends in the middle of a member.
    #[error("{place}: the shard is truncated: {found} bytes left, expected {expected}")]
    TruncatedShard {
        /// Where the incomplete part begins.
        place: Place,
        /// Bytes that are there.
        found: u64,
        /// Bytes that should be.
        expected: u64,
    },
    /// A tar header that no writer makes.
    #[error("{place}: invalid tar header: {reason}")]
    InvalidTar {
        /// Where the header begins.
        place: Place,
        /// What is wrong with it.
        reason: String,
    },
    /// The compressed stream is damaged.
    #[error("{place}: invalid zstd data: {reason}")]
    InvalidCompression {
        /// How far decompression came.
        place: Place,
        /// The decompressor's reason.
        reason: String,
    },
    /// A member name that tries to leave the folder or cannot be a name.
    #[error("{place}: unsafe member name {name:?}: {reason}")]
    UnsafeMemberName {
        /// Where the header begins.
        place: Place,
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A symbolic or hard link, a device or a pipe; never followed, never made.
    #[error("{place}: member {name:?} is a {kind}; only regular files and folders may be in a shard")]
    UnsafeMemberKind {
        /// Where the header begins.
        place: Place,
        /// The member's name.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// More than the configured limits allow: a decompression bomb, or a header that claims too much.
    #[error("{place}: {what} is {found}, more than the limit of {limit}")]
    LimitExceeded {
        /// Where it was met.
        place: Place,
        /// What is too much.
        what: &'static str,
        /// How much it is or claims to be.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// The content does not have the recorded hash.
    #[error("shard {shard}: SHA-256 is {found}, expected {expected}: the shard is damaged or was replaced")]
    HashMismatch {
        /// The shard.
        shard: String,
        /// The hash of what is there.
        found: String,
        /// The hash recorded when it was written.
        expected: String,
    },
    /// The shard is not the one the index describes.
    #[error("shard {shard}: {what} is {found}, {index} says {expected}: the index is older than the shard")]
    ShardChanged {
        /// The shard.
        shard: String,
        /// What differs.
        what: &'static str,
        /// What the shard has.
        found: String,
        /// What the index has.
        expected: String,
        /// The index.
        index: String,
    },
    /// A shard of the index is not there: deleted, renamed or not yet copied.
    #[error("shard {shard} is missing in {location}, but index.json lists it")]
    ShardMissing {
        /// The shard.
        shard: String,
        /// Where it was looked for.
        location: String,
    },
    /// A shard that the index does not list.
    #[error("shard {shard} is in {location}, but index.json does not list it")]
    ShardUnlisted {
        /// The shard.
        shard: String,
        /// The folder.
        location: String,
    },
    /// No shards at all.
    #[error("{location}: no index.json and no .tar or .tar.zst shards")]
    NoShards {
        /// The folder.
        location: String,
    },
    /// The index cannot be understood.
    #[error("{path}: invalid index: {reason}")]
    InvalidIndex {
        /// The index file.
        path: String,
        /// Why.
        reason: String,
    },
    /// The index was written by a version of the format that this program does not read.
    #[error("{path}: index version {found}, this program reads version {supported}")]
    IndexVersion {
        /// The index file.
        path: String,
        /// The version found.
        found: u64,
        /// The version supported.
        supported: u64,
    },
    /// An offset table cannot be understood; deleting it makes the next run scan the shard again.
    #[error("{path}: invalid offset table: {reason}")]
    InvalidOffsetTable {
        /// The table.
        path: String,
        /// Why.
        reason: String,
    },
    /// Two samples of a shard, or two members of a sample, have the same name.
    #[error("{place}: duplicate {what}; the first is at byte {first}")]
    DuplicateKey {
        /// Where the second begins.
        place: Place,
        /// The key, or the member.
        what: String,
        /// Where the first begins.
        first: u64,
    },
    /// A sample lacks a member that is needed.
    #[error("{place}: missing member {member}; found {found}")]
    MissingMember {
        /// The sample.
        place: Place,
        /// The member needed.
        member: String,
        /// The members there are.
        found: String,
    },
    /// An array that is not a `.npy` array this crate reads.
    #[error("{place}: {member}: invalid npy array: {reason}")]
    InvalidArray {
        /// The member's data.
        place: Place,
        /// The member.
        member: String,
        /// Why.
        reason: String,
    },
    /// An array stored column by column.
    #[error("{place}: {member} is in Fortran order, expected C order (numpy.ascontiguousarray makes it so)")]
    FortranOrder {
        /// The member's data.
        place: Place,
        /// The member.
        member: String,
    },
    /// An array of another element type.
    #[error("{place}: {member} has dtype {found}, expected {expected}")]
    WrongDtype {
        /// The member's data.
        place: Place,
        /// The member.
        member: String,
        /// The dtype found.
        found: String,
        /// The dtype expected.
        expected: String,
    },
    /// An array of another shape.
    #[error("{place}: {member} has shape {found:?}, expected {expected:?}")]
    WrongShape {
        /// The member's data.
        place: Place,
        /// The member.
        member: String,
        /// The shape found.
        found: Vec<usize>,
        /// The shape expected.
        expected: Vec<usize>,
    },
    /// A class member that is not a decimal number.
    #[error("{place}: class is {found:?}, expected a decimal number")]
    InvalidClass {
        /// The member's data.
        place: Place,
        /// What it says.
        found: String,
    },
    /// A class index beyond the classes of the index.
    #[error("{place}: class {found} is out of range, the index has {classes} classes")]
    ClassOutOfRange {
        /// The member's data.
        place: Place,
        /// The class found.
        found: u32,
        /// The number of classes.
        classes: u32,
    },
    /// A sample that cannot be written.
    #[error("sample {key:?} cannot be written: {reason}")]
    InvalidSample {
        /// The sample's key.
        key: String,
        /// Why.
        reason: String,
    },
    /// The folder holds shards of a run with other settings.
    #[error("{path}: {field} was {found} when these shards were begun, now it is {expected}; use an empty folder or the same settings")]
    OtherRun {
        /// The record of the earlier run.
        path: String,
        /// The setting that differs.
        field: String,
        /// Its value then.
        found: String,
        /// Its value now.
        expected: String,
    },
    /// A setting of the loader that cannot work.
    #[error("{key} is {found}, expected {expected}")]
    InvalidConfig {
        /// The setting.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// Faulty samples are skipped, and there are no others.
    #[error("none of the data set's {samples} samples can be read; the warnings before this name the reasons")]
    NothingReadable {
        /// The number of samples.
        samples: u64,
    },
    /// A thread of the loader panicked; the batch it worked on is lost.
    #[error("a reader thread of the loader panicked while it made the batch at position {position}")]
    ReaderPanicked {
        /// The global position of the batch.
        position: u64,
    },
    /// A thread of the loader panicked while it read a shard.
    #[error("shard {shard}: a fetching thread of the loader panicked")]
    FetchPanicked {
        /// The shard.
        shard: String,
    },
    /// The work was stopped from outside.
    #[error("stopped")]
    Stopped,
}

impl Error {
    /// Whether the fault is in a sample or a shard, so that the others can still be used.
    pub(crate) fn is_about_a_sample(&self) -> bool {
        !matches!(
            self,
            Self::Stopped | Self::ReaderPanicked { .. } | Self::FetchPanicked { .. } | Self::InvalidConfig { .. }
        )
    }

    /// For `map_err` on file operations: "path: cannot action: reason".
    pub(crate) fn io(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::Io {
            path,
            action,
            kind: error.kind(),
            reason: error.to_string(),
        }
    }
}
