//! What `deepflow bench loader` measures: batches from synthetic shards, and what copying their bytes would cost.

use crate::random::{Purpose, Stream};
use crate::{
    Codec, Compression, Dataset, DatasetPlan, DatasetWriter, Dtype, Error, Index, Loader, LoaderConfig, LoaderState,
    Result, Sample, MOMENTS,
};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// A data set made of random numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct SyntheticDataset {
    /// The number of samples.
    pub samples: u64,
    /// Samples of a shard.
    pub samples_per_shard: u64,
    /// Shards with content of their own; the others are hard links to them, so that a data set of a million samples
    /// fits on a small disk and into the system's cache.
    pub distinct_shards: u64,
    /// (C, S, S) of the latents; the moments have 2C channels.
    pub latent_shape: [usize; 3],
    /// The element type of the moments.
    pub dtype: Dtype,
    /// The classes the samples have in turn.
    pub classes: u32,
    /// How the shards are compressed.
    pub compression: Compression,
}

impl Default for SyntheticDataset {
    /// 16,384 samples of (8, 32, 32) f16 moments and 1,000 classes in plain shards of 1,024.
    fn default() -> Self {
        Self {
            samples: 16_384,
            samples_per_shard: 1024,
            distinct_shards: 16,
            latent_shape: [4, 32, 32],
            dtype: Dtype::F16,
            classes: 1000,
            compression: Compression::None,
        }
    }
}

impl SyntheticDataset {
    /// Writes the shards and the index into an empty folder.
    ///
    /// # Errors
    /// Those of [`DatasetWriter`].
    pub fn write(&self, folder: &Path) -> Result<Index> {
        let codec = Codec {
            name: "synthetic".to_owned(),
            weights_sha256: None,
            scale_factor: 0.18215,
            latent_shape: self.latent_shape,
            dtype: self.dtype,
            resolution: 8 * self.latent_shape[1],
            settings: Default::default(),
        };
        let plan = DatasetPlan {
            name: "latents".to_owned(),
            compression: self.compression,
            codec,
            classes: Vec::new(),
        };
        let writer = DatasetWriter::create(folder, plan)?;
        let shards = self.samples.div_ceil(self.samples_per_shard);
        for shard in 0..shards {
            let count = self
                .samples_per_shard
                .min(self.samples - shard * self.samples_per_shard);
            let original = shard % self.distinct_shards;
            if shard == original || count < self.samples_per_shard {
                self.write_shard(&writer, shard, count)?;
            } else {
                link_shard(
                    folder,
                    &writer.shard_name(original as usize),
                    &writer.shard_name(shard as usize),
                )?;
            }
        }
        writer.finish(shards as usize)
    }

    fn write_shard(&self, writer: &DatasetWriter, shard: u64, count: u64) -> Result<()> {
        let [channels, height, width] = self.latent_shape;
        let mut moments = vec![0.0; 2 * channels * height * width];
        let mut shard_writer = writer.begin_shard(shard as usize)?;
        for i in 0..count {
            let number = shard * self.samples_per_shard + i;
            Stream::new(0, Purpose::Synthetic, 0, number).fill_normal(&mut moments);
            let half = moments.len() / 2;
            moments[half..]
                .iter_mut()
                .for_each(|deviation| *deviation = 0.01 + deviation.abs() * 0.1);
            let sample = Sample::new(format!("{number:09}"))
                .with_array(MOMENTS, &moments, &[2 * channels, height, width], self.dtype)?
                .with_class((number % u64::from(self.classes.max(1))) as u32);
            shard_writer.write(&sample)?;
        }
        shard_writer.finish().map(drop)
    }
}

fn link_shard(folder: &Path, original: &str, link: &str) -> Result<()> {
    for suffix in ["", ".offsets"] {
        let (from, to) = (
            folder.join(format!("{original}{suffix}")),
            folder.join(format!("{link}{suffix}")),
        );
        fs::hard_link(from, &to).map_err(Error::io(&to, "link"))?;
    }
    Ok(())
}

/// How long batches took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measurement {
    /// The number of samples read.
    pub samples: u64,
    /// All of the time.
    pub elapsed: Duration,
    /// The median time of a batch.
    pub median: Duration,
}

impl Measurement {
    /// Samples a second.
    pub fn samples_per_second(&self) -> f64 {
        self.samples as f64 / self.elapsed.as_secs_f64()
    }
}

/// Times `batches` batches of a loader after `warm_up` others, until `stop` is set.
///
/// Batches come in bursts, one from every reader; the time of a batch is that of as many batches as are made ahead,
/// divided by their number.
///
/// # Errors
/// Those of the loader; [`Error::Stopped`].
pub fn measure_loader(
    dataset: &Arc<Dataset>,
    config: &LoaderConfig,
    warm_up: usize,
    batches: usize,
    stop: &AtomicBool,
) -> Result<Measurement> {
    let config = LoaderConfig {
        epochs: None,
        ..config.clone()
    };
    let mut loader = Loader::new(Arc::clone(dataset), &config, LoaderState::default())?;
    // The batches made ahead during the warm-up would be counted as if they took no time.
    for _ in 0..warm_up + config.prefetch {
        loader.next_batch()?;
    }
    let began = Instant::now();
    let (mut arrivals, mut samples) = (vec![began], 0);
    for _ in 0..batches {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        let Some(batch) = loader.next_batch()? else { break };
        samples += batch.len() as u64;
        arrivals.push(Instant::now());
    }
    let burst = config.prefetch.min(arrivals.len() - 1).max(1);
    let mut times: Vec<Duration> = arrivals
        .windows(burst + 1)
        .map(|arrivals| (arrivals[burst] - arrivals[0]) / burst as u32)
        .collect();
    times.sort_unstable();
    Ok(Measurement {
        samples,
        elapsed: began.elapsed(),
        median: times.get(times.len() / 2).copied().unwrap_or_default(),
    })
}

/// Times the copying of the same bytes, in the same order, with as many threads, from mapped shards into one buffer a
/// thread: what no loader can be faster than.
///
/// # Errors
/// [`Error::InvalidConfig`] unless the shards are plain; the errors of damaged shards.
pub fn measure_copy(dataset: &Dataset, config: &LoaderConfig, batches: usize) -> Result<Measurement> {
    if !dataset.is_random_access() {
        let expected = "plain shards".to_owned();
        return Err(Error::InvalidConfig {
            key: "compression",
            found: "zstd".to_owned(),
            expected,
        });
    }
    let order = crate::epoch_permutation(config.seed, 0, dataset.len());
    let began = Instant::now();
    let copied = thread::scope(|scope| {
        let threads: Vec<_> = (0..config.readers)
            .map(|reader| {
                let order = &order;
                scope.spawn(move || copy_batches(dataset, config, order, (reader..batches).step_by(config.readers)))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Err(Error::Stopped)))
            .sum::<Result<u64>>()
    })?;
    let elapsed = began.elapsed();
    Ok(Measurement {
        samples: copied,
        elapsed,
        median: elapsed / batches.max(1) as u32,
    })
}

fn copy_batches(
    dataset: &Dataset,
    config: &LoaderConfig,
    order: &crate::Permutation,
    batches: impl Iterator<Item = usize>,
) -> Result<u64> {
    let (mut buffer, mut read, mut copied) = (Vec::new(), Vec::new(), 0);
    for batch in batches {
        buffer.clear();
        for row in 0..config.batch_size {
            let position = (batch * config.batch_size + row) as u64 % dataset.len();
            let (shard, index) = dataset.locate(order.get(position));
            buffer.extend_from_slice(
                dataset
                    .at_random(shard)?
                    .sample(index, &mut read)?
                    .required(MOMENTS)?
                    .bytes,
            );
            copied += 1;
        }
        std::hint::black_box(&mut buffer);
    }
    Ok(copied)
}
