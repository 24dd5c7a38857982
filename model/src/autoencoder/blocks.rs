//! The blocks encoder and decoder are made of.

use super::weights::Weights;
use super::AutoencoderError;
use crate::ops::conv::{pixel_attention, Convolution, ConvolutionShape, FeatureMap, GroupNorm, Input, Output, Padding};

/// `x + conv2(silu(norm2(conv1(silu(norm1(x))))))`, with a 1×1 convolution on `x` where the channels change.
pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Convolution,
    norm2: GroupNorm,
    conv2: Convolution,
    shortcut: Option<Convolution>,
}

impl ResnetBlock {
    pub(super) fn new(
        weights: &mut Weights,
        name: &str,
        in_channels: usize,
        out_channels: usize,
    ) -> Result<Self, AutoencoderError> {
        let shortcut = (in_channels != out_channels)
            .then(|| {
                let shape = ConvolutionShape::same(in_channels, out_channels, 1);
                weights.convolution(&format!("{name}.conv_shortcut"), shape)
            })
            .transpose()?;
        Ok(Self {
            norm1: weights.norm(&format!("{name}.norm1"), in_channels)?,
            conv1: weights.convolution(
                &format!("{name}.conv1"),
                ConvolutionShape::same(in_channels, out_channels, 3),
            )?,
            norm2: weights.norm(&format!("{name}.norm2"), out_channels)?,
            conv2: weights.convolution(
                &format!("{name}.conv2"),
                ConvolutionShape::same(out_channels, out_channels, 3),
            )?,
            shortcut,
        })
    }

    pub(super) fn forward(&self, x: FeatureMap) -> Result<FeatureMap, AutoencoderError> {
        let hidden = norm_silu_conv(&self.norm1, &self.conv1, &x, Output::Plain)?;
        let residual = match &self.shortcut {
            Some(shortcut) => shortcut.forward(&x, Output::Plain)?,
            None => x,
        };
        norm_silu_conv(&self.norm2, &self.conv2, &hidden, Output::AddTo(residual))
    }
}

/// `conv(silu(norm(x)))`.
pub(super) fn norm_silu_conv(
    norm: &GroupNorm,
    convolution: &Convolution,
    x: &FeatureMap,
    output: Output,
) -> Result<FeatureMap, AutoencoderError> {
    let affine = norm.measure(x)?;
    Ok(convolution.forward(Input::normalized_silu(x, &affine), output)?)
}

/// Self-attention with one head over the pixels, added to its input.
pub(super) struct AttentionBlock {
    norm: GroupNorm,
    query: Convolution,
    key: Convolution,
    value: Convolution,
    out: Convolution,
}

impl AttentionBlock {
    fn new(weights: &mut Weights, name: &str, channels: usize) -> Result<Self, AutoencoderError> {
        let shape = ConvolutionShape::same(channels, channels, 1);
        Ok(Self {
            norm: weights.norm(&format!("{name}.group_norm"), channels)?,
            query: weights.convolution(&format!("{name}.to_q"), shape)?,
            key: weights.convolution(&format!("{name}.to_k"), shape)?,
            value: weights.convolution(&format!("{name}.to_v"), shape)?,
            out: weights.convolution(&format!("{name}.to_out.0"), shape)?,
        })
    }

    fn forward(&self, x: FeatureMap) -> Result<FeatureMap, AutoencoderError> {
        let normalized = self.norm.measure(&x)?.apply(&x);
        let query = self.query.forward(&normalized, Output::Plain)?;
        let key = self.key.forward(&normalized, Output::Plain)?;
        let value = self.value.forward(&normalized, Output::Plain)?;
        drop(normalized);
        let attended = pixel_attention(&query, &key, &value)?;
        Ok(self.out.forward(&attended, Output::AddTo(x))?)
    }
}

/// ResNet block, attention, ResNet block.
pub(super) struct MiddleBlock {
    first: ResnetBlock,
    attention: Option<AttentionBlock>,
    second: ResnetBlock,
}

impl MiddleBlock {
    pub(super) fn new(
        weights: &mut Weights,
        name: &str,
        channels: usize,
        with_attention: bool,
    ) -> Result<Self, AutoencoderError> {
        Ok(Self {
            first: ResnetBlock::new(weights, &format!("{name}.resnets.0"), channels, channels)?,
            attention: with_attention
                .then(|| AttentionBlock::new(weights, &format!("{name}.attentions.0"), channels))
                .transpose()?,
            second: ResnetBlock::new(weights, &format!("{name}.resnets.1"), channels, channels)?,
        })
    }

    pub(super) fn forward(&self, x: FeatureMap) -> Result<FeatureMap, AutoencoderError> {
        let x = self.first.forward(x)?;
        let x = match &self.attention {
            Some(attention) => attention.forward(x)?,
            None => x,
        };
        self.second.forward(x)
    }
}

/// Halves height and width with a 3×3 convolution of stride 2, after padding right and bottom by one.
pub(super) fn downsampling(channels: usize) -> ConvolutionShape {
    ConvolutionShape {
        stride: (2, 2),
        padding: Padding {
            bottom: 1,
            right: 1,
            ..Padding::default()
        },
        ..ConvolutionShape::same(channels, channels, 3)
    }
}
