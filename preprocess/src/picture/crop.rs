//! From a picture of any size to a square: the centre crop of guided-diffusion with Pillow's filters, or padding.

use serde::{Deserialize, Serialize};

use super::resize::{resize, Filter, Part};
use super::Pixels;

/// How a picture of any size becomes a square.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// The short side is resized to the square's, and its middle is taken.
    #[default]
    Crop,
    /// A picture that fits is laid unscaled in the middle of a black (grey 0) square; a larger one is cropped.
    Pad,
}

/// `pixels` as a square of side `size`.
#[must_use]
pub fn fit(pixels: Pixels, size: usize, fit: Fit) -> Pixels {
    if fit == Fit::Pad && pixels.width() <= size && pixels.height() <= size {
        let mut square = Pixels::filled(size, size, pixels.colour(), [0; 3]);
        square.paste(&pixels, (size - pixels.width()) / 2, (size - pixels.height()) / 2);
        return square;
    }
    centre_crop(pixels, size)
}

/// The centre crop of guided-diffusion (golden `crop`): halved with the box filter while the short side is at least
/// `2 · size`, then resized bicubically so that the short side is `size` (the long one rounded half to even, as Python
/// does), then the middle `size` × `size` is taken. Filters and rounding are Pillow's.
#[must_use]
pub fn centre_crop(mut pixels: Pixels, size: usize) -> Pixels {
    while pixels.width().min(pixels.height()) >= 2 * size {
        pixels = resize(
            &pixels,
            Part::whole(pixels.width() / 2),
            Part::whole(pixels.height() / 2),
            Filter::Box,
        );
    }
    let scale = size as f64 / pixels.width().min(pixels.height()) as f64;
    let middle = |side: usize| {
        let scaled = (side as f64 * scale).round_ties_even() as usize;
        Part {
            of: scaled,
            start: (scaled - size) / 2,
            length: size,
        }
    };
    let (horizontal, vertical) = (middle(pixels.width()), middle(pixels.height()));
    resize(&pixels, horizontal, vertical, Filter::Bicubic)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::picture::Colour;
    use proptest::prelude::*;

    fn noise(width: usize, height: usize, colour: Colour) -> Pixels {
        let mut state = 7_u32;
        let data = (0..width * height * colour.channels())
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        Pixels::new(width, height, colour, data).unwrap()
    }

    proptest! {
        #[test]
        fn every_size_becomes_the_square(width in 1_usize..200, height in 1_usize..200, size in 1_usize..80, grey: bool) {
            let colour = if grey { Colour::Grey } else { Colour::Rgb };
            for mode in [Fit::Crop, Fit::Pad] {
                let square = fit(noise(width, height, colour), size, mode);
                prop_assert_eq!((square.width(), square.height()), (size, size));
                prop_assert_eq!(square.data().len(), size * size * colour.channels());
            }
        }
    }

    #[test]
    fn padding_centres_what_fits() {
        let padded = fit(Pixels::filled(2, 1, Colour::Grey, [9; 3]), 4, Fit::Pad);
        assert_eq!(padded.data(), [0, 0, 0, 0, 0, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
