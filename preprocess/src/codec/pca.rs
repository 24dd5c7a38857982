//! An orthogonal transform of square patches, fitted to the data set: principal components, the strong ones kept.
//!
//! With principal directions `e_j` (columns), deviations `σ_j` and the mean patch `µ`, a patch `x` in [-1, 1] becomes
//! `z_j = e_j·(x - µ) / s_j` with `s_j = max(σ_j, floor · σ_1)`. Whitening every direction fully (`floor = 0`) would give
//! the noise in unimportant directions the same weight in training as the picture, so by default it stops at 0.2.

mod file;
mod fit;

use std::path::PathBuf;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{check_latents, check_pictures, to_byte, to_signed, Codec, CodecError, CodecIdentity, Moments};
use crate::picture::{Colour, Pixels};

pub use fit::PcaSums;

/// What a PCA codec is fitted to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PcaOptions {
    /// Side in pixels of a patch; a latent has one column a patch.
    pub patch: usize,
    /// Directions kept, at most `patch² · channels of a pixel`.
    pub channels: usize,
    /// Directions are whitened down to this share of the largest deviation.
    pub floor: f64,
}

impl Default for PcaOptions {
    /// Patches of 4×4, the 8 strongest directions, whitened down to 0.2.
    fn default() -> Self {
        Self {
            patch: 4,
            channels: 8,
            floor: 0.2,
        }
    }
}

/// Why there is no PCA codec.
#[derive(Debug, thiserror::Error)]
pub enum PcaError {
    /// Options that make no codec.
    #[error("codec pca: {what} is {found}, expected {expected}")]
    Option {
        /// The option.
        what: &'static str,
        /// Its value.
        found: String,
        /// What would do.
        expected: String,
    },
    /// Nothing to learn from.
    #[error("codec pca: the sample of pictures has no variation to fit to")]
    NoVariation,
    /// The decomposition failed, which means that the sample held no numbers.
    #[error("codec pca: the eigenvalue decomposition did not converge")]
    Decomposition,
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] deepflow_datasets::Error),
    /// The file cannot be read.
    #[error("{}: cannot {action}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        reason: String,
    },
    /// The file is not one of this codec.
    #[error("{}: {what}: found {found}, expected {expected}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The tensor or metadata key.
        what: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
}

/// A patch transform ready to encode and decode. Posterior standard deviations are 0: the transform is deterministic.
#[derive(Clone, Debug)]
pub struct PcaCodec {
    identity: CodecIdentity,
    options: PcaOptions,
    /// µ, one value a patch element (row, column, channel).
    mean: Vec<f32>,
    /// e_j as rows, (channels, patch elements).
    directions: Vec<f32>,
    /// s_j.
    scales: Vec<f32>,
}

impl PcaCodec {
    /// Side in pixels of a patch, directions kept, and the whitening floor.
    #[must_use]
    pub const fn options(&self) -> PcaOptions {
        self.options
    }

    /// The same transform for square pictures of side `size`.
    ///
    /// # Errors
    /// When `size` is not a multiple of the patch.
    pub fn for_size(mut self, size: usize) -> Result<Self, PcaError> {
        check_size(size, self.options.patch)?;
        let side = size / self.options.patch;
        self.identity.latent_shape = [self.options.channels, side, side];
        Ok(self)
    }

    fn elements(&self) -> usize {
        self.mean.len()
    }

    fn encode_one(&self, picture: &Pixels, latent: &mut [f32]) {
        let side = self.identity.latent_shape[1];
        let mut patch = vec![0.0; self.elements()];
        for position in 0..side * side {
            read_patch(
                picture,
                self.options.patch,
                position % side,
                position / side,
                &mut patch,
            );
            patch
                .iter_mut()
                .zip(&self.mean)
                .for_each(|(value, mean)| *value -= mean);
            for (channel, direction) in self.directions.chunks_exact(patch.len()).enumerate() {
                let product: f32 = direction.iter().zip(&patch).map(|(a, b)| a * b).sum();
                latent[channel * side * side + position] = product / self.scales[channel];
            }
        }
    }

    fn decode_one(&self, latent: &[f32]) -> Pixels {
        let colour = self.identity.colour;
        let side = self.identity.latent_shape[1];
        let (size, row) = (self.options.patch, self.options.patch * colour.channels());
        let mut picture = Pixels::filled(side * size, side * size, colour, [0; 3]);
        let mut patch = vec![0.0; self.elements()];
        for position in 0..side * side {
            patch.copy_from_slice(&self.mean);
            for (channel, direction) in self.directions.chunks_exact(patch.len()).enumerate() {
                let strength = latent[channel * side * side + position] * self.scales[channel];
                patch
                    .iter_mut()
                    .zip(direction)
                    .for_each(|(value, e)| *value += strength * e);
            }
            for (y, values) in patch.chunks_exact(row).enumerate() {
                let target = picture.row_mut(position / side * size + y);
                let start = position % side * row;
                target[start..start + row]
                    .iter_mut()
                    .zip(values)
                    .for_each(|(byte, &value)| *byte = to_byte(value));
            }
        }
        picture
    }
}

impl Codec for PcaCodec {
    fn identity(&self) -> &CodecIdentity {
        &self.identity
    }

    fn encode(&self, pictures: &[Pixels]) -> Result<Moments, CodecError> {
        check_pictures(&self.identity, pictures)?;
        let length = self.identity.latent_len();
        let mut mean = vec![0.0; pictures.len() * length];
        mean.par_chunks_exact_mut(length)
            .zip(pictures)
            .for_each(|(latent, picture)| self.encode_one(picture, latent));
        let std = vec![0.0; mean.len()];
        Ok(Moments { mean, std })
    }

    fn decode(&self, latents: &[f32]) -> Result<Vec<Pixels>, CodecError> {
        check_latents(&self.identity, latents)?;
        Ok(latents
            .par_chunks_exact(self.identity.latent_len())
            .map(|latent| self.decode_one(latent))
            .collect())
    }

    fn parameters(&self) -> usize {
        self.mean.len() + self.directions.len() + self.scales.len()
    }
}

fn check_size(size: usize, patch: usize) -> Result<(), PcaError> {
    if patch == 0 || size == 0 || !size.is_multiple_of(patch) {
        let expected = format!("a multiple of the patch side {patch}");
        return Err(PcaError::Option {
            what: "the picture size",
            found: size.to_string(),
            expected,
        });
    }
    Ok(())
}

/// Copies patch (`column`, `row`) of a picture, as numbers in [-1, 1] in the order row, column, channel.
fn read_patch(picture: &Pixels, size: usize, column: usize, row: usize, patch: &mut [f32]) {
    let length = size * picture.colour().channels();
    for (y, values) in patch.chunks_exact_mut(length).enumerate() {
        let bytes = &picture.row(row * size + y)[column * length..(column + 1) * length];
        values
            .iter_mut()
            .zip(bytes)
            .for_each(|(value, &byte)| *value = to_signed(byte));
    }
}

fn identity_of(options: PcaOptions, colour: Colour, side: usize, weights_sha256: String) -> CodecIdentity {
    CodecIdentity {
        name: "pca".into(),
        weights_sha256,
        scale_factor: 1.0,
        shift_factor: 0.0,
        latent_shape: [options.channels, side, side],
        factor: options.patch,
        colour,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn textures(colour: Colour) -> Vec<Pixels> {
        let wave = |picture: usize, i: usize| {
            let (x, y) = (i / colour.channels() % 16, i / colour.channels() / 16);
            (127.0 + 90.0 * ((x * (picture + 1)) as f64 * 0.3 + y as f64 * 0.2 + i as f64).sin()) as u8
        };
        let picture = |picture| (0..256 * colour.channels()).map(|i| wave(picture, i)).collect();
        (0..12)
            .map(|index| Pixels::new(16, 16, colour, picture(index)).unwrap())
            .collect()
    }

    fn error_of(codec: &PcaCodec, pictures: &[Pixels]) -> f64 {
        let back = codec.decode(&codec.encode(pictures).unwrap().mean).unwrap();
        let bytes = |pictures: &[Pixels]| pictures.iter().flat_map(|p| p.data().to_vec()).collect::<Vec<_>>();
        let squares = bytes(pictures)
            .iter()
            .zip(bytes(&back))
            .map(|(a, b)| f64::from(a.abs_diff(b)).powi(2))
            .sum::<f64>();
        squares / bytes(pictures).len() as f64
    }

    #[test]
    fn all_directions_keep_the_picture_and_fewer_lose_more() {
        for colour in [Colour::Grey, Colour::Rgb] {
            let pictures = textures(colour);
            let fit = |channels| {
                PcaCodec::fit(
                    &pictures,
                    PcaOptions {
                        channels,
                        ..PcaOptions::default()
                    },
                )
                .unwrap()
            };
            let all = 16 * colour.channels();
            assert!(error_of(&fit(all), &pictures) < 0.01);
            let (four, two) = (error_of(&fit(4), &pictures), error_of(&fit(2), &pictures));
            assert!(four < two && two < 3000.0, "{four} {two}");
        }
    }

    #[test]
    fn the_first_latent_channel_has_unit_variance_and_the_weak_ones_less() {
        let pictures = textures(Colour::Grey);
        let codec = PcaCodec::fit(
            &pictures,
            PcaOptions {
                patch: 4,
                channels: 16,
                floor: 0.2,
            },
        )
        .unwrap();
        let mean = codec.encode(&pictures).unwrap().mean;
        let variance = |channel: usize| {
            let values: Vec<f32> = mean
                .chunks_exact(16 * 16)
                .flat_map(|latent| latent[channel * 16..][..16].to_vec())
                .collect();
            values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32
        };
        assert!((variance(0) - 1.0).abs() < 1e-3, "{}", variance(0));
        assert!(variance(15) < 1.0, "{}", variance(15));
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pca.safetensors");
        std::fs::create_dir(&path).unwrap();
        let codec = PcaCodec::fit(&textures(Colour::Rgb), PcaOptions::default()).unwrap();
        let error = codec.save(&path).unwrap_err().to_string();
        assert!(error.starts_with(path.to_str().unwrap()), "{error}");
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn the_file_is_the_codec() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pca.safetensors");
        let pictures = textures(Colour::Rgb);
        let codec = PcaCodec::fit(&pictures, PcaOptions::default()).unwrap();
        codec.save(&path).unwrap();
        let loaded = PcaCodec::load(&path, 16).unwrap();
        assert_eq!(loaded.identity(), codec.identity());
        assert_eq!(loaded.encode(&pictures).unwrap(), codec.encode(&pictures).unwrap());
        assert_eq!(PcaCodec::load(&path, 32).unwrap().identity().latent_shape, [8, 8, 8]);
        let error = PcaCodec::load(&path, 18).unwrap_err().to_string();
        assert_eq!(
            error,
            "codec pca: the picture size is 18, expected a multiple of the patch side 4"
        );
        std::fs::write(&path, b"not safetensors").unwrap();
        assert!(PcaCodec::load(&path, 16)
            .unwrap_err()
            .to_string()
            .starts_with(path.to_str().unwrap()));
    }

    #[test]
    fn pictures_may_be_added_in_parts_and_in_any_order() {
        fn sums<'a>(pictures: impl Iterator<Item = &'a Pixels>) -> PcaSums {
            let mut sums = PcaSums::new(PcaOptions::default(), 16, Colour::Rgb).unwrap();
            pictures.for_each(|picture| sums.add(picture).unwrap());
            sums
        }
        let pictures = textures(Colour::Rgb);
        let whole = PcaCodec::fit(&pictures, PcaOptions::default()).unwrap();
        let (first, rest) = pictures.split_at(5);
        let parts = sums(rest.iter().rev()).and(&sums(first.iter()));
        assert_eq!(parts.fit().unwrap().identity(), whole.identity());
        assert_ne!(sums(first.iter()).fit().unwrap().identity(), whole.identity());
    }

    #[test]
    fn bad_options_are_named() {
        let fit = |options| PcaCodec::fit(&textures(Colour::Grey), options).unwrap_err().to_string();
        assert_eq!(
            fit(PcaOptions {
                channels: 17,
                ..PcaOptions::default()
            }),
            "codec pca: channels is 17, expected 1 to 16"
        );
        assert_eq!(
            fit(PcaOptions {
                floor: 1.5,
                ..PcaOptions::default()
            }),
            "codec pca: floor is 1.5, expected 0 to 1"
        );
        assert!(fit(PcaOptions {
            patch: 5,
            ..PcaOptions::default()
        })
        .contains("multiple of the patch side 5"));
        let flat = [Pixels::filled(16, 16, Colour::Grey, [3; 3])];
        assert!(matches!(
            PcaCodec::fit(&flat, PcaOptions::default()),
            Err(PcaError::NoVariation)
        ));
    }
}
