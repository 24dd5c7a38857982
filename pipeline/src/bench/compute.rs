//! The network's own work: training steps, and evaluations as in sampling.

use deepflow_datasets::random::{Purpose, Stream};
use deepflow_model::ops::Operators;
use deepflow_model::patches::{PatchGrid, PatchOrder};
use deepflow_model::training::{Batch, SamplePlace, Trainer};
use deepflow_model::{Network, NetworkConfig};

use super::Timer;
use crate::config::Config;
use crate::train::{loss_settings, optimizer_settings, rates};

/// Where the time to start ends; `model/benches/peers/compare.py` waits for it.
const READY: &str = "ready for the first step";

/// Times training steps of `batch` samples; gives the number of parameters.
pub fn train<D: Operators<f32>>(
    device: D,
    config: &Config,
    batch: usize,
    timer: &mut Timer<'_>,
) -> anyhow::Result<usize> {
    let mut network: Network<f32, D> = Network::new(config.model.clone(), device, config.train.seed)?;
    network.set_checkpoint_blocks(config.train.checkpoint_blocks);
    let parameters = parameters(&network);
    let loss = loss_settings(&config.loss, config.model.branches());
    let optimizer = optimizer_settings(&config.train);
    let part = batch.div_ceil(config.train.accumulation);
    let mut trainer = Trainer::new(network, loss, optimizer, part, config.train.seed)?;
    let batch = synthetic_batch(&config.model, batch);
    tracing::info!("{READY}");
    timer.time(|| {
        trainer.step(&batch, rates(&config.train, trainer.step_count() + 1))?;
        Ok(())
    })?;
    Ok(parameters)
}

/// Times evaluations of `batch` samples; gives the number of parameters.
pub fn forward<D: Operators<f32>>(
    device: D,
    config: &Config,
    batch: usize,
    timer: &mut Timer<'_>,
) -> anyhow::Result<usize> {
    let model = &config.model;
    let network: Network<f32, D> = Network::new(model.clone(), device, config.train.seed)?;
    let data = synthetic_batch(model, batch);
    let patches = PatchGrid::from(model).patchify(&data.latents, PatchOrder::ChannelFirst);
    let patches = network
        .device()
        .tensor_from_vec(patches, (batch * model.tokens(), model.patch_values()));
    let times = vec![vec![0.5]; model.branches()];
    tracing::info!("{READY}");
    timer.time(|| {
        let velocity = network.velocity(&patches, &times, &data.labels)?;
        // A device that works in the background is done when its result has arrived.
        std::hint::black_box(velocity.as_vec());
        Ok(())
    })?;
    Ok(parameters(&network))
}

fn parameters<D: Operators<f32>>(network: &Network<f32, D>) -> usize {
    network.parameters().iter().map(|parameter| parameter.len()).sum()
}

/// Normal latents of every class in turn.
fn synthetic_batch(model: &NetworkConfig, batch: usize) -> Batch {
    let mut latents = vec![0.0; batch * model.latent_values()];
    Stream::new(0, Purpose::Synthetic, 0, 0).fill_normal(&mut latents);
    let features = model.alignment_width.map(|width| {
        let mut features = vec![0.0; batch * model.tokens() * width];
        Stream::new(0, Purpose::Synthetic, 0, 1).fill_normal(&mut features);
        features
    });
    Batch {
        latents,
        labels: (0..batch).map(|sample| sample % model.classes).collect(),
        places: (0..batch as u64)
            .map(|position| SamplePlace { epoch: 0, position })
            .collect(),
        features,
    }
}
