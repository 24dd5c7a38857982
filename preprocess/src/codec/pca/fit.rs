//! Fitting the transform: covariance of the patches, its eigenvectors, a fixed sign.

use faer::{Mat, Side};

use super::{check_size, identity_of, PcaCodec, PcaError, PcaOptions};
use crate::picture::Pixels;

impl PcaCodec {
    /// Fits the transform to every patch of `sample`, square pictures of one size and colour. The result does not depend
    /// on the order of the pictures: bytes and their products are summed exactly, as integers.
    ///
    /// # Errors
    /// When the options do not fit the pictures, or the pictures show one colour only.
    pub fn fit(sample: &[Pixels], options: PcaOptions) -> Result<Self, PcaError> {
        let first = sample.first().ok_or(PcaError::NoVariation)?;
        let (size, colour) = (first.width(), first.colour());
        check_size(size, options.patch)?;
        if let Some(other) = sample
            .iter()
            .find(|p| (p.width(), p.height(), p.colour()) != (size, size, colour))
        {
            let found = format!("{}×{} {:?}", other.width(), other.height(), other.colour());
            let expected = format!("{size}×{size} {colour:?}");
            return Err(PcaError::Option {
                what: "a picture of the sample",
                found,
                expected,
            });
        }
        let elements = options.patch * options.patch * colour.channels();
        if !(1..=elements).contains(&options.channels) {
            let expected = format!("1 to {elements}");
            return Err(PcaError::Option {
                what: "channels",
                found: options.channels.to_string(),
                expected,
            });
        }
        if !(0.0..=1.0).contains(&options.floor) {
            let found = options.floor.to_string();
            return Err(PcaError::Option {
                what: "floor",
                found,
                expected: "0 to 1".into(),
            });
        }
        let (mean, covariance) = moments_of_patches(sample, options.patch, elements);
        let (deviations, directions) = principal_directions(&covariance, options.channels)?;
        let largest = deviations
            .first()
            .copied()
            .filter(|&largest| largest > 1e-6)
            .ok_or(PcaError::NoVariation)?;
        let smallest = (options.floor * largest).max(1e-6);
        let mut codec = Self {
            identity: identity_of(options, colour, size / options.patch, String::new()),
            options,
            mean: mean.iter().map(|&value| value as f32).collect(),
            directions: directions.iter().map(|&value| value as f32).collect(),
            scales: deviations
                .iter()
                .map(|&deviation| deviation.max(smallest) as f32)
                .collect(),
        };
        codec.identity.weights_sha256 = codec.sha256()?;
        Ok(codec)
    }
}

/// Mean and covariance of all patches in units of [-1, 1].
fn moments_of_patches(sample: &[Pixels], size: usize, elements: usize) -> (Vec<f64>, Mat<f64>) {
    let mut sums = vec![0_u64; elements];
    let mut products = vec![0_u64; elements * elements];
    let mut count = 0_u64;
    let mut patch = vec![0_u64; elements];
    for picture in sample {
        let (side, length) = (picture.width() / size, size * picture.colour().channels());
        for position in 0..side * side {
            for (y, values) in patch.chunks_exact_mut(length).enumerate() {
                let bytes = &picture.row(position / side * size + y)[position % side * length..][..length];
                values
                    .iter_mut()
                    .zip(bytes)
                    .for_each(|(value, &byte)| *value = u64::from(byte));
            }
            sums.iter_mut().zip(&patch).for_each(|(sum, value)| *sum += value);
            for (&value, row) in patch.iter().zip(products.chunks_exact_mut(elements)) {
                row.iter_mut()
                    .zip(&patch)
                    .for_each(|(sum, other)| *sum += value * other);
            }
            count += 1;
        }
    }
    let count = count as f64;
    let means: Vec<f64> = sums.iter().map(|&sum| sum as f64 / count).collect();
    let unit = 127.5;
    let covariance = Mat::from_fn(elements, elements, |i, j| {
        (products[i * elements + j] as f64 / count - means[i] * means[j]) / (unit * unit)
    });
    (means.iter().map(|mean| mean / unit - 1.0).collect(), covariance)
}

/// The `channels` strongest eigenvectors as rows, with their deviations. A direction's largest element is positive.
fn principal_directions(covariance: &Mat<f64>, channels: usize) -> Result<(Vec<f64>, Vec<f64>), PcaError> {
    let elements = covariance.nrows();
    let eigen = covariance
        .self_adjoint_eigen(Side::Lower)
        .map_err(|_| PcaError::Decomposition)?;
    let (values, vectors) = (eigen.S().column_vector(), eigen.U());
    let mut deviations = Vec::with_capacity(channels);
    let mut directions = Vec::with_capacity(channels * elements);
    for column in (elements - channels..elements).rev() {
        deviations.push(values[column].max(0.0).sqrt());
        let direction: Vec<f64> = (0..elements).map(|row| vectors[(row, column)]).collect();
        let largest = direction
            .iter()
            .copied()
            .fold(0.0_f64, |a, b| if b.abs() > a.abs() + 1e-9 { b } else { a });
        directions.extend(direction.iter().map(|value| value * largest.signum()));
    }
    Ok((deviations, directions))
}
