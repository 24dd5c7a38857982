//! The autoencoder against diffusers: every `vae_*` case of DEEPFLOW_GOLDEN_DIR, or of the project's own fixtures.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use deepflow_model::autoencoder::AutoencoderKl;
use deepflow_model::convert::SafetensorsFile;

fn golden_directory() -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
    std::env::var_os("DEEPFLOW_GOLDEN_DIR").map_or(fixtures, PathBuf::from)
}

/// Folders `vae_*` with the numbers in `vae_*_io.safetensors` beside them.
fn cases() -> Vec<(PathBuf, PathBuf)> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(golden_directory())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.retain(|path| path.is_dir() && path.file_name().unwrap().to_string_lossy().starts_with("vae_"));
    folders.sort();
    assert!(!folders.is_empty(), "no vae_* case in {}", golden_directory().display());
    folders
        .into_iter()
        .map(|folder| {
            let io = format!("{}_io.safetensors", folder.file_name().unwrap().to_string_lossy());
            (folder.clone(), folder.with_file_name(io))
        })
        .collect()
}

fn largest_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn spread(values: &[f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / values.len() as f32).sqrt()
}

/// Encodes and decodes the pictures of `io` and compares with what diffusers made of them.
fn check(folder: &Path, io: &Path) {
    let autoencoder = AutoencoderKl::load(folder).unwrap();
    let io = SafetensorsFile::open(io).unwrap();
    let tensor = |name: &str| io.read(name).unwrap();
    let pixels = tensor("in.pixels");
    let &[batch, channels, height, width] = pixels.shape.as_slice() else {
        panic!("in.pixels {:?}", pixels.shape)
    };
    let pictures: Vec<f32> = pixels
        .to_f32()
        .unwrap()
        .iter()
        .map(|pixel| pixel / 127.5 - 1.0)
        .collect();
    let [mean, std, decoded, bytes] =
        ["out.mean", "out.std", "out.decoded", "out.pixels_f32"].map(|name| tensor(name).to_f32().unwrap());
    for image in 0..batch {
        let part = |values: &'_ [f32]| {
            let len = values.len() / batch;
            values[image * len..(image + 1) * len].to_vec()
        };
        let posterior = autoencoder.encode(&part(&pictures), height, width).unwrap();
        let [_, rows, columns] = posterior.shape;
        let found = autoencoder.decode(&part(&mean), rows, columns).unwrap();
        assert_eq!(found.len(), channels * height * width);
        let errors = [
            largest_difference(&posterior.mean, &part(&mean)),
            largest_difference(&posterior.std, &part(&std)),
            largest_difference(&found, &part(&decoded)) / spread(&part(&decoded)),
        ];
        println!(
            "{} image {image}: mean, std, decoded off by {errors:?}",
            folder.display()
        );
        assert!(
            errors[0] < 2e-5 && errors[1] < 2e-5 && errors[2] < 1e-4,
            "{}: {errors:?}",
            folder.display()
        );
        let levels: Vec<f32> = found
            .iter()
            .map(|value| ((value + 1.0) * 127.5).clamp(0.0, 255.0).round())
            .collect();
        assert!(largest_difference(&levels, &part(&bytes)) <= 1.0);
    }
}

#[test]
fn every_golden_case_is_encoded_and_decoded_as_by_diffusers() {
    for (folder, io) in cases() {
        check(&folder, &io);
    }
}
