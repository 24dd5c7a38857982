//! Checking a folder of shards from end to end: what `deepflow inspect shards DIR` shows.

use crate::dataset::is_shard_name;
use crate::sample::{array_error, CLASS};
use crate::{
    hash, ArrayHeader, Error, Index, Limits, Place, Result, Sample, ShardReader, ShardRecord, INDEX_FILE, LATENT,
    MOMENTS, MOMENTS_FLIP,
};
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::Path;

/// What is known of a folder after every byte of it was read.
#[derive(Debug, Serialize)]
pub struct VerifyReport {
    /// Whether the folder has an index.
    pub indexed: bool,
    /// The number of shards.
    pub shards: usize,
    /// The number of samples.
    pub samples: u64,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Samples of each class.
    pub classes: BTreeMap<u32, u64>,
    /// Samples that have a member, by its extension.
    pub members: BTreeMap<String, u64>,
    /// Every fault found, one line each.
    pub faults: Vec<String>,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }
}

/// Reads every shard of a folder: presence and hashes against the index, every member against the format, keys for
/// duplicates over all shards. `progress` is told each shard's name before it is read, and can end the work.
///
/// # Errors
/// Only if the folder or its index cannot be read at all, or [`Error::Stopped`]; everything else is in the report.
pub fn verify(
    folder: &Path,
    limits: Limits,
    mut progress: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<VerifyReport> {
    let mut proceed = |name: &str| match progress(name) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Stopped),
    };
    let index = if folder.join(INDEX_FILE).exists() {
        Some(Index::load(folder)?)
    } else {
        None
    };
    let present = shard_names(folder)?;
    let records: &[ShardRecord] = index.as_ref().map_or(&[], |index| &index.shards);
    let mut check = Check::new(index.as_ref(), limits);
    if index.is_some() {
        for name in present
            .iter()
            .filter(|name| !records.iter().any(|record| record.name == **name))
        {
            let location = folder.display().to_string();
            check.fault(&Error::ShardUnlisted {
                shard: name.clone(),
                location,
            });
        }
        for record in records {
            proceed(&record.name)?;
            check.shard(folder, &record.name, Some(record));
        }
    } else {
        if present.is_empty() {
            return Err(Error::NoShards {
                location: folder.display().to_string(),
            });
        }
        for name in &present {
            proceed(name)?;
            check.shard(folder, name, None);
        }
    }
    Ok(check.report)
}

fn shard_names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let name = entry.map_err(Error::io(folder, "list"))?.file_name();
        if let Some(name) = name.to_str().filter(|name| is_shard_name(name)) {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

struct Check<'a> {
    index: Option<&'a Index>,
    limits: Limits,
    keys: HashSet<String>,
    report: VerifyReport,
}

impl<'a> Check<'a> {
    fn new(index: Option<&'a Index>, limits: Limits) -> Self {
        let report = VerifyReport {
            indexed: index.is_some(),
            shards: 0,
            samples: 0,
            bytes: 0,
            classes: BTreeMap::new(),
            members: BTreeMap::new(),
            faults: Vec::new(),
        };
        Self {
            index,
            limits,
            keys: HashSet::new(),
            report,
        }
    }

    fn fault(&mut self, error: &Error) {
        self.report.faults.push(error.to_string());
    }

    fn shard(&mut self, folder: &Path, name: &str, record: Option<&ShardRecord>) {
        self.report.shards += 1;
        if let Err(error) = self.content(folder, name, record) {
            self.fault(&error);
        }
    }

    fn content(&mut self, folder: &Path, name: &str, record: Option<&ShardRecord>) -> Result<()> {
        let path = folder.join(name);
        if !path.exists() {
            return Err(Error::ShardMissing {
                shard: name.to_owned(),
                location: folder.display().to_string(),
            });
        }
        let file = File::open(&path).map_err(Error::io(&path, "open"))?;
        let (found, bytes) = hash::sha256_of_reader(file).map_err(Error::io(&path, "read"))?;
        self.report.bytes += bytes;
        if let Some(record) = record.filter(|record| record.sha256 != found) {
            self.fault(&Error::HashMismatch {
                shard: name.to_owned(),
                found,
                expected: record.sha256.clone(),
            });
        }
        let mut samples = 0;
        for sample in ShardReader::open(&path, self.limits)? {
            samples += 1;
            self.sample(&sample?, name);
        }
        self.report.samples += samples;
        match record {
            Some(record) if record.samples != samples => Err(Error::ShardChanged {
                shard: name.to_owned(),
                what: "number of samples",
                found: samples.to_string(),
                expected: record.samples.to_string(),
                index: folder.join(INDEX_FILE).display().to_string(),
            }),
            _ => Ok(()),
        }
    }

    fn sample(&mut self, sample: &Sample, shard: &str) {
        for member in &sample.members {
            *self.report.members.entry(member.extension.clone()).or_default() += 1;
        }
        if !self.keys.insert(sample.key.clone()) {
            let place = Place::new(
                shard,
                &sample.key,
                sample.members.first().map_or(0, |member| member.offset),
            );
            let what = format!("key {}, also in an earlier shard", sample.key);
            self.fault(&Error::DuplicateKey { place, what, first: 0 });
        }
        if let Err(error) = self.class(sample, shard) {
            self.fault(&error);
        }
        if let Err(error) = self.arrays(sample, shard) {
            self.fault(&error);
        }
    }

    fn class(&mut self, sample: &Sample, shard: &str) -> Result<()> {
        let Some(class) = sample.class(shard)? else {
            return Ok(());
        };
        *self.report.classes.entry(class).or_default() += 1;
        let classes = self.index.map_or(0, |index| index.classes.len() as u32);
        if classes > 0 && class >= classes {
            let offset = sample.member(CLASS).map_or(0, |member| member.offset);
            return Err(Error::ClassOutOfRange {
                place: Place::new(shard, &sample.key, offset),
                found: class,
                classes,
            });
        }
        Ok(())
    }

    fn arrays(&self, sample: &Sample, shard: &str) -> Result<()> {
        if self.index.is_some() && sample.member(MOMENTS).is_none() && sample.member(LATENT).is_none() {
            let found: Vec<&str> = sample.members.iter().map(|member| member.extension.as_str()).collect();
            let offset = sample.members.first().map_or(0, |member| member.offset);
            return Err(Error::MissingMember {
                place: Place::new(shard, &sample.key, offset),
                member: format!("{MOMENTS} or {LATENT}"),
                found: found.join(", "),
            });
        }
        for (extension, parts) in [(MOMENTS, 2), (MOMENTS_FLIP, 2), (LATENT, 1)] {
            let Some(member) = sample.member(extension) else {
                continue;
            };
            let place = || Place::new(shard, &sample.key, member.offset);
            let header = ArrayHeader::parse(&member.data).map_err(|error| array_error(error, place(), extension))?;
            let Some(codec) = self.index.map(|index| &index.codec) else {
                continue;
            };
            let [channels, height, width] = codec.latent_shape;
            let member = extension.to_owned();
            if header.shape != [parts * channels, height, width] {
                let expected = vec![parts * channels, height, width];
                return Err(Error::WrongShape {
                    place: place(),
                    member,
                    found: header.shape,
                    expected,
                });
            }
            if header.dtype != codec.dtype {
                let (found, expected) = (header.dtype.to_string(), codec.dtype.to_string());
                return Err(Error::WrongDtype {
                    place: place(),
                    member,
                    found,
                    expected,
                });
            }
        }
        Ok(())
    }
}
