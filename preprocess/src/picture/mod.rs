//! One picture: its pixels, how a file becomes them, and how they become a file again.

mod crop;
mod decode;
mod jpeg;
mod png_file;
mod png_writer;
mod resize;
mod sheet;

pub use crop::{centre_crop, fit, Fit};
pub use decode::{decode, Background, DecodeError, DecodeOptions, Decoded};
pub use png_writer::{write_png, PngCompression, PngError};
pub use sheet::{contact_sheet, SheetError};

use serde::{Deserialize, Serialize};

/// What a pixel is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colour {
    /// One byte a pixel: ITU-R 601 luma.
    Grey,
    /// Three bytes a pixel: red, green, blue.
    #[default]
    Rgb,
}

impl Colour {
    /// Bytes a pixel: 1 or 3.
    #[must_use]
    pub const fn channels(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::Rgb => 3,
        }
    }
}

/// A picture of `height` rows of `width` pixels, each `colour.channels()` interleaved bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    width: usize,
    height: usize,
    colour: Colour,
    data: Vec<u8>,
}

impl Pixels {
    /// Wraps `data`, row by row, channels interleaved. `None` unless it holds exactly `width · height` pixels, at least one.
    #[must_use]
    pub fn new(width: usize, height: usize, colour: Colour, data: Vec<u8>) -> Option<Self> {
        let expected = width.checked_mul(height)?.checked_mul(colour.channels())?;
        (expected > 0 && expected == data.len()).then_some(Self {
            width,
            height,
            colour,
            data,
        })
    }

    /// A picture of one colour; only the first value counts for grey.
    #[must_use]
    pub fn filled(width: usize, height: usize, colour: Colour, value: [u8; 3]) -> Self {
        let data = match colour {
            Colour::Grey => vec![value[0]; width * height],
            Colour::Rgb => value.repeat(width * height),
        };
        Self {
            width,
            height,
            colour,
            data,
        }
    }

    /// Pixels in a row.
    #[must_use]
    pub const fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    #[must_use]
    pub const fn height(&self) -> usize {
        self.height
    }

    /// What a pixel is made of.
    #[must_use]
    pub const fn colour(&self) -> Colour {
        self.colour
    }

    /// The bytes, row by row, channels interleaved.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The bytes, row by row, channels interleaved.
    #[must_use]
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// One row's bytes.
    pub(crate) fn row(&self, y: usize) -> &[u8] {
        let stride = self.width * self.colour.channels();
        &self.data[y * stride..(y + 1) * stride]
    }

    /// One row's bytes.
    pub(crate) fn row_mut(&mut self, y: usize) -> &mut [u8] {
        let stride = self.width * self.colour.channels();
        &mut self.data[y * stride..(y + 1) * stride]
    }

    /// Copies `tile` in with its upper left corner at (`left`, `top`); both must have the same colour and `tile` must fit.
    pub(crate) fn paste(&mut self, tile: &Self, left: usize, top: usize) {
        debug_assert_eq!(self.colour, tile.colour);
        let channels = self.colour.channels();
        for y in 0..tile.height {
            let start = ((top + y) * self.width + left) * channels;
            self.data[start..start + tile.width * channels].copy_from_slice(tile.row(y));
        }
    }

    /// The picture as seen in a mirror: every row reversed.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        let channels = self.colour.channels();
        let mut data = Vec::with_capacity(self.data.len());
        for y in 0..self.height {
            for pixel in self.row(y).chunks_exact(channels).rev() {
                data.extend_from_slice(pixel);
            }
        }
        Self { data, ..*self }
    }

    /// The same picture in `colour`: grey is repeated into three channels, colour becomes ITU-R 601 luma with Pillow's rounding.
    #[must_use]
    pub fn into_colour(self, colour: Colour) -> Self {
        let data = match (self.colour, colour) {
            (Colour::Grey, Colour::Rgb) => self.data.iter().flat_map(|&grey| [grey; 3]).collect(),
            (Colour::Rgb, Colour::Grey) => self
                .data
                .chunks_exact(3)
                .map(|rgb| luma([rgb[0], rgb[1], rgb[2]]))
                .collect(),
            _ => self.data,
        };
        Self {
            width: self.width,
            height: self.height,
            colour,
            data,
        }
    }
}

/// ITU-R 601 luma in 16-bit fixed point.
pub(crate) fn luma([red, green, blue]: [u8; 3]) -> u8 {
    ((u32::from(red) * 19_595 + u32::from(green) * 38_470 + u32::from(blue) * 7_471 + 0x8000) >> 16) as u8
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_data_must_fit_the_shape() {
        assert!(Pixels::new(2, 1, Colour::Rgb, vec![0; 6]).is_some());
        assert!(Pixels::new(2, 1, Colour::Rgb, vec![0; 5]).is_none());
        assert!(Pixels::new(0, 1, Colour::Rgb, vec![]).is_none());
        assert!(Pixels::new(usize::MAX, 2, Colour::Grey, vec![0]).is_none());
    }

    #[test]
    fn mirroring_reverses_pixels_not_bytes() {
        let pixels = Pixels::new(2, 1, Colour::Rgb, vec![1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(pixels.mirrored().data(), [4, 5, 6, 1, 2, 3]);
        assert_eq!(pixels.mirrored().mirrored(), pixels);
    }

    #[test]
    fn grey_survives_the_way_through_colour() {
        let grey = Pixels::new(16, 16, Colour::Grey, (0..=255).collect()).unwrap();
        assert_eq!(grey.clone().into_colour(Colour::Rgb).into_colour(Colour::Grey), grey);
    }
}
