//! The DeepFlow network: operators, losses, optimiser, samplers, autoencoder, checkpoints.
