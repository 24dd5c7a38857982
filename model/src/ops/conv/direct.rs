//! Convolutions without a transform: the taps of the kernel are blocks of the sum (an implicit matrix product).
//!
//! A task copies the input rows it needs, with their padding, into a strip that stays in the second-level cache. In the
//! strip the columns are sorted by their remainder modulo the horizontal stride, so that the pixels under one tap are
//! neighbours at every stride. A 1×1 convolution of an unchanged map needs no strip: the map itself is the left side.

use rayon::prelude::*;

use super::aligned::{AlignedBuffer, Scratch, SharedMut, LANES};
use super::convolution::Target;
use super::lanes::{dispatch, Kernel, Lanes};
use super::product::Product;
use super::{ConvolutionShape, FeatureMap, Input};

/// Values a strip should not exceed.
const STRIP_VALUES: usize = 96 * 1024;
/// Pixels of a task of a 1×1 convolution.
const PIXELS_PER_TASK: usize = 112;
/// Tasks a convolution is cut into at the least.
const TASKS: usize = 16;

/// Weights as `(out blocks, taps · in blocks, 16 in, 16 out)`.
#[derive(Clone, Debug)]
pub(super) struct Direct {
    weights: AlignedBuffer,
}

impl Direct {
    pub(super) fn new(shape: &ConvolutionShape, weight: &[f32]) -> Self {
        let taps = shape.kernel.0 * shape.kernel.1;
        let (in_blocks, out_blocks) = (shape.in_blocks(), shape.out_blocks());
        let mut weights = AlignedBuffer::zeros(out_blocks * taps * in_blocks * LANES * LANES);
        let packed = weights.values_mut();
        for out_channel in 0..shape.out_channels {
            for in_channel in 0..shape.in_channels {
                for tap in 0..taps {
                    let group = (out_channel / LANES * taps + tap) * in_blocks + in_channel / LANES;
                    packed[(group * LANES + in_channel % LANES) * LANES + out_channel % LANES] =
                        weight[(out_channel * shape.in_channels + in_channel) * taps + tap];
                }
            }
        }
        Self { weights }
    }

    pub(super) fn run(&self, shape: &ConvolutionShape, input: &Input<'_>, target: &Target<'_>) {
        match input.unchanged() {
            Some(map) if shape.is_pointwise() => self.pointwise(shape, map, target),
            _ => self.strips(shape, input, target),
        }
    }

    fn pointwise(&self, shape: &ConvolutionShape, map: &FeatureMap, target: &Target<'_>) {
        let pixels = map.height() * map.width();
        let parts = pixels.div_ceil(PIXELS_PER_TASK);
        let offsets: Vec<usize> = (0..shape.in_blocks()).map(|block| block * pixels * LANES).collect();
        (0..map.batch() * parts).into_par_iter().for_each(|task| {
            let (image, first) = (task / parts, task % parts * PIXELS_PER_TASK);
            let product = Product {
                a: map.image(image)[first * LANES..].as_ptr(),
                offsets: &offsets,
                rows: PIXELS_PER_TASK.min(pixels - first),
                ..self.product(shape, target, 0, shape.out_blocks())
            };
            // SAFETY: the pixels `first..first + rows` of all blocks belong to the map, and those of the target to this
            // task alone.
            unsafe {
                let c = target.pixel(image, 0, first);
                dispatch(Multiply(Product { c, ..product }));
            }
        });
    }

    /// Everything about a product but its left side and its place in the target.
    fn product<'a>(&self, shape: &ConvolutionShape, target: &Target<'_>, block: usize, blocks: usize) -> Product<'a> {
        let b_stride = shape.kernel.0 * shape.kernel.1 * shape.in_blocks() * LANES * LANES;
        Product {
            a: std::ptr::null(),
            offsets: &[],
            b: self.weights.values()[block * b_stride..].as_ptr(),
            b_stride,
            c: std::ptr::null_mut(),
            c_stride: target.pixels() * LANES,
            rows: 0,
            column_blocks: blocks,
            bias: target.bias[block * LANES..].as_ptr(),
            accumulate: target.accumulate,
            relu: target.relu,
        }
    }

    fn strips(&self, shape: &ConvolutionShape, input: &Input<'_>, target: &Target<'_>) {
        let [batch, _, _, width] = input.shape();
        let (in_blocks, out_blocks) = (shape.in_blocks(), shape.out_blocks());
        let (kernel, stride, padding) = (shape.kernel, shape.stride, shape.padding);
        // Pixels of one remainder in a strip's row.
        let columns = (width + padding.left + padding.right).div_ceil(stride.1);
        let row_values = columns * stride.1 * LANES;
        let input_rows = |rows: usize| (rows - 1) * stride.0 + kernel.0;
        let mut rows = target.height.div_ceil(TASKS.div_ceil(batch)).max(1);
        while rows > 1 && in_blocks * input_rows(rows) * row_values > STRIP_VALUES {
            rows -= 1;
        }
        let bands = target.height.div_ceil(rows);
        let parts = TASKS.div_ceil(batch * bands).min(out_blocks.div_ceil(2));
        let blocks_per_part = out_blocks.div_ceil(parts).next_multiple_of(2);
        let parts = out_blocks.div_ceil(blocks_per_part);
        let offsets: Vec<usize> = (0..kernel.0 * kernel.1 * in_blocks)
            .map(|group| {
                let (tap, block) = (group / in_blocks, group % in_blocks);
                let (tap_y, tap_x) = (tap / kernel.1, tap % kernel.1);
                let row = block * input_rows(rows) + tap_y;
                row * row_values + (tap_x % stride.1 * columns + tap_x / stride.1) * LANES
            })
            .collect();
        (0..batch * bands * parts).into_par_iter().for_each(|task| {
            let (image, band, part) = (task / parts / bands, task / parts % bands, task % parts);
            let first_row = band * rows;
            let first_block = part * blocks_per_part;
            let mut strip = Scratch::take(in_blocks * input_rows(rows) * row_values + row_values);
            let task = Strip {
                input,
                image,
                in_blocks,
                first_input_row: (first_row * stride.0) as isize - padding.top as isize,
                first_input_column: -(padding.left as isize),
                input_rows: input_rows(rows),
                columns,
                column_stride: stride.1,
                row_stride: stride.0,
                strip: strip.values_mut(),
                output_rows: rows.min(target.height - first_row),
                // SAFETY: row and block exist in the target.
                output: unsafe { SharedMut::from(target.pixel(image, first_block, first_row * target.width)) },
                output_width: target.width,
                product: Product {
                    offsets: &offsets,
                    rows: target.width,
                    ..self.product(
                        shape,
                        target,
                        first_block,
                        blocks_per_part.min(out_blocks - first_block),
                    )
                },
            };
            // SAFETY: the strip has room for all rows and one more; this task alone writes its rows of its blocks.
            unsafe { dispatch(task) };
        });
    }
}

struct Multiply<'a>(Product<'a>);

impl Kernel for Multiply<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller's promise.
        unsafe { L::multiply(&self.0) }
    }
}

/// A band of output rows.
struct Strip<'a> {
    input: &'a Input<'a>,
    image: usize,
    in_blocks: usize,
    first_input_row: isize,
    first_input_column: isize,
    input_rows: usize,
    columns: usize,
    column_stride: usize,
    row_stride: usize,
    strip: &'a mut [f32],
    output_rows: usize,
    output: SharedMut,
    output_width: usize,
    product: Product<'a>,
}

impl Kernel for Strip<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let row_pixels = self.columns * self.column_stride;
        let row_values = row_pixels * LANES;
        let (strip, sorted) = self.strip.split_at_mut(self.in_blocks * self.input_rows * row_values);
        // SAFETY: rows of the strip are `row_pixels` long; rows and columns of the product lie within the strip, because
        // the last pixel under the last tap is still padding or picture.
        unsafe {
            for (index, row) in strip.chunks_exact_mut(row_values).enumerate() {
                let (block, y) = (index / self.input_rows, index % self.input_rows);
                let origin = (self.first_input_row + y as isize, self.first_input_column);
                if self.column_stride == 1 {
                    self.input
                        .row::<L>((self.image, block), origin, row_pixels, row.as_mut_ptr());
                    continue;
                }
                self.input
                    .row::<L>((self.image, block), origin, row_pixels, sorted.as_mut_ptr());
                for pixel in 0..row_pixels {
                    let place = pixel % self.column_stride * self.columns + pixel / self.column_stride;
                    L::load(sorted.as_ptr().add(pixel * LANES)).store(row.as_mut_ptr().add(place * LANES));
                }
            }
            for row in 0..self.output_rows {
                L::multiply(&Product {
                    a: strip.as_ptr().add(row * self.row_stride * row_values),
                    c: self.output.add(row * self.output_width * LANES),
                    ..self.product
                });
            }
        }
    }
}
