//! `[codec]`: how pictures become latents and back.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{at_least_one, in_range, Precision, Violation};

/// Side in pixels beyond which a number is a slip of the finger.
const LARGEST_SIDE: usize = 16_384;

/// Side of a patch beyond which the products of its values with each other, which `pca` sums, take gigabytes.
const LARGEST_PCA_PATCH: usize = 32;

/// The codecs there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CodecKind {
    /// Pixels scaled to [-1, 1].
    Identity,
    /// A patch transform fitted on the pictures.
    #[default]
    Pca,
    /// A diffusers AutoencoderKL, from `codec.weights`.
    AutoencoderKl,
}

/// `[codec]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CodecConfig {
    /// The codec.
    pub kind: CodecKind,
    /// Side of a cropped picture in pixels; a multiple of the codec's factor.
    pub size: usize,
    /// Weights of the codec: a diffusers folder for `autoencoder-kl`; for `pca` a file fitted before.
    pub weights: Option<PathBuf>,
    /// Side of a patch that `pca` turns into one latent position, in pixels; at most 32.
    pub patch: usize,
    /// Latent channels that `pca` keeps.
    pub channels: usize,
    /// `pca` divides each channel by its deviation, but by no less than this part of the largest deviation.
    pub whitening_floor: f64,
    /// Pictures that `pca` is fitted on.
    pub fit_images: usize,
    /// Pictures encoded or decoded at once; without it as many as suit the codec (`autoencoder-kl` takes one, with all
    /// cores, or four on a GPU). Results do not depend on it.
    pub batch: Option<usize>,
    /// What `autoencoder-kl` computes in; "mixed" needs a GPU.
    pub precision: Precision,
    /// Lets a GPU round the factors of f32 matrix products to TF32.
    pub tf32: bool,
}

impl Default for CodecConfig {
    fn default() -> Self {
        Self {
            kind: CodecKind::Pca,
            size: 256,
            weights: None,
            patch: 4,
            channels: 8,
            whitening_floor: 0.2,
            fit_images: 2000,
            batch: None,
            precision: Precision::F32,
            tf32: true,
        }
    }
}

impl CodecConfig {
    pub(super) fn check(&self) -> Result<(), Violation> {
        for (key, value) in [
            ("codec.size", self.size),
            ("codec.patch", self.patch),
            ("codec.channels", self.channels),
            ("codec.fit_images", self.fit_images),
            ("codec.batch", self.batch.unwrap_or(1)),
        ] {
            at_least_one(key, value)?;
        }
        for (key, value) in [("codec.size", self.size), ("codec.patch", self.patch)] {
            if value > LARGEST_SIDE {
                return Err(Violation::new(
                    key,
                    format!("is {value}, expected at most {LARGEST_SIDE}"),
                ));
            }
        }
        in_range("codec.whitening_floor", self.whitening_floor, 0.0, 1.0)?;
        if self.kind == CodecKind::Pca && self.patch > LARGEST_PCA_PATCH {
            let rule = format!(
                "is {}, expected at most {LARGEST_PCA_PATCH} for codec.kind = \"pca\", whose memory grows with its fourth power",
                self.patch
            );
            return Err(Violation::new("codec.patch", rule));
        }
        if self.kind == CodecKind::Pca && !self.size.is_multiple_of(self.patch) {
            let rule = format!("is {}, expected a multiple of codec.patch = {}", self.size, self.patch);
            return Err(Violation::new("codec.size", rule));
        }
        let values = 3 * self.patch * self.patch;
        if self.kind == CodecKind::Pca && self.channels > values {
            let rule = format!(
                "is {}, expected at most {values}, the values of a colour patch of codec.patch = {}",
                self.channels, self.patch
            );
            return Err(Violation::new("codec.channels", rule));
        }
        Ok(())
    }
}
