//! The network's own work: training steps, and evaluations as in sampling.

use deepflow_datasets::random::{Purpose, Stream};
use deepflow_model::device::AnyDevice;
use deepflow_model::ops::Operators;
use deepflow_model::patches::{PatchGrid, PatchOrder};
use deepflow_model::training::{Batch, SamplePlace};
use deepflow_model::{Network, NetworkConfig};
use dfdx::dtypes::Dtype;

use super::gpu::{self, GpuMeasurement};
use super::Timer;
use crate::config::Config;
use crate::train::{host_trainer, on_device, rates};

/// Where the time to start ends; `model/benches/peers/compare.py` waits for it.
const READY: &str = "ready for the first step";

/// What a benchmark of the network found besides the times of its steps.
pub struct Measured {
    /// Parameters of the network.
    pub parameters: usize,
    /// The GPU's side, where there is one.
    pub gpu: Option<GpuMeasurement>,
}

/// Times training steps of `batch` samples, and one more by kernel if asked.
pub fn train(
    device: AnyDevice,
    config: &Config,
    batch: usize,
    timer: &mut Timer<'_>,
    by_kernel: bool,
) -> anyhow::Result<Measured> {
    let mut config = config.clone();
    config.train.batch = batch;
    let trainer = host_trainer(&config, None)?;
    let parameters = parameters(trainer.network());
    let mut trainer = on_device(trainer, device.clone(), &config)?;
    let batch = synthetic_batch(&config.model, batch);
    tracing::info!("{READY}");
    let mut step = || {
        trainer.take_step(&batch, rates(&config.train, trainer.step_count() + 1))?;
        // A device that works in the background is done when it has told what it did.
        trainer.reports(true)?;
        Ok(())
    };
    timer.time(&mut step)?;
    let gpu = gpu::measure(&device, by_kernel, step)?;
    Ok(Measured { parameters, gpu })
}

/// Times evaluations of `batch` samples, and one more by kernel if asked. `any` is the device once more.
pub fn forward<E: Dtype, D: Operators<E>>(
    (device, any): (D, &AnyDevice),
    config: &Config,
    batch: usize,
    timer: &mut Timer<'_>,
    by_kernel: bool,
) -> anyhow::Result<Measured> {
    let model = &config.model;
    let mut network: Network<E, D> = Network::new(model.clone(), device, config.train.seed)?;
    write_modulations(&mut network);
    let data = synthetic_batch(model, batch);
    let patches = PatchGrid::from(model).patchify(&data.latents, PatchOrder::ChannelFirst);
    let patches = patches.into_iter().map(|value| E::from_f32(value).unwrap_or_default());
    let patches = network
        .device()
        .tensor_from_vec(patches.collect(), (batch * model.tokens(), model.patch_values()));
    let times = vec![vec![0.5]; model.branches()];
    tracing::info!("{READY}");
    let step = || {
        let velocity = network.velocity(&patches, &times, &data.labels)?;
        // A device that works in the background is done when its result has arrived.
        std::hint::black_box(velocity.as_vec());
        Ok(())
    };
    timer.time(step)?;
    Ok(Measured {
        parameters: parameters(&network),
        gpu: gpu::measure(any, by_kernel, step)?,
    })
}

/// Gives the modulations, which start as zeros, small values: as long as nothing has been written to their pages, the system
/// holds and reads none of them, and a network would seem smaller and faster than it is once it is trained.
fn write_modulations<E: Dtype, D: Operators<E>>(network: &mut Network<E, D>) {
    let device = network.device().clone();
    let parameters = network.parameters_mut().into_iter();
    for parameter in parameters.filter(|parameter| parameter.name().contains("adaLN_modulation")) {
        let mut values = vec![0.0; parameter.len()];
        Stream::new(0, Purpose::Synthetic, 0, 2).fill_uniform(&mut values);
        let small = |value: f32| E::from_f32(0.02 * value).unwrap_or_default();
        let length = values.len();
        parameter.values = device.tensor_from_vec(values.into_iter().map(small).collect(), (length,));
    }
}

fn parameters<E: Dtype, D: Operators<E>>(network: &Network<E, D>) -> usize {
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
