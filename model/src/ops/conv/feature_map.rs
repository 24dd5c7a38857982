//! Pictures of many channels in the layout convolutions like best.

use rayon::prelude::*;

use super::aligned::{AlignedBuffer, LANES};
use super::ConvolutionError;

/// A batch of feature maps, `(batch, channels, height, width)`.
///
/// In memory the channels are cut into blocks of sixteen, and the sixteen values of a pixel are neighbours:
/// `(batch, channel blocks, height, width, 16)`. Channels that fill up the last block are zero.
#[derive(Clone, Debug)]
pub struct FeatureMap {
    batch: usize,
    channels: usize,
    height: usize,
    width: usize,
    data: AlignedBuffer,
}

impl FeatureMap {
    /// All zeros.
    pub fn zeros(batch: usize, channels: usize, height: usize, width: usize) -> Self {
        let len = batch * channels.next_multiple_of(LANES) * height * width;
        Self {
            batch,
            channels,
            height,
            width,
            data: AlignedBuffer::zeros_in_parallel(len),
        }
    }

    /// From values in the usual order `(batch, channels, height, width)`.
    ///
    /// # Errors
    /// When `values` is not as long as the shape says.
    pub fn from_nchw(values: &[f32], [batch, channels, height, width]: [usize; 4]) -> Result<Self, ConvolutionError> {
        let expected = batch * channels * height * width;
        if values.len() != expected {
            return Err(ConvolutionError::Length {
                what: "the feature map",
                found: values.len(),
                expected,
            });
        }
        let mut map = Self::zeros(batch, channels, height, width);
        let pixels = height * width;
        let blocks = map.channel_blocks();
        if pixels == 0 || expected == 0 {
            return Ok(map);
        }
        map.data
            .values_mut()
            .par_chunks_exact_mut(pixels * LANES)
            .enumerate()
            .for_each(|(plane, target)| {
                let (image, block) = (plane / blocks, plane % blocks);
                for channel in block * LANES..channels.min((block + 1) * LANES) {
                    let source = &values[(image * channels + channel) * pixels..][..pixels];
                    for (target, &value) in target[channel % LANES..].iter_mut().step_by(LANES).zip(source) {
                        *target = value;
                    }
                }
            });
        Ok(map)
    }

    /// The values in the usual order `(batch, channels, height, width)`.
    pub fn to_nchw(&self) -> Vec<f32> {
        let pixels = self.height * self.width;
        let mut values = vec![0.0; self.batch * self.channels * pixels];
        if values.is_empty() {
            return values;
        }
        values
            .par_chunks_exact_mut(pixels)
            .enumerate()
            .for_each(|(plane, target)| {
                let (image, channel) = (plane / self.channels, plane % self.channels);
                let source = &self.plane(image, channel / LANES)[channel % LANES..];
                for (target, &value) in target.iter_mut().zip(source.iter().step_by(LANES)) {
                    *target = value;
                }
            });
        values
    }

    /// Joins maps of the same batch and size along their channels.
    ///
    /// # Errors
    /// When there is no map, when sizes differ, or when a map other than the last has a number of channels that is not a
    /// multiple of sixteen.
    pub fn concatenate(maps: &[&Self]) -> Result<Self, ConvolutionError> {
        let first = maps.first().ok_or(ConvolutionError::Empty)?;
        let channels = maps.iter().map(|map| map.channels).sum();
        let mut joined = Self::zeros(first.batch, channels, first.height, first.width);
        let mut block = 0;
        for (index, map) in maps.iter().enumerate() {
            let found = [map.batch, map.channels, map.height, map.width];
            let expected = [first.batch, map.channels, first.height, first.width];
            if found != expected {
                return Err(ConvolutionError::Shape {
                    what: "a map to concatenate",
                    found,
                    expected,
                });
            }
            if !map.channels.is_multiple_of(LANES) && index + 1 < maps.len() {
                return Err(ConvolutionError::Channels { found: map.channels });
            }
            let blocks = map.channel_blocks();
            for image in 0..first.batch {
                for part in 0..blocks {
                    joined
                        .plane_mut(image, block + part)
                        .copy_from_slice(map.plane(image, part));
                }
            }
            block += blocks;
        }
        Ok(joined)
    }

    /// Number of pictures.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Pixels from top to bottom.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Pixels from left to right.
    pub fn width(&self) -> usize {
        self.width
    }

    /// `[batch, channels, height, width]`.
    pub fn shape(&self) -> [usize; 4] {
        [self.batch, self.channels, self.height, self.width]
    }

    /// Blocks of sixteen channels.
    pub(super) fn channel_blocks(&self) -> usize {
        self.channels.div_ceil(LANES)
    }

    /// The values of sixteen channels of one picture, `(height, width, 16)`.
    pub(super) fn plane(&self, image: usize, block: usize) -> &[f32] {
        let len = self.height * self.width * LANES;
        &self.data.values()[(image * self.channel_blocks() + block) * len..][..len]
    }

    pub(super) fn plane_mut(&mut self, image: usize, block: usize) -> &mut [f32] {
        let len = self.height * self.width * LANES;
        let start = (image * self.channel_blocks() + block) * len;
        &mut self.data.values_mut()[start..][..len]
    }

    /// All values of one picture, `(channel blocks, height, width, 16)`.
    pub(super) fn image(&self, image: usize) -> &[f32] {
        let len = self.channel_blocks() * self.height * self.width * LANES;
        &self.data.values()[image * len..][..len]
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        self.data.values_mut()
    }
}
