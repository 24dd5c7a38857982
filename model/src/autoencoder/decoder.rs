use super::blocks::{norm_silu_conv, MiddleBlock, ResnetBlock};
use super::weights::Weights;
use super::{AutoencoderConfig, AutoencoderError};
use crate::ops::conv::{Convolution, ConvolutionShape, FeatureMap, GroupNorm, Input, Output};

/// Latent to picture.
pub(super) struct Decoder {
    post_quant_conv: Option<Convolution>,
    conv_in: Convolution,
    middle: MiddleBlock,
    levels: Vec<(Vec<ResnetBlock>, Option<Convolution>)>,
    norm_out: GroupNorm,
    conv_out: Convolution,
}

impl Decoder {
    pub(super) fn new(weights: &mut Weights, config: &AutoencoderConfig) -> Result<Self, AutoencoderError> {
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let latent = config.latent_channels;
        let post_quant_conv = config
            .use_post_quant_conv
            .then(|| weights.convolution("post_quant_conv", ConvolutionShape::same(latent, latent, 1)))
            .transpose()?;
        let mut width = channels[0];
        let conv_in = weights.convolution("decoder.conv_in", ConvolutionShape::same(latent, width, 3))?;
        let middle = MiddleBlock::new(weights, "decoder.mid_block", width, config.mid_block_add_attention)?;
        let mut levels = Vec::with_capacity(channels.len());
        for (level, &out_channels) in channels.iter().enumerate() {
            let name = format!("decoder.up_blocks.{level}");
            let mut blocks = Vec::with_capacity(config.layers_per_block + 1);
            for block in 0..=config.layers_per_block {
                blocks.push(ResnetBlock::new(
                    weights,
                    &format!("{name}.resnets.{block}"),
                    width,
                    out_channels,
                )?);
                width = out_channels;
            }
            let upsample = (level + 1 < channels.len())
                .then(|| {
                    let shape = ConvolutionShape::same(width, width, 3);
                    weights.convolution(&format!("{name}.upsamplers.0.conv"), shape)
                })
                .transpose()?;
            levels.push((blocks, upsample));
        }
        Ok(Self {
            post_quant_conv,
            conv_in,
            middle,
            levels,
            norm_out: weights.norm("decoder.conv_norm_out", width)?,
            conv_out: weights.convolution(
                "decoder.conv_out",
                ConvolutionShape::same(width, config.out_channels, 3),
            )?,
        })
    }

    pub(super) fn forward(&self, latent: &FeatureMap) -> Result<FeatureMap, AutoencoderError> {
        let mut x = match &self.post_quant_conv {
            Some(post_quant_conv) => self
                .conv_in
                .forward(&post_quant_conv.forward(latent, Output::Plain)?, Output::Plain)?,
            None => self.conv_in.forward(latent, Output::Plain)?,
        };
        x = self.middle.forward(x)?;
        for (blocks, upsample) in &self.levels {
            for block in blocks {
                x = block.forward(x)?;
            }
            if let Some(upsample) = upsample {
                x = upsample.forward(Input::upsampled(&x), Output::Plain)?;
            }
        }
        norm_silu_conv(&self.norm_out, &self.conv_out, &x, Output::Plain)
    }
}
