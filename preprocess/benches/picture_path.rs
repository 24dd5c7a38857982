//! The picture path on one thread: `cargo bench -p deepflow-preprocess --bench picture_path -- FOLDER SIZE ROUNDS`.
//!
//! Reads every file of FOLDER, then ROUNDS times decodes and crops all to SIZE, and writes the squares as PNG. Prints one
//! JSON line with the fastest round of each; `benches/peers/pillow.py` runs it beside Pillow.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use deepflow_preprocess::picture::{centre_crop, decode, write_png, DecodeOptions, Pixels, PngCompression};

/// As in the binaries.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn fastest<R>(rounds: usize, mut work: impl FnMut() -> R) -> (f64, R) {
    let mut best = f64::INFINITY;
    let mut result = work();
    for _ in 0..rounds {
        let start = Instant::now();
        result = work();
        best = best.min(start.elapsed().as_secs_f64());
    }
    (best, result)
}

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    let [folder, size, rounds] = arguments.as_slice() else {
        // `cargo test --benches` comes without arguments: nothing to time.
        return;
    };
    let (size, rounds): (usize, usize) = (size.parse().unwrap(), rounds.parse().unwrap());
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let files: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    let options = DecodeOptions::default();
    let decode_all = || {
        files
            .iter()
            .map(|bytes| decode(bytes, &options).unwrap().pixels)
            .collect::<Vec<_>>()
    };
    let (decode_s, decoded) = fastest(rounds, decode_all);
    let crop_all = || {
        decode_all()
            .into_iter()
            .map(|pixels| centre_crop(pixels, size))
            .collect::<Vec<_>>()
    };
    let (crop_s, squares): (f64, Vec<Pixels>) = fastest(rounds, crop_all);
    let write_all = |compression| {
        move |squares: &[Pixels]| {
            squares
                .iter()
                .map(|square| write_png(square, compression).unwrap().len())
                .sum::<usize>()
        }
    };
    let (png_s, bytes) = fastest(rounds, || write_all(PngCompression::Fast)(&squares));
    let per_picture = |seconds: f64| seconds / files.len() as f64;
    println!(
        "{{\"pictures\": {}, \"decode_s\": {:.6}, \"decode_and_crop_s\": {:.6}, \"png_s\": {:.6}, \"png_bytes\": {}}}",
        decoded.len(),
        per_picture(decode_s),
        per_picture(crop_s),
        per_picture(png_s),
        bytes / files.len()
    );
}
