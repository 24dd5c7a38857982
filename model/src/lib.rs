//! The DeepFlow network: operators, losses, optimiser, samplers, autoencoder, checkpoints.

pub mod ops;
pub mod torch_pickle;
