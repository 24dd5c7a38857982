//! What is random about a training batch, made on the GPU from latents that come while the last step still runs.

use std::ops::Range;

use deepflow_datasets::random::Purpose;
use dfdx::tensor::{Cuda, CudaError};

use super::inputs::{Batch, TrainingInputs};
use super::path::Path;
use super::settings::LossSettings;
use crate::network::Network;
use crate::ops::cuda::{cast, fill_normal, mix_patches, Precision, Upload};
use crate::ops::Operators;
use crate::patches::{PatchGrid, PatchOrder};

/// The two arrays of a batch on their way to the GPU.
pub(super) struct DeviceBatch {
    device: Cuda,
    latents: Upload,
    features: Upload,
}

impl DeviceBatch {
    pub(super) fn new(device: &Cuda) -> Result<Self, CudaError> {
        Ok(Self {
            device: device.clone(),
            latents: Upload::new(device)?,
            features: Upload::new(device)?,
        })
    }

    /// Starts the way of a batch; it replaces the one before the last.
    pub(super) fn send(&mut self, batch: &Batch) -> Result<(), CudaError> {
        self.latents.send(&batch.latents)?;
        match &batch.features {
            Some(features) => self.features.send(features),
            None => Ok(()),
        }
    }

    /// [`Batch::draw`] for the batch that was sent last: the same draws, mixed in f32.
    pub(super) fn draw<E: Precision>(
        &self,
        batch: &Batch,
        part: Range<usize>,
        network: &Network<E, Cuda>,
        settings: &LossSettings,
        seed: u64,
        step: u64,
    ) -> Result<TrainingInputs<E, Cuda>, CudaError>
    where
        Cuda: Operators<E>,
    {
        let (device, config, path) = (&self.device, network.config(), settings.path);
        let (times, labels) = batch.draw_times_and_labels(part.clone(), config, settings, seed, step);
        let data = self.latents.rows(part.clone(), config.latent_values())?;
        let places = &batch.places[part.clone()];
        let noise = fill_normal(device, seed, Purpose::Noise, places, config.latent_values())?;
        let grid = PatchGrid::from(config);
        let mix = |times: &[f64], order, weights: &dyn Fn(f64) -> (f64, f64)| {
            let weights: Vec<_> = times.iter().map(|&time| weights(time)).collect();
            mix_patches::<E>(device, &data, &noise, &weights, grid, order)
        };
        let velocity = |times: &[f64]| mix(times, PatchOrder::ChannelLast, &|time| path.velocity(time));
        let targets = match path {
            // The same straight line for every branch.
            Path::Linear => vec![velocity(&times[0])?; times.len()],
            Path::Cosine => times.iter().map(|times| velocity(times)).collect::<Result<_, _>>()?,
        };
        let displacement = |time| {
            let (data, noise) = path.position(time);
            (data - 1.0, noise)
        };
        let features = batch.features.as_ref().zip(config.alignment_width);
        let features = features.map(|(_, width)| {
            let tokens = config.tokens();
            let rows = self.features.rows(part.start * tokens..part.end * tokens, width)?;
            cast(device, &rows)
        });
        Ok(TrainingInputs {
            patches: mix(&times[0], PatchOrder::ChannelFirst, &|time| path.position(time))?,
            targets,
            displacements: times[..times.len() - 1]
                .iter()
                .map(|times| mix(times, PatchOrder::ChannelLast, &displacement))
                .collect::<Result<_, _>>()?,
            features: features.transpose()?,
            times,
            labels,
        })
    }
}
