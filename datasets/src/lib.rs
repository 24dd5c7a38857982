//! WebDataset shards of latents: format, index, shuffled order, streaming loader.

pub mod random;
