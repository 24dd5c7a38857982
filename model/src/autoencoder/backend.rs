//! What encoder and decoder compute with: their operators on one kind of device.

use super::AutoencoderError;
use crate::ops::conv::{pixel_attention, Convolution, ConvolutionShape, FeatureMap, GroupNorm, Input, Output};

type Result<T> = std::result::Result<T, AutoencoderError>;

/// The operators of an AutoencoderKL. `add_to` is a map that the result of a convolution is added to.
pub(super) trait Backend: Send + Sync + 'static {
    /// Pictures worth giving to one call.
    const PREFERRED_BATCH: usize;

    /// A batch of feature maps.
    type Map;
    /// A convolution with its weights.
    type Convolution: Send + Sync;
    /// A GroupNorm with its parameters.
    type Norm: Send + Sync;

    /// `weight` is `(out, in, kernel height, kernel width)`.
    fn convolution(&self, shape: ConvolutionShape, weight: &[f32], bias: &[f32]) -> Result<Self::Convolution>;

    /// `weight` and `bias` have a value a channel.
    fn norm(&self, groups: usize, weight: Vec<f32>, bias: Vec<f32>, epsilon: f64) -> Result<Self::Norm>;

    /// From `(batch, channels, height, width)`.
    fn map(&self, values: &[f32], shape: [usize; 4]) -> Result<Self::Map>;

    /// Back to `(batch, channels, height, width)`.
    fn values(map: &Self::Map) -> Result<(Vec<f32>, [usize; 4])>;

    /// `conv(x)`.
    fn convolve(convolution: &Self::Convolution, x: &Self::Map, add_to: Option<Self::Map>) -> Result<Self::Map>;

    /// `conv(silu(norm(x)))`.
    fn norm_silu_convolve(
        norm: &Self::Norm,
        convolution: &Self::Convolution,
        x: &Self::Map,
        add_to: Option<Self::Map>,
    ) -> Result<Self::Map>;

    /// `conv` of `x` at twice its height and width, every pixel four times.
    fn upsample_convolve(convolution: &Self::Convolution, x: &Self::Map) -> Result<Self::Map>;

    /// `norm(x)`.
    fn normalize(norm: &Self::Norm, x: &Self::Map) -> Result<Self::Map>;

    /// `softmax(q·kᵀ/√C)·v` over the pixels.
    fn attend(query: &Self::Map, key: &Self::Map, value: &Self::Map) -> Result<Self::Map>;
}

/// The processor, in f32.
pub(super) struct Processor;

fn output(add_to: Option<FeatureMap>) -> Output {
    add_to.map_or(Output::Plain, Output::AddTo)
}

impl Backend for Processor {
    /// All cores work on one picture.
    const PREFERRED_BATCH: usize = 1;

    type Map = FeatureMap;
    type Convolution = Convolution;
    type Norm = GroupNorm;

    fn convolution(&self, shape: ConvolutionShape, weight: &[f32], bias: &[f32]) -> Result<Convolution> {
        Ok(Convolution::new(shape, weight, bias)?)
    }

    fn norm(&self, groups: usize, weight: Vec<f32>, bias: Vec<f32>, epsilon: f64) -> Result<GroupNorm> {
        Ok(GroupNorm::new(groups, weight, bias, epsilon)?)
    }

    fn map(&self, values: &[f32], shape: [usize; 4]) -> Result<FeatureMap> {
        Ok(FeatureMap::from_nchw(values, shape)?)
    }

    fn values(map: &FeatureMap) -> Result<(Vec<f32>, [usize; 4])> {
        Ok((map.to_nchw(), map.shape()))
    }

    fn convolve(convolution: &Convolution, x: &FeatureMap, add_to: Option<FeatureMap>) -> Result<FeatureMap> {
        Ok(convolution.forward(x, output(add_to))?)
    }

    fn norm_silu_convolve(
        norm: &GroupNorm,
        convolution: &Convolution,
        x: &FeatureMap,
        add_to: Option<FeatureMap>,
    ) -> Result<FeatureMap> {
        let affine = norm.measure(x)?;
        Ok(convolution.forward(Input::normalized_silu(x, &affine), output(add_to))?)
    }

    fn upsample_convolve(convolution: &Convolution, x: &FeatureMap) -> Result<FeatureMap> {
        Ok(convolution.forward(Input::upsampled(x), Output::Plain)?)
    }

    fn normalize(norm: &GroupNorm, x: &FeatureMap) -> Result<FeatureMap> {
        Ok(norm.measure(x)?.apply(x))
    }

    fn attend(query: &FeatureMap, key: &FeatureMap, value: &FeatureMap) -> Result<FeatureMap> {
        Ok(pixel_attention(query, key, value)?)
    }
}
