//! From a picture to the posterior's mean and log-variance.

use super::backend::Backend;
use super::blocks::{downsampling, Level, MiddleBlock, ResnetBlock};
use super::weights::Weights;
use super::{AutoencoderConfig, AutoencoderError};
use crate::ops::conv::ConvolutionShape;

/// Picture to the posterior's mean and log-variance.
pub(super) struct Encoder<B: Backend> {
    conv_in: B::Convolution,
    levels: Vec<Level<B>>,
    middle: MiddleBlock<B>,
    norm_out: B::Norm,
    conv_out: B::Convolution,
    quant_conv: Option<B::Convolution>,
}

impl<B: Backend> Encoder<B> {
    pub(super) fn new(
        backend: &B,
        weights: &mut Weights,
        config: &AutoencoderConfig,
    ) -> Result<Self, AutoencoderError> {
        let channels = &config.block_out_channels;
        let moments = 2 * config.latent_channels;
        let conv_in = ConvolutionShape::same(config.in_channels, channels[0], 3);
        let conv_in = weights.convolution(backend, "encoder.conv_in", conv_in)?;
        let mut levels = Vec::with_capacity(channels.len());
        let mut width = channels[0];
        for (level, &out_channels) in channels.iter().enumerate() {
            let name = format!("encoder.down_blocks.{level}");
            let mut blocks = Vec::with_capacity(config.layers_per_block);
            for block in 0..config.layers_per_block {
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
                .then(|| weights.convolution(backend, &format!("{name}.downsamplers.0.conv"), downsampling(width)))
                .transpose()?;
            levels.push(Level { blocks, resize });
        }
        let quant_conv = config
            .use_quant_conv
            .then(|| weights.convolution(backend, "quant_conv", ConvolutionShape::same(moments, moments, 1)))
            .transpose()?;
        Ok(Self {
            conv_in,
            levels,
            middle: MiddleBlock::new(
                backend,
                weights,
                "encoder.mid_block",
                width,
                config.mid_block_add_attention,
            )?,
            norm_out: weights.norm(backend, "encoder.conv_norm_out", width)?,
            conv_out: weights.convolution(backend, "encoder.conv_out", ConvolutionShape::same(width, moments, 3))?,
            quant_conv,
        })
    }

    pub(super) fn forward(&self, picture: &B::Map) -> Result<B::Map, AutoencoderError> {
        let mut x = B::convolve(&self.conv_in, picture, None)?;
        for level in &self.levels {
            for block in &level.blocks {
                x = block.forward(x)?;
            }
            if let Some(downsample) = &level.resize {
                x = B::convolve(downsample, &x, None)?;
            }
        }
        x = self.middle.forward(x)?;
        x = B::norm_silu_convolve(&self.norm_out, &self.conv_out, &x, None)?;
        match &self.quant_conv {
            Some(quant_conv) => B::convolve(quant_conv, &x, None),
            None => Ok(x),
        }
    }
}
