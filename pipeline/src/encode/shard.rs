//! Encoded pictures to samples of a shard.

use anyhow::Context;
use deepflow_datasets::{DatasetWriter, Sample, ShardWriter, MOMENTS, MOMENTS_FLIP};
use deepflow_preprocess::codec::{CodecIdentity, Moments};
use deepflow_preprocess::sources::{Entry, Sources};
use serde_json::json;

use super::load::Picture;
use super::skipped::{write_shard, Incident};
use super::EncodeOptions;

/// A codec batch on its way to its shard.
pub(super) struct Batch<'a> {
    pub entries: Vec<&'a Entry>,
    pub pictures: Vec<Picture>,
    pub moments: Moments,
    pub mirrored: Option<Moments>,
}

/// Writes one shard after the other.
pub(super) struct Shards<'a> {
    options: &'a EncodeOptions,
    sources: &'a Sources,
    identity: &'a CodecIdentity,
    writer: &'a DatasetWriter,
    current: Option<(usize, ShardWriter)>,
    pub samples: usize,
}

impl<'a> Shards<'a> {
    pub(super) fn new(
        options: &'a EncodeOptions,
        sources: &'a Sources,
        identity: &'a CodecIdentity,
        writer: &'a DatasetWriter,
    ) -> Self {
        Self {
            options,
            sources,
            identity,
            writer,
            current: None,
            samples: 0,
        }
    }

    fn open(&mut self, shard: usize) -> anyhow::Result<&mut ShardWriter> {
        if self.current.as_ref().is_none_or(|(current, _)| *current != shard) {
            self.current = Some((shard, self.writer.begin_shard(shard)?));
        }
        self.current
            .as_mut()
            .map(|(_, writer)| writer)
            .context("no shard is open")
    }

    pub(super) fn write(&mut self, shard: usize, batch: &Batch) -> anyhow::Result<()> {
        for index in 0..batch.entries.len() {
            let sample = self.sample(batch, index)?;
            self.open(shard)?.write(&sample)?;
            self.samples += 1;
        }
        Ok(())
    }

    /// Ends a shard, which may be without samples if no source of it could be used.
    pub(super) fn finish(&mut self, shard: usize, incidents: &[Incident]) -> anyhow::Result<()> {
        self.open(shard)?;
        write_shard(&self.options.out, &self.options.name, shard, incidents)?;
        if let Some((_, writer)) = self.current.take() {
            writer.finish()?;
        }
        Ok(())
    }

    fn sample(&self, batch: &Batch, index: usize) -> anyhow::Result<Sample> {
        let (entry, picture) = (batch.entries[index], &batch.pictures[index]);
        let [channels, height, width] = self.identity.latent_shape;
        let shape = [2 * channels, height, width];
        let length = self.identity.latent_len();
        let joined = |moments: &Moments| {
            let part = index * length..(index + 1) * length;
            [&moments.mean[part.clone()], &moments.std[part]].concat()
        };
        let dtype = self.options.dtype;
        let mut sample = Sample::new(entry.key.as_str()).with_array(MOMENTS, &joined(&batch.moments), &shape, dtype)?;
        if let Some(mirrored) = &batch.mirrored {
            sample = sample.with_array(MOMENTS_FLIP, &joined(mirrored), &shape, dtype)?;
        }
        let class = &self.sources.classes()[entry.class as usize].name;
        let (width, height) = picture.original;
        let source = self.sources.file_name(entry);
        let metadata = json!({ "source": source, "class": class, "width": width, "height": height });
        sample = sample.with_class(entry.class).with_metadata(&metadata)?;
        if let Some(png) = &picture.png {
            sample = sample.with_member("png", png.as_slice());
        }
        Ok(sample)
    }
}
