//! From a latent to a picture.

use super::backend::Backend;
use super::blocks::{Level, MiddleBlock, ResnetBlock};
use super::weights::Weights;
use super::{AutoencoderConfig, AutoencoderError};
use crate::ops::conv::ConvolutionShape;

/// Latent to picture.
pub(super) struct Decoder<B: Backend> {
    post_quant_conv: Option<B::Convolution>,
    conv_in: B::Convolution,
    middle: MiddleBlock<B>,
    levels: Vec<Level<B>>,
    norm_out: B::Norm,
    conv_out: B::Convolution,
}

impl<B: Backend> Decoder<B> {
    pub(super) fn new(
        backend: &B,
        weights: &mut Weights,
        config: &AutoencoderConfig,
    ) -> Result<Self, AutoencoderError> {
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let latent = config.latent_channels;
        let post_quant_conv = config
            .use_post_quant_conv
            .then(|| weights.convolution(backend, "post_quant_conv", ConvolutionShape::same(latent, latent, 1)))
            .transpose()?;
        let mut width = channels[0];
        let conv_in = weights.convolution(backend, "decoder.conv_in", ConvolutionShape::same(latent, width, 3))?;
        let middle = MiddleBlock::new(
            backend,
            weights,
            "decoder.mid_block",
            width,
            config.mid_block_add_attention,
        )?;
        let mut levels = Vec::with_capacity(channels.len());
        for (level, &out_channels) in channels.iter().enumerate() {
            let name = format!("decoder.up_blocks.{level}");
            let mut blocks = Vec::with_capacity(config.layers_per_block + 1);
            for block in 0..=config.layers_per_block {
                blocks.push(ResnetBlock::new(
                    backend,
                    weights,
                    &format!("{name}.resnets.{block}"),
                    width,
                    out_channels,
                )?);
                width = out_channels;
            }
            let resize = (level + 1 < channels.len())
                .then(|| {
                    let shape = ConvolutionShape::same(width, width, 3);
                    weights.convolution(backend, &format!("{name}.upsamplers.0.conv"), shape)
                })
                .transpose()?;
            levels.push(Level { blocks, resize });
        }
        Ok(Self {
            post_quant_conv,
            conv_in,
            middle,
            levels,
            norm_out: weights.norm(backend, "decoder.conv_norm_out", width)?,
            conv_out: weights.convolution(
                backend,
                "decoder.conv_out",
                ConvolutionShape::same(width, config.out_channels, 3),
            )?,
        })
    }

    pub(super) fn forward(&self, latent: &B::Map) -> Result<B::Map, AutoencoderError> {
        let mut x = match &self.post_quant_conv {
            Some(post_quant_conv) => B::convolve(&self.conv_in, &B::convolve(post_quant_conv, latent, None)?, None)?,
            None => B::convolve(&self.conv_in, latent, None)?,
        };
        x = self.middle.forward(x)?;
        for level in &self.levels {
            for block in &level.blocks {
                x = block.forward(x)?;
            }
            if let Some(upsample) = &level.resize {
                x = B::upsample_convolve(upsample, &x)?;
            }
        }
        B::norm_silu_convolve(&self.norm_out, &self.conv_out, &x, None)
    }
}
