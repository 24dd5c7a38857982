//! The DeepFlow network: operators, losses, optimiser, samplers, autoencoder, checkpoints.

pub mod ops;
