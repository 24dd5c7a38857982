//! Resampling with Pillow's arithmetic: rows first, rounded to bytes, then columns; weights in 22-bit fixed point.
//!
//! The libraries that resize faster round their weights to 15 bits, do columns first, or settle ties of the box filter the
//! other way round; each is a few grey levels away from what the published latents were computed from.

use super::{Colour, Pixels};

/// Fractional bits of a weight: 32 less 8 for the pixel and 2 for sums beyond one.
const PRECISION: u32 = 22;

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
    // The loops are plain; compiled for the widest vector unit found at run time they are several times faster.
    let data = pulp::Arch::new().dispatch(
        #[inline(always)]
        || match pixels.colour() {
            Colour::Grey => resample::<1, 1>(pixels, &columns, &rows),
            Colour::Rgb => resample::<3, 4>(pixels, &columns, &rows),
        },
    );
    Pixels {
        width: horizontal.length,
        height: vertical.length,
        colour: pixels.colour(),
        data,
    }
}

/// `LANES` is the number of bytes read for a pixel of `CHANNELS`: a power of two makes a pixel one vector.
#[inline(always)]
fn resample<const CHANNELS: usize, const LANES: usize>(pixels: &Pixels, columns: &[Tap], rows: &[Tap]) -> Vec<u8> {
    let first = rows.iter().map(|tap| tap.start).min().unwrap_or(0);
    let last = rows.iter().map(|tap| tap.start + tap.weights.len()).max().unwrap_or(0);
    let stride = columns.len() * CHANNELS;
    let mut narrowed = vec![0; (last - first) * stride];
    let mut padded = vec![0; pixels.width() * CHANNELS + LANES];
    for (y, target) in (first..last).zip(narrowed.chunks_exact_mut(stride)) {
        let row = pixels.row(y);
        padded[..row.len()].copy_from_slice(row);
        combine_columns::<CHANNELS, LANES>(&padded, columns, target);
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

/// One output pixel after the other from a row with `LANES` bytes to spare at its end.
#[inline(always)]
fn combine_columns<const CHANNELS: usize, const LANES: usize>(row: &[u8], taps: &[Tap], target: &mut [u8]) {
    for (tap, target) in taps.iter().zip(target.chunks_exact_mut(CHANNELS)) {
        let mut sums = [1 << (PRECISION - 1); LANES];
        let pixels = row[tap.start * CHANNELS..].windows(LANES).step_by(CHANNELS);
        for (pixel, &weight) in pixels.zip(&tap.weights) {
            for lane in 0..LANES {
                sums[lane] += i32::from(pixel[lane]) * weight;
            }
        }
        for channel in 0..CHANNELS {
            target[channel] = to_byte(sums[channel]);
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
