//! Every kernel against its definition, at every instruction set, on shapes that fit nothing.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::lanes::tests::at_every_level;
use super::*;

/// Largest error of a Winograd convolution, as a part of the output's standard deviation.
const WINOGRAD: f64 = 1e-4;

/// Reproducible values in [-1, 1).
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Standard deviation.
fn spread(values: &[f32]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    (values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count).sqrt()
}

/// Largest difference, relative to the standard deviation of `expected`.
fn error(found: &[f32], expected: &[f32]) -> f64 {
    error_beside(spread(expected), found, expected)
}

/// Largest difference, relative to `spread`.
fn error_beside(spread: f64, found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = found
        .iter()
        .zip(expected)
        .map(|(a, b)| f64::from((a - b).abs()))
        .fold(0.0, f64::max);
    assert!(found.iter().all(|value| value.is_finite()));
    largest / (spread + 1e-3)
}

fn check_convolution(shape: ConvolutionShape, batch: usize, height: usize, width: usize) {
    let is_winograd = shape.kernel == (3, 3) && shape.stride == (1, 1);
    let tolerance = if is_winograd { WINOGRAD } else { 2e-5 };
    let fan_in = (shape.weights() / shape.out_channels) as f32;
    let weight: Vec<f32> = noise(shape.weights(), 1).iter().map(|w| w / fan_in.sqrt()).collect();
    let bias = noise(shape.out_channels, 2);
    let input = noise(batch * shape.in_channels * height * width, 3);
    let (rows, columns) = shape.output_size(height, width).unwrap();
    let residual = noise(batch * shape.out_channels * rows * columns, 4);
    let expected: Vec<f32> = input
        .chunks(input.len() / batch)
        .flat_map(|picture| plain::convolution(&shape, &weight, &bias, picture, (height, width)))
        .collect();
    let sum: Vec<f32> = expected.iter().zip(&residual).map(|(a, b)| a + b).collect();
    let positive: Vec<f32> = expected.iter().map(|x| x.max(0.0)).collect();
    let convolution = Convolution::new(shape, &weight, &bias).unwrap();
    // The standard deviation that a product of two such uniform values has in expectation: few outputs, or what ReLU leaves
    // of them, may spread far less than the sums whose rounding errors they carry.
    let scale = 1.0 / 3.0;
    at_every_level(|| {
        let map = FeatureMap::from_nchw(&input, [batch, shape.in_channels, height, width]).unwrap();
        let residual = FeatureMap::from_nchw(&residual, [batch, shape.out_channels, rows, columns]).unwrap();
        for (output, expected) in [
            (Output::Plain, &expected),
            (Output::AddTo(residual), &sum),
            (Output::Relu, &positive),
        ] {
            let found = error_beside(scale, &convolution.forward(&map, output).unwrap().to_nchw(), expected);
            assert!(found < tolerance, "{shape:?} on {height}x{width}: error {found:e}");
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_convolution_is_the_plain_one(
        (in_channels, out_channels) in (1usize..40, 1usize..40),
        kernel in (1usize..8, 1usize..8),
        stride in (1usize..4, 1usize..4),
        (top, bottom, left, right) in (0usize..4, 0usize..4, 0usize..4, 0usize..4),
        (height, width) in (8usize..20, 8usize..20),
        batch in 1usize..3,
    ) {
        let padding = Padding { top, bottom, left, right };
        let shape = ConvolutionShape { in_channels, out_channels, kernel, stride, padding };
        check_convolution(shape, batch, height, width);
    }

    #[test]
    fn any_winograd_convolution_is_the_plain_one(
        (in_channels, out_channels) in (1usize..70, 1usize..70),
        (top, bottom, left, right) in (0usize..3, 0usize..3, 0usize..3, 0usize..3),
        (height, width) in (3usize..40, 3usize..24),
        batch in 1usize..3,
    ) {
        let padding = Padding { top, bottom, left, right };
        let shape = ConvolutionShape { in_channels, out_channels, kernel: (3, 3), stride: (1, 1), padding };
        check_convolution(shape, batch, height, width);
    }

    #[test]
    fn pools_are_the_plain_ones(
        channels in 1usize..40,
        kernel in (1usize..4, 1usize..4),
        stride in (1usize..3, 1usize..3),
        (vertical, horizontal) in (0usize..3, 0usize..3),
        (height, width) in (4usize..12, 4usize..12),
    ) {
        let padding = Padding::symmetric(vertical.min(kernel.0 - 1), horizontal.min(kernel.1 - 1));
        let input = noise(2 * channels * height * width, 5);
        let map = FeatureMap::from_nchw(&input, [2, channels, height, width]).unwrap();
        let windows = plain::windows(&input, (height, width), kernel, stride, padding);
        for pooling in [Pooling::Maximum, Pooling::Average, Pooling::AverageWithoutPadding] {
            let expected: Vec<f32> = windows.iter().map(|window| {
                let inside: Vec<f32> = window.iter().flatten().copied().collect();
                match pooling {
                    Pooling::Maximum => inside.iter().copied().fold(f32::NEG_INFINITY, f32::max),
                    Pooling::Average => inside.iter().sum::<f32>() / window.len() as f32,
                    Pooling::AverageWithoutPadding => inside.iter().sum::<f32>() / inside.len() as f32,
                }
            }).collect();
            let found = Pool { pooling, kernel, stride, padding }.forward(&map).unwrap().to_nchw();
            prop_assert!(error(&found, &expected) < 1e-5);
        }
    }

    #[test]
    fn normalisation_on_the_way_in_is_the_plain_one(
        (group_channels, groups, out_channels) in (1usize..8, 1usize..9, 1usize..20),
        (height, width) in (3usize..20, 3usize..20),
        (kernel, mean) in (prop::sample::select(vec![1usize, 3, 5]), -20.0f32..20.0),
    ) {
        let channels = group_channels * groups;
        let input: Vec<f32> = noise(channels * height * width, 6).iter().map(|x| x + mean).collect();
        let (weight, bias) = (noise(channels, 7), noise(channels, 8));
        let mut normalized = plain::group_norm(groups, &weight, &bias, 1e-6, &input);
        let norm = GroupNorm::new(groups, weight, bias, 1e-6).unwrap();
        let shape = ConvolutionShape::same(channels, out_channels, kernel);
        let weight = noise(shape.weights(), 9);
        let convolution = Convolution::new(shape, &weight, &vec![0.0; out_channels]).unwrap();
        normalized.iter_mut().for_each(|x| *x /= 1.0 + (-*x).exp());
        let expected = plain::convolution(&shape, &weight, &vec![0.0; out_channels], &normalized, (height, width));
        at_every_level(|| {
            let map = FeatureMap::from_nchw(&input, [1, channels, height, width]).unwrap();
            let affine = norm.measure(&map).unwrap();
            let found = convolution.forward(Input::normalized_silu(&map, &affine), Output::Plain).unwrap();
            // Values around `mean` were rounded to f32 before they were normalised.
            assert!(error(&found.to_nchw(), &expected) < 1e-4);
        });
    }

    #[test]
    fn enlarging_on_the_way_in_is_the_plain_one(
        (in_channels, out_channels) in (1usize..40, 1usize..40),
        (height, width) in (1usize..14, 1usize..14),
    ) {
        let shape = ConvolutionShape::same(in_channels, out_channels, 3);
        let (weight, bias) = (noise(shape.weights(), 1), noise(out_channels, 2));
        let input = noise(in_channels * height * width, 3);
        let enlarged = plain::upsample(&input, width);
        let expected = plain::convolution(&shape, &weight, &bias, &enlarged, (2 * height, 2 * width));
        let convolution = Convolution::new(shape, &weight, &bias).unwrap();
        at_every_level(|| {
            let map = FeatureMap::from_nchw(&input, [1, in_channels, height, width]).unwrap();
            let found = convolution.forward(Input::upsampled(&map), Output::Plain).unwrap();
            assert!(error(&found.to_nchw(), &expected) < WINOGRAD);
        });
    }

    #[test]
    fn attention_is_softmax_of_scores_times_values(channels in 1usize..40, height in 1usize..9, width in 1usize..9) {
        let pixels = height * width;
        let [q, k, v] = [1, 2, 3].map(|seed| noise(channels * pixels, seed));
        let mut expected = vec![0.0f32; channels * pixels];
        for i in 0..pixels {
            let score = |j: usize| (0..channels).map(|c| f64::from(q[c * pixels + i] * k[c * pixels + j])).sum::<f64>();
            let weights: Vec<f64> = (0..pixels).map(|j| (score(j) / (channels as f64).sqrt()).exp()).collect();
            let total: f64 = weights.iter().sum();
            for c in 0..channels {
                let sum: f64 = (0..pixels).map(|j| weights[j] * f64::from(v[c * pixels + j])).sum();
                expected[c * pixels + i] = (sum / total) as f32;
            }
        }
        at_every_level(|| {
            let [q, k, v] = [&q, &k, &v].map(|x| FeatureMap::from_nchw(x, [1, channels, height, width]).unwrap());
            assert!(error(&pixel_attention(&q, &k, &v).unwrap().to_nchw(), &expected) < 1e-5);
        });
    }
}

/// More channel pairs than are kept transformed, so that groups of tiles share one transformed input.
#[test]
fn winograd_with_many_weights_is_the_plain_convolution() {
    check_convolution(ConvolutionShape::same(288, 240, 3), 2, 11, 13);
}

/// Winograd's own error over the longest sum of the autoencoder.
#[test]
fn winograd_over_512_channels_stays_below_the_limit() {
    check_convolution(ConvolutionShape::same(512, 16, 3), 1, 16, 16);
}

#[test]
fn batch_norm_is_folded_into_the_convolution() {
    let shape = ConvolutionShape::same(5, 3, 3);
    let (weight, input) = (noise(shape.weights(), 1), noise(5 * 49, 2));
    let (gain, bias, mean) = (noise(3, 3), noise(3, 4), noise(3, 5));
    let variance = [0.5, 1.0, 2.0];
    let mut expected = plain::convolution(&shape, &weight, &[0.0; 3], &input, (7, 7));
    for (channel, plane) in expected.chunks_mut(49).enumerate() {
        for value in plane {
            *value = (*value - mean[channel]) / (variance[channel] + 1e-3f32).sqrt() * gain[channel] + bias[channel];
        }
    }
    let norm = BatchNorm {
        weight: Some(&gain),
        bias: &bias,
        mean: &mean,
        variance: &variance,
        epsilon: 1e-3,
    };
    let convolution = Convolution::with_batch_norm(shape, &weight, &norm).unwrap();
    let map = FeatureMap::from_nchw(&input, [1, 5, 7, 7]).unwrap();
    assert!(error(&convolution.forward(&map, Output::Plain).unwrap().to_nchw(), &expected) < 2e-5);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let map = FeatureMap::from_nchw(&noise(2 * 288 * 21 * 19, 1), [2, 288, 21, 19]).unwrap();
    let norm = GroupNorm::new(32, noise(288, 2), noise(288, 3), 1e-6).unwrap();
    let shapes = [
        ConvolutionShape::same(288, 240, 3),
        ConvolutionShape::same(288, 48, 3),
        ConvolutionShape::same(288, 48, 1),
        ConvolutionShape {
            stride: (2, 2),
            ..ConvolutionShape::same(288, 48, 3)
        },
    ];
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let affine = norm.measure(&map).unwrap();
            let outputs = shapes.map(|shape| {
                let convolution = Convolution::new(shape, &noise(shape.weights(), 4), &noise(shape.out_channels, 5));
                let input = Input::normalized_silu(&map, &affine);
                convolution.unwrap().forward(input, Output::Plain).unwrap().to_nchw()
            });
            (outputs, pixel_attention(&map, &map, &map).unwrap().to_nchw())
        })
    };
    let alone = run(1);
    assert!(alone == run(2) && alone == run(5));
}

#[test]
fn concatenation_keeps_every_channel() {
    let parts = [noise(16 * 6, 1), noise(32 * 6, 2), noise(5 * 6, 3)];
    let maps: Vec<FeatureMap> = parts
        .iter()
        .map(|part| FeatureMap::from_nchw(part, [1, part.len() / 6, 2, 3]).unwrap())
        .collect();
    let joined = FeatureMap::concatenate(&maps.iter().collect::<Vec<_>>()).unwrap();
    assert_eq!(joined.to_nchw(), parts.concat());
    assert!(FeatureMap::concatenate(&[&maps[2], &maps[0]]).is_err());
}

#[test]
fn misfits_are_errors_that_name_both_sizes() {
    let convolution = Convolution::new(ConvolutionShape::same(2, 2, 3), &[0.0; 36], &[0.0; 2]).unwrap();
    let wrong = FeatureMap::zeros(1, 3, 4, 4);
    let message = convolution.forward(&wrong, Output::Plain).unwrap_err().to_string();
    assert_eq!(
        message,
        "the input of a convolution has shape [1, 3, 4, 4], expected [1, 2, 4, 4]"
    );
    assert!(Convolution::new(ConvolutionShape::same(2, 2, 3), &[0.0; 35], &[0.0; 2]).is_err());
    assert!(GroupNorm::new(3, vec![0.0; 4], vec![0.0; 4], 1e-6).is_err());
    let fits = FeatureMap::zeros(1, 2, 4, 4);
    assert!(convolution
        .forward(&fits, Output::AddTo(FeatureMap::zeros(1, 2, 4, 5)))
        .is_err());
}
