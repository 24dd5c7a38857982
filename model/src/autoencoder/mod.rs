//! AutoencoderKL, the image autoencoder of Stable Diffusion, for inference on a CPU or a GPU.
//!
//! [`AutoencoderKl::load`] reads what the diffusers library writes (a folder with `config.json` and
//! `diffusion_pytorch_model.safetensors`, sharded or `.bin` too) and checkpoints with the original CompVis names.
//! [`AutoencoderKl::encode`] gives the posterior's mean and standard deviation, [`AutoencoderKl::decode`] the picture.
//! On the processor both work on one picture at a time and use all threads for it, so memory does not grow with the batch.
//!
//! ```
//! use deepflow_model::autoencoder::{AutoencoderConfig, AutoencoderKl};
//! let config = AutoencoderConfig { block_out_channels: vec![16, 32], norm_num_groups: 8, ..AutoencoderConfig::default() };
//! let autoencoder = AutoencoderKl::random(config, 1)?;
//! let posterior = autoencoder.encode(&vec![0.5; 3 * 16 * 16], 16, 16)?;
//! assert_eq!(posterior.shape, [4, 8, 8]);
//! let picture = autoencoder.decode(&posterior.mean, 8, 8)?;
//! assert_eq!(picture.len(), 3 * 16 * 16);
//! # Ok::<(), deepflow_model::autoencoder::AutoencoderError>(())
//! ```

mod backend;
mod blocks;
mod config;
mod decoder;
mod encoder;
mod error;
mod files;
#[cfg(feature = "cuda")]
mod gpu;
mod model;
mod names;
mod network;
mod weights;

pub use config::AutoencoderConfig;
pub use error::AutoencoderError;
pub use model::{AutoencoderKl, Posterior};
