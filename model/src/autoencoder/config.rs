//! `config.json` of a diffusers AutoencoderKL.

use std::path::Path;

use serde::Deserialize;

use super::AutoencoderError;

/// The sizes of an AutoencoderKL, with diffusers' names; keys that only training needs are ignored.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct AutoencoderConfig {
    /// Channels of the picture.
    pub in_channels: usize,
    /// Channels of the decoded picture.
    pub out_channels: usize,
    /// Channels of each level, from the picture's size down.
    pub block_out_channels: Vec<usize>,
    /// ResNet blocks a level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every GroupNorm.
    pub norm_num_groups: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Latents are multiplied by it for training.
    pub scaling_factor: f64,
    /// Is subtracted from the latents before they are scaled.
    pub shift_factor: Option<f64>,
    /// A 1×1 convolution behind the encoder.
    pub use_quant_conv: bool,
    /// A 1×1 convolution before the decoder.
    pub use_post_quant_conv: bool,
    /// Attention in the middle of encoder and decoder.
    pub mid_block_add_attention: bool,
}

/// What else `config.json` says: kinds of networks this is not.
#[derive(Deserialize)]
struct ConfigFile {
    #[serde(flatten)]
    config: AutoencoderConfig,
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    act_fn: Option<String>,
    down_block_types: Option<Vec<String>>,
    up_block_types: Option<Vec<String>>,
    latents_mean: Option<Vec<f64>>,
    latents_std: Option<Vec<f64>>,
}

impl Default for AutoencoderConfig {
    /// The autoencoder of Stable Diffusion 1 and 2 (`sd-vae-ft-ema`, `sd-vae-ft-mse`).
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            latent_channels: 4,
            scaling_factor: 0.18215,
            shift_factor: None,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

impl AutoencoderConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// When the file cannot be read, is not JSON, or describes a network of another kind.
    pub fn read(path: &Path) -> Result<Self, AutoencoderError> {
        let text = std::fs::read_to_string(path).map_err(|source| AutoencoderError::Io {
            path: path.to_owned(),
            source,
        })?;
        let file: ConfigFile = serde_json::from_str(&text).map_err(|error| AutoencoderError::Config {
            path: path.to_owned(),
            key: "config.json",
            problem: error.to_string(),
        })?;
        file.check(path)?;
        file.config.check(path)?;
        Ok(file.config)
    }

    /// Pixels a latent pixel stands for, in each direction.
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    pub(super) fn check(&self, path: &Path) -> Result<(), AutoencoderError> {
        let refuse = |key, problem: String| {
            Err(AutoencoderError::Config {
                path: path.to_owned(),
                key,
                problem,
            })
        };
        if !(1..=8).contains(&self.block_out_channels.len()) {
            return refuse(
                "block_out_channels",
                format!("found {} levels, expected 1 to 8", self.block_out_channels.len()),
            );
        }
        let groups = self.norm_num_groups;
        for &channels in &self.block_out_channels {
            if groups == 0 || channels == 0 || !channels.is_multiple_of(groups) {
                let problem = format!("found {groups}, expected a divisor of every level's channels ({channels})");
                return refuse("norm_num_groups", problem);
            }
        }
        for (key, value) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
            ("layers_per_block", self.layers_per_block),
        ] {
            if value == 0 {
                return refuse(key, "found 0, expected at least 1".to_owned());
            }
        }
        Ok(())
    }
}

impl ConfigFile {
    fn check(&self, path: &Path) -> Result<(), AutoencoderError> {
        let refuse = |key, problem: String| {
            Err(AutoencoderError::Config {
                path: path.to_owned(),
                key,
                problem,
            })
        };
        if let Some(name) = self.class_name.as_deref().filter(|name| *name != "AutoencoderKL") {
            return refuse("_class_name", format!("found {name}, expected AutoencoderKL"));
        }
        if let Some(found) = self.act_fn.as_deref().filter(|name| !["silu", "swish"].contains(name)) {
            return refuse("act_fn", format!("found {found}, expected silu"));
        }
        let kinds = [
            ("down_block_types", &self.down_block_types, "DownEncoderBlock2D"),
            ("up_block_types", &self.up_block_types, "UpDecoderBlock2D"),
        ];
        for (key, found, expected) in kinds {
            let Some(found) = found else { continue };
            if let Some(other) = found.iter().find(|kind| *kind != expected) {
                return refuse(key, format!("found {other}, expected {expected}"));
            }
            if found.len() != self.config.block_out_channels.len() {
                let (found, expected) = (found.len(), self.config.block_out_channels.len());
                return refuse(key, format!("found {found} blocks, block_out_channels has {expected}"));
            }
        }
        if self.latents_mean.is_some() || self.latents_std.is_some() {
            let expected = "expected null: latents are scaled by one scaling_factor and shift_factor";
            return refuse("latents_mean", format!("found a value a channel, {expected}"));
        }
        Ok(())
    }
}
