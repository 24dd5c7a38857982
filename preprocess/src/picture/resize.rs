//! Resampling with Pillow's arithmetic: rows first, rounded to bytes, then columns; weights in 22-bit fixed point.
//!
//! The libraries that resize faster round their weights to 15 bits, do columns first, or settle ties of the box filter the
//! other way round; each is a few grey levels away from what the published latents were computed from.

use super::{Colour, Pixels};

/// Fractional bits of a weight: 32 less 8 for the pixel and 2 for sums beyond one.
const PRECISION: u32 = 22;

/// Rows that are narrowed together, so that one tap of all of them is a few whole vectors.
const ROWS: usize = 8;

/// How neighbours are weighted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Filter {
    /// The plain average.
    Box,
    /// Cubic convolution with a = -1/2.
    Bicubic,
}

impl Filter {
    /// Half the width beyond which all weights are 0, in output pixels.
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        match self {
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bicubic => match x.abs() {
                x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                _ => 0.0,
            },
        }
    }
}

/// The pixels `start..start + length` of a side that is `of` pixels long after resizing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub of: usize,
    pub start: usize,
    pub length: usize,
}

impl Part {
    pub(super) const fn whole(of: usize) -> Self {
        Self {
            of,
            start: 0,
            length: of,
        }
    }
}

/// The source pixels `start..start + weights.len()` that make one output pixel.
struct Tap {
    start: usize,
    weights: Vec<i32>,
}

/// The part of `pixels` resized to `horizontal.of` × `vertical.of`; what lies outside the part is not computed.
pub(super) fn resize(pixels: &Pixels, horizontal: Part, vertical: Part, filter: Filter) -> Pixels {
    let rows = taps(pixels.height(), vertical, filter);
    let columns = taps(pixels.width(), horizontal, filter);
    let data = pulp::Arch::new().dispatch(Resample {
        pixels,
        columns: &columns,
        rows: &rows,
    });
    Pixels {
        width: horizontal.length,
        height: vertical.length,
        colour: pixels.colour(),
        data,
    }
}

/// Plain loops, several times faster when they are compiled for the widest vector unit found at run time. A closure would not
/// be: only what is inlined into the call is compiled for it, and a closure is called through a function of its own.
struct Resample<'a> {
    pixels: &'a Pixels,
    columns: &'a [Tap],
    rows: &'a [Tap],
}

impl pulp::NullaryFnOnce for Resample<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn call(self) -> Vec<u8> {
        match self.pixels.colour() {
            Colour::Grey => resample::<1, ROWS>(self.pixels, self.columns, self.rows),
            Colour::Rgb => resample::<3, { 3 * ROWS }>(self.pixels, self.columns, self.rows),
        }
    }
}

/// `LANES` are the values of the pixels of [`ROWS`] rows that lie abreast.
#[inline(always)]
fn resample<const CHANNELS: usize, const LANES: usize>(pixels: &Pixels, columns: &[Tap], rows: &[Tap]) -> Vec<u8> {
    let first = rows.iter().map(|tap| tap.start).min().unwrap_or(0);
    let last = rows.iter().map(|tap| tap.start + tap.weights.len()).max().unwrap_or(0);
    let stride = columns.len() * CHANNELS;
    let mut narrowed = vec![0; (last - first) * stride];
    let mut abreast = vec![[0; LANES]; pixels.width()];
    for (group, targets) in narrowed.chunks_mut(ROWS * stride).enumerate() {
        for row in 0..targets.len() / stride {
            let source = pixels.row(first + group * ROWS + row);
            for (pixel, lanes) in source.chunks_exact(CHANNELS).zip(&mut abreast) {
                for (lane, &value) in lanes[row * CHANNELS..][..CHANNELS].iter_mut().zip(pixel) {
                    *lane = i32::from(value);
                }
            }
        }
        combine_columns::<CHANNELS, LANES>(&abreast, columns, targets);
    }
    let mut data = vec![0; rows.len() * stride];
    let mut sums = vec![0; stride];
    for (tap, target) in rows.iter().zip(data.chunks_exact_mut(stride)) {
        combine_rows(&narrowed[(tap.start - first) * stride..], tap, &mut sums, target);
    }
    data
}

fn taps(source: usize, part: Part, filter: Filter) -> Vec<Tap> {
    if source == part.of {
        let one = |start| Tap {
            start,
            weights: vec![1 << PRECISION],
        };
        return (part.start..part.start + part.length).map(one).collect();
    }
    let scale = source as f64 / part.of as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let inverse = 1.0 / filter_scale;
    (part.start..part.start + part.length)
        .map(|position| {
            let centre = (position as f64 + 0.5) * scale;
            let start = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(source);
            let weights: Vec<f64> = (start..end)
                .map(|x| filter.weight((x as f64 - centre + 0.5) * inverse))
                .collect();
            let sum: f64 = weights.iter().sum();
            Tap {
                start,
                weights: weights.iter().map(|weight| fixed_point(weight / sum)).collect(),
            }
        })
        .collect()
}

fn fixed_point(weight: f64) -> i32 {
    (weight * f64::from(1 << PRECISION)).round() as i32
}

#[inline(always)]
fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// One output column after the other of the rows that lie abreast in `pixels`. All lanes are summed, also those of rows that
/// `targets` does not have, so that they fill whole vectors.
#[inline(always)]
fn combine_columns<const CHANNELS: usize, const LANES: usize>(
    pixels: &[[i32; LANES]],
    taps: &[Tap],
    targets: &mut [u8],
) {
    let stride = taps.len() * CHANNELS;
    for (column, tap) in taps.iter().enumerate() {
        let mut sums = [1 << (PRECISION - 1); LANES];
        for (lanes, &weight) in pixels[tap.start..tap.start + tap.weights.len()]
            .iter()
            .zip(&tap.weights)
        {
            for (sum, lane) in sums.iter_mut().zip(lanes) {
                *sum += lane * weight;
            }
        }
        let bytes = sums.map(to_byte);
        for (target, pixel) in targets.chunks_exact_mut(stride).zip(bytes.chunks_exact(CHANNELS)) {
            target[column * CHANNELS..(column + 1) * CHANNELS].copy_from_slice(pixel);
        }
    }
}

#[inline(always)]
fn combine_rows(rows: &[u8], tap: &Tap, sums: &mut [i32], target: &mut [u8]) {
    sums.fill(1 << (PRECISION - 1));
    for (row, &weight) in rows.chunks_exact(target.len()).zip(&tap.weights) {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += i32::from(value) * weight;
        }
    }
    for (byte, &sum) in target.iter_mut().zip(&*sums) {
        *byte = to_byte(sum);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(width: usize, height: usize) -> Pixels {
        let data = (0..width * height * 3)
            .map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0])
            .collect();
        Pixels::new(width, height, Colour::Rgb, data).unwrap()
    }

    proptest! {
        #[test]
        fn a_part_is_a_part_of_the_whole(width in 1_usize..60, height in 1_usize..60, side in 1_usize..50, start in 0_usize..50, cubic: bool) {
            let filter = if cubic { Filter::Bicubic } else { Filter::Box };
            let start = start.min(side - 1);
            let whole = resize(&noise(width, height), Part::whole(side), Part::whole(side), filter);
            let part = Part { of: side, start, length: side - start };
            let found = resize(&noise(width, height), part, part, filter);
            for y in 0..found.height() {
                prop_assert_eq!(found.row(y), &whole.row(y + start)[start * 3..]);
            }
        }

        #[test]
        fn one_colour_stays_that_colour(width in 1_usize..60, height in 1_usize..60, side in 1_usize..50, value: u8) {
            let found = resize(&Pixels::filled(width, height, Colour::Grey, [value; 3]), Part::whole(side), Part::whole(side), Filter::Bicubic);
            prop_assert!(found.data().iter().all(|&byte| byte == value));
        }
    }
}
