//! One source to a square picture: read, decode, crop, mirror.

use std::time::{Duration, Instant};

use deepflow_preprocess::picture::{decode, fit, write_png, DecodeError, Pixels, PngCompression, PngError};
use deepflow_preprocess::sources::{Content, Entry, SourceError, Sources};

use super::EncodeOptions;

/// A picture ready for the codec.
#[derive(Clone, Debug)]
pub struct Picture {
    /// The square.
    pub pixels: Pixels,
    /// Its mirror image, if that is to be encoded too.
    pub mirrored: Option<Pixels>,
    /// The square as a PNG, if that is to be kept.
    pub png: Option<Vec<u8>>,
    /// Width and height before cropping.
    pub original: (usize, usize),
    /// Whether the file is damaged where it does not matter.
    pub repaired: bool,
    /// Time that reading took, and time that decoding and cropping took.
    pub time: (Duration, Duration),
}

/// Why a source cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is no picture.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Its PNG cannot be made.
    #[error(transparent)]
    Png(#[from] PngError),
}

/// Reads, decodes and crops one source.
///
/// # Errors
/// When it cannot be read or decoded.
pub fn load(options: &EncodeOptions, sources: &Sources, entry: &Entry) -> Result<Picture, Unusable> {
    let start = Instant::now();
    let content = sources.read(entry)?;
    let read = start.elapsed();
    let (pixels, repaired) = match content {
        Content::File(bytes) => {
            let decoded = decode(&bytes, &options.decode)?;
            (decoded.pixels, decoded.repaired)
        }
        Content::Pixels(pixels) => (pixels.into_colour(options.decode.colour), false),
    };
    let original = (pixels.width(), pixels.height());
    let pixels = fit(pixels, options.size, options.fit);
    let mirrored = options.mirror.then(|| pixels.mirrored());
    let png = options
        .keep_pictures
        .then(|| write_png(&pixels, PngCompression::Fast))
        .transpose()?;
    let time = (read, start.elapsed() - read);
    Ok(Picture {
        pixels,
        mirrored,
        png,
        original,
        repaired,
        time,
    })
}
