//! Bilinear resizing as the evaluation suites do it; they differ in where a pixel's centre is.

use rayon::prelude::*;

/// Which convention of bilinear resizing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResizeMode {
    /// TensorFlow 1: source = destination · in / out, what ADM's evaluator and torch-fidelity do.
    #[default]
    Tf1,
    /// source = (destination + ½) · in / out - ½, what pytorch-fid does.
    HalfPixel,
}

/// Where a destination pixel takes its value from: two neighbours and the weight of the second.
struct Tap {
    first: usize,
    second: usize,
    weight: f64,
}

fn taps(source: usize, target: usize, mode: ResizeMode) -> Vec<Tap> {
    let scale = source as f64 / target as f64;
    (0..target)
        .map(|index| {
            let place = match mode {
                ResizeMode::Tf1 => index as f64 * scale,
                ResizeMode::HalfPixel => ((index as f64 + 0.5) * scale - 0.5).max(0.0),
            };
            let first = (place.floor() as usize).min(source - 1);
            Tap {
                first,
                second: (first + 1).min(source - 1),
                weight: place - first as f64,
            }
        })
        .collect()
}

/// Resizes planes (channels, or channels of several pictures) of 8-bit values, `planes·height·width`, to
/// `planes·target_height·target_width` values in 0..=255. Without a low-pass filter, as all suites do it.
pub fn resize(pixels: &[u8], size: (usize, usize), target: (usize, usize), mode: ResizeMode) -> Vec<f32> {
    let ((height, width), (target_height, target_width)) = (size, target);
    let mut resized = vec![0.0; pixels.len() / (height * width).max(1) * target_height * target_width];
    if resized.is_empty() {
        return resized;
    }
    let (rows, columns) = (taps(height, target_height, mode), taps(width, target_width, mode));
    resized
        .par_chunks_exact_mut(target_height * target_width)
        .enumerate()
        .for_each(|(plane, out)| {
            let plane = &pixels[plane * height * width..][..height * width];
            for (row, out) in rows.iter().zip(out.chunks_exact_mut(target_width)) {
                let line = |index: usize| &plane[index * width..][..width];
                let (upper, lower) = (line(row.first), line(row.second));
                for (column, out) in columns.iter().zip(out) {
                    let across = |line: &[u8]| {
                        let (left, right) = (f64::from(line[column.first]), f64::from(line[column.second]));
                        left + (right - left) * column.weight
                    };
                    let (top, bottom) = (across(upper), across(lower));
                    *out = (top + (bottom - top) * row.weight) as f32;
                }
            }
        });
    resized
}
