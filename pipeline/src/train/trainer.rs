//! The network in training, on the device and in the precision asked for.

use std::path::Path;

use anyhow::Context;
use deepflow_datasets::LoaderState;
use deepflow_model::checkpoint::MODEL_FILE;
use deepflow_model::device::AnyDevice;
use deepflow_model::training::{Trainer, Training};
use deepflow_model::Network;
use dfdx::tensor::Cpu;

use super::fine_tune;
use super::run_directory::find_checkpoint;
use super::settings::{loss_settings, optimizer_settings};
use crate::config::{Config, StartWith};

/// Training where the checkpoint `newest` left it, or from the start, with the place in the data.
///
/// # Errors
/// When the weights to start from or the checkpoint do not fit, or memory is short.
pub fn begin(
    device: AnyDevice,
    config: &Config,
    newest: Option<&Path>,
) -> anyhow::Result<(Box<dyn Training>, LoaderState)> {
    let start = config.train.start_from.as_deref().filter(|_| newest.is_none());
    let (weights, everything) = match config.train.start_with {
        StartWith::Weights => (start, None),
        StartWith::Everything => (None, start),
    };
    let mut trainer = host_trainer(config, weights)?;
    let place = match newest {
        Some(folder) => {
            let place: LoaderState = serde_json::from_value(trainer.resume(folder)?)
                .with_context(|| folder.join("state.json").display().to_string())?;
            tracing::info!(
                "continuing after step {} of {}",
                trainer.step_count(),
                config.train.steps
            );
            place
        }
        None => {
            if let Some(other) = everything {
                fine_tune::take_over(&mut trainer, &find_checkpoint(other)?, config.train.steps)?;
            }
            LoaderState::default()
        }
    };
    Ok((on_device(trainer, device, config)?, place))
}

/// Training from the start, on the host, where all training begins.
///
/// # Errors
/// When the weights to start from do not fit, or memory is short.
pub fn host_trainer(config: &Config, start_from: Option<&Path>) -> anyhow::Result<Trainer<f32, Cpu>> {
    let mut network = Network::new(config.model.clone(), Cpu::default(), config.train.seed)?;
    network.set_checkpoint_blocks(config.train.checkpoint_blocks);
    if let Some(other) = start_from {
        let file = if other.is_file() {
            other.to_owned()
        } else {
            find_checkpoint(other)?.join(MODEL_FILE)
        };
        tracing::info!("starting from {}", file.display());
        fine_tune::load(&mut network, &file)?;
    }
    let trainer = Trainer::new(
        network,
        loss_settings(&config.loss, config.model.branches()),
        optimizer_settings(&config.train),
        config.train.batch.div_ceil(config.train.accumulation),
        config.train.seed,
    )?;
    Ok(trainer)
}

/// Goes on with training on `device`.
///
/// # Errors
/// When the network has what the device does not compute, or its memory is short.
pub fn on_device(trainer: Trainer<f32, Cpu>, device: AnyDevice, config: &Config) -> anyhow::Result<Box<dyn Training>> {
    device.allow_tensor_float_32(config.train.tf32)?;
    Ok(match device {
        AnyDevice::Cpu(_) => Box::new(trainer),
        #[cfg(feature = "cuda")]
        AnyDevice::Cuda(device) => {
            use deepflow_model::ops::cuda::{f16, SingleProcess};
            use deepflow_model::training::CudaTrainer;

            use crate::config::Precision;

            let alone = Box::new(SingleProcess);
            match config.train.precision {
                Precision::F32 => Box::new(CudaTrainer::<f32>::new(trainer, device, alone)?),
                Precision::Mixed => Box::new(CudaTrainer::<f16>::new(trainer, device, alone)?),
            }
        }
    })
}
