use super::blocks::{downsampling, norm_silu_conv, MiddleBlock, ResnetBlock};
use super::weights::Weights;
use super::{AutoencoderConfig, AutoencoderError};
use crate::ops::conv::{Convolution, ConvolutionShape, FeatureMap, GroupNorm, Output};

/// Picture to the posterior's mean and log-variance.
pub(super) struct Encoder {
    conv_in: Convolution,
    levels: Vec<(Vec<ResnetBlock>, Option<Convolution>)>,
    middle: MiddleBlock,
    norm_out: GroupNorm,
    conv_out: Convolution,
    quant_conv: Option<Convolution>,
}

impl Encoder {
    pub(super) fn new(weights: &mut Weights, config: &AutoencoderConfig) -> Result<Self, AutoencoderError> {
        let channels = &config.block_out_channels;
        let moments = 2 * config.latent_channels;
        let conv_in = ConvolutionShape::same(config.in_channels, channels[0], 3);
        let conv_in = weights.convolution("encoder.conv_in", conv_in)?;
        let mut levels = Vec::with_capacity(channels.len());
        let mut width = channels[0];
        for (level, &out_channels) in channels.iter().enumerate() {
            let name = format!("encoder.down_blocks.{level}");
            let mut blocks = Vec::with_capacity(config.layers_per_block);
            for block in 0..config.layers_per_block {
                blocks.push(ResnetBlock::new(
                    weights,
                    &format!("{name}.resnets.{block}"),
                    width,
                    out_channels,
                )?);
                width = out_channels;
            }
            let downsample = (level + 1 < channels.len())
                .then(|| weights.convolution(&format!("{name}.downsamplers.0.conv"), downsampling(width)))
                .transpose()?;
            levels.push((blocks, downsample));
        }
        let quant_conv = config
            .use_quant_conv
            .then(|| weights.convolution("quant_conv", ConvolutionShape::same(moments, moments, 1)))
            .transpose()?;
        Ok(Self {
            conv_in,
            levels,
            middle: MiddleBlock::new(weights, "encoder.mid_block", width, config.mid_block_add_attention)?,
            norm_out: weights.norm("encoder.conv_norm_out", width)?,
            conv_out: weights.convolution("encoder.conv_out", ConvolutionShape::same(width, moments, 3))?,
            quant_conv,
        })
    }

    pub(super) fn forward(&self, picture: &FeatureMap) -> Result<FeatureMap, AutoencoderError> {
        let mut x = self.conv_in.forward(picture, Output::Plain)?;
        for (blocks, downsample) in &self.levels {
            for block in blocks {
                x = block.forward(x)?;
            }
            if let Some(downsample) = downsample {
                x = downsample.forward(&x, Output::Plain)?;
            }
        }
        x = self.middle.forward(x)?;
        x = norm_silu_conv(&self.norm_out, &self.conv_out, &x, Output::Plain)?;
        match &self.quant_conv {
            Some(quant_conv) => Ok(quant_conv.forward(&x, Output::Plain)?),
            None => Ok(x),
        }
    }
}
