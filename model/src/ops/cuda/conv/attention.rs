//! Self-attention with one head over the pixels of a map.

use dfdx::tensor::CudaError;

use super::super::launch::{start, undefined, Kernel};
use super::super::precision::Precision;
use super::super::product::Product;
use super::band_rows;
use super::map::DeviceMap;

/// `softmax(q·kᵀ/√C)·v` for every picture; the three maps have one shape. Only the scores of a band of pixels exist at a
/// time.
///
/// # Errors
/// What the driver says.
pub fn pixel_attention<E: Precision>(
    query: &DeviceMap<E>,
    key: &DeviceMap<E>,
    value: &DeviceMap<E>,
) -> Result<DeviceMap<E>, CudaError> {
    assert_eq!(key.shape(), query.shape(), "attention: keys and queries");
    assert_eq!(value.shape(), query.shape(), "attention: values and queries");
    let context = query.context;
    let [batch, channels, height, width] = query.shape();
    let pixels = height * width;
    let out = DeviceMap::undefined(context, query.shape())?;
    let band = band_rows(pixels, pixels, size_of::<E>());
    let scores = undefined::<E>(context, band * pixels)?;
    for picture in 0..batch {
        let of_picture = picture * pixels;
        for first in (0..pixels).step_by(band) {
            let rows = band.min(pixels - first);
            Product {
                rows,
                columns: pixels,
                inner: channels,
                left: (query.pixel(of_picture + first), false),
                right: (key.pixel(of_picture), true),
                accumulate: false,
                out: start(&scores),
            }
            .scaled::<E>(context, 1.0 / (channels as f32).sqrt())?;
            Kernel::of::<E>("softmax_rows")
                .pointer(start(&scores))
                .int(rows)
                .int(pixels)
                .moves(2 * rows * pixels)
                .over_rows(context, rows)?;
            Product {
                rows,
                columns: channels,
                inner: pixels,
                left: (start(&scores), false),
                right: (value.pixel(of_picture), false),
                accumulate: false,
                out: out.pixel(of_picture + first),
            }
            .run::<E>(context)?;
        }
    }
    Ok(out)
}
