//! The DeepFlow network: operators, losses, optimiser, samplers, autoencoder, checkpoints.
//!
//! ```
//! use deepflow_model::ops::Operators;
//! use deepflow_model::{Network, NetworkConfig};
//! use dfdx::tensor::{Cpu, NoneTape, TensorFromVec};
//!
//! let config = NetworkConfig {
//!     width: 32, depth: 4, heads: 4, latent_size: 4, classes: 3, branch_ends: vec![2], acceleration_width: 16,
//!     ..NetworkConfig::default()
//! };
//! let device = Cpu::default();
//! let network: Network<f32, Cpu> = Network::new(config, device.clone(), 42)?;
//! let patches = device.tensor_from_vec(vec![0.5; 4 * 16], (4, 16));
//! let outputs = network.forward(&mut NoneTape, &patches, &[vec![0.7], vec![0.69]], &[2])?;
//! assert_eq!(outputs.velocities.len(), 2);
//! # Ok::<(), deepflow_model::ModelError>(())
//! ```

pub mod autoencoder;
mod blocks;
pub mod checkpoint;
mod checkpointing;
pub mod config;
pub mod convert;
pub mod device;
mod embeddings;
mod error;
mod heads;
pub mod inception;
mod init;
mod layers;
mod memory;
mod network;
pub mod ops;
mod parameters;
pub mod patches;
pub mod sampling;
pub mod torch_pickle;
pub mod training;
mod vera;
mod weights;

pub use config::{NetworkConfig, VeraConfig};
pub use error::{ConfigError, ModelError, WeightsError};
pub use memory::{sampling_memory, training_memory, TrainingMemory, TrainingSizes};
pub use network::{parameter_shapes, FeaturePlace, Network, Outputs};
pub use parameters::Parameter;
pub use weights::{FineTuneReport, LoadReport, NetworkFacts, WeightSource};
