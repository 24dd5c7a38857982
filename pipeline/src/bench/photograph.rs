//! Pictures that cost what photographs cost: smooth shapes, edges and grain, as JPEG files of quality 90.

use std::fs;
use std::path::Path;

use anyhow::Context;
use deepflow_datasets::random::{Purpose, Stream};
use deepflow_preprocess::picture::{Colour, Pixels};
use image::codecs::jpeg::JpegEncoder;
use image::ExtendedColorType;

use crate::files::make_folder;

/// ImageNet's usual 500×375 pixels for crops of 256, in the same proportion for others.
const LONG_SIDE: (usize, usize) = (500, 256);
const SHORT_SIDE: (usize, usize) = (375, 256);
/// Pictures of their own; the others repeat them.
const DISTINCT: usize = 32;
/// Half the height of the noise, in grey levels.
const GRAIN: f32 = 6.0;
const JPEG_QUALITY: u8 = 90;

/// Photograph `number`, large enough for a crop of side `size`.
///
/// # Errors
/// When as many bytes as pixels need were not made.
pub fn photograph(number: usize, size: usize) -> anyhow::Result<Pixels> {
    let scaled = |(side, crop): (usize, usize)| (size * side).div_ceil(crop);
    let (width, height) = (scaled(LONG_SIDE), scaled(SHORT_SIDE));
    let mut waves = [0.0; 24];
    Stream::new(1, Purpose::Synthetic, 0, number as u64).fill_uniform(&mut waves);
    let mut grain = vec![0.0; width * height];
    Stream::new(2, Purpose::Synthetic, 0, number as u64).fill_uniform(&mut grain);
    let mut data = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let (u, v) = (x as f32 / width as f32, y as f32 / height as f32);
            let edge = if (u + waves[18] - 0.5) * waves[19] > (v - 0.5) * waves[20] {
                40.0
            } else {
                0.0
            };
            for channel in 0..3 {
                let wave = &waves[6 * channel..6 * channel + 6];
                let low = (u * 8.0 * wave[0] + v * 8.0 * wave[1] + wave[2] * 6.0).sin();
                let high = (u * 60.0 * wave[3] + v * 60.0 * wave[4] + wave[5] * 6.0).sin();
                let noise = (grain[y * width + x] - 0.5) * 2.0 * GRAIN;
                data.push((110.0 + 60.0 * low + 20.0 * high + edge + noise).clamp(0.0, 255.0) as u8);
            }
        }
    }
    let bytes = data.len();
    Pixels::new(width, height, Colour::Rgb, data)
        .with_context(|| format!("a photograph of {width}×{height} pixels has {bytes} bytes, expected three a pixel"))
}

/// Writes `count` photographs for crops of side `size` into a new folder.
///
/// # Errors
/// When they cannot be written.
pub fn write_photographs(folder: &Path, count: usize, size: usize) -> anyhow::Result<()> {
    make_folder(folder)?;
    for number in 0..count {
        let path = folder.join(format!("{number:06}.jpg"));
        if number < DISTINCT {
            let pixels = photograph(number, size)?;
            let (width, height) = (u32::try_from(pixels.width())?, u32::try_from(pixels.height())?);
            let mut bytes = Vec::new();
            JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).encode(
                pixels.data(),
                width,
                height,
                ExtendedColorType::Rgb8,
            )?;
            fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        } else {
            let earlier = folder.join(format!("{:06}.jpg", number % DISTINCT));
            fs::copy(&earlier, &path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}
