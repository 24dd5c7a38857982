//! Stable Diffusion's autoencoder as a codec.

use std::path::Path;

use deepflow_model::autoencoder::{AutoencoderConfig, AutoencoderError, AutoencoderKl};
use deepflow_model::device::AnyDevice;

use super::{check_latents, check_pictures, extend_planes, from_planes, Codec, CodecError, CodecIdentity, Moments};
use crate::picture::{Colour, Pixels};

const NAME: &str = "autoencoder-kl";

/// An AutoencoderKL for square pictures of one size; colours only, as all published ones are.
pub struct AutoencoderKlCodec {
    identity: CodecIdentity,
    autoencoder: AutoencoderKl,
}

impl AutoencoderKlCodec {
    /// Loads the weights in `path` (a diffusers folder or a file of weights) for square pictures of side `size`.
    ///
    /// # Errors
    /// When the weights cannot be loaded, are not for colour pictures, or `size` is not a multiple of their factor.
    pub fn load(path: &Path, size: usize) -> Result<Self, CodecError> {
        let autoencoder = AutoencoderKl::load(path).map_err(|error| failed(&error))?;
        Self::new(autoencoder, size)
    }

    /// [`load`](Self::load) onto a device; a GPU may compute in half precision.
    ///
    /// # Errors
    /// As [`load`](Self::load), and when the GPU's memory is short.
    pub fn load_on(path: &Path, size: usize, device: &AnyDevice, half_precision: bool) -> Result<Self, CodecError> {
        let autoencoder = AutoencoderKl::load_on(path, device, half_precision).map_err(|error| failed(&error))?;
        Self::new(autoencoder, size)
    }

    /// Wraps an autoencoder for square pictures of side `size`.
    ///
    /// # Errors
    /// When the autoencoder is not for colour pictures, or `size` is not a multiple of its factor.
    pub fn new(autoencoder: AutoencoderKl, size: usize) -> Result<Self, CodecError> {
        let config: &AutoencoderConfig = autoencoder.config();
        let factor = config.factor();
        let colour = Colour::Rgb;
        let reason = if (config.in_channels, config.out_channels) != (colour.channels(), colour.channels()) {
            Some(format!(
                "its pictures have {} and {} channels, expected {}",
                config.in_channels,
                config.out_channels,
                colour.channels()
            ))
        } else if size == 0 || !size.is_multiple_of(factor) {
            Some(format!("pictures of {size}×{size}, expected a multiple of {factor}"))
        } else {
            None
        };
        if let Some(reason) = reason {
            return Err(CodecError::Failed {
                codec: NAME.into(),
                reason,
            });
        }
        let identity = CodecIdentity {
            name: NAME.into(),
            weights_sha256: autoencoder.weights_sha256().into(),
            scale_factor: config.scaling_factor,
            shift_factor: config.shift_factor.unwrap_or(0.0),
            latent_shape: [config.latent_channels, size / factor, size / factor],
            factor,
            colour,
        };
        Ok(Self { identity, autoencoder })
    }
}

fn failed(error: &AutoencoderError) -> CodecError {
    CodecError::Failed {
        codec: NAME.into(),
        reason: error.to_string(),
    }
}

impl Codec for AutoencoderKlCodec {
    fn identity(&self) -> &CodecIdentity {
        &self.identity
    }

    fn encode(&self, pictures: &[Pixels]) -> Result<Moments, CodecError> {
        check_pictures(&self.identity, pictures)?;
        let size = self.identity.picture_size();
        let mut planes = Vec::new();
        for picture in pictures {
            extend_planes(&mut planes, picture);
        }
        let posteriors = self
            .autoencoder
            .encode_batch(&planes, size, size)
            .map_err(|error| failed(&error))?;
        let mut moments = Moments::default();
        for posterior in posteriors {
            moments.mean.extend(posterior.mean);
            moments.std.extend(posterior.std);
        }
        Ok(moments)
    }

    fn decode(&self, latents: &[f32]) -> Result<Vec<Pixels>, CodecError> {
        check_latents(&self.identity, latents)?;
        let [_, height, width] = self.identity.latent_shape;
        let size = self.identity.picture_size();
        let planes = self
            .autoencoder
            .decode_batch(latents, height, width)
            .map_err(|error| failed(&error))?;
        let of_picture = self.identity.colour.channels() * size * size;
        let pictures = planes.chunks_exact(of_picture);
        Ok(pictures
            .filter_map(|planes| from_planes(planes, size, size, self.identity.colour))
            .collect())
    }

    /// On the processor the autoencoder uses all cores for one picture; more at once would only delay the writing.
    fn preferred_batch(&self) -> usize {
        self.autoencoder.preferred_batch()
    }

    fn parameters(&self) -> usize {
        self.autoencoder.parameters()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn codec(size: usize) -> Result<AutoencoderKlCodec, CodecError> {
        let config = AutoencoderConfig {
            block_out_channels: vec![8, 16],
            norm_num_groups: 4,
            layers_per_block: 1,
            ..AutoencoderConfig::default()
        };
        AutoencoderKlCodec::new(AutoencoderKl::random(config, 5).unwrap(), size)
    }

    #[test]
    fn a_picture_does_not_depend_on_its_batch() {
        let codec = codec(16).unwrap();
        assert_eq!(codec.identity().latent_shape, [4, 8, 8]);
        let pictures = [0, 90, 255].map(|value| Pixels::filled(16, 16, Colour::Rgb, [value, 7, 200]));
        let together = codec.encode(&pictures).unwrap();
        let latent = codec.identity().latent_len();
        for (i, picture) in pictures.iter().enumerate() {
            let alone = codec.encode(std::slice::from_ref(picture)).unwrap();
            assert_eq!(alone.mean, together.mean[i * latent..(i + 1) * latent]);
            assert_eq!(alone.std, together.std[i * latent..(i + 1) * latent]);
        }
        let decoded = codec.decode(&together.mean).unwrap();
        assert_eq!(decoded.len(), 3);
        assert_eq!((decoded[0].width(), decoded[0].height()), (16, 16));
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let error = codec(17).err().unwrap().to_string();
        assert_eq!(
            error,
            "codec autoencoder-kl: pictures of 17×17, expected a multiple of 2"
        );
    }
}
