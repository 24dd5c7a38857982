//! WebDataset shards of latents: the format, its index, the shuffled order and the streaming loader.
//!
//! ```
//! use deepflow_datasets::{Compression, Dtype, Limits, Sample, ShardReader, ShardWriter};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("latents-000000.tar");
//! let mut shard = ShardWriter::create(&path, Compression::None)?;
//! shard.write(&Sample::new("cat/0001").with_array("moments.npy", &[0.0; 8], &[2, 2, 2], Dtype::F16)?.with_class(3))?;
//! shard.finish()?;
//!
//! for sample in ShardReader::open(&path, Limits::default())? {
//!     assert_eq!(sample?.class("latents-000000.tar")?, Some(3));
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The format is that of WebDataset, so the Python package reads these shards and this crate reads those of the Python
//! package; `docs/shards.md` gives the bytes. The order of samples is a pure function of (seed, epoch, index).

pub mod bench;
mod compression;
mod dataset;
mod dataset_writer;
mod error;
mod files;
mod folder;
mod hash;
mod index;
mod key;
mod limits;
mod loader;
mod npy;
mod offsets;
mod order;
pub mod random;
mod reader;
mod remote;
mod sample;
mod shard_writer;
mod tar_members;
mod verify;

pub use compression::Compression;
pub use dataset::{cache_folder, Dataset, OpenOptions};
pub use dataset_writer::{DatasetPlan, DatasetWriter};
pub use error::{Error, Place, Result};
pub use files::{commit, partial_name, write_atomically};
pub use folder::ShardFolder;
pub use hash::{hex, sha256_of_reader};
pub use index::{Class, Codec, Index, ShardRecord, INDEX_FILE};
pub use limits::Limits;
pub use loader::{
    AlignedBuffer, Batch, Features, LastBatch, Loader, LoaderConfig, LoaderState, LoaderStats, OnError, Polled,
    Posterior, Shuffle,
};
pub use npy::{
    check_header as check_npy_header, to_npy, Array, ArrayHeader, Dtype, NpyError, LONGEST_HEADER as LONGEST_NPY_HEADER,
};
pub use offsets::{MemberSpan, OffsetTable};
pub use order::{epoch_permutation, order, Permutation};
pub use reader::ShardReader;
pub use remote::{CacheOptions, RemoteOptions};
pub use sample::{Member, Sample, CLASS, FEATURES, LATENT, METADATA, MOMENTS, MOMENTS_FLIP};
pub use shard_writer::ShardWriter;
pub use verify::{verify, VerifyReport};
