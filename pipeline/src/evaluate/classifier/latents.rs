//! Latents and classes of a folder of shards: posterior means of encoded pictures, or generated latents.

use crate::interrupt::Interrupt;
use crate::latent::latent_of;
use anyhow::{ensure, Context};
use deepflow_datasets::{Index, Limits, ShardReader};
use std::path::Path;

/// Classes that a classifier has at most where the index names none, so that no slip of a label fills the memory.
const MOST_CLASSES: usize = 100_000;

/// A latent with what is said of it.
pub struct Labelled {
    /// C·S·S numbers.
    pub latent: Vec<f32>,
    /// Its class, where it has one.
    pub class: Option<u32>,
    /// Its shard and key, for messages.
    pub place: String,
}

/// The latents of a folder of shards one after the other, in the order of the shards.
pub struct LatentReader<'a> {
    folder: &'a Path,
    index: &'a Index,
    next_shard: usize,
    current: Option<(String, ShardReader)>,
}

impl<'a> LatentReader<'a> {
    /// Starts at the first shard.
    pub fn new(folder: &'a Path, index: &'a Index) -> Self {
        Self {
            folder,
            index,
            next_shard: 0,
            current: None,
        }
    }

    fn read(&mut self) -> anyhow::Result<Option<Labelled>> {
        loop {
            if let Some((shard, reader)) = &mut self.current {
                if let Some(sample) = reader.next() {
                    let sample = sample?;
                    return Ok(Some(Labelled {
                        latent: latent_of(&sample, shard, self.index.codec.latent_shape)?,
                        class: sample.class(shard.as_str())?,
                        place: format!("{shard}: {}", sample.key),
                    }));
                }
            }
            let Some(record) = self.index.shards.get(self.next_shard) else {
                return Ok(None);
            };
            self.next_shard += 1;
            let path = self.folder.join(&record.name);
            let reader = ShardReader::open(&path, Limits::default())?;
            self.current = Some((path.display().to_string(), reader));
        }
    }
}

impl Iterator for LatentReader<'_> {
    type Item = anyhow::Result<Labelled>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// Latents of a folder in memory, to be drawn from in any order.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentSet {
    /// Channels, rows, columns.
    pub shape: [usize; 3],
    /// One latent after the other.
    pub values: Vec<f32>,
    /// Their classes.
    pub classes: Vec<usize>,
}

impl LatentSet {
    /// Reads at most `limit` latents, in the order of the shards.
    ///
    /// # Errors
    /// A shard is unreadable, or a sample holds neither moments nor a latent of the index's shape, or no class that the index knows.
    pub fn read(folder: &Path, limit: usize, interrupt: &Interrupt) -> anyhow::Result<Self> {
        let index = Index::load(folder)?;
        let mut set = Self {
            shape: index.codec.latent_shape,
            values: Vec::new(),
            classes: Vec::new(),
        };
        let (classes, rule) = match index.classes.len() {
            0 => (MOST_CLASSES, "where the index names none"),
            named => (named, "as the index says"),
        };
        for sample in LatentReader::new(folder, &index).take(limit) {
            interrupt.check()?;
            let Labelled { latent, class, place } = sample?;
            let class = class.with_context(|| format!("{place}: no class, which a classifier needs"))? as usize;
            ensure!(
                class < classes,
                "{place}: class {class}, expected less than {classes} {rule}"
            );
            set.values.extend(latent);
            set.classes.push(class);
        }
        ensure!(!set.is_empty(), "{}: no samples", folder.display());
        Ok(set)
    }

    /// Number of latents.
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// Numbers in a latent.
    pub fn width(&self) -> usize {
        self.shape.iter().product()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use deepflow_datasets::{Class, Codec, Compression, DatasetPlan, DatasetWriter, Dtype, Sample, LATENT};

    /// A classifier has an output for every class up to the largest.
    #[test]
    fn classes_that_the_index_does_not_know_are_refused_with_shard_and_key() {
        let class = |index| Class {
            index,
            name: index.to_string(),
            label: None,
        };
        for (named, largest, expected) in [
            (0, 4_000_000_000, "expected less than 100000 where the index names none"),
            (3, 3, "expected less than 3 as the index says"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let codec = Codec {
                name: "identity".into(),
                weights_sha256: None,
                scale_factor: 1.0,
                latent_shape: [1, 1, 1],
                dtype: Dtype::F32,
                resolution: 1,
                settings: std::collections::BTreeMap::default(),
            };
            let plan = DatasetPlan {
                name: "latents".into(),
                compression: Compression::None,
                codec,
                classes: (0..named).map(class).collect(),
            };
            let writer = DatasetWriter::create(folder.path(), plan).unwrap();
            let mut shard = writer.begin_shard(0).unwrap();
            for (key, class) in [("good", 2), ("slip", largest)] {
                let sample = Sample::new(key).with_array(LATENT, &[0.0], &[1, 1, 1], Dtype::F32);
                shard.write(&sample.unwrap().with_class(class)).unwrap();
            }
            shard.finish().unwrap();
            writer.finish(1).unwrap();
            let read = |limit| LatentSet::read(folder.path(), limit, &Interrupt::default());
            assert_eq!(read(1).unwrap().classes, [2]);
            let error = format!("{:#}", read(2).unwrap_err());
            let expected = format!("latents-000000.tar: slip: class {largest}, {expected}");
            assert!(error.ends_with(&expected), "{error}");
        }
    }
}
