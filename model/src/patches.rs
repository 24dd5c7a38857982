//! Between latents (B,C,S,S) and matrices of patches (B·T, P·P·C), on the host.

use crate::config::NetworkConfig;

/// Order of the values inside a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchOrder {
    /// (channel, y, x): what the patch convolution takes.
    ChannelFirst,
    /// (y, x, channel): what the heads give (network spec §2, unpatchify).
    ChannelLast,
}

/// How latents are cut into patches.
///
/// ```
/// use deepflow_model::patches::{PatchGrid, PatchOrder};
///
/// let grid = PatchGrid { channels: 1, size: 4, patch: 2 };
/// let latent: Vec<f32> = (0..16).map(|value| value as f32).collect();
/// let patches = grid.patchify(&latent, PatchOrder::ChannelLast);
/// assert_eq!(patches[..4], [0.0, 1.0, 4.0, 5.0]);
/// assert_eq!(grid.unpatchify(&patches, PatchOrder::ChannelLast), latent);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchGrid {
    /// Channels `C`.
    pub channels: usize,
    /// Height and width `S`, a multiple of `patch`.
    pub size: usize,
    /// Side `P` of a patch.
    pub patch: usize,
}

impl From<&NetworkConfig> for PatchGrid {
    fn from(config: &NetworkConfig) -> Self {
        Self {
            channels: config.latent_channels,
            size: config.latent_size,
            patch: config.patch,
        }
    }
}

impl PatchGrid {
    /// Latents (B,C,S,S) → patches (B·T, P·P·C), tokens in row-major order.
    pub fn patchify<V: Copy + Default>(&self, latents: &[V], order: PatchOrder) -> Vec<V> {
        let mut patches = vec![V::default(); latents.len()];
        self.each_run(latents.len(), order, |latent, patch, stride| {
            for x in 0..self.patch {
                patches[patch + x * stride] = latents[latent + x];
            }
        });
        patches
    }

    /// Patches (B·T, P·P·C) → latents (B,C,S,S).
    pub fn unpatchify<V: Copy + Default>(&self, patches: &[V], order: PatchOrder) -> Vec<V> {
        let mut latents = vec![V::default(); patches.len()];
        self.each_run(patches.len(), order, |latent, patch, stride| {
            for x in 0..self.patch {
                latents[latent + x] = patches[patch + x * stride];
            }
        });
        latents
    }

    /// Calls `run(place in the latents, place in the patches, step in the patches)` for every run of P neighbours.
    fn each_run(&self, values: usize, order: PatchOrder, mut run: impl FnMut(usize, usize, usize)) {
        let Self { channels, size, patch } = *self;
        let grid = size / patch;
        let samples = values / (channels * size * size);
        for sample in 0..samples {
            for channel in 0..channels {
                for y in 0..size {
                    let latent_row = ((sample * channels + channel) * size + y) * size;
                    let tokens = (sample * grid + y / patch) * grid;
                    let (offset, stride) = match order {
                        PatchOrder::ChannelFirst => ((channel * patch + y % patch) * patch, 1),
                        PatchOrder::ChannelLast => (y % patch * patch * channels + channel, channels),
                    };
                    for column in 0..grid {
                        let token = (tokens + column) * patch * patch * channels;
                        run(latent_row + column * patch, token + offset, stride);
                    }
                }
            }
        }
    }
}
