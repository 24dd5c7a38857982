//! Convolution, pools and GroupNorm as their definitions say, on `(channels, height, width)`: the oracles of the tests.

use super::{ConvolutionShape, Padding};

/// One picture's convolution, summed in f64.
pub fn convolution(
    shape: &ConvolutionShape,
    weight: &[f32],
    bias: &[f32],
    input: &[f32],
    (height, width): (usize, usize),
) -> Vec<f32> {
    let (kernel_height, kernel_width) = shape.kernel;
    let (rows, columns) = shape.output_size(height, width).unwrap_or_default();
    let mut output = Vec::with_capacity(shape.out_channels * rows * columns);
    for (out_channel, &bias) in bias.iter().enumerate() {
        for row in 0..rows {
            for column in 0..columns {
                let mut sum = f64::from(bias);
                for in_channel in 0..shape.in_channels {
                    for tap_y in 0..kernel_height {
                        for tap_x in 0..kernel_width {
                            let y = (row * shape.stride.0 + tap_y).wrapping_sub(shape.padding.top);
                            let x = (column * shape.stride.1 + tap_x).wrapping_sub(shape.padding.left);
                            if y < height && x < width {
                                let tap = ((out_channel * shape.in_channels + in_channel) * kernel_height + tap_y)
                                    * kernel_width
                                    + tap_x;
                                let value = input[(in_channel * height + y) * width + x];
                                sum += f64::from(weight[tap]) * f64::from(value);
                            }
                        }
                    }
                }
                output.push(sum as f32);
            }
        }
    }
    output
}

/// One picture's GroupNorm, in f64.
pub fn group_norm(groups: usize, weight: &[f32], bias: &[f32], epsilon: f64, input: &[f32]) -> Vec<f32> {
    let pixels = input.len() / weight.len();
    let mut output = input.to_vec();
    for (group, values) in output.chunks_mut(input.len() / groups).enumerate() {
        let count = values.len() as f64;
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
        let variance = values
            .iter()
            .map(|&value| (f64::from(value) - mean).powi(2))
            .sum::<f64>()
            / count;
        let first = group * (weight.len() / groups);
        for (index, value) in values.iter_mut().enumerate() {
            let channel = first + index / pixels;
            let normalized = (f64::from(*value) - mean) / (variance + epsilon).sqrt();
            *value = (normalized * f64::from(weight[channel]) + f64::from(bias[channel])) as f32;
        }
    }
    output
}

/// The nearest-neighbour enlargement of `(channels, height, width)` to twice its height and width.
pub fn upsample(input: &[f32], width: usize) -> Vec<f32> {
    let mut output = Vec::with_capacity(input.len() * 4);
    for row in input.chunks_exact(width) {
        for _ in 0..2 {
            output.extend(row.iter().flat_map(|&value| [value, value]));
        }
    }
    output
}

/// The values of every window of a pool, in order; `None` for a place in the padding.
pub fn windows(
    input: &[f32],
    (height, width): (usize, usize),
    kernel: (usize, usize),
    stride: (usize, usize),
    padding: Padding,
) -> Vec<Vec<Option<f32>>> {
    let rows = (height + padding.top + padding.bottom - kernel.0) / stride.0 + 1;
    let columns = (width + padding.left + padding.right - kernel.1) / stride.1 + 1;
    let mut windows = Vec::new();
    for plane in input.chunks_exact(height * width) {
        for place in 0..rows * columns {
            let (row, column) = (place / columns, place % columns);
            let taps = (0..kernel.0 * kernel.1).map(|tap| {
                let y = (row * stride.0 + tap / kernel.1).wrapping_sub(padding.top);
                let x = (column * stride.1 + tap % kernel.1).wrapping_sub(padding.left);
                (y < height && x < width).then(|| plane[y * width + x])
            });
            windows.push(taps.collect());
        }
    }
    windows
}
