//! The shape of a network: the `[model]` section of a configuration (pipeline spec) and its rules.

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// Number of Fourier features of a time (network spec §2).
pub const FOURIER_FEATURES: usize = 256;

/// What no network comes near; products of such sizes still fit 64 bits.
const LARGEST_SIZE: usize = 1 << 16;
const LARGEST_RATIO: usize = 1 << 8;
const LARGEST_CLASSES: usize = 1 << 24;

/// Everything that decides which parameters a network has and what it computes.
///
/// The field names are the keys of the `[model]` section and every key may be left out: the defaults are DeepFlow-B/2-2T.
///
/// ```
/// use deepflow_model::NetworkConfig;
///
/// let config = NetworkConfig { heads: 7, ..NetworkConfig::default() };
/// let error = config.validate().unwrap_err().to_string();
/// assert_eq!(error, "model.heads = 7: must divide model.width = 768");
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Width `D` of the features; a multiple of 4 (two position halves of sines and cosines) and of `heads`.
    pub width: usize,
    /// Number of transformer blocks.
    pub depth: usize,
    /// Attention heads per block.
    pub heads: usize,
    /// Side `P` of a patch in latent pixels.
    pub patch: usize,
    /// Channels `C` of the latents.
    pub latent_channels: usize,
    /// Height and width `S` of the latents; a multiple of `patch`.
    pub latent_size: usize,
    /// Number of classes; labels are `0..classes`, and `classes` itself is "no class".
    pub classes: usize,
    /// Number of blocks done at the end of every inner branch, increasing, each in `1..depth`. Empty: SiT.
    pub branch_ends: Vec<usize>,
    /// Width of a block's MLP as a multiple of `width`.
    pub mlp_ratio: usize,
    /// Hidden width `A` of the acceleration MLP.
    pub acceleration_width: usize,
    /// Probability that a training label becomes "no class"; 0 removes the row from the class table.
    pub class_dropout: f64,
    /// Normalise queries and keys per head.
    pub qk_norm: bool,
    /// Clamp the scale of the time-gap modulation to [-5, 5], as the first published checkpoints do.
    pub legacy_scaling: bool,
    /// Width `Z` of the features of a self-supervised encoder to align with; absent: no projectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alignment_width: Option<usize>,
    /// Hidden width of the projectors.
    pub projector_width: usize,
    /// Which steps of the VeRA block between branches are there.
    pub vera: VeraConfig,
}

/// The three components of the VeRA block, each of which a study can leave out. The step that is off is skipped and the
/// next one takes what the step before it gave:
///
/// - `acceleration` off: no acceleration MLP, head or loss; the modulated MLP sees the features alone (width D, not 2D).
/// - `time_gap` off: no gap embedder and no modulation; the MLP sees the plainly normalised `concat(features,
///   acceleration)`. With `acceleration` off as well there is nothing to bring back to width D, so the MLP goes too.
/// - `cross_attention` off: the output of the MLP replaces the features.
///
/// With all three off the features pass through unchanged: deep supervision alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VeraConfig {
    /// The acceleration MLP and its supervision.
    pub acceleration: bool,
    /// Modulation by the gap between the times of the two branches.
    pub time_gap: bool,
    /// Attention of the patch tokens over the refined features.
    pub cross_attention: bool,
}

impl Default for VeraConfig {
    fn default() -> Self {
        Self {
            acceleration: true,
            time_gap: true,
            cross_attention: true,
        }
    }
}

impl VeraConfig {
    /// Whether the normalised MLP (`acc_norm`) is there.
    pub fn has_mlp(&self) -> bool {
        self.acceleration || self.time_gap
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            width: 768,
            depth: 12,
            heads: 12,
            patch: 2,
            latent_channels: 4,
            latent_size: 32,
            classes: 1000,
            branch_ends: vec![6],
            mlp_ratio: 4,
            acceleration_width: 2048,
            class_dropout: 0.1,
            qk_norm: false,
            legacy_scaling: false,
            alignment_width: None,
            projector_width: 2048,
            vera: VeraConfig::default(),
        }
    }
}

impl NetworkConfig {
    /// Checks every rule between the numbers.
    ///
    /// # Errors
    /// The first key that breaks a rule, with its value and the rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.sizes_in_range()?;
        let rule = |holds: bool, key, found: String, rule: String| {
            if holds {
                Ok(())
            } else {
                Err(ConfigError { key, found, rule })
            }
        };
        rule(
            self.width.is_multiple_of(4),
            "model.width",
            self.width.to_string(),
            "must be a multiple of 4 (sines and cosines of rows and of columns)".into(),
        )?;
        rule(
            self.width.is_multiple_of(self.heads),
            "model.heads",
            self.heads.to_string(),
            format!("must divide model.width = {}", self.width),
        )?;
        rule(
            self.latent_size.is_multiple_of(self.patch),
            "model.latent_size",
            self.latent_size.to_string(),
            format!("must be a multiple of model.patch = {}", self.patch),
        )?;
        rule(
            (0.0..1.0).contains(&self.class_dropout),
            "model.class_dropout",
            self.class_dropout.to_string(),
            "must be at least 0 and below 1".into(),
        )?;
        rule(
            self.branch_ends.iter().all(|&end| (1..self.depth).contains(&end)),
            "model.branch_ends",
            format!("{:?}", self.branch_ends),
            format!("each must lie in 1..={} (model.depth - 1)", self.depth - 1),
        )?;
        rule(
            self.branch_ends.windows(2).all(|pair| pair[0] < pair[1]),
            "model.branch_ends",
            format!("{:?}", self.branch_ends),
            "must be increasing".into(),
        )
    }

    /// Whether every size lies between 1 and what a computer could hold.
    pub(crate) fn sizes_in_range(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("model.width", self.width, LARGEST_SIZE),
            ("model.depth", self.depth, LARGEST_SIZE),
            ("model.heads", self.heads, LARGEST_SIZE),
            ("model.patch", self.patch, LARGEST_SIZE),
            ("model.latent_channels", self.latent_channels, LARGEST_SIZE),
            ("model.latent_size", self.latent_size, LARGEST_SIZE),
            ("model.classes", self.classes, LARGEST_CLASSES),
            ("model.mlp_ratio", self.mlp_ratio, LARGEST_RATIO),
            ("model.acceleration_width", self.acceleration_width, LARGEST_SIZE),
            ("model.projector_width", self.projector_width, LARGEST_SIZE),
            ("model.alignment_width", self.alignment_width.unwrap_or(1), LARGEST_SIZE),
        ];
        for (key, size, largest) in sizes {
            let rule = match size {
                0 => "must be at least 1".to_owned(),
                _ if size > largest => format!("must be at most {largest}"),
                _ => continue,
            };
            let found = size.to_string();
            return Err(ConfigError { key, found, rule });
        }
        Ok(())
    }

    /// Number of branches `K`, at least 1.
    pub fn branches(&self) -> usize {
        self.branch_ends.len() + 1
    }

    /// Patches along one side.
    pub fn grid(&self) -> usize {
        self.latent_size / self.patch
    }

    /// Number of tokens `T` of a sample.
    pub fn tokens(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Values of one patch, `P·P·C`.
    pub fn patch_values(&self) -> usize {
        self.patch * self.patch * self.latent_channels
    }

    /// Values of one latent, `C·S·S`.
    pub fn latent_values(&self) -> usize {
        self.latent_channels * self.latent_size * self.latent_size
    }

    /// Rows of the class table: one more than classes when labels are dropped in training.
    pub fn class_rows(&self) -> usize {
        self.classes + usize::from(self.class_dropout > 0.0)
    }

    /// The label that means "no class", where the class table has it.
    pub fn no_class(&self) -> Option<usize> {
        (self.class_dropout > 0.0).then_some(self.classes)
    }

    /// Width of what the MLP of a VeRA block normalises.
    pub(crate) fn vera_width(&self) -> usize {
        if self.vera.acceleration {
            2 * self.width
        } else {
            self.width
        }
    }
}
