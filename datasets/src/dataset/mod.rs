//! A data set: the shards of a folder, opened for reading.

mod bytes;
mod positioned;
mod residency;
mod shard;
mod tables;

pub use tables::cache_folder;

pub(crate) use residency::Residency;
pub(crate) use shard::{LoadedShard, MemberRef, SampleRef};

use crate::compression::is_zstd;
use crate::sample::array_error;
use crate::{
    hash, Codec, Error, Index, Limits, Place, RemoteOptions, Result, Sample, ShardFolder, ShardReader, ShardRecord,
    INDEX_FILE, LATENT, MOMENTS,
};
use bytes::ShardBytes;
use positioned::{can_hold_open, PositionedFile};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

/// How long after a shard its index may seem older because of the clock's coarseness.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(2);

/// Data sets up to this size stay mapped.
const MAPPED_BYTES: u64 = 1 << 30;

/// How a data set is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Bounds on what is read from shards.
    pub limits: Limits,
    /// Where offset tables of shards without one are kept when their folder cannot be written to. Default:
    /// `deepflow/offsets` in the user's cache folder.
    pub table_cache: Option<PathBuf>,
    /// The most bytes of mapped shards that count as this process's memory. Plain shards that are larger together, or
    /// larger than a gigabyte, are read sample by sample; where the system does not let so many files be open, they are
    /// mapped, and pages beyond these bytes go back to the system's cache. Default: 4 GiB.
    pub resident_bytes: u64,
    /// Whether shards that are read whole (compressed or remote) are checked against the index's SHA-256. Default: yes.
    pub verify: bool,
    /// How remote shards are fetched.
    pub remote: RemoteOptions,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            table_cache: tables::default_cache(),
            resident_bytes: 4 << 30,
            verify: true,
            remote: RemoteOptions::default(),
        }
    }
}

struct ShardEntry {
    name: String,
    /// As a file.
    bytes: u64,
    samples: u64,
    compressed: bool,
    record: Option<ShardRecord>,
    opened: OnceLock<Arc<LoadedShard>>,
}

/// The shards of a folder and what is known of them. Opening reads the index, not the shards.
pub struct Dataset {
    folder: ShardFolder,
    options: OpenOptions,
    index: Option<Index>,
    shards: Vec<ShardEntry>,
    /// `ends[i]`: samples in the first i shards.
    ends: Vec<u64>,
    latent_shape: [usize; 3],
    residency: Residency,
    /// Whether samples of plain shards are read at their position instead of mapped.
    positioned: bool,
    /// The extensions of the shard that was opened last, for the next one to share.
    extensions: Mutex<Arc<Vec<String>>>,
}

impl Dataset {
    /// Opens a folder with an `index.json`, or a folder of foreign shards (`.tar` and `.tar.zst` in the order of their
    /// names), whose offset tables are made by a scan the first time.
    ///
    /// # Errors
    /// [`Error::ShardMissing`] and [`Error::ShardChanged`] where the folder is not what the index describes;
    /// [`Error::NoShards`]; the errors of [`Index::load`] and of damaged shards.
    pub fn open(folder: &Path, options: OpenOptions) -> Result<Self> {
        let (index, shards) = if folder.join(INDEX_FILE).exists() {
            let index = Index::load(folder)?;
            check_folder(folder, &index)?;
            let shards = indexed_shards(&index);
            (Some(index), shards)
        } else {
            (None, foreign_shards(folder, &options)?)
        };
        let latent_shape = match &index {
            Some(index) => index.codec.latent_shape,
            None => latent_shape_of_first_sample(folder, &shards, options.limits)?,
        };
        Ok(Self::new(
            ShardFolder::local(folder),
            options,
            index,
            shards,
            latent_shape,
        ))
    }

    /// Opens a folder given as a path or an address: `file://`, `http(s)://`, `s3://`, `gs://`, `az://`. Remote folders
    /// need an `index.json`; their shards are read whole.
    ///
    /// # Errors
    /// Those of [`ShardFolder::open`], [`ShardFolder::index`] and [`Self::open`].
    pub fn open_location(location: &str, options: OpenOptions) -> Result<Self> {
        let folder = ShardFolder::open(location, &options.remote)?;
        if let Some(path) = folder.path() {
            return Self::open(path, options);
        }
        let index = folder.index()?;
        let (shards, latent_shape) = (indexed_shards(&index), index.codec.latent_shape);
        Ok(Self::new(folder, options, Some(index), shards, latent_shape))
    }

    fn new(
        folder: ShardFolder,
        options: OpenOptions,
        index: Option<Index>,
        shards: Vec<ShardEntry>,
        latent_shape: [usize; 3],
    ) -> Self {
        let mut ends = vec![0];
        for shard in &shards {
            ends.push(ends[ends.len() - 1] + shard.samples);
        }
        let residency = Residency::new(options.resident_bytes);
        let mut dataset = Self {
            folder,
            options,
            index,
            shards,
            ends,
            latent_shape,
            residency,
            positioned: false,
            extensions: Mutex::default(),
        };
        dataset.positioned = dataset.is_random_access() && dataset.is_large() && can_hold_open(dataset.shards.len());
        dataset
    }

    /// Whether the shards are too many bytes to stay mapped.
    fn is_large(&self) -> bool {
        let bytes: u64 = self.shards.iter().map(|shard| shard.bytes).sum();
        bytes > MAPPED_BYTES.min(self.options.resident_bytes)
    }

    /// The number of samples.
    pub fn len(&self) -> u64 {
        self.ends[self.shards.len()]
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The index, unless the shards are foreign.
    pub fn index(&self) -> Option<&Index> {
        self.index.as_ref()
    }

    /// How the latents were made, if the index says it.
    pub fn codec(&self) -> Option<&Codec> {
        self.index.as_ref().map(|index| &index.codec)
    }

    /// (C, S, S) of one latent.
    pub fn latent_shape(&self) -> [usize; 3] {
        self.latent_shape
    }

    /// The number of classes; 0 if unknown.
    pub fn classes(&self) -> usize {
        self.index.as_ref().map_or(0, |index| index.classes.len())
    }

    /// Where the shards lie.
    pub fn folder(&self) -> &ShardFolder {
        &self.folder
    }

    /// Whether every sample can be reached without reading others: all shards local and plain.
    pub fn is_random_access(&self) -> bool {
        self.folder.path().is_some() && self.shards.iter().all(|shard| !shard.compressed)
    }

    pub(crate) fn shard_samples(&self) -> Vec<u64> {
        self.shards.iter().map(|shard| shard.samples).collect()
    }

    pub(crate) fn shard_name(&self, shard: usize) -> &str {
        &self.shards[shard].name
    }

    /// The plain shards that were opened so far.
    #[cfg(test)]
    pub(crate) fn opened_shards(&self) -> usize {
        self.shards.iter().filter(|shard| shard.opened.get().is_some()).count()
    }

    pub(crate) fn residency(&self) -> &Residency {
        &self.residency
    }

    /// The shard of a sample of the stored order, and its place there.
    pub(crate) fn locate(&self, sample: u64) -> (usize, usize) {
        let shard = self.ends[1..].partition_point(|&end| end <= sample);
        (shard, (sample - self.ends[shard]) as usize)
    }

    /// A plain shard, ready to be read at random. The first use opens it and reads its offset table.
    pub(crate) fn at_random(&self, shard: usize) -> Result<&Arc<LoadedShard>> {
        let entry = &self.shards[shard];
        if let Some(opened) = entry.opened.get() {
            return Ok(opened);
        }
        let Some(folder) = self.folder.path() else {
            let reason = "remote shards are read whole".to_owned();
            return Err(Error::UnknownLocation {
                url: self.folder.address(&entry.name),
                reason,
            });
        };
        let path = folder.join(&entry.name);
        let mut table = tables::of_plain_shard(&path, entry.record.as_ref(), &self.options)?;
        self.check_samples(entry, table.len())?;
        table.share_extensions(&mut self.extensions.lock().unwrap_or_else(PoisonError::into_inner));
        let name = entry.name.clone();
        let loaded = if self.positioned {
            LoadedShard::positioned(name, PositionedFile::open(&path)?, table)
        } else {
            LoadedShard::new(name, ShardBytes::map(&path)?, table)
        };
        Ok(entry.opened.get_or_init(|| Arc::new(loaded)))
    }

    /// A shard of any kind, read whole, verified, decompressed. Fetching gives up soon after `stop` is set.
    pub(crate) fn read_whole(&self, shard: usize, stop: &AtomicBool) -> Result<Arc<LoadedShard>> {
        let entry = &self.shards[shard];
        let file = match (&entry.record, self.folder.path()) {
            (Some(record), _) if record.bytes > self.options.limits.memory_bytes => {
                return Err(too_large_for_memory(&entry.name, record.bytes, self.options.limits))
            }
            (Some(record), _) => self.folder.shard_file(record, self.options.verify, stop)?,
            (None, Some(folder)) => {
                let path = folder.join(&entry.name);
                fs::read(&path).map_err(Error::io(&path, "read"))?
            }
            (None, None) => {
                return Err(Error::NoRemoteIndex {
                    url: self.folder.location(),
                })
            }
        };
        let loaded = load_whole(file, entry, self.options.limits)?;
        self.check_samples(entry, loaded.table().len())?;
        Ok(Arc::new(loaded))
    }

    fn check_samples(&self, entry: &ShardEntry, found: usize) -> Result<()> {
        if found as u64 == entry.samples {
            return Ok(());
        }
        Err(Error::ShardChanged {
            shard: entry.name.clone(),
            what: "number of samples",
            found: found.to_string(),
            expected: entry.samples.to_string(),
            index: self.folder.address(INDEX_FILE),
        })
    }
}

fn indexed_shards(index: &Index) -> Vec<ShardEntry> {
    let entry = |record: &ShardRecord| ShardEntry {
        name: record.name.clone(),
        bytes: record.bytes,
        samples: record.samples,
        compressed: record.compressed,
        record: Some(record.clone()),
        opened: OnceLock::new(),
    };
    index.shards.iter().map(entry).collect()
}

fn load_whole(file: Vec<u8>, entry: &ShardEntry, limits: Limits) -> Result<LoadedShard> {
    let tar = if is_zstd(&file) {
        decompress(&file, &entry.name, limits)?
    } else {
        file
    };
    let table = crate::OffsetTable::of_tar(&tar, &entry.name, limits)?;
    Ok(LoadedShard::new(entry.name.clone(), ShardBytes::Owned(tar), table))
}

fn decompress(file: &[u8], shard: &str, limits: Limits) -> Result<Vec<u8>> {
    let mut tar = Vec::new();
    let limit = limits.memory_bytes;
    let read = zstd::Decoder::with_buffer(file).and_then(|decoder| decoder.take(limit + 1).read_to_end(&mut tar));
    let found = tar.len() as u64;
    let place = Place::new(shard, "", found);
    match read {
        Ok(_) if found <= limit => Ok(tar),
        Ok(_) => Err(too_large_for_memory(shard, found, limits)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Error::TruncatedShard {
            place,
            found: 0,
            expected: 1,
        }),
        Err(error) => Err(Error::InvalidCompression {
            place,
            reason: error.to_string(),
        }),
    }
}

fn too_large_for_memory(shard: &str, found: u64, limits: Limits) -> Error {
    Error::LimitExceeded {
        place: Place::new(shard, "", 0),
        what: "the size of a shard that is held in memory whole",
        found,
        limit: limits.memory_bytes,
    }
}

/// Compares the folder with the index: presence, sizes, and the content of shards that are newer than the index.
fn check_folder(folder: &Path, index: &Index) -> Result<()> {
    let index_path = folder.join(INDEX_FILE);
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let index_time = modified(&index_path).unwrap_or(SystemTime::UNIX_EPOCH);
    for record in &index.shards {
        let path = folder.join(&record.name);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let location = folder.display().to_string();
                return Err(Error::ShardMissing {
                    shard: record.name.clone(),
                    location,
                });
            }
            Err(error) => return Err(Error::io(&path, "inspect")(error)),
        };
        let changed = |what, found, expected| Error::ShardChanged {
            shard: record.name.clone(),
            what,
            found,
            expected,
            index: index_path.display().to_string(),
        };
        if metadata.len() != record.bytes {
            return Err(changed("size", metadata.len().to_string(), record.bytes.to_string()));
        }
        // Copying a folder can make a shard look newer than the index; only its content tells.
        if metadata
            .modified()
            .is_ok_and(|time| time > index_time + CLOCK_TOLERANCE)
        {
            let file = File::open(&path).map_err(Error::io(&path, "open"))?;
            let (found, _) = hash::sha256_of_reader(file).map_err(Error::io(&path, "read"))?;
            if found != record.sha256 {
                return Err(changed("SHA-256", found, record.sha256.clone()));
            }
        }
    }
    Ok(())
}

fn foreign_shards(folder: &Path, options: &OpenOptions) -> Result<Vec<ShardEntry>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let name = entry.map_err(Error::io(folder, "list"))?.file_name();
        // A name that is not UTF-8 is no shard that anyone's tool wrote.
        if let Some(name) = name.to_str().filter(|name| is_shard_name(name)) {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    if names.is_empty() {
        return Err(Error::NoShards {
            location: folder.display().to_string(),
        });
    }
    names
        .into_iter()
        .map(|name| {
            let path = folder.join(&name);
            let (samples, compressed) = tables::count_samples(&path, options)?;
            Ok(ShardEntry {
                name,
                bytes: fs::metadata(&path).map_err(Error::io(&path, "inspect"))?.len(),
                samples,
                compressed,
                record: None,
                opened: OnceLock::new(),
            })
        })
        .collect()
}

/// Whether a file of this name is taken for a shard.
pub(crate) fn is_shard_name(name: &str) -> bool {
    !name.starts_with('.') && (name.ends_with(".tar") || name.ends_with(".tar.zst"))
}

fn latent_shape_of_first_sample(folder: &Path, shards: &[ShardEntry], limits: Limits) -> Result<[usize; 3]> {
    let location = || folder.display().to_string();
    let shard = shards.iter().find(|shard| shard.samples > 0);
    let shard = shard.ok_or_else(|| Error::NoShards { location: location() })?;
    let first = ShardReader::open(&folder.join(&shard.name), limits)?.next();
    let sample = first.ok_or_else(|| Error::NoShards { location: location() })??;
    latent_shape_of(&sample, &shard.name)
}

/// (C, S, S) of a sample's moments (2C, S, S) or latent (C, S, S).
fn latent_shape_of(sample: &Sample, shard: &str) -> Result<[usize; 3]> {
    for (extension, parts) in [(MOMENTS, 2), (LATENT, 1)] {
        let Some(member) = sample.member(extension) else {
            continue;
        };
        let place = || Place::new(shard, &sample.key, member.offset);
        let header = crate::ArrayHeader::parse(&member.data).map_err(|error| array_error(error, place(), extension))?;
        return match header.shape[..] {
            [channels, height, width] if channels % parts == 0 && channels * height * width > 0 => {
                Ok([channels / parts, height, width])
            }
            _ => Err(Error::WrongShape {
                place: place(),
                member: extension.to_owned(),
                found: header.shape,
                expected: vec![parts, 1, 1],
            }),
        };
    }
    let found: Vec<&str> = sample.members.iter().map(|member| member.extension.as_str()).collect();
    let place = Place::new(
        shard,
        &sample.key,
        sample.members.first().map_or(0, |member| member.offset),
    );
    Err(Error::MissingMember {
        place,
        member: MOMENTS.to_owned(),
        found: found.join(", "),
    })
}
