//! Pooling.

use rayon::prelude::*;

use super::aligned::LANES;
use super::{ConvolutionError, FeatureMap, Padding};

/// How a window becomes one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The largest value of the picture in the window.
    Maximum,
    /// The mean of the window, where the padding counts as zeros.
    Average,
    /// The mean of the picture's values in the window.
    AverageWithoutPadding,
}

/// A window that slides over every channel.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    /// How a window becomes one value.
    pub pooling: Pooling,
    /// Height and width of the window.
    pub kernel: (usize, usize),
    /// Vertical and horizontal stride.
    pub stride: (usize, usize),
    /// Places around the picture; less than the kernel on every side.
    pub padding: Padding,
}

impl Pool {
    /// Pools every picture of the batch.
    ///
    /// # Errors
    /// When the window does not fit, or could lie in the padding altogether.
    pub fn forward(&self, map: &FeatureMap) -> Result<FeatureMap, ConvolutionError> {
        let [batch, channels, height, width] = map.shape();
        let Padding {
            top,
            bottom,
            left,
            right,
        } = self.padding;
        let (kernel_height, kernel_width) = self.kernel;
        let fits = height + top + bottom >= kernel_height && width + left + right >= kernel_width;
        let covers = top.max(bottom) < kernel_height && left.max(right) < kernel_width;
        if !fits || !covers || height == 0 || width == 0 {
            return Err(ConvolutionError::TooSmall {
                kernel: self.kernel,
                height,
                width,
            });
        }
        let rows = (height + top + bottom - kernel_height) / self.stride.0 + 1;
        let columns = (width + left + right - kernel_width) / self.stride.1 + 1;
        let mut pooled = FeatureMap::zeros(batch, channels, rows, columns);
        let blocks = map.channel_blocks();
        let row_values = columns * LANES;
        pooled
            .values_mut()
            .par_chunks_exact_mut(row_values)
            .enumerate()
            .for_each(|(index, row)| {
                let (plane, y) = (index / rows, index % rows * self.stride.0);
                let plane = map.plane(plane / blocks, plane % blocks);
                let lines = y.saturating_sub(top)..(y + kernel_height - top).min(height);
                for (column, target) in row.chunks_exact_mut(LANES).enumerate() {
                    let x = column * self.stride.1;
                    let places = x.saturating_sub(left)..(x + kernel_width - left).min(width);
                    let mut result = match self.pooling {
                        Pooling::Maximum => [f32::NEG_INFINITY; LANES],
                        Pooling::Average | Pooling::AverageWithoutPadding => [0.0; LANES],
                    };
                    for line in lines.clone() {
                        for pixel in
                            plane[(line * width + places.start) * LANES..][..places.len() * LANES].chunks_exact(LANES)
                        {
                            for (result, &value) in result.iter_mut().zip(pixel) {
                                *result = match self.pooling {
                                    Pooling::Maximum => result.max(value),
                                    Pooling::Average | Pooling::AverageWithoutPadding => *result + value,
                                };
                            }
                        }
                    }
                    let count = match self.pooling {
                        Pooling::Maximum => 1,
                        Pooling::Average => kernel_height * kernel_width,
                        Pooling::AverageWithoutPadding => lines.len() * places.len(),
                    };
                    for (target, result) in target.iter_mut().zip(result) {
                        *target = result / count as f32;
                    }
                }
            });
        Ok(pooled)
    }

    /// The mean of every channel, `(batch, channels)`.
    pub fn global_average(map: &FeatureMap) -> Vec<f32> {
        let pixels = map.height() * map.width();
        let means = map.to_nchw();
        let sum = |plane: &[f32]| plane.iter().map(|&value| f64::from(value)).sum::<f64>();
        means
            .chunks_exact(pixels.max(1))
            .map(|plane| (sum(plane) / pixels as f64) as f32)
            .collect()
    }
}
