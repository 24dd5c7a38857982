//! Encoder and decoder on one device.

use super::backend::Backend;
use super::decoder::Decoder;
use super::encoder::Encoder;
use super::weights::Weights;
use super::{AutoencoderConfig, AutoencoderError};

/// What an autoencoder computes, whatever it computes on. Values are `(batch, channels, height, width)`.
pub(super) trait Network: Send + Sync {
    /// Pictures to the mean and log-variance of their posteriors, and those's shape.
    fn encode(&self, pictures: &[f32], shape: [usize; 4]) -> Result<(Vec<f32>, [usize; 4]), AutoencoderError>;

    /// Latents to pictures.
    fn decode(&self, latents: &[f32], shape: [usize; 4]) -> Result<Vec<f32>, AutoencoderError>;

    /// How many pictures make good use of the device.
    fn preferred_batch(&self) -> usize;
}

/// [`Network`] on a device.
pub(super) struct OnDevice<B: Backend> {
    backend: B,
    encoder: Encoder<B>,
    decoder: Decoder<B>,
}

impl<B: Backend> OnDevice<B> {
    pub(super) fn new(backend: B, weights: &mut Weights, config: &AutoencoderConfig) -> Result<Self, AutoencoderError> {
        Ok(Self {
            encoder: Encoder::new(&backend, weights, config)?,
            decoder: Decoder::new(&backend, weights, config)?,
            backend,
        })
    }
}

impl<B: Backend> Network for OnDevice<B> {
    fn encode(&self, pictures: &[f32], shape: [usize; 4]) -> Result<(Vec<f32>, [usize; 4]), AutoencoderError> {
        B::values(&self.encoder.forward(&self.backend.map(pictures, shape)?)?)
    }

    fn decode(&self, latents: &[f32], shape: [usize; 4]) -> Result<Vec<f32>, AutoencoderError> {
        let (pictures, _) = B::values(&self.decoder.forward(&self.backend.map(latents, shape)?)?)?;
        Ok(pictures)
    }

    fn preferred_batch(&self) -> usize {
        B::PREFERRED_BATCH
    }
}
