//! The operators of the autoencoder on the device against their definitions on the processor, and the whole of it.

use deepflow_model::autoencoder::{AutoencoderConfig, AutoencoderKl};
use deepflow_model::device::AnyDevice;
use deepflow_model::ops::conv::{plain, ConvolutionShape, Padding};
use deepflow_model::ops::cuda::conv::{
    pixel_attention, DeviceConvolution, DeviceGroupNorm, DeviceInput, DeviceMap, LoadedDevice, BAND_BYTES,
};
use deepflow_model::ops::cuda::Precision;
use half::f16;

use crate::compare::{values, F16, F32};
use crate::emulation::device;

const EPSILON: f64 = 1e-6;

fn singles(name: u64, count: usize) -> Vec<f32> {
    values(name, count).into_iter().map(|value| value as f32).collect()
}

fn loaded() -> Option<LoadedDevice> {
    device().map(|device| LoadedDevice::new(&device).unwrap())
}

#[track_caller]
fn assert_close<E: Precision>(found: &[f32], expected: &[f32], case: &str) {
    let tolerance = if E::IS_SINGLE { F32 } else { F16 } as f32;
    assert_eq!(found.len(), expected.len(), "{case}");
    let largest = expected.iter().fold(1e-30f32, |most, value| most.max(value.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / largest;
        let precision = E::NAME;
        assert!(
            error <= tolerance,
            "{case} in {precision}: value {i} is {found}, expected {expected} ({error:.1e} of the largest)"
        );
    }
}

/// What happens to the input of a convolution.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Plain,
    Activated,
    Enlarged,
    Added,
}

const GROUPS: usize = 2;

fn silu(values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value /= 1.0 + (-*value).exp());
}

fn convolution_in<E: Precision>(
    device: LoadedDevice,
    shape: ConvolutionShape,
    [batch, height, width]: [usize; 3],
    way: Way,
) {
    let case = format!("{shape:?} of {batch}×{height}×{width}, {way:?}");
    let channels = shape.in_channels;
    let input = singles(1, batch * channels * height * width);
    let weight: Vec<f32> = singles(2, shape.weights())
        .into_iter()
        .map(|value| value / 8.0)
        .collect();
    let bias = singles(3, shape.out_channels);
    let (gain, offset) = (singles(4, channels), singles(5, channels));
    let seen = if way == Way::Enlarged { 2 } else { 1 };
    let (rows, columns) = shape.output_size(seen * height, seen * width).unwrap();
    let residual = singles(6, batch * shape.out_channels * rows * columns);

    let mut expected = Vec::new();
    for picture in input.chunks_exact(channels * height * width) {
        let picture = match way {
            Way::Plain | Way::Added => picture.to_vec(),
            Way::Enlarged => plain::upsample(picture, width),
            Way::Activated => {
                let mut normal = plain::group_norm(GROUPS, &gain, &offset, EPSILON, picture);
                silu(&mut normal);
                normal
            }
        };
        expected.extend(plain::convolution(
            &shape,
            &weight,
            &bias,
            &picture,
            (seen * height, seen * width),
        ));
    }
    if way == Way::Added {
        expected
            .iter_mut()
            .zip(&residual)
            .for_each(|(value, more)| *value += more);
    }

    let map = DeviceMap::<E>::from_nchw(device, &input, [batch, channels, height, width]).unwrap();
    let convolution = DeviceConvolution::new(device, shape, &weight, &bias).unwrap();
    let add_to = (way == Way::Added)
        .then(|| DeviceMap::from_nchw(device, &residual, [batch, shape.out_channels, rows, columns]).unwrap());
    let found = match way {
        Way::Plain | Way::Added => convolution.forward(&map, add_to),
        Way::Enlarged => convolution.forward(DeviceInput::upsampled(&map), None),
        Way::Activated => {
            let norm = DeviceGroupNorm::new(device, GROUPS, &gain, &offset, EPSILON).unwrap();
            let affine = norm.measure(&map).unwrap();
            convolution.forward(DeviceInput::normalized_silu(&map, &affine), None)
        }
    }
    .unwrap();
    assert_eq!(found.shape(), [batch, shape.out_channels, rows, columns], "{case}");
    assert_close::<E>(&found.to_nchw().unwrap(), &expected, &case);
}

#[test]
fn convolutions() {
    let Some(device) = loaded() else { return };
    let halving = ConvolutionShape {
        stride: (2, 2),
        padding: Padding {
            bottom: 1,
            right: 1,
            ..Padding::default()
        },
        ..ConvolutionShape::same(6, 3, 3)
    };
    let oblong = ConvolutionShape {
        kernel: (1, 5),
        padding: Padding::symmetric(0, 2),
        ..ConvolutionShape::same(4, 7, 1)
    };
    for (shape, size) in [
        (ConvolutionShape::same(2, 1, 1), [1, 1, 1]),
        (ConvolutionShape::same(4, 5, 1), [3, 5, 2]),
        (ConvolutionShape::same(2, 3, 3), [1, 1, 1]),
        (ConvolutionShape::same(34, 5, 3), [2, 7, 5]),
        (halving, [2, 6, 8]),
        (oblong, [2, 3, 6]),
    ] {
        for way in [Way::Plain, Way::Activated, Way::Enlarged, Way::Added] {
            convolution_in::<f32>(device, shape, size, way);
            convolution_in::<f16>(device, shape, size, way);
        }
    }
}

/// More windows than exist at a time: the last band is short, and ends in the second picture.
#[test]
fn a_convolution_of_several_bands() {
    let Some(device) = loaded() else { return };
    let (shape, size) = (ConvolutionShape::same(512, 1, 3), [2, 37, 57]);
    assert!(size.iter().product::<usize>() * shape.weights() * size_of::<f32>() > BAND_BYTES);
    convolution_in::<f32>(device, shape, size, Way::Plain);
}

fn group_norm_in<E: Precision>(
    device: LoadedDevice,
    [batch, height, width]: [usize; 3],
    channels: usize,
    groups: usize,
) {
    // Far from zero, as in a trained autoencoder: the square of the mean would swallow the deviation.
    let mut input = singles(1, batch * channels * height * width);
    input.iter_mut().for_each(|value| *value += 40.0);
    let (weight, bias) = (singles(2, channels), singles(3, channels));
    let expected: Vec<f32> = input
        .chunks_exact(channels * height * width)
        .flat_map(|picture| {
            let rounded: Vec<f32> = picture
                .iter()
                .map(|&value| {
                    if E::IS_SINGLE {
                        value
                    } else {
                        f16::from_f32(value).to_f32()
                    }
                })
                .collect();
            plain::group_norm(groups, &weight, &bias, EPSILON, &rounded)
        })
        .collect();
    let map = DeviceMap::<E>::from_nchw(device, &input, [batch, channels, height, width]).unwrap();
    let norm = DeviceGroupNorm::new(device, groups, &weight, &bias, EPSILON).unwrap();
    let affine = norm.measure(&map).unwrap();
    let found = DeviceInput::normalized(&map, &affine).to_map().unwrap();
    let case = format!("{batch}×{height}×{width}, {channels} channels in {groups} groups");
    assert_close::<E>(&found.to_nchw().unwrap(), &expected, &case);
}

#[test]
fn group_norms() {
    let Some(device) = loaded() else { return };
    // Less than a chunk of pixels, exactly two, and a short one; groups of one channel, of some, across 32 of them.
    for (size, channels, groups) in [
        ([1, 1, 2], 4, 4),
        ([3, 5, 7], 6, 3),
        ([2, 16, 16], 40, 2),
        ([1, 13, 21], 66, 3),
    ] {
        group_norm_in::<f32>(device, size, channels, groups);
        group_norm_in::<f16>(device, size, channels, groups);
    }
}

fn attention_in<E: Precision>(device: LoadedDevice, [batch, height, width]: [usize; 3], channels: usize) {
    let shape = [batch, channels, height, width];
    let pixels = height * width;
    let inputs = [1, 2, 3].map(|name| singles(name, batch * channels * pixels));
    let maps = [0, 1, 2].map(|i| DeviceMap::<E>::from_nchw(device, &inputs[i], shape).unwrap());
    let mut expected = vec![0.0f32; inputs[0].len()];
    for picture in 0..batch {
        let at = |channel: usize, pixel: usize| (picture * channels + channel) * pixels + pixel;
        for asked in 0..pixels {
            let scores = (0..pixels).map(|other| {
                let products =
                    (0..channels).map(|c| f64::from(inputs[0][at(c, asked)]) * f64::from(inputs[1][at(c, other)]));
                (products.sum::<f64>() / (channels as f64).sqrt()).exp()
            });
            let scores: Vec<f64> = scores.collect();
            let sum: f64 = scores.iter().sum();
            for channel in 0..channels {
                let weighted = (0..pixels).map(|other| scores[other] * f64::from(inputs[2][at(channel, other)]));
                expected[at(channel, asked)] = (weighted.sum::<f64>() / sum) as f32;
            }
        }
    }
    let found = pixel_attention(&maps[0], &maps[1], &maps[2]).unwrap();
    let case = format!("attention over {batch}×{height}×{width} of {channels} channels");
    assert_close::<E>(&found.to_nchw().unwrap(), &expected, &case);
}

#[test]
fn attention_over_pixels() {
    let Some(device) = loaded() else { return };
    for (size, channels) in [([1, 1, 1], 3), ([2, 5, 7], 9), ([1, 9, 9], 48)] {
        attention_in::<f32>(device, size, channels);
        attention_in::<f16>(device, size, channels);
    }
}

#[test]
fn attention_of_several_bands() {
    let Some(device) = loaded() else { return };
    let size = [1, 65, 64];
    assert!((65 * 64usize).pow(2) * size_of::<f32>() > BAND_BYTES);
    attention_in::<f32>(device, size, 1);
}

/// Encodes and decodes on both; the batch is larger than what the device takes at once.
#[test]
fn an_autoencoder_is_that_of_the_processor() {
    let Some(cuda) = device() else { return };
    let device = AnyDevice::Cuda(cuda);
    for (channels, attention, height, width) in [(vec![16, 32], true, 5, 3), (vec![8, 8, 16], false, 1, 2)] {
        let config = AutoencoderConfig {
            block_out_channels: channels,
            norm_num_groups: 4,
            layers_per_block: 1,
            mid_block_add_attention: attention,
            ..AutoencoderConfig::default()
        };
        let factor = config.factor();
        let processor = AutoencoderKl::random(config.clone(), 3).unwrap();
        let latents = singles(1, 5 * 4 * height * width);
        let picture = singles(2, 3 * factor * height * factor * width);
        let expected = processor.decode_batch(&latents, height, width).unwrap();
        let posterior = processor.encode(&picture, factor * height, factor * width).unwrap();
        for half in [false, true] {
            let gpu = AutoencoderKl::random_on(config.clone(), 3, &device, half).unwrap();
            let found = gpu.decode_batch(&latents, height, width).unwrap();
            let one = gpu.decode(&latents[..4 * height * width], height, width).unwrap();
            let encoded = gpu.encode(&picture, factor * height, factor * width).unwrap();
            assert_eq!(one, found[..one.len()], "a picture depends on its batch");
            assert_eq!(encoded.shape, posterior.shape);
            let close = if half { assert_close::<f16> } else { assert_close::<f32> };
            close(&found, &expected, "decoded");
            close(&encoded.mean, &posterior.mean, "mean");
            close(&encoded.std, &posterior.std, "deviation");
            assert_eq!(
                gpu.encode_batch(&[&picture[..]; 5].concat(), factor * height, factor * width)
                    .unwrap(),
                vec![encoded; 5],
                "a posterior depends on its batch"
            );
            assert!(gpu.decode(&latents, height, width).is_err());
        }
    }
}
