//! Kernel Inception Distance: an unbiased distance that means something for few samples, too.

use super::Features;
use deepflow_datasets::random::{Purpose, Stream};
use faer::Mat;
use rayon::prelude::*;

/// Pairs of random subsets the distance is the mean of.
pub const KERNEL_SUBSETS: usize = 100;
/// Vectors in a subset, where there are more than twice as many.
const KERNEL_SUBSET_SIZE: usize = 1000;

/// The usual 1000, but at most half of the smaller set: subsets that are always the same would have an error bar of zero.
pub fn kernel_subset_size(real: usize, generated: usize) -> usize {
    KERNEL_SUBSET_SIZE.min(real.min(generated) / 2)
}

/// Mean and error bar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KernelDistance {
    /// Mean of the squared maximum mean discrepancy over the subsets; near 0 for equal distributions, can be negative.
    pub mean: f64,
    /// Standard deviation over the subsets.
    pub deviation: f64,
    /// Vectors in a subset.
    pub subset_size: usize,
}

/// The polynomial-kernel MMD² with `k(x, y) = (x·y/width + 1)³` over random subsets of `subset_size` vectors (Bińkowski et
/// al. 2018); `None` for subsets of fewer than two vectors or more than there are. The subsets follow from `seed`.
pub fn kernel_distance<T: Copy + Into<f64> + Sync>(
    real: &Features<T>,
    generated: &Features<T>,
    subset_size: usize,
    seed: u64,
) -> Option<KernelDistance> {
    if subset_size < 2 || subset_size > real.len().min(generated.len()) || real.width != generated.width {
        return None;
    }
    let distances: Vec<f64> = (0..KERNEL_SUBSETS)
        .into_par_iter()
        .map(|subset| {
            let pick = |features: &Features<T>, side: u64| {
                let stream = Stream::new(seed, Purpose::Split, side as u32, subset as u64);
                features.columns(random_subset(features.len(), subset_size, &stream).into_iter())
            };
            squared_discrepancy(&pick(real, 0), &pick(generated, 1))
        })
        .collect();
    let mean = distances.iter().sum::<f64>() / distances.len() as f64;
    let variance = distances.iter().map(|distance| (distance - mean).powi(2)).sum::<f64>() / distances.len() as f64;
    Some(KernelDistance {
        mean,
        deviation: variance.sqrt(),
        subset_size,
    })
}

/// The first `size` members of a random permutation of `0..count` (Fisher and Yates).
fn random_subset(count: usize, size: usize, stream: &Stream) -> Vec<usize> {
    let mut members: Vec<usize> = (0..count).collect();
    for place in 0..size {
        let other = place + stream.below(place, (count - place) as u64) as usize;
        members.swap(place, other);
    }
    members.truncate(size);
    members
}

/// Unbiased: a vector is not compared with itself.
fn squared_discrepancy(real: &Mat<f64>, generated: &Mat<f64>) -> f64 {
    let size = real.ncols() as f64;
    let within = |points: &Mat<f64>| (kernel_sum(points, points) - kernel_diagonal(points)) / (size * (size - 1.0));
    within(real) + within(generated) - 2.0 * kernel_sum(real, generated) / (size * size)
}

fn kernel(product: f64, width: usize) -> f64 {
    (product / width as f64 + 1.0).powi(3)
}

fn kernel_sum(left: &Mat<f64>, right: &Mat<f64>) -> f64 {
    let products = left.transpose() * right;
    (0..products.ncols())
        .map(|column| {
            products
                .col(column)
                .iter()
                .map(|&product| kernel(product, left.nrows()))
                .sum::<f64>()
        })
        .sum()
}

fn kernel_diagonal(points: &Mat<f64>) -> f64 {
    (0..points.ncols())
        .map(|column| {
            kernel(
                points.col(column).iter().map(|value| value * value).sum(),
                points.nrows(),
            )
        })
        .sum()
}
