//! The blocks encoder and decoder are made of.

use super::backend::Backend;
use super::weights::Weights;
use super::AutoencoderError;
use crate::ops::conv::{ConvolutionShape, Padding};

/// `x + conv2(silu(norm2(conv1(silu(norm1(x))))))`, with a 1×1 convolution on `x` where the channels change.
pub(super) struct ResnetBlock<B: Backend> {
    norm1: B::Norm,
    conv1: B::Convolution,
    norm2: B::Norm,
    conv2: B::Convolution,
    shortcut: Option<B::Convolution>,
}

impl<B: Backend> ResnetBlock<B> {
    pub(super) fn new(
        backend: &B,
        weights: &mut Weights,
        name: &str,
        in_channels: usize,
        out_channels: usize,
    ) -> Result<Self, AutoencoderError> {
        let shortcut = (in_channels != out_channels)
            .then(|| {
                let shape = ConvolutionShape::same(in_channels, out_channels, 1);
                weights.convolution(backend, &format!("{name}.conv_shortcut"), shape)
            })
            .transpose()?;
        Ok(Self {
            norm1: weights.norm(backend, &format!("{name}.norm1"), in_channels)?,
            conv1: weights.convolution(
                backend,
                &format!("{name}.conv1"),
                ConvolutionShape::same(in_channels, out_channels, 3),
            )?,
            norm2: weights.norm(backend, &format!("{name}.norm2"), out_channels)?,
            conv2: weights.convolution(
                backend,
                &format!("{name}.conv2"),
                ConvolutionShape::same(out_channels, out_channels, 3),
            )?,
            shortcut,
        })
    }

    pub(super) fn forward(&self, x: B::Map) -> Result<B::Map, AutoencoderError> {
        let hidden = B::norm_silu_convolve(&self.norm1, &self.conv1, &x, None)?;
        let residual = match &self.shortcut {
            Some(shortcut) => B::convolve(shortcut, &x, None)?,
            None => x,
        };
        B::norm_silu_convolve(&self.norm2, &self.conv2, &hidden, Some(residual))
    }
}

/// ResNet blocks at one size of the picture, and the convolution that leads to the next size.
pub(super) struct Level<B: Backend> {
    pub(super) blocks: Vec<ResnetBlock<B>>,
    pub(super) resize: Option<B::Convolution>,
}

/// Self-attention with one head over the pixels, added to its input.
pub(super) struct AttentionBlock<B: Backend> {
    norm: B::Norm,
    query: B::Convolution,
    key: B::Convolution,
    value: B::Convolution,
    out: B::Convolution,
}

impl<B: Backend> AttentionBlock<B> {
    fn new(backend: &B, weights: &mut Weights, name: &str, channels: usize) -> Result<Self, AutoencoderError> {
        let shape = ConvolutionShape::same(channels, channels, 1);
        Ok(Self {
            norm: weights.norm(backend, &format!("{name}.group_norm"), channels)?,
            query: weights.convolution(backend, &format!("{name}.to_q"), shape)?,
            key: weights.convolution(backend, &format!("{name}.to_k"), shape)?,
            value: weights.convolution(backend, &format!("{name}.to_v"), shape)?,
            out: weights.convolution(backend, &format!("{name}.to_out.0"), shape)?,
        })
    }

    fn forward(&self, x: B::Map) -> Result<B::Map, AutoencoderError> {
        let normalized = B::normalize(&self.norm, &x)?;
        let query = B::convolve(&self.query, &normalized, None)?;
        let key = B::convolve(&self.key, &normalized, None)?;
        let value = B::convolve(&self.value, &normalized, None)?;
        drop(normalized);
        let attended = B::attend(&query, &key, &value)?;
        B::convolve(&self.out, &attended, Some(x))
    }
}

/// ResNet block, attention, ResNet block.
pub(super) struct MiddleBlock<B: Backend> {
    first: ResnetBlock<B>,
    attention: Option<AttentionBlock<B>>,
    second: ResnetBlock<B>,
}

impl<B: Backend> MiddleBlock<B> {
    pub(super) fn new(
        backend: &B,
        weights: &mut Weights,
        name: &str,
        channels: usize,
        with_attention: bool,
    ) -> Result<Self, AutoencoderError> {
        Ok(Self {
            first: ResnetBlock::new(backend, weights, &format!("{name}.resnets.0"), channels, channels)?,
            attention: with_attention
                .then(|| AttentionBlock::new(backend, weights, &format!("{name}.attentions.0"), channels))
                .transpose()?,
            second: ResnetBlock::new(backend, weights, &format!("{name}.resnets.1"), channels, channels)?,
        })
    }

    pub(super) fn forward(&self, x: B::Map) -> Result<B::Map, AutoencoderError> {
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
