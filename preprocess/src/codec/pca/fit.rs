//! Fitting the transform: covariance of the patches, its eigenvectors, a fixed sign.

use faer::{Mat, Side};

use super::{check_size, identity_of, PcaCodec, PcaError, PcaOptions};
use crate::picture::{Colour, Pixels};

/// What of a sample of pictures a transform is fitted to: the count, sums and products of their patches. Bytes and their
/// products are summed exactly, as integers, so neither the order of the pictures nor their division shows, and memory does
/// not grow with them.
#[derive(Clone, Debug)]
pub struct PcaSums {
    options: PcaOptions,
    size: usize,
    colour: Colour,
    count: u64,
    sums: Vec<u64>,
    products: Vec<u64>,
}

impl PcaSums {
    /// Of no picture yet; for square pictures of side `size`.
    ///
    /// # Errors
    /// When the options do not fit the pictures.
    pub fn new(options: PcaOptions, size: usize, colour: Colour) -> Result<Self, PcaError> {
        check_size(size, options.patch)?;
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
        Ok(Self {
            options,
            size,
            colour,
            count: 0,
            sums: vec![0; elements],
            products: vec![0; elements * elements],
        })
    }

    /// Adds every patch of a picture.
    ///
    /// # Errors
    /// When it has another size or colour.
    pub fn add(&mut self, picture: &Pixels) -> Result<(), PcaError> {
        let Self { size, colour, .. } = *self;
        if (picture.width(), picture.height(), picture.colour()) != (size, size, colour) {
            let found = format!("{}×{} {:?}", picture.width(), picture.height(), picture.colour());
            let expected = format!("{size}×{size} {colour:?}");
            return Err(PcaError::Option {
                what: "a picture of the sample",
                found,
                expected,
            });
        }
        let (elements, patch_side) = (self.sums.len(), self.options.patch);
        let (side, length) = (size / patch_side, patch_side * colour.channels());
        let mut patch = vec![0_u64; elements];
        for position in 0..side * side {
            for (y, values) in patch.chunks_exact_mut(length).enumerate() {
                let bytes = &picture.row(position / side * patch_side + y)[position % side * length..][..length];
                values
                    .iter_mut()
                    .zip(bytes)
                    .for_each(|(value, &byte)| *value = u64::from(byte));
            }
            self.sums.iter_mut().zip(&patch).for_each(|(sum, value)| *sum += value);
            for (&value, row) in patch.iter().zip(self.products.chunks_exact_mut(elements)) {
                row.iter_mut()
                    .zip(&patch)
                    .for_each(|(sum, other)| *sum += value * other);
            }
        }
        self.count += (side * side) as u64;
        Ok(())
    }

    /// Of the pictures of both, which are of the same size and colour.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.count += other.count;
        self.sums
            .iter_mut()
            .zip(&other.sums)
            .for_each(|(sum, more)| *sum += more);
        let products = self.products.iter_mut().zip(&other.products);
        products.for_each(|(sum, more)| *sum += more);
        self
    }

    /// The transform.
    ///
    /// # Errors
    /// When there was no picture, or they show one colour only.
    pub fn fit(&self) -> Result<PcaCodec, PcaError> {
        if self.count == 0 {
            return Err(PcaError::NoVariation);
        }
        let (mean, covariance) = self.moments();
        let (deviations, directions) = principal_directions(&covariance, self.options.channels)?;
        let largest = deviations
            .first()
            .copied()
            .filter(|&largest| largest > 1e-6)
            .ok_or(PcaError::NoVariation)?;
        let smallest = (self.options.floor * largest).max(1e-6);
        let side = self.size / self.options.patch;
        let mut codec = PcaCodec {
            identity: identity_of(self.options, self.colour, side, String::new()),
            options: self.options,
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

    /// Mean and covariance of all patches in units of [-1, 1].
    fn moments(&self) -> (Vec<f64>, Mat<f64>) {
        let (elements, count) = (self.sums.len(), self.count as f64);
        let means: Vec<f64> = self.sums.iter().map(|&sum| sum as f64 / count).collect();
        let unit = 127.5;
        let covariance = Mat::from_fn(elements, elements, |i, j| {
            (self.products[i * elements + j] as f64 / count - means[i] * means[j]) / (unit * unit)
        });
        (means.iter().map(|mean| mean / unit - 1.0).collect(), covariance)
    }
}

impl PcaCodec {
    /// Fits the transform to every patch of `sample`, square pictures of one size and colour.
    ///
    /// # Errors
    /// When the options do not fit the pictures, or the pictures show one colour only.
    pub fn fit(sample: &[Pixels], options: PcaOptions) -> Result<Self, PcaError> {
        let first = sample.first().ok_or(PcaError::NoVariation)?;
        let mut sums = PcaSums::new(options, first.width(), first.colour())?;
        sample.iter().try_for_each(|picture| sums.add(picture))?;
        sums.fit()
    }
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
