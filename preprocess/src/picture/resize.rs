//! Resampling with Pillow's arithmetic: rows first, rounded to bytes, then columns; weights in 22-bit fixed point.
//!
//! The libraries that resize faster round their weights to 15 bits, do columns first, or settle ties of the box filter the
//! other way round; each is a few grey levels away from what the published latents were computed from.

use super::{Colour, Pixels};

/// Fractional bits of a weight: 32 less 8 for the pixel and 2 for sums beyond one.
const PRECISION: u32 = 22;

/// Added before the fractional bits are cut off, so that this rounds.
const HALF: i32 = 1 << (PRECISION - 1);

/// Rows that are narrowed together, and values of a row that are shortened together: sums that fill whole vectors.
const LANES: usize = 16;

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
            Colour::Grey => resample::<1>(self.pixels, self.columns, self.rows),
            Colour::Rgb => resample::<3>(self.pixels, self.columns, self.rows),
        }
    }
}

#[inline(always)]
fn resample<const CHANNELS: usize>(pixels: &Pixels, columns: &[Tap], rows: &[Tap]) -> Vec<u8> {
    let (first_row, last_row) = source_range(rows);
    let (first_column, last_column) = source_range(columns);
    let stride = columns.len() * CHANNELS;
    let mut narrowed = vec![0; (last_row - first_row) * stride];
    // Values of a row, and of a narrowed row, with those of the rows below beside them.
    let mut abreast = vec![[0; LANES]; (last_column - first_column) * CHANNELS];
    let mut results = vec![[0; LANES]; stride];
    for (group, targets) in narrowed.chunks_mut(LANES * stride).enumerate() {
        for row in 0..targets.len() / stride {
            let source = pixels.row(first_row + group * LANES + row);
            let source = &source[first_column * CHANNELS..last_column * CHANNELS];
            for (lanes, &value) in abreast.iter_mut().zip(source) {
                lanes[row] = value;
            }
        }
        combine_columns::<CHANNELS>(&abreast, first_column, columns, &mut results);
        for (row, target) in targets.chunks_exact_mut(stride).enumerate() {
            for (byte, lanes) in target.iter_mut().zip(&results) {
                *byte = lanes[row];
            }
        }
    }
    let mut data = vec![0; rows.len() * stride];
    for (tap, target) in rows.iter().zip(data.chunks_exact_mut(stride)) {
        combine_rows(&narrowed[(tap.start - first_row) * stride..], tap, target);
    }
    data
}

/// The first source pixel that any tap reads, and the one behind the last.
fn source_range(taps: &[Tap]) -> (usize, usize) {
    let first = taps.iter().map(|tap| tap.start).min().unwrap_or(0);
    let last = taps.iter().map(|tap| tap.start + tap.weights.len()).max().unwrap_or(0);
    (first, last)
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

/// One output column after the other of the rows that lie abreast in `pixels`, whose first column is `first`. All lanes are
/// summed, also those of rows that there are not, so that they fill whole vectors.
#[inline(always)]
fn combine_columns<const CHANNELS: usize>(
    pixels: &[[u8; LANES]],
    first: usize,
    taps: &[Tap],
    results: &mut [[u8; LANES]],
) {
    for (tap, results) in taps.iter().zip(results.chunks_exact_mut(CHANNELS)) {
        let sources = pixels[(tap.start - first) * CHANNELS..].chunks_exact(CHANNELS);
        let mut sums = [[HALF; LANES]; CHANNELS];
        for (source, &weight) in sources.zip(&tap.weights) {
            for (sums, lanes) in sums.iter_mut().zip(source) {
                add_weighted(sums, lanes, weight);
            }
        }
        for (result, sums) in results.iter_mut().zip(sums) {
            *result = sums.map(to_byte);
        }
    }
}

/// One output row of the rows that begin with those the tap reads.
#[inline(always)]
fn combine_rows(rows: &[u8], tap: &Tap, target: &mut [u8]) {
    let stride = target.len();
    let (chunks, rest) = target.as_chunks_mut::<LANES>();
    let rest_start = chunks.len() * LANES;
    for (index, chunk) in chunks.iter_mut().enumerate() {
        let mut sums = [HALF; LANES];
        for (row, &weight) in rows.chunks_exact(stride).zip(&tap.weights) {
            if let Some(values) = row[index * LANES..].first_chunk::<LANES>() {
                add_weighted(&mut sums, values, weight);
            }
        }
        *chunk = sums.map(to_byte);
    }
    for (offset, byte) in rest.iter_mut().enumerate() {
        let column = rows.iter().skip(rest_start + offset).step_by(stride);
        let sum: i32 = column
            .zip(&tap.weights)
            .map(|(&value, &weight)| i32::from(value) * weight)
            .sum();
        *byte = to_byte(HALF + sum);
    }
}

#[inline(always)]
fn add_weighted(sums: &mut [i32; LANES], values: &[u8; LANES], weight: i32) {
    for (sum, &value) in sums.iter_mut().zip(values) {
        *sum += i32::from(value) * weight;
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
