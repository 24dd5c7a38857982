//! The loader's own work: batches for training from synthetic shards that lie in the system's cache.

use std::sync::Arc;

use anyhow::Context;
use deepflow_datasets::bench::{measure_loader, Measurement, SyntheticDataset};
use deepflow_datasets::{Dataset, Dtype, OpenOptions};

use crate::config::Config;
use crate::interrupt::{Interrupt, Interrupted};
use crate::rank::Rank;
use crate::train::loader_config;

/// Most samples of the synthetic data set, and most bytes of their moments.
const SAMPLES: u64 = 16_384;
const BYTES: u64 = 256 << 20;

/// Times `steps` batches of `batch` samples: f16 moments of the model's latents, in plain tars or in the compression of
/// `output.zstd`, read as training reads them by the `[data]` section.
pub fn run(config: &Config, batch: usize, steps: usize, interrupt: &Interrupt) -> anyhow::Result<Measurement> {
    let folder = tempfile::tempdir().context("a folder for synthetic shards")?;
    let model = &config.model;
    let latent_shape = [model.latent_channels, model.latent_size, model.latent_size];
    let moments = 2 * model.latent_values() as u64 * Dtype::F16.bytes() as u64;
    let synthetic = SyntheticDataset {
        samples: (BYTES / moments).min(SAMPLES).max(batch as u64),
        latent_shape,
        classes: u32::try_from(model.classes)?,
        compression: config.output.compression(),
        ..SyntheticDataset::default()
    };
    synthetic.write(folder.path())?;
    let dataset = Arc::new(Dataset::open(folder.path(), OpenOptions::default())?);

    let mut config = config.clone();
    config.train.batch = batch;
    // Synthetic samples carry no alignment targets.
    config.loss.alignment = 0.0;
    let settings = loader_config(&config, Rank::ALONE, &dataset);
    let epoch = synthetic.samples as usize / batch;
    measure_loader(&dataset, &settings, epoch, steps, interrupt.flag()).map_err(|error| match error {
        deepflow_datasets::Error::Stopped => Interrupted.into(),
        other => other.into(),
    })
}
