use std::path::Path;

use super::decoder::Decoder;
use super::encoder::Encoder;
use super::files::WeightFiles;
use super::weights::Weights;
use super::{AutoencoderConfig, AutoencoderError};
use crate::ops::conv::FeatureMap;

/// Diffusers clamps the posterior's log-variance to ± this.
const LOG_VARIANCE_LIMIT: f32 = 30.0;

/// The latent distribution of one picture: independent normals.
#[derive(Clone, Debug, PartialEq)]
pub struct Posterior {
    /// `[latent channels, rows, columns]`.
    pub shape: [usize; 3],
    /// Means, unscaled.
    pub mean: Vec<f32>,
    /// Standard deviations, unscaled.
    pub std: Vec<f32>,
}

/// An AutoencoderKL with its weights packed for this machine.
pub struct AutoencoderKl {
    config: AutoencoderConfig,
    encoder: Encoder,
    decoder: Decoder,
    weights_sha256: String,
    parameters: usize,
}

impl AutoencoderKl {
    /// Loads a diffusers folder, or one file of weights with its `config.json` beside it (without one it is taken for
    /// Stable Diffusion's autoencoder).
    ///
    /// # Errors
    /// When a file cannot be read, the configuration is of another network, or tensors are missing, left over or
    /// misshapen (the first few are named).
    pub fn load(path: impl AsRef<Path>) -> Result<Self, AutoencoderError> {
        let path = path.as_ref();
        let folder = if path.is_dir() {
            path
        } else {
            path.parent().unwrap_or(Path::new(""))
        };
        let config_path = folder.join("config.json");
        let config = if path.is_dir() || config_path.is_file() {
            AutoencoderConfig::read(&config_path)?
        } else {
            AutoencoderConfig::default()
        };
        let files = WeightFiles::open(path)?;
        let weights = Weights::from_files(files, config.block_out_channels.len(), config.norm_num_groups);
        Self::new(config, weights)
    }

    /// An untrained autoencoder: a pure function of the configuration and the seed.
    ///
    /// # Errors
    /// When the configuration contradicts itself.
    pub fn random(config: AutoencoderConfig, seed: u64) -> Result<Self, AutoencoderError> {
        config.check(Path::new("the autoencoder's configuration"))?;
        let weights = Weights::random(seed, config.norm_num_groups);
        Self::new(config, weights)
    }

    fn new(config: AutoencoderConfig, mut weights: Weights) -> Result<Self, AutoencoderError> {
        let encoder = Encoder::new(&mut weights, &config)?;
        let decoder = Decoder::new(&mut weights, &config)?;
        let parameters = weights.parameters();
        let weights_sha256 = weights.finish()?;
        Ok(Self {
            config,
            encoder,
            decoder,
            weights_sha256,
            parameters,
        })
    }

    /// The sizes it was made with.
    pub fn config(&self) -> &AutoencoderConfig {
        &self.config
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// SHA-256 of the weight file in lower-case hexadecimal (of all shards one after the other when there are several);
    /// empty for random weights.
    pub fn weights_sha256(&self) -> &str {
        &self.weights_sha256
    }

    /// Encodes one picture `(channels, height, width)` with values in [-1, 1].
    ///
    /// # Errors
    /// When height or width is not a multiple of [`AutoencoderConfig::factor`], or the picture has another length.
    pub fn encode(&self, picture: &[f32], height: usize, width: usize) -> Result<Posterior, AutoencoderError> {
        let factor = self.config.factor();
        if height == 0 || width == 0 || !height.is_multiple_of(factor) || !width.is_multiple_of(factor) {
            return Err(AutoencoderError::Size {
                what: "the picture",
                found: format!("{height}x{width} pixels"),
                expected: format!("multiples of {factor}"),
            });
        }
        let picture = feature_map("the picture", picture, [1, self.config.in_channels, height, width])?;
        let moments = self.encoder.forward(&picture)?;
        let [_, _, height, width] = moments.shape();
        let mut mean = moments.to_nchw();
        let log_variance = mean.split_off(mean.len() / 2);
        let deviation = |value: f32| (0.5 * value.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)).exp();
        Ok(Posterior {
            shape: [self.config.latent_channels, height, width],
            mean,
            std: log_variance.into_iter().map(deviation).collect(),
        })
    }

    /// Decodes one unscaled latent `(latent channels, height, width)` to a picture `(channels, factor · height,
    /// factor · width)`, whose values lie mostly in [-1, 1].
    ///
    /// # Errors
    /// When the latent has another length.
    pub fn decode(&self, latent: &[f32], height: usize, width: usize) -> Result<Vec<f32>, AutoencoderError> {
        let latent = feature_map("the latent", latent, [1, self.config.latent_channels, height, width])?;
        Ok(self.decoder.forward(&latent)?.to_nchw())
    }
}

fn feature_map(what: &'static str, values: &[f32], shape: [usize; 4]) -> Result<FeatureMap, AutoencoderError> {
    FeatureMap::from_nchw(values, shape).map_err(|_| AutoencoderError::Size {
        what,
        found: format!("{} values", values.len()),
        expected: format!("{} for {:?}", shape.iter().product::<usize>(), &shape[1..]),
    })
}
