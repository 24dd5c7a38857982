//! Self-attention with one head over the pixels of a feature map.
//!
//! A task takes a block of query pixels: scores against all keys, softmax, weighted sum of the values. Only the scores of
//! that block exist at a time.

use rayon::prelude::*;

use super::aligned::{AlignedBuffer, Scratch, LANES};
use super::lanes::{dispatch, Kernel, Lanes};
use super::product::Product;
use super::{ConvolutionError, FeatureMap};

/// Query pixels of a task.
const QUERIES: usize = 28;

/// `softmax(q·kᵀ/√C)·v` for every picture; the three maps have one shape `(batch, C, height, width)`.
///
/// # Errors
/// When the shapes differ.
pub fn pixel_attention(
    query: &FeatureMap,
    key: &FeatureMap,
    value: &FeatureMap,
) -> Result<FeatureMap, ConvolutionError> {
    for (what, map) in [("the keys of an attention", key), ("the values of an attention", value)] {
        if map.shape() != query.shape() {
            return Err(ConvolutionError::Shape {
                what,
                found: map.shape(),
                expected: query.shape(),
            });
        }
    }
    let [batch, channels, height, width] = query.shape();
    let mut result = FeatureMap::zeros(batch, channels, height, width);
    for image in 0..batch {
        attend(query, key, value, image, &mut result);
    }
    Ok(result)
}

fn attend(query: &FeatureMap, key: &FeatureMap, value: &FeatureMap, image: usize, result: &mut FeatureMap) {
    let blocks = query.channel_blocks();
    let pixels = query.height() * query.width();
    let key_blocks = pixels.div_ceil(LANES);
    let keys = transposed_keys(key, image, key_blocks);
    let values = padded_values(value, image, key_blocks);
    let channel_offsets: Vec<usize> = (0..blocks).map(|block| block * pixels * LANES).collect();
    let image_values = blocks * pixels * LANES;
    let target = super::aligned::SharedMut::from(result.values_mut()[image * image_values..].as_mut_ptr());
    (0..pixels.div_ceil(QUERIES)).into_par_iter().for_each(|task| {
        let first = task * QUERIES;
        let rows = QUERIES.min(pixels - first);
        let mut scores = Scratch::take(key_blocks * rows * LANES);
        let scores = scores.values_mut().as_mut_ptr();
        let score_offsets: Vec<usize> = (0..key_blocks).map(|block| block * rows * LANES).collect();
        let plain = Product {
            a: std::ptr::null(),
            offsets: &[],
            b: std::ptr::null(),
            b_stride: 0,
            c: scores,
            c_stride: 0,
            rows,
            column_blocks: 0,
            bias: std::ptr::null(),
            accumulate: false,
            relu: false,
        };
        let task = Attend {
            scores: Product {
                a: query.image(image)[first * LANES..].as_ptr(),
                offsets: &channel_offsets,
                b: keys.values().as_ptr(),
                b_stride: blocks * LANES * LANES,
                c_stride: rows * LANES,
                column_blocks: key_blocks,
                ..plain
            },
            sums: Product {
                a: scores,
                offsets: &score_offsets,
                b: values.values().as_ptr(),
                b_stride: key_blocks * LANES * LANES,
                // SAFETY: the block's pixels belong to the result.
                c: unsafe { target.add(first * LANES) },
                c_stride: pixels * LANES,
                column_blocks: blocks,
                ..plain
            },
            keys: pixels,
            scale: 1.0 / (query.channels() as f32).sqrt(),
        };
        // SAFETY: all blocks and rows lie within the buffers; this task alone writes its pixels.
        unsafe { dispatch(task) };
    });
}

/// Keys as `(blocks of sixteen pixels, channels, 16 pixels)`; pixels that do not exist are zero.
fn transposed_keys(key: &FeatureMap, image: usize, key_blocks: usize) -> AlignedBuffer {
    let blocks = key.channel_blocks();
    let mut keys = AlignedBuffer::zeros(key_blocks * blocks * LANES * LANES);
    keys.values_mut()
        .par_chunks_exact_mut(blocks * LANES * LANES)
        .enumerate()
        .for_each(|(pixel_block, target)| {
            for block in 0..blocks {
                let source = key
                    .plane(image, block)
                    .chunks_exact(LANES)
                    .skip(pixel_block * LANES)
                    .take(LANES);
                for (pixel, channels) in source.enumerate() {
                    for (channel, &value) in channels.iter().enumerate() {
                        target[(block * LANES + channel) * LANES + pixel] = value;
                    }
                }
            }
        });
    keys
}

/// Values as `(channel blocks, pixels, 16)` with zeros up to a whole number of sixteen pixels.
fn padded_values(value: &FeatureMap, image: usize, key_blocks: usize) -> AlignedBuffer {
    let blocks = value.channel_blocks();
    let mut values = AlignedBuffer::zeros(blocks * key_blocks * LANES * LANES);
    for (block, target) in values
        .values_mut()
        .chunks_exact_mut(key_blocks * LANES * LANES)
        .enumerate()
    {
        let source = value.plane(image, block);
        target[..source.len()].copy_from_slice(source);
    }
    values
}

struct Attend<'a> {
    scores: Product<'a>,
    sums: Product<'a>,
    keys: usize,
    scale: f32,
}

impl Kernel for Attend<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller's promise.
        unsafe {
            L::multiply(&self.scores);
            for row in 0..self.scores.rows {
                let row = self.scores.c.add(row * LANES);
                softmax::<L>(row, self.scores.c_stride, self.keys, self.scale);
            }
            L::multiply(&self.sums);
        }
    }
}

/// Softmax of `scale · row`, whose blocks of sixteen are `stride` apart; what lies behind `count` becomes zero.
#[inline(always)]
unsafe fn softmax<L: Lanes>(row: *mut f32, stride: usize, count: usize, scale: f32) {
    let blocks = count.div_ceil(LANES);
    // SAFETY: the caller promises blocks of sixteen values.
    unsafe {
        let last = std::slice::from_raw_parts_mut(row.add((blocks - 1) * stride), LANES);
        let beyond = count - (blocks - 1) * LANES;
        last[beyond..].fill(f32::NEG_INFINITY);
        let mut lanes = [0.0f32; LANES];
        let mut largest = L::load(row);
        for block in 1..blocks {
            largest = largest.max(L::load(row.add(block * stride)));
        }
        largest.store(lanes.as_mut_ptr());
        let largest = L::splat(lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let factor = L::splat(scale);
        let mut sums = L::splat(0.0);
        for block in 0..blocks {
            let values = row.add(block * stride);
            let exponential = L::load(values).sub(largest).mul(factor).exp();
            exponential.store(values);
            if block + 1 == blocks {
                last[beyond..].fill(0.0);
            }
            sums = sums.add(L::load(values));
        }
        sums.store(lanes.as_mut_ptr());
        let inverse = L::splat(1.0 / lanes.iter().sum::<f32>());
        for block in 0..blocks {
            let values = row.add(block * stride);
            L::load(values).mul(inverse).store(values);
        }
    }
}
