//! Latents and classes of a folder of shards: posterior means of encoded pictures, or generated latents.

use crate::interrupt::Interrupt;
use anyhow::{bail, ensure, Context};
use deepflow_datasets::{Index, Limits, Sample, ShardReader, LATENT, MOMENTS};
use std::path::Path;

/// A sample's latent: the mean of its posterior where it was encoded, the latent itself where it was generated.
///
/// # Errors
/// The sample has neither, or an array of another shape than the index says.
pub fn latent_of(sample: &Sample, shard: &str, shape: [usize; 3]) -> anyhow::Result<Vec<f32>> {
    let place = || format!("{shard}: {}", sample.key);
    let (mut array, channels) = match sample.array(MOMENTS, shard)? {
        Some(moments) => (moments, 2 * shape[0]),
        None => match sample.array(LATENT, shard)? {
            Some(latent) => (latent, shape[0]),
            None => bail!("{}: neither {MOMENTS} nor {LATENT}", place()),
        },
    };
    let expected = [channels, shape[1], shape[2]];
    ensure!(
        array.shape == expected,
        "{}: an array of shape {:?}, expected {expected:?} as the index says",
        place(),
        array.shape
    );
    // Of moments the first half is the mean.
    array.data.truncate(shape.iter().product());
    Ok(array.data)
}

/// All latents of a folder in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentSet {
    /// Channels, rows, columns.
    pub shape: [usize; 3],
    /// One latent after the other.
    pub values: Vec<f32>,
    /// Their classes, where they have one.
    pub classes: Vec<Option<u32>>,
}

impl LatentSet {
    /// Reads at most `limit` latents, in the order of the shards.
    ///
    /// # Errors
    /// A shard is unreadable, or a sample holds neither moments nor a latent of the index's shape.
    pub fn read(folder: &Path, limit: usize, interrupt: &Interrupt) -> anyhow::Result<Self> {
        let index = Index::load(folder)?;
        let shape = index.codec.latent_shape;
        let mut set = Self {
            shape,
            values: Vec::new(),
            classes: Vec::new(),
        };
        for record in &index.shards {
            interrupt.check()?;
            let path = folder.join(&record.name);
            let shard = path.display().to_string();
            for sample in ShardReader::open(&path, Limits::default())? {
                if set.len() >= limit {
                    return Ok(set);
                }
                let sample = sample?;
                set.values.extend(latent_of(&sample, &shard, shape)?);
                set.classes.push(sample.class(&shard)?);
            }
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

    /// Every sample's class.
    ///
    /// # Errors
    /// A sample has none.
    pub fn all_classes(&self, folder: &Path) -> anyhow::Result<Vec<usize>> {
        let class = |(position, class): (usize, &Option<u32>)| {
            class.map(|class| class as usize).with_context(|| {
                format!(
                    "{}: sample {position} has no class, which a classifier needs",
                    folder.display()
                )
            })
        };
        self.classes.iter().enumerate().map(class).collect()
    }
}
