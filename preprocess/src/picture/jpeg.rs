//! JPEG files: strict decoding, with one kind of harmless damage repaired and reported.

use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::{Colour, DecodeError, DecodeOptions, Decoded, Pixels};

/// Decodes a JPEG. The decoder fills what a truncated file lacks with grey unless it is strict, so it is strict; but it
/// then also refuses stray bytes between segments, which cameras and editors of the nineties left behind and which leave
/// the picture whole. Those files are decoded leniently, if they do end in an end-of-image marker.
pub(super) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Decoded, DecodeError> {
    let broken = |error: DecodeErrors| DecodeError::broken("JPEG", one_line(&error));
    match decode_with(bytes, options, true) {
        Ok(pixels) => Ok(Decoded {
            pixels: pixels?,
            repaired: false,
        }),
        Err(error) if has_stray_bytes(&error) && is_ended(bytes) => {
            let pixels = decode_with(bytes, options, false).map_err(broken)??;
            Ok(Decoded { pixels, repaired: true })
        }
        Err(error) => Err(broken(error)),
    }
}

fn decode_with(
    bytes: &[u8],
    options: &DecodeOptions,
    strict: bool,
) -> Result<Result<Pixels, DecodeError>, DecodeErrors> {
    let settings = DecoderOptions::default()
        .set_strict_mode(strict)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX));
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), settings);
    decoder.decode_headers()?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    if let Err(error) = DecodeError::check_size(width, height, options.max_pixels) {
        return Ok(Err(error));
    }
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let (colour, output) = if grey {
        (Colour::Grey, ColorSpace::Luma)
    } else {
        (Colour::Rgb, ColorSpace::RGB)
    };
    decoder.set_options(settings.jpeg_set_out_colorspace(output));
    let data = decoder.decode()?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    Ok(Pixels::new(width, height, colour, data)
        .map(|pixels| pixels.into_colour(options.colour))
        .ok_or_else(|| DecodeError::broken("JPEG", "no pixels")))
}

fn has_stray_bytes(error: &DecodeErrors) -> bool {
    matches!(error, DecodeErrors::FormatStatic(reason) if reason.contains("Extra bytes between headers"))
}

/// Whether an end-of-image marker stands at the end, give or take what some writers append to it.
fn is_ended(bytes: &[u8]) -> bool {
    let end = bytes.len().saturating_sub(64);
    bytes[end..].windows(2).any(|pair| pair == [0xFF, 0xD9])
}

fn one_line(error: &DecodeErrors) -> String {
    format!("{error}").split_whitespace().collect::<Vec<_>>().join(" ")
}
