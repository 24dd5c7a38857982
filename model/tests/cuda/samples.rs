//! Training samples made on the device, and changes of precision.

use deepflow_datasets::random::{Purpose, Stream};
use deepflow_model::ops::cuda::{cast, fill_normal, mix_patches, Upload};
use deepflow_model::patches::{PatchGrid, PatchOrder};
use deepflow_model::training::SamplePlace;
use dfdx::prelude::*;
use half::f16;

use crate::compare::{f64s, values, values_as};
use crate::emulation::device;

#[test]
fn normal_numbers_are_those_of_the_processor_bit_for_bit() {
    let Some(cuda) = device() else { return };
    let place = |(epoch, position)| SamplePlace { epoch, position };
    let places = [(0, 0), (3, 1), (7, 5_000_000_000), (u32::MAX, u64::MAX)].map(place);
    for per_sample in [1, 15, 64, 100, 4097] {
        let drawn = fill_normal(&cuda, 0x1234_5678_9abc_def0, Purpose::Noise, &places, per_sample).unwrap();
        let mut expected = vec![0.0; places.len() * per_sample];
        for (row, place) in expected.chunks_mut(per_sample).zip(places) {
            Stream::new(0x1234_5678_9abc_def0, Purpose::Noise, place.epoch, place.position).fill_normal(row);
        }
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(drawn.as_vec()), bits(expected), "{per_sample} numbers a sample");
    }
}

#[test]
fn data_and_noise_are_mixed_and_cut_into_patches() {
    let Some(cuda) = device() else { return };
    for (batch, channels, size, patch) in [(1, 1, 2, 1), (2, 3, 6, 2), (3, 4, 9, 3)] {
        let grid = PatchGrid { channels, size, patch };
        let per_sample = channels * size * size;
        let count = batch * per_sample;
        let input = |name| cuda.tensor_from_vec(values_as::<f32>(name, count), (batch, per_sample));
        let weights: Vec<(f64, f64)> = (0..batch).map(|sample| (1.0 - 0.25 * sample as f64, -0.5)).collect();
        let mixed: Vec<f64> = (values(1, count).into_iter().zip(values(2, count)).enumerate())
            .map(|(i, (data, noise))| weights[i / per_sample].0 * data + weights[i / per_sample].1 * noise)
            .collect();
        for order in [PatchOrder::ChannelFirst, PatchOrder::ChannelLast] {
            let single = mix_patches::<f32>(&cuda, &input(1), &input(2), &weights, grid, order).unwrap();
            let half = mix_patches::<f16>(&cuda, &input(1), &input(2), &weights, grid, order).unwrap();
            let expected = grid.patchify(&mixed, order);
            let found = f64s(single.as_vec()).into_iter().zip(f64s(half.as_vec()));
            for (i, ((single, half), expected)) in found.zip(expected).enumerate() {
                let close = (single - expected).abs() <= 1e-6 && (half - expected).abs() <= 5e-3;
                assert!(
                    close,
                    "{order:?}: value {i} is {single} and {half}, expected {expected}"
                );
            }
        }
    }
}

/// Arrays of changing length; the one sent before must not be touched while its rows are read.
#[test]
fn uploads_arrive_before_they_are_read() {
    let Some(cuda) = device() else { return };
    let mut upload = Upload::new(&cuda).unwrap();
    for (sent, rows) in [3usize, 7, 2, 7, 9, 1].into_iter().enumerate() {
        let numbers: Vec<f32> = values_as(sent as u64, rows * 5);
        upload.send(&numbers).unwrap();
        let whole = upload.rows(0..rows, 5).unwrap();
        let last = upload.rows(rows - 1..rows, 5).unwrap();
        assert_eq!(whole.as_vec(), numbers, "array {sent}");
        assert_eq!(last.as_vec(), numbers[(rows - 1) * 5..], "array {sent}");
    }
}

/// The emulated device is behind with everything: it comes to what was sent only when somebody waits for it.
#[test]
fn no_upload_is_overwritten_before_it_is_read() {
    let Some(cuda) = device() else { return };
    let mut upload = Upload::new(&cuda).unwrap();
    let mut read = Vec::new();
    // Three times through both pairs of buffers without growing, then growing.
    for (sent, rows) in [9usize, 9, 4, 7, 9, 1, 3, 12, 20, 20, 30].into_iter().enumerate() {
        let numbers: Vec<f32> = values_as(sent as u64, rows * 5);
        upload.send(&numbers).unwrap();
        read.push((upload.rows(0..rows, 5).unwrap(), numbers));
    }
    drop(upload);
    for (sent, (found, numbers)) in read.into_iter().enumerate() {
        assert_eq!(found.as_vec(), numbers, "array {sent}");
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
