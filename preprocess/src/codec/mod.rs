//! Codecs: whole batches of square pictures to latents and back, behind one small trait.

mod autoencoder_kl;
mod identity;
mod pca;

pub use autoencoder_kl::AutoencoderKlCodec;
pub use identity::IdentityCodec;
pub use pca::{PcaCodec, PcaError, PcaOptions, PcaSums};

use serde::{Deserialize, Serialize};

use crate::picture::{Colour, Pixels};

/// What a data set must know about the codec that made it, to be decoded again and to be trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CodecIdentity {
    /// `identity`, `pca` or `autoencoder-kl`.
    pub name: String,
    /// SHA-256 of the weights in lower-case hexadecimal; empty for a codec without weights.
    pub weights_sha256: String,
    /// Training sees `(latent - shift_factor) · scale_factor`.
    pub scale_factor: f64,
    /// See `scale_factor`; 0 for most codecs.
    pub shift_factor: f64,
    /// Channels, rows and columns of a latent.
    pub latent_shape: [usize; 3],
    /// Pixels a latent column or row stands for.
    pub factor: usize,
    /// The colour of the pictures.
    pub colour: Colour,
}

impl CodecIdentity {
    /// Side in pixels of the square pictures the codec works on.
    #[must_use]
    pub fn picture_size(&self) -> usize {
        self.latent_shape[2] * self.factor
    }

    /// Numbers in one latent.
    #[must_use]
    pub fn latent_len(&self) -> usize {
        self.latent_shape.iter().product()
    }
}

/// A batch of posterior moments, unscaled: for each picture `latent_len` means and as many standard deviations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// Posterior means, (N, C, S, S) in C order.
    pub mean: Vec<f32>,
    /// Posterior standard deviations, (N, C, S, S) in C order.
    pub std: Vec<f32>,
}

/// Why a batch cannot be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A picture of another size or colour than the codec was made for.
    #[error("codec {codec}: a picture of {found}, expected {expected}")]
    Picture {
        /// The codec.
        codec: String,
        /// Size and colour of the picture.
        found: String,
        /// Size and colour the codec works on.
        expected: String,
    },
    /// Latents that are not a whole number of the codec's.
    #[error("codec {codec}: {found} numbers, expected a multiple of {expected} (latents of {shape:?})")]
    Latents {
        /// The codec.
        codec: String,
        /// How many numbers there are.
        found: usize,
        /// Numbers in one latent.
        expected: usize,
        /// Channels, rows, columns.
        shape: [usize; 3],
    },
    /// The network inside the codec failed.
    #[error("codec {codec}: {reason}")]
    Failed {
        /// The codec.
        codec: String,
        /// Why.
        reason: String,
    },
}

/// Pictures to posterior moments, latents to pictures. One picture's result must not depend on the others of its batch.
///
/// Latents are unscaled here and in every file (pipeline spec, shards); `scale_factor` and `shift_factor` are applied by
/// whoever trains and taken off by whoever samples.
pub trait Codec: Send + Sync {
    /// The record that goes into the index.
    fn identity(&self) -> &CodecIdentity;

    /// Encodes square pictures of the codec's size and colour.
    ///
    /// # Errors
    /// When a picture has another size or colour, or the network fails.
    fn encode(&self, pictures: &[Pixels]) -> Result<Moments, CodecError>;

    /// Decodes latents (N, C, S, S) to N pictures.
    ///
    /// # Errors
    /// When the latents are not a whole number of the codec's, or the network fails.
    fn decode(&self, latents: &[f32]) -> Result<Vec<Pixels>, CodecError>;

    /// Pictures worth giving to one call.
    fn preferred_batch(&self) -> usize {
        64
    }

    /// Numbers that were learned or fitted; 0 where there are none.
    fn parameters(&self) -> usize {
        0
    }
}

/// The checks every codec's `encode` starts with.
///
/// # Errors
/// When a picture is not what `identity` describes.
pub fn check_pictures(identity: &CodecIdentity, pictures: &[Pixels]) -> Result<(), CodecError> {
    let size = identity.picture_size();
    let describe = |width, height, colour| format!("{width}×{height} {colour:?}");
    for picture in pictures {
        if (picture.width(), picture.height(), picture.colour()) != (size, size, identity.colour) {
            return Err(CodecError::Picture {
                codec: identity.name.clone(),
                found: describe(picture.width(), picture.height(), picture.colour()),
                expected: describe(size, size, identity.colour),
            });
        }
    }
    Ok(())
}

/// The checks every codec's `decode` starts with.
///
/// # Errors
/// When `latents` is not a whole number of latents.
pub fn check_latents(identity: &CodecIdentity, latents: &[f32]) -> Result<(), CodecError> {
    let expected = identity.latent_len();
    if expected == 0 || !latents.len().is_multiple_of(expected) {
        let shape = identity.latent_shape;
        return Err(CodecError::Latents {
            codec: identity.name.clone(),
            found: latents.len(),
            expected,
            shape,
        });
    }
    Ok(())
}

/// A byte as the network sees it: 0..=255 to -1..=1.
#[must_use]
pub fn to_signed(byte: u8) -> f32 {
    f32::from(byte) / 127.5 - 1.0
}

/// The way back: -1..=1 to the nearest byte, clamped.
#[must_use]
pub fn to_byte(value: f32) -> u8 {
    ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8
}

/// Appends a picture as the network sees it: plane after plane, each row by row, in [-1, 1].
pub(crate) fn extend_planes(planes: &mut Vec<f32>, picture: &Pixels) {
    let channels = picture.colour().channels();
    for channel in 0..channels {
        let bytes = picture.data().iter().skip(channel).step_by(channels);
        planes.extend(bytes.map(|&byte| to_signed(byte)));
    }
}

/// The way back; `None` unless `planes` holds exactly one picture of this size.
pub(crate) fn from_planes(planes: &[f32], height: usize, width: usize, colour: Colour) -> Option<Pixels> {
    let (channels, plane) = (colour.channels(), height * width);
    if planes.len() != plane * channels {
        return None;
    }
    let data = (0..planes.len())
        .map(|i| to_byte(planes[i % channels * plane + i / channels]))
        .collect();
    Pixels::new(width, height, colour, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_the_way_to_the_network_and_back() {
        for byte in 0..=255 {
            assert_eq!(to_byte(to_signed(byte)), byte);
        }
        assert_eq!([to_byte(-7.0), to_byte(f32::NAN), to_byte(1.01)], [0, 0, 255]);
    }
}
