//! An autoencoder as its users hold it: pictures to posteriors, and latents to pictures.

use std::path::Path;

use dfdx::tensor::Cpu;

use super::backend::{Backend, Processor};
use super::files::WeightFiles;
#[cfg(feature = "cuda")]
use super::gpu::Gpu;
use super::network::{Network, OnDevice};
use super::weights::Weights;
use super::{AutoencoderConfig, AutoencoderError};
use crate::device::AnyDevice;

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

/// An AutoencoderKL with its weights packed for the processor, or in a GPU's memory.
pub struct AutoencoderKl {
    config: AutoencoderConfig,
    network: Box<dyn Network>,
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
        Self::load_on(path, &AnyDevice::Cpu(Cpu::default()), false)
    }

    /// [`load`](Self::load) onto a device. A GPU may compute in half precision, with norms and all sums in f32; the
    /// processor never does.
    ///
    /// # Errors
    /// As [`load`](Self::load), and [`AutoencoderError::Device`] when the GPU's memory is short.
    pub fn load_on(path: impl AsRef<Path>, device: &AnyDevice, half_precision: bool) -> Result<Self, AutoencoderError> {
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
        Self::new(config, weights, device, half_precision)
    }

    /// An untrained autoencoder: a pure function of the configuration and the seed.
    ///
    /// # Errors
    /// When the configuration contradicts itself.
    pub fn random(config: AutoencoderConfig, seed: u64) -> Result<Self, AutoencoderError> {
        Self::random_on(config, seed, &AnyDevice::Cpu(Cpu::default()), false)
    }

    /// [`random`](Self::random) on a device, in the precision of [`load_on`](Self::load_on).
    ///
    /// # Errors
    /// As [`random`](Self::random), and [`AutoencoderError::Device`] when the GPU's memory is short.
    pub fn random_on(
        config: AutoencoderConfig,
        seed: u64,
        device: &AnyDevice,
        half_precision: bool,
    ) -> Result<Self, AutoencoderError> {
        config.check(Path::new("the autoencoder's configuration"))?;
        let weights = Weights::random(seed, config.norm_num_groups);
        Self::new(config, weights, device, half_precision)
    }

    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
    fn new(
        config: AutoencoderConfig,
        weights: Weights,
        device: &AnyDevice,
        half_precision: bool,
    ) -> Result<Self, AutoencoderError> {
        match device {
            AnyDevice::Cpu(_) => Self::on(Processor, config, weights),
            #[cfg(feature = "cuda")]
            AnyDevice::Cuda(device) if half_precision => {
                Self::on(Gpu::<crate::ops::cuda::f16>::new(device)?, config, weights)
            }
            #[cfg(feature = "cuda")]
            AnyDevice::Cuda(device) => Self::on(Gpu::<f32>::new(device)?, config, weights),
        }
    }

    fn on(backend: impl Backend, config: AutoencoderConfig, mut weights: Weights) -> Result<Self, AutoencoderError> {
        let network = Box::new(OnDevice::new(backend, &mut weights, &config)?);
        let parameters = weights.parameters();
        let weights_sha256 = weights.finish()?;
        Ok(Self {
            config,
            network,
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
        let shape = [1, self.config.in_channels, height, width];
        self.check_pictures("the picture", picture, shape)?;
        let (moments, shape) = self.network.encode(picture, shape)?;
        Ok(self.posterior(&moments, shape))
    }

    /// [`encode`](Self::encode) of several pictures, one after the other in memory: on a GPU four at once, on the processor
    /// one by one, so that memory does not grow with their number.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), when the pictures are not a whole number of them.
    pub fn encode_batch(
        &self,
        pictures: &[f32],
        height: usize,
        width: usize,
    ) -> Result<Vec<Posterior>, AutoencoderError> {
        let channels = self.config.in_channels;
        let length = (channels * height * width).max(1);
        let shape = [pictures.len() / length, channels, height, width];
        self.check_pictures("the batch of pictures", pictures, shape)?;
        let mut posteriors = Vec::new();
        for part in pictures.chunks(self.network.preferred_batch() * length) {
            let count = part.len() / length;
            let (moments, shape) = self.network.encode(part, [count, channels, height, width])?;
            let of_pictures = moments.chunks_exact((moments.len() / count).max(1));
            posteriors.extend(of_pictures.map(|moments| self.posterior(moments, shape)));
        }
        Ok(posteriors)
    }

    fn check_pictures(&self, what: &'static str, values: &[f32], shape: [usize; 4]) -> Result<(), AutoencoderError> {
        let ([_, _, height, width], factor) = (shape, self.config.factor());
        if height == 0 || width == 0 || !height.is_multiple_of(factor) || !width.is_multiple_of(factor) {
            return Err(AutoencoderError::Size {
                what,
                found: format!("{height}x{width} pixels"),
                expected: format!("multiples of {factor}"),
            });
        }
        check_length(what, values, shape)
    }

    /// From mean and log-variance of one picture.
    fn posterior(&self, moments: &[f32], [_, _, height, width]: [usize; 4]) -> Posterior {
        let (mean, log_variance) = moments.split_at(moments.len() / 2);
        let deviation = |value: &f32| (0.5 * value.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)).exp();
        Posterior {
            shape: [self.config.latent_channels, height, width],
            mean: mean.to_vec(),
            std: log_variance.iter().map(deviation).collect(),
        }
    }

    /// Decodes one unscaled latent `(latent channels, height, width)` to a picture `(channels, factor · height,
    /// factor · width)`, whose values lie mostly in [-1, 1].
    ///
    /// # Errors
    /// When the latent has another length.
    pub fn decode(&self, latent: &[f32], height: usize, width: usize) -> Result<Vec<f32>, AutoencoderError> {
        let shape = [1, self.config.latent_channels, height, width];
        check_length("the latent", latent, shape)?;
        self.network.decode(latent, shape)
    }

    /// [`decode`](Self::decode) of several latents, one after the other in memory: on a GPU four at once, on the processor
    /// one by one, so that memory does not grow with their number.
    ///
    /// # Errors
    /// When the latents are not a whole number of them.
    pub fn decode_batch(&self, latents: &[f32], height: usize, width: usize) -> Result<Vec<f32>, AutoencoderError> {
        let channels = self.config.latent_channels;
        let length = (channels * height * width).max(1);
        check_length(
            "the batch of latents",
            latents,
            [latents.len() / length, channels, height, width],
        )?;
        let mut pictures = Vec::new();
        for part in latents.chunks(self.network.preferred_batch() * length) {
            let shape = [part.len() / length, channels, height, width];
            pictures.extend(self.network.decode(part, shape)?);
        }
        Ok(pictures)
    }

    /// How many pictures make good use of the device: more are computed so many at a time.
    pub fn preferred_batch(&self) -> usize {
        self.network.preferred_batch()
    }
}

fn check_length(what: &'static str, values: &[f32], shape: [usize; 4]) -> Result<(), AutoencoderError> {
    let expected = shape.iter().product::<usize>();
    if values.len() == expected {
        return Ok(());
    }
    Err(AutoencoderError::Size {
        what,
        found: format!("{} values", values.len()),
        expected: format!("{expected} for {:?}", &shape[1..]),
    })
}
