//! Latents and classes of a folder of shards: posterior means of encoded pictures, or generated latents.

use crate::interrupt::Interrupt;
use crate::latent::latent_of;
use anyhow::{ensure, Context};
use deepflow_datasets::{Index, Limits, ShardReader};
use std::path::Path;

/// A latent and its class, where it has one.
type Labelled = (Vec<f32>, Option<u32>);

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
                    let latent = latent_of(&sample, shard, self.index.codec.latent_shape)?;
                    return Ok(Some((latent, sample.class(shard.as_str())?)));
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
    /// A shard is unreadable, or a sample holds neither moments nor a latent of the index's shape, or no class.
    pub fn read(folder: &Path, limit: usize, interrupt: &Interrupt) -> anyhow::Result<Self> {
        let index = Index::load(folder)?;
        let mut set = Self {
            shape: index.codec.latent_shape,
            values: Vec::new(),
            classes: Vec::new(),
        };
        for (position, sample) in LatentReader::new(folder, &index).take(limit).enumerate() {
            interrupt.check()?;
            let (latent, class) = sample?;
            let class = class.with_context(|| {
                format!(
                    "{}: sample {position} has no class, which a classifier needs",
                    folder.display()
                )
            })?;
            set.values.extend(latent);
            set.classes.push(class as usize);
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
