//! PNG files of every colour type and depth to 8-bit pixels.

use std::io::Cursor;

use super::decode::from_samples;
use super::{DecodeError, DecodeOptions, Pixels};

pub(super) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Pixels, DecodeError> {
    let broken = |error: png::DecodingError| DecodeError::broken("PNG", error);
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: usize::MAX });
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let header = decoder.read_header_info().map_err(broken)?;
    let (width, height) = (header.width as usize, header.height as usize);
    DecodeError::check_size(width, height, options.max_pixels)?;
    let mut reader = decoder.read_info().map_err(broken)?;
    let size = reader
        .output_buffer_size()
        .ok_or_else(|| DecodeError::broken("PNG", "no pixels"))?;
    let mut data = vec![0; size];
    let frame = reader.next_frame(&mut data).map_err(broken)?;
    reader.finish().map_err(broken)?;
    data.truncate(frame.buffer_size());
    from_samples(width, height, frame.color_type.samples(), data, options)
        .ok_or_else(|| DecodeError::broken("PNG", "no pixels"))
}
