//! Training samples made on the device, and changes of precision.

use deepflow_datasets::random::{Purpose, Stream};
use deepflow_model::ops::cuda::{cast, fill_normal, interpolate, patchify, sample_posterior, unpatchify};
use deepflow_model::training::Path;
use dfdx::prelude::*;
use half::f16;

use crate::compare::{f64s, values, values_as};
use crate::emulation::device;

#[test]
fn normal_numbers_are_those_of_the_processor_bit_for_bit() {
    let Some(cuda) = device() else { return };
    let positions = [0, 1, 5_000_000_000, u64::MAX];
    for per_sample in [1, 15, 64, 100, 4097] {
        let drawn = fill_normal(&cuda, 0x1234_5678_9abc_def0, Purpose::Noise, 3, &positions, per_sample).unwrap();
        let mut expected = vec![0.0; positions.len() * per_sample];
        for (row, &position) in expected.chunks_mut(per_sample).zip(&positions) {
            Stream::new(0x1234_5678_9abc_def0, Purpose::Noise, 3, position).fill_normal(row);
        }
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(drawn.as_vec()), bits(expected), "{per_sample} numbers a sample");
    }
}

#[test]
fn posterior_samples() {
    let Some(cuda) = device() else { return };
    let shape = (3usize, 37usize);
    let input = |name| cuda.tensor_from_vec(values_as::<f32>(name, 111), shape);
    let drawn = sample_posterior(&cuda, &input(1), &input(2), &input(3), 0.18215).unwrap();
    for (i, found) in f64s(drawn.as_vec()).into_iter().enumerate() {
        let expected = 0.18215 * (values(1, 111)[i] + values(2, 111)[i] * values(3, 111)[i]);
        assert!(
            (found - expected).abs() < 1e-6,
            "value {i}: {found}, expected {expected}"
        );
    }
}

#[test]
fn points_on_both_paths() {
    let Some(cuda) = device() else { return };
    let (times, per_sample) = ([0.0, 0.3, 1.0], 41usize);
    let count = times.len() * per_sample;
    let input = |name| cuda.tensor_from_vec(values_as::<f32>(name, count), (times.len(), per_sample));
    for path in [Path::Linear, Path::Cosine] {
        let single = interpolate::<f32>(&cuda, &input(1), &input(2), &times, path).unwrap();
        let half = interpolate::<f16>(&cuda, &input(1), &input(2), &times, path).unwrap();
        let of_weights = |weights: fn(Path, f64) -> (f64, f64)| -> Vec<f64> {
            let mixed = values(1, count).into_iter().zip(values(2, count)).enumerate();
            mixed
                .map(|(i, (data, noise))| {
                    let (a, b) = weights(path, times[i / per_sample]);
                    a * data + b * noise
                })
                .collect()
        };
        for (found, tolerance, expected) in [
            (f64s(single.x.as_vec()), 2e-6, of_weights(Path::position)),
            (f64s(single.velocity.as_vec()), 2e-6, of_weights(Path::velocity)),
            (f64s(half.x.as_vec()), 5e-3, of_weights(Path::position)),
            (f64s(half.velocity.as_vec()), 5e-3, of_weights(Path::velocity)),
        ] {
            for (found, expected) in found.iter().zip(&expected) {
                assert!(
                    (found - expected).abs() <= tolerance,
                    "{path:?}: {found}, expected {expected}"
                );
            }
        }
    }
}

#[test]
fn patches_and_back() {
    let Some(cuda) = device() else { return };
    for (batch, channels, size, patch) in [(1, 1, 2, 1), (2, 3, 6, 2), (3, 4, 9, 3)] {
        let count = batch * channels * size * size;
        let images = cuda.tensor_from_vec(values_as::<f32>(1, count), (batch, channels * size * size));
        let tokens = patchify(&cuda, &images, channels, size, patch).unwrap();
        let (pixels, side, found) = (images.as_vec(), size / patch, tokens.as_vec());
        let mut expected = Vec::new();
        for sample in 0..batch {
            for (row, column) in (0..side).flat_map(|row| (0..side).map(move |column| (row, column))) {
                for (y, x) in (0..patch).flat_map(|y| (0..patch).map(move |x| (y, x))) {
                    for channel in 0..channels {
                        let line = (sample * channels + channel) * size + row * patch + y;
                        expected.push(pixels[line * size + column * patch + x]);
                    }
                }
            }
        }
        assert_eq!(found, expected);
        let back = unpatchify(&cuda, &tokens, channels, size, patch).unwrap();
        assert_eq!(back.as_vec(), pixels);
    }
}

#[test]
fn casts_round_to_nearest_even_and_keep_infinities() {
    let Some(cuda) = device() else { return };
    let mut numbers = vec![
        0.0f32,
        -0.0,
        1.0,
        65504.0,
        65519.9,
        65520.0,
        -1e9,
        6e-8,
        2e-8,
        1.0 + 1.0 / 2048.0,
        0.1,
    ];
    numbers.extend(values_as::<f32>(1, 700).into_iter().map(|value| value * 1.2345));
    let single = cuda.tensor_from_vec(numbers.clone(), (numbers.len(),));
    let half: Tensor<(usize,), f16, _> = cast(&cuda, &single).unwrap();
    let expected: Vec<f16> = numbers.iter().map(|&value| f16::from_f32(value)).collect();
    assert_eq!(half.as_vec(), expected);
    let back: Tensor<(usize,), f32, _> = cast(&cuda, &half).unwrap();
    let expected: Vec<f32> = expected.into_iter().map(f16::to_f32).collect();
    assert_eq!(back.as_vec(), expected);
}
