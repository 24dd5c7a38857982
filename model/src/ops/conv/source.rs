//! What a convolution reads: a feature map, normalised and enlarged while it is read.

use super::aligned::LANES;
use super::group_norm::ChannelAffine;
use super::lanes::Lanes;
use super::FeatureMap;

/// A map and what is done to every value on the way into a convolution, without a copy of the whole map.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    map: &'a FeatureMap,
    affine: Option<&'a ChannelAffine>,
    silu: bool,
    upsampled: bool,
}

impl<'a> From<&'a FeatureMap> for Input<'a> {
    fn from(map: &'a FeatureMap) -> Self {
        Self {
            map,
            affine: None,
            silu: false,
            upsampled: false,
        }
    }
}

impl<'a> Input<'a> {
    /// `silu(scale · x + shift)`, as after a GroupNorm.
    pub fn normalized_silu(map: &'a FeatureMap, affine: &'a ChannelAffine) -> Self {
        Self {
            affine: Some(affine),
            silu: true,
            ..Self::from(map)
        }
    }

    /// Every pixel four times: the nearest-neighbour enlargement to twice the height and width.
    pub fn upsampled(map: &'a FeatureMap) -> Self {
        Self {
            upsampled: true,
            ..Self::from(map)
        }
    }

    /// Shape as the convolution sees it.
    pub fn shape(&self) -> [usize; 4] {
        let scale = 1 + usize::from(self.upsampled);
        let [batch, channels, height, width] = self.map.shape();
        [batch, channels, height * scale, width * scale]
    }

    /// The map, when it is read as it is.
    pub(super) fn unchanged(&self) -> Option<&'a FeatureMap> {
        (self.affine.is_none() && !self.upsampled).then_some(self.map)
    }

    /// Writes `count` pixels of a row, beginning at `x`; pixels outside of the picture are zero.
    ///
    /// # Safety
    /// `to` must be valid for `count` pixels, `image` and `block` must exist.
    #[inline(always)]
    pub(super) unsafe fn row<L: Lanes>(
        &self,
        (image, block): (usize, usize),
        (y, x): (isize, isize),
        count: usize,
        to: *mut f32,
    ) {
        let [_, _, height, width] = self.shape();
        let shift = u32::from(self.upsampled);
        // SAFETY: `begin..end` are the pixels of the row that exist; the caller promises the rest.
        unsafe {
            let zero = L::splat(0.0);
            let (begin, end) = if y < 0 || y >= height as isize {
                (count, count)
            } else {
                let begin = (-x).clamp(0, count as isize);
                (
                    begin as usize,
                    (width as isize - x).clamp(begin, count as isize) as usize,
                )
            };
            for pixel in (0..begin).chain(end..count) {
                zero.store(to.add(pixel * LANES));
            }
            if begin >= end {
                return;
            }
            let row = self
                .map
                .plane(image, block)
                .as_ptr()
                .add((y as usize >> shift) * self.map.width() * LANES);
            let from = |pixel: usize| row.add(((x + pixel as isize) as usize >> shift) * LANES);
            let Some(affine) = self.affine else {
                for pixel in begin..end {
                    L::load(from(pixel)).store(to.add(pixel * LANES));
                }
                return;
            };
            let (scale, shift) = affine.block(image, block);
            let (scale, shift) = (L::load(scale.as_ptr()), L::load(shift.as_ptr()));
            for pixel in begin..end {
                let value = L::load(from(pixel)).multiply_add(scale, shift);
                let value = if self.silu { value.silu() } else { value };
                value.store(to.add(pixel * LANES));
            }
        }
    }
}
