//! 3×3 convolutions of stride 1 with a quarter of the multiplications: Winograd's F(4×4, 3×3).
//!
//! Input tiles are transformed into `V` (a matrix of tiles by input channels for each of 36 points), multiplied with the
//! transformed weights `U`, and the products `M` are transformed back and written. Neither `V` nor `M` ever holds the
//! whole picture:
//!
//! * With few weights ([`Weights::Transformed`]) a task takes a block of tiles through all three steps; its `V` and `M`
//!   stay in the second-level cache, while `U` comes from the third.
//! * With many ([`Weights::Direct`]) `U` would take four times the memory of the weights and would be read from it for
//!   every block. So `V` of a large group of tiles is shared, and a task takes two blocks of output channels through the
//!   last two steps, having transformed their weights itself.

use rayon::prelude::*;

use super::aligned::{AlignedBuffer, Scratch, SharedMut, LANES};
use super::convolution::Target;
use super::lanes::{dispatch, Kernel, Lanes};
use super::product::Product;
use super::transform::{self, POINTS, STEP, TILE};
use super::{ConvolutionShape, Input};

/// Up to so many values the weights are kept transformed (36 instead of 9 a pair of channels).
const TRANSFORMED_PAIRS: usize = 256 * 256;
/// Tiles a task takes through all steps.
const TILES_PER_TASK: usize = 28;
/// Tiles a shared `V` is multiplied by at once.
const TILES_PER_PRODUCT: usize = 56;
/// Values of a shared `V`.
const SHARED_VALUES: usize = 5 << 20;
/// Blocks of output channels that are computed together.
const PANEL_BLOCKS: usize = 2;

#[derive(Clone, Debug)]
pub(super) struct Winograd {
    in_blocks: usize,
    out_blocks: usize,
    weights: Weights,
}

#[derive(Clone, Debug)]
enum Weights {
    /// `(panels, 36, blocks of the panel, in channels, 16)`.
    Transformed(AlignedBuffer),
    /// `(out blocks, in channels, 9, 16)`.
    Direct(AlignedBuffer),
}

impl Winograd {
    pub(super) fn new(shape: &ConvolutionShape, weight: &[f32]) -> Self {
        let (in_blocks, out_blocks) = (shape.in_blocks(), shape.out_blocks());
        let in_channels = in_blocks * LANES;
        let mut direct = AlignedBuffer::zeros(out_blocks * in_channels * 9 * LANES);
        let packed = direct.values_mut();
        for (pair, taps) in weight.chunks_exact(9).enumerate() {
            let (out_channel, in_channel) = (pair / shape.in_channels, pair % shape.in_channels);
            let first = (out_channel / LANES * in_channels + in_channel) * 9 * LANES + out_channel % LANES;
            for (tap, &value) in taps.iter().enumerate() {
                packed[first + tap * LANES] = value;
            }
        }
        let mut this = Self {
            in_blocks,
            out_blocks,
            weights: Weights::Direct(direct),
        };
        if in_blocks * out_blocks * LANES * LANES <= TRANSFORMED_PAIRS {
            let mut transformed = AlignedBuffer::zeros(POINTS * out_blocks * in_channels * LANES);
            let panel_values = POINTS * PANEL_BLOCKS * in_channels * LANES;
            for (panel, values) in transformed.values_mut().chunks_mut(panel_values).enumerate() {
                this.transform_panel(panel, values);
            }
            this.weights = Weights::Transformed(transformed);
        }
        this
    }

    /// Blocks of output channels of a panel: all have [`PANEL_BLOCKS`] but perhaps the last.
    fn panel_blocks(&self, panel: usize) -> usize {
        PANEL_BLOCKS.min(self.out_blocks - panel * PANEL_BLOCKS)
    }

    fn panel_values(&self, panel: usize) -> usize {
        POINTS * self.panel_blocks(panel) * self.in_blocks * LANES * LANES
    }

    /// Transforms direct weights of a panel into `(36, blocks, in channels, 16)`.
    fn transform_panel(&self, panel: usize, to: &mut [f32]) {
        if let Weights::Direct(direct) = &self.weights {
            let panel_pairs = self.in_blocks * LANES * PANEL_BLOCKS;
            let pairs = self.in_blocks * LANES * self.panel_blocks(panel);
            let from = &direct.values()[panel * panel_pairs * 9 * LANES..][..pairs * 9 * LANES];
            let to = &mut to[..POINTS * pairs * LANES];
            // SAFETY: nine taps and thirty-six points of every pair lie within the two slices.
            unsafe { dispatch(TransformWeights { from, to, pairs }) };
        }
    }

    pub(super) fn run(&self, shape: &ConvolutionShape, input: &Input<'_>, target: &Target<'_>) {
        let tiles_across = target.width.div_ceil(STEP);
        let layer = Layer {
            winograd: self,
            input,
            target,
            origin: (-(shape.padding.top as isize), -(shape.padding.left as isize)),
            tiles_across,
            tiles: tiles_across * target.height.div_ceil(STEP),
        };
        match &self.weights {
            Weights::Transformed(weights) => layer.block_by_block(input.shape()[0], weights.values()),
            Weights::Direct(_) => (0..input.shape()[0]).for_each(|image| layer.group_by_group(image)),
        }
    }
}

/// One convolution at work.
struct Layer<'a> {
    winograd: &'a Winograd,
    input: &'a Input<'a>,
    target: &'a Target<'a>,
    /// Row and column of the first tile's first pixel.
    origin: (isize, isize),
    tiles_across: usize,
    tiles: usize,
}

/// Transformed input of some tiles, `(36, in blocks, tiles, 16)`.
#[derive(Clone, Copy)]
struct Transformed {
    values: SharedMut,
    image: usize,
    first_tile: usize,
    tiles: usize,
}

impl Layer<'_> {
    fn in_channels(&self) -> usize {
        self.winograd.in_blocks * LANES
    }

    /// Every task takes a block of tiles through all steps.
    fn block_by_block(&self, batch: usize, weights: &[f32]) {
        let blocks = self.tiles.div_ceil(TILES_PER_TASK);
        let panels = self.winograd.out_blocks.div_ceil(PANEL_BLOCKS);
        (0..batch * blocks).into_par_iter().for_each(|task| {
            let (first, tiles) = share(self.tiles, blocks, task % blocks);
            let mut input = Scratch::take(POINTS * self.in_channels() * tiles);
            let transformed = Transformed {
                values: SharedMut::from(input.values_mut().as_mut_ptr()),
                image: task / blocks,
                first_tile: first,
                tiles,
            };
            self.transform_input(transformed, 0, self.winograd.in_blocks, (0, tiles));
            for panel in 0..panels {
                let weights = &weights[panel * self.winograd.panel_values(0)..];
                self.multiply(transformed, panel, weights, (0, tiles));
            }
        });
    }

    /// All threads transform a group of tiles, then every task takes a panel of output channels through the rest.
    fn group_by_group(&self, image: usize) {
        let most = (SHARED_VALUES / (POINTS * self.in_channels())).max(TILES_PER_PRODUCT);
        let groups = self.tiles.div_ceil(most);
        for group in 0..groups {
            let (first, tiles) = share(self.tiles, groups, group);
            let mut input = Scratch::take(POINTS * self.in_channels() * tiles);
            let transformed = Transformed {
                values: SharedMut::from(input.values_mut().as_mut_ptr()),
                image,
                first_tile: first,
                tiles,
            };
            let parts = tiles.div_ceil(TILES_PER_PRODUCT);
            (0..self.winograd.in_blocks * parts).into_par_iter().for_each(|task| {
                self.transform_input(transformed, task / parts, 1, share(tiles, parts, task % parts));
            });
            let panels = self.winograd.out_blocks.div_ceil(PANEL_BLOCKS);
            (0..panels).into_par_iter().for_each(|panel| {
                let mut weights = Scratch::take(self.winograd.panel_values(panel));
                self.winograd.transform_panel(panel, weights.values_mut());
                for part in 0..parts {
                    self.multiply(transformed, panel, weights.values_mut(), share(tiles, parts, part));
                }
            });
        }
    }

    /// Transforms blocks of input channels of the tiles `(first, count)` of a group.
    fn transform_input(&self, to: Transformed, first_block: usize, blocks: usize, (first, count): (usize, usize)) {
        let strip_pixels = self.tiles_across.min(count) * STEP + TILE - STEP;
        let mut strip = Scratch::take(TILE * strip_pixels * LANES);
        let strip = strip.values_mut();
        let task = TransformInput {
            layer: self,
            to,
            first_block,
            blocks,
            first,
            count,
            strip,
        };
        // SAFETY: the strip has room for as many tiles of a row as there are; other tasks write other tiles or blocks.
        unsafe { dispatch(task) };
    }

    /// Multiplies the tiles `(first, count)` of a group with a panel and writes their pixels.
    fn multiply(&self, from: Transformed, panel: usize, weights: &[f32], (first, count): (usize, usize)) {
        let blocks = self.winograd.panel_blocks(panel);
        let mut products = Scratch::take(POINTS * blocks * count * LANES);
        let offsets: Vec<usize> = (0..self.winograd.in_blocks)
            .map(|block| block * from.tiles * LANES)
            .collect();
        let products = products.values_mut();
        let weights = &weights[..self.winograd.panel_values(panel)];
        let task = MultiplyPanel {
            layer: self,
            from,
            panel,
            blocks,
            weights,
            first,
            count,
            offsets: &offsets,
            products,
        };
        // SAFETY: `from` is complete; other tasks write other tiles or other channels of the target.
        unsafe { dispatch(task) };
    }
}

/// The part `index` of `total` things dealt out evenly: its first and how many it has.
fn share(total: usize, parts: usize, index: usize) -> (usize, usize) {
    let (first, end) = (total * index / parts, total * (index + 1) / parts);
    (first, end - first)
}

struct TransformWeights<'a> {
    from: &'a [f32],
    to: &'a mut [f32],
    pairs: usize,
}

impl Kernel for TransformWeights<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for pair in 0..self.pairs {
            // SAFETY: the caller's promise.
            unsafe {
                let to = self.to.as_mut_ptr().add(pair * LANES);
                transform::weight::<L>(self.from.as_ptr().add(pair * 9 * LANES), to, self.pairs * LANES);
            }
        }
    }
}

struct TransformInput<'a> {
    layer: &'a Layer<'a>,
    to: Transformed,
    first_block: usize,
    blocks: usize,
    first: usize,
    count: usize,
    strip: &'a mut [f32],
}

impl Kernel for TransformInput<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { layer, to, .. } = self;
        let point_stride = layer.winograd.in_blocks * to.tiles * LANES;
        let strip = self.strip.as_mut_ptr();
        for block in self.first_block..self.first_block + self.blocks {
            let mut tile = self.first;
            while tile < self.first + self.count {
                let place = to.first_tile + tile;
                let (row, column) = (place / layer.tiles_across, place % layer.tiles_across);
                let run = (layer.tiles_across - column).min(self.first + self.count - tile);
                let pixels = run * STEP + TILE - STEP;
                let y = (row * STEP) as isize + layer.origin.0;
                let x = (column * STEP) as isize + layer.origin.1;
                // SAFETY: the strip holds six rows of `pixels`; block and tile exist in `to`.
                unsafe {
                    for line in 0..TILE {
                        let to = strip.add(line * pixels * LANES);
                        layer
                            .input
                            .row::<L>((self.to.image, block), (y + line as isize, x), pixels, to);
                    }
                    for index in 0..run {
                        let to = to.values.add((block * to.tiles + tile + index) * LANES);
                        transform::input::<L>(strip.add(index * STEP * LANES), pixels * LANES, to, point_stride);
                    }
                }
                tile += run;
            }
        }
    }
}

struct MultiplyPanel<'a> {
    layer: &'a Layer<'a>,
    from: Transformed,
    panel: usize,
    blocks: usize,
    weights: &'a [f32],
    first: usize,
    count: usize,
    offsets: &'a [usize],
    products: &'a mut [f32],
}

impl Kernel for MultiplyPanel<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { layer, from, .. } = self;
        let in_channels = layer.in_channels();
        let target = layer.target;
        let products = self.products.as_mut_ptr();
        let point_values = self.blocks * self.count * LANES;
        // SAFETY: points, tiles and blocks lie within `from`, the weights and the products; pixels are cut to the target.
        unsafe {
            for point in 0..POINTS {
                L::multiply(&Product {
                    a: from
                        .values
                        .add((point * layer.winograd.in_blocks * from.tiles + self.first) * LANES),
                    offsets: self.offsets,
                    b: self.weights.as_ptr().add(point * self.blocks * in_channels * LANES),
                    b_stride: in_channels * LANES,
                    c: products.add(point * point_values),
                    c_stride: self.count * LANES,
                    rows: self.count,
                    column_blocks: self.blocks,
                    bias: std::ptr::null(),
                    accumulate: false,
                    relu: false,
                });
            }
            for block in 0..self.blocks {
                let out_block = self.panel * PANEL_BLOCKS + block;
                let bias = L::load(target.bias.as_ptr().add(out_block * LANES));
                for tile in 0..self.count {
                    let pixels =
                        transform::output::<L>(products.add((block * self.count + tile) * LANES), point_values);
                    let place = from.first_tile + self.first + tile;
                    let (y, x) = (place / layer.tiles_across * STEP, place % layer.tiles_across * STEP);
                    let (height, width) = (STEP.min(target.height - y), STEP.min(target.width - x));
                    for (row, pixels) in pixels.iter().enumerate().take(height) {
                        let to = target.pixel(from.image, out_block, (y + row) * target.width + x);
                        for (column, pixel) in pixels.iter().enumerate().take(width) {
                            let to = to.add(column * LANES);
                            let mut value = pixel.add(bias);
                            if target.accumulate {
                                value = value.add(L::load(to));
                            }
                            if target.relu {
                                value = value.max(L::splat(0.0));
                            }
                            value.store(to);
                        }
                    }
                }
            }
        }
    }
}
