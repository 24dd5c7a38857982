//! GroupNorm (Wu & He 2018) as a scale and a shift for every channel, applied by the convolution that reads the map.

use rayon::prelude::*;

use super::aligned::LANES;
use super::{ConvolutionError, FeatureMap};

/// Pixels whose sum is kept in f32 before it is added up in f64.
const PIXELS_PER_PART: usize = 64;

/// GroupNorm with its learned parameters.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    groups: usize,
    weight: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f64,
}

/// A scale and a shift for every channel of every picture.
#[derive(Clone, Debug)]
pub struct ChannelAffine {
    channels: usize,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

/// Mean and sum of squared deviations of some values.
#[derive(Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// The moments of both sets together (Chan, Golub & LeVeque 1979).
    fn merge(self, other: Self) -> Self {
        let count = self.count + other.count;
        if count == 0.0 {
            return self;
        }
        let difference = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + difference * other.count / count,
            squares: self.squares + other.squares + difference * difference * self.count * other.count / count,
        }
    }
}

impl GroupNorm {
    /// `weight` and `bias` have a value a channel.
    ///
    /// # Errors
    /// When the lengths differ or the channels cannot be cut into `groups`.
    pub fn new(groups: usize, weight: Vec<f32>, bias: Vec<f32>, epsilon: f64) -> Result<Self, ConvolutionError> {
        if bias.len() != weight.len() {
            let (found, expected) = (bias.len(), weight.len());
            return Err(ConvolutionError::Length {
                what: "the bias of a GroupNorm",
                found,
                expected,
            });
        }
        if groups == 0 || !weight.len().is_multiple_of(groups) {
            return Err(ConvolutionError::Groups {
                channels: weight.len(),
                groups,
            });
        }
        Ok(Self {
            groups,
            weight,
            bias,
            epsilon,
        })
    }

    /// Measures the groups of every picture; `scale · x + shift` is the normalised map.
    ///
    /// # Errors
    /// When the map has another number of channels.
    pub fn measure(&self, map: &FeatureMap) -> Result<ChannelAffine, ConvolutionError> {
        let channels = self.weight.len();
        let [batch, found, height, width] = map.shape();
        if found != channels {
            return Err(ConvolutionError::Shape {
                what: "the input of a GroupNorm",
                found: map.shape(),
                expected: [batch, channels, height, width],
            });
        }
        let blocks = map.channel_blocks();
        let planes: Vec<[Moments; LANES]> = (0..batch * blocks)
            .into_par_iter()
            .map(|plane| plane_moments(map.plane(plane / blocks, plane % blocks)))
            .collect();
        let padded = blocks * LANES;
        let mut affine = ChannelAffine {
            channels: padded,
            scale: vec![0.0; batch * padded],
            shift: vec![0.0; batch * padded],
        };
        let group_channels = channels / self.groups;
        for image in 0..batch {
            for group in 0..self.groups {
                let members = group * group_channels..(group + 1) * group_channels;
                let moments = members
                    .clone()
                    .map(|channel| planes[image * blocks + channel / LANES][channel % LANES])
                    .fold(Moments::default(), Moments::merge);
                let deviation = (moments.squares / moments.count.max(1.0) + self.epsilon).sqrt();
                for channel in members {
                    let scale = f64::from(self.weight[channel]) / deviation;
                    affine.scale[image * padded + channel] = scale as f32;
                    affine.shift[image * padded + channel] =
                        (f64::from(self.bias[channel]) - scale * moments.mean) as f32;
                }
            }
        }
        Ok(affine)
    }
}

impl ChannelAffine {
    /// Scale and shift of sixteen channels of a picture.
    pub(super) fn block(&self, image: usize, block: usize) -> (&[f32], &[f32]) {
        let range = image * self.channels + block * LANES..image * self.channels + (block + 1) * LANES;
        (&self.scale[range.clone()], &self.shift[range])
    }

    /// `scale · x + shift` of the whole map.
    pub fn apply(&self, map: &FeatureMap) -> FeatureMap {
        let mut result = map.clone();
        let blocks = map.channel_blocks();
        let pixels = map.height() * map.width();
        result
            .values_mut()
            .par_chunks_exact_mut((pixels * LANES).max(1))
            .enumerate()
            .for_each(|(plane, values)| {
                let (scale, shift) = self.block(plane / blocks, plane % blocks);
                for pixel in values.chunks_exact_mut(LANES) {
                    for ((value, scale), shift) in pixel.iter_mut().zip(scale).zip(shift) {
                        *value = *value * scale + shift;
                    }
                }
            });
        result
    }
}

/// Moments of sixteen channels. The parts are the same whatever runs them, so the result is too.
fn plane_moments(plane: &[f32]) -> [Moments; LANES] {
    let mut moments = [Moments::default(); LANES];
    for part in plane.chunks(PIXELS_PER_PART * LANES) {
        let count = part.len() / LANES;
        let mut mean = [0.0f32; LANES];
        for pixel in part.chunks_exact(LANES) {
            for (mean, value) in mean.iter_mut().zip(pixel) {
                *mean += value;
            }
        }
        mean.iter_mut().for_each(|mean| *mean /= count as f32);
        let (mut squares, mut remainder) = ([0.0f32; LANES], [0.0f32; LANES]);
        for pixel in part.chunks_exact(LANES) {
            for lane in 0..LANES {
                let deviation = pixel[lane] - mean[lane];
                squares[lane] += deviation * deviation;
                remainder[lane] += deviation;
            }
        }
        for lane in 0..LANES {
            // The remainder is what the mean lost by rounding to f32.
            let error = f64::from(remainder[lane]) / count as f64;
            let part = Moments {
                count: count as f64,
                mean: f64::from(mean[lane]) + error,
                squares: f64::from(squares[lane]) - error * error * count as f64,
            };
            moments[lane] = moments[lane].merge(part);
        }
    }
    moments
}
