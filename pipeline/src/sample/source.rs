//! The weights to sample from, with everything that is known of them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use deepflow_datasets::{Class, Codec, Dtype};
use deepflow_model::checkpoint::{read_config, EMA_FILE, MODEL_FILE};
use serde_json::json;

use crate::codecs::CODEC_FILE;
use crate::config::{CodecConfig, CodecKind, Config, ConfigArgs};
use crate::train::{find_checkpoint, DataRecord};

/// What a diffusers AutoencoderKL of Stable Diffusion multiplies its latents by (network spec §6).
const STABLE_DIFFUSION_SCALE: f64 = 0.18215;

/// Weights, the configuration they were trained with, and the data they were trained on.
pub struct Source {
    /// The safetensors file.
    pub weights: PathBuf,
    /// The configuration to sample with.
    pub config: Config,
    /// The codec of the latents.
    pub codec: Codec,
    /// The classes of the data, where they are known.
    pub classes: Vec<Class>,
    /// The codec's own weights, where the run has such.
    pub codec_file: Option<PathBuf>,
}

impl Source {
    /// Opens a run, a checkpoint with or without its run, or a safetensors file by itself; `args` override the configuration
    /// found there.
    ///
    /// # Errors
    /// When nothing of the kind is there, or a configuration does not fit.
    pub fn open(path: &Path, args: &ConfigArgs, flags: &[(&str, Option<toml::Value>)]) -> anyhow::Result<Self> {
        if path.is_file() {
            let config = args.load_over(&config_of_weights(path)?, flags)?;
            return Ok(Self::alone(path.to_owned(), config));
        }
        let checkpoint = find_checkpoint(path)?;
        let weights = |config: &Config| checkpoint.join(if config.sample.ema { EMA_FILE } else { MODEL_FILE });
        // What the user names may say nothing of the folders above it.
        let whole = fs::canonicalize(&checkpoint).with_context(|| checkpoint.display().to_string())?;
        let run = whole.parent().and_then(Path::parent);
        let Some(run) = run.filter(|run| run.join(Config::FILE_NAME).is_file()) else {
            let config = args.load_over(&config_of_weights(&checkpoint.join(MODEL_FILE))?, flags)?;
            return Ok(Self::alone(weights(&config), config));
        };
        let base = Config::read(&run.join(Config::FILE_NAME))?;
        let config = args.load_over(&base, flags)?;
        let data = DataRecord::read(run).context("the run's data")?;
        let codec_file = run.join(CODEC_FILE);
        Ok(Self {
            weights: weights(&config),
            codec: data.codec.unwrap_or_else(|| codec_of_config(&config)),
            classes: data.classes,
            codec_file: codec_file.is_file().then_some(codec_file),
            config,
        })
    }

    /// Weights of which nothing is known but the network. What else they were trained with is up to the user, and nothing
    /// shows that it is wrong but the pictures.
    fn alone(weights: PathBuf, config: Config) -> Self {
        let codec = codec_of_config(&config);
        tracing::warn!(
            "{}: no run above it says how it was trained; loss.path = {}, codec.kind = \"{}\" and codec.size = {} are those of \
             --config and --set, or else the defaults, with latents scaled by {} and not shifted, and no names of classes",
            weights.display(),
            json!(config.loss.path),
            codec.name,
            codec.resolution,
            codec.scale_factor
        );
        Self {
            weights,
            codec,
            config,
            classes: Vec::new(),
            codec_file: None,
        }
    }
}

/// The defaults, with the network that a safetensors file says it holds.
fn config_of_weights(path: &Path) -> anyhow::Result<Config> {
    let mut config = Config::default();
    if let Some(model) = read_config(path)? {
        if model.heads == 0 {
            tracing::warn!(
                "{}: does not say how many heads: give --set model.heads=N",
                path.display()
            );
        }
        config.model = model;
    }
    Ok(config)
}

/// What `[codec]` says of latents whose shards said nothing.
fn codec_of_config(config: &Config) -> Codec {
    let CodecConfig { kind, size, .. } = config.codec;
    let (name, scale_factor) = match kind {
        CodecKind::Identity => ("identity", 1.0),
        CodecKind::Pca => ("pca", 1.0),
        CodecKind::AutoencoderKl => ("autoencoder-kl", STABLE_DIFFUSION_SCALE),
    };
    let model = &config.model;
    Codec {
        name: name.to_owned(),
        weights_sha256: None,
        scale_factor,
        latent_shape: [model.latent_channels, model.latent_size, model.latent_size],
        dtype: Dtype::F32,
        resolution: size,
        settings: std::collections::BTreeMap::new(),
    }
}
