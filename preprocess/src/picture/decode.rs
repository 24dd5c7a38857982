//! The bytes of a JPEG, PNG or WebP file, told apart by their first bytes, to pixels.

use std::io::Cursor;

use image::codecs::webp::WebPDecoder;
use image::ImageDecoder;
use serde::{Deserialize, Serialize};

use super::{jpeg, png_file, Colour, Pixels};

/// What becomes of transparency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Background {
    /// The alpha channel is dropped and the stored colour kept, as Pillow's `convert("RGB")` does.
    #[default]
    Ignore,
    /// The picture is laid over this colour.
    Over([u8; 3]),
}

/// How files become pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecodeOptions {
    /// The colour of the result.
    pub colour: Colour,
    /// What becomes of transparency.
    pub background: Background,
    /// Pictures of more pixels are refused before anything is allocated for them.
    pub max_pixels: usize,
}

impl Default for DecodeOptions {
    /// RGB, alpha ignored, and Pillow's limit against decompression bombs.
    fn default() -> Self {
        Self {
            colour: Colour::Rgb,
            background: Background::Ignore,
            max_pixels: 178_956_970,
        }
    }
}

/// A decoded file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The picture in the colour asked for.
    pub pixels: Pixels,
    /// Whether the file is damaged in a way that does not touch the picture (stray bytes between JPEG segments).
    pub repaired: bool,
}

/// Why a file is not a picture that can be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The first bytes belong to no known format.
    #[error("not a JPEG, PNG or WebP picture: it starts with {start}")]
    UnknownFormat {
        /// The first bytes, printable ones as text.
        start: String,
    },
    /// A file without bytes.
    #[error("the file is empty")]
    Empty,
    /// The decoder refused the content.
    #[error("broken {format}: {reason}")]
    Broken {
        /// JPEG, PNG or WebP.
        format: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// More pixels than allowed.
    #[error("{width}×{height} pixels, expected at most {limit} in all")]
    TooLarge {
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
        /// The limit.
        limit: usize,
    },
}

impl DecodeError {
    pub(super) fn broken(format: &'static str, reason: impl ToString) -> Self {
        Self::Broken {
            format,
            reason: reason.to_string(),
        }
    }

    pub(super) fn check_size(width: usize, height: usize, limit: usize) -> Result<(), Self> {
        if width.saturating_mul(height) > limit {
            return Err(Self::TooLarge { width, height, limit });
        }
        Ok(())
    }
}

/// Decodes the bytes of a picture file. Orientation tags are ignored, as in the training sets this serves.
///
/// JPEG: baseline and progressive, grey, YCbCr, RGB, CMYK and YCCK. PNG: every colour type and depth, 16-bit samples keep
/// their high byte, animations their first frame. WebP: lossy and lossless.
///
/// # Errors
/// When the bytes are no picture of these formats, are damaged or cut short, or hold too many pixels.
pub fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Decoded, DecodeError> {
    match bytes {
        [] => Err(DecodeError::Empty),
        [0xFF, 0xD8, 0xFF, ..] => jpeg::decode(bytes, options),
        [0x89, b'P', b'N', b'G', ..] => png_file::decode(bytes, options).map(whole),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => webp(bytes, options).map(whole),
        _ => Err(DecodeError::UnknownFormat { start: start_of(bytes) }),
    }
}

fn whole(pixels: Pixels) -> Decoded {
    Decoded {
        pixels,
        repaired: false,
    }
}

fn start_of(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes[..bytes.len().min(12)].escape_ascii())
}

fn webp(bytes: &[u8], options: &DecodeOptions) -> Result<Pixels, DecodeError> {
    let broken = |error| DecodeError::broken("WebP", error);
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(broken)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    DecodeError::check_size(width, height, options.max_pixels)?;
    let samples = decoder.color_type().channel_count() as usize;
    let mut data = vec![0; width * height * samples];
    decoder.read_image(&mut data).map_err(broken)?;
    from_samples(width, height, samples, data, options).ok_or_else(|| DecodeError::broken("WebP", "no pixels"))
}

/// Interleaved 8-bit samples (1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha) to pixels of the colour asked for.
pub(super) fn from_samples(
    width: usize,
    height: usize,
    samples: usize,
    data: Vec<u8>,
    options: &DecodeOptions,
) -> Option<Pixels> {
    let over = |value: u8, alpha: u8, behind: u8| {
        let mixed = u32::from(value) * u32::from(alpha) + u32::from(behind) * (255 - u32::from(alpha));
        ((mixed + 127) / 255) as u8
    };
    let (colour, data) = match (samples, options.background) {
        (1, _) => (Colour::Grey, data),
        (3, _) => (Colour::Rgb, data),
        (2, Background::Ignore) => (Colour::Grey, data.chunks_exact(2).map(|sample| sample[0]).collect()),
        (4, Background::Ignore) => (
            Colour::Rgb,
            data.chunks_exact(4)
                .flat_map(|sample| [sample[0], sample[1], sample[2]])
                .collect(),
        ),
        (2, Background::Over(behind)) => {
            let mix = |sample: &[u8]| [0, 1, 2].map(|channel| over(sample[0], sample[1], behind[channel]));
            (Colour::Rgb, data.chunks_exact(2).flat_map(mix).collect())
        }
        (4, Background::Over(behind)) => {
            let mix = |sample: &[u8]| [0, 1, 2].map(|channel| over(sample[channel], sample[3], behind[channel]));
            (Colour::Rgb, data.chunks_exact(4).flat_map(mix).collect())
        }
        _ => return None,
    };
    Pixels::new(width, height, colour, data).map(|pixels| pixels.into_colour(options.colour))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_picture_says_how_it_starts() {
        let error = decode(b"GIF89a and more", &DecodeOptions::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "not a JPEG, PNG or WebP picture: it starts with \"GIF89a and m\""
        );
        assert_eq!(decode(b"", &DecodeOptions::default()), Err(DecodeError::Empty));
    }

    #[test]
    fn alpha_mixes_with_the_background() {
        let options = DecodeOptions {
            background: Background::Over([255, 0, 100]),
            ..DecodeOptions::default()
        };
        let mixed = from_samples(3, 1, 4, vec![9, 9, 9, 0, 9, 9, 9, 255, 0, 200, 0, 128], &options).unwrap();
        assert_eq!(mixed.data(), [255, 0, 100, 9, 9, 9, 127, 100, 50]);
        let dropped = from_samples(1, 1, 4, vec![1, 2, 3, 0], &DecodeOptions::default()).unwrap();
        assert_eq!(dropped.data(), [1, 2, 3]);
    }

    #[test]
    fn a_huge_picture_is_refused_from_its_header() {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 60_000, 60_000);
        encoder.set_color(png::ColorType::Grayscale);
        drop(encoder.write_header().unwrap());
        assert!(matches!(
            decode(&bytes, &DecodeOptions::default()),
            Err(DecodeError::TooLarge { .. })
        ));
    }
}
