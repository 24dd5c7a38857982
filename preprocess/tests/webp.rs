//! Lossy WebP files that libwebp wrote, against the pixels that libwebp reads from them (kept as PNG files).
#![allow(clippy::unwrap_used)]

use std::fs;

use deepflow_preprocess::picture::{decode, Background, DecodeOptions, Pixels};

/// Decoders may round the conversion from luminance and chroma differently.
const ALLOWED: u8 = 1;

fn pixels(file: &str, background: Background) -> Pixels {
    let path = format!("{}/tests/fixtures/webp/{file}", env!("CARGO_MANIFEST_DIR"));
    let options = DecodeOptions {
        background,
        ..DecodeOptions::default()
    };
    decode(&fs::read(path).unwrap(), &options).unwrap().pixels
}

#[test]
fn lossy_pictures_decode_as_in_libwebp() {
    for file in ["lossy", "lossy-alpha"] {
        for background in [Background::Ignore, Background::Over([255, 128, 0])] {
            let found = pixels(&format!("{file}.webp"), background);
            let expected = pixels(&format!("{file}.png"), background);
            assert_eq!((found.width(), found.height()), (26, 18), "{file}");
            let differences = found.data().iter().zip(expected.data());
            let largest = differences.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(largest <= ALLOWED, "{file} over {background:?}: off by {largest}");
        }
    }
}

#[test]
fn a_lossy_picture_that_is_cut_short_is_an_error() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/webp/lossy.webp");
    let bytes = fs::read(path).unwrap();
    for length in [16, 40, bytes.len() / 2] {
        let error = decode(&bytes[..length], &DecodeOptions::default())
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("broken WebP: ") && !error.contains('\n'), "{error}");
    }
}
