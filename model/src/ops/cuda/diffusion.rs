//! Training samples made on the device: the posterior's sample, the noise, the point on the path and its target.

use deepflow_datasets::random::Purpose;
use dfdx::prelude::{HasShape, ZerosTensor};
use dfdx::tensor::{Cuda, CudaError};

use super::context::context;
use super::launch::{start, upload, Kernel};
use super::precision::Precision;
use super::tensor::{matrix, pointer};
use crate::ops::Matrix;
use crate::training::Path;

/// Where a sample is on its path, and where it is going, `(B,n)` each.
#[derive(Clone, Debug)]
pub struct PathPoint<E: Precision> {
    /// The point `x_t`.
    pub x: Matrix<E, Cuda>,
    /// The velocity there, `d x_t/dt`.
    pub velocity: Matrix<E, Cuda>,
}

/// Standard normal numbers, a row for each position: bit for bit those of
/// [`Stream::fill_normal`](deepflow_datasets::random::Stream::fill_normal) for `(seed, purpose, epoch, position)`.
///
/// # Errors
/// What the driver says, here and below.
pub fn fill_normal(
    device: &Cuda,
    seed: u64,
    purpose: Purpose,
    epoch: u32,
    positions: &[u64],
    per_sample: usize,
) -> Result<Matrix<f32, Cuda>, CudaError> {
    let context = context(device)?;
    let out = matrix::<f32>(device, positions.len(), per_sample)?;
    let uploaded = upload(context, positions.to_vec())?;
    Kernel::named("fill_normal")
        .pointer(pointer(&out))
        .pointer(start(&uploaded))
        .word(seed as u32)
        .word((seed >> 32) as u32)
        .word(purpose as u32)
        .word(epoch)
        .int(positions.len())
        .int(per_sample)
        .over_elements(context, positions.len() * per_sample.div_ceil(64) * 16)?;
    Ok(out)
}

/// `factor·(mean + standard_deviation·normal)`, all (B,n).
///
/// # Errors
/// What the driver says.
pub fn sample_posterior(
    device: &Cuda,
    mean: &Matrix<f32, Cuda>,
    standard_deviation: &Matrix<f32, Cuda>,
    normal: &Matrix<f32, Cuda>,
    factor: f64,
) -> Result<Matrix<f32, Cuda>, CudaError> {
    assert_eq!(mean.shape(), standard_deviation.shape(), "posterior: shapes");
    assert_eq!(mean.shape(), normal.shape(), "posterior: shapes");
    let (rows, columns) = *mean.shape();
    let out = matrix::<f32>(device, rows, columns)?;
    Kernel::named("sample_posterior")
        .pointer(pointer(mean))
        .pointer(pointer(standard_deviation))
        .pointer(pointer(normal))
        .pointer(pointer(&out))
        .float(factor)
        .length(rows * columns)
        .over_elements(context(device)?, rows * columns)?;
    Ok(out)
}

/// The points between data and noise (B,n) at one time a sample (network spec §1).
///
/// # Errors
/// What the driver says.
pub fn interpolate<E: Precision>(
    device: &Cuda,
    data: &Matrix<f32, Cuda>,
    noise: &Matrix<f32, Cuda>,
    times: &[f64],
    path: Path,
) -> Result<PathPoint<E>, CudaError> {
    assert_eq!(data.shape(), noise.shape(), "interpolation: shapes");
    assert_eq!(data.shape().0, times.len(), "interpolation: times");
    let context = context(device)?;
    let (rows, columns) = *data.shape();
    let times = upload(context, times.iter().map(|&time| time as f32).collect())?;
    let x = matrix::<E>(device, rows, columns)?;
    let velocity = matrix::<E>(device, rows, columns)?;
    Kernel::of::<E>("interpolate")
        .pointer(pointer(data))
        .pointer(pointer(noise))
        .pointer(start(&times))
        .pointer(pointer(&x))
        .pointer(pointer(&velocity))
        .length(rows * columns)
        .length(columns)
        .int(match path {
            Path::Linear => 0,
            Path::Cosine => 1,
        })
        .over_elements(context, rows * columns)?;
    Ok(PathPoint { x, velocity })
}

/// Images (B, C·S·S) as tokens (B·(S/P)², P·P·C) in the order (py, px, channel) (network spec §2).
///
/// # Errors
/// What the driver says.
pub fn patchify<E: Precision>(
    device: &Cuda,
    images: &Matrix<E, Cuda>,
    channels: usize,
    size: usize,
    patch: usize,
) -> Result<Matrix<E, Cuda>, CudaError> {
    let batch = images.shape().0;
    assert_eq!(images.shape().1, channels * size * size, "patchify: values of an image");
    assert_eq!(size % patch, 0, "patchify: patches of {patch} in {size}");
    let side = size / patch;
    let out = matrix::<E>(device, batch * side * side, patch * patch * channels)?;
    permute(device, "patchify", images, &out, [batch, channels, size, patch])?;
    Ok(out)
}

/// The inverse of [`patchify`].
///
/// # Errors
/// What the driver says.
pub fn unpatchify<E: Precision>(
    device: &Cuda,
    tokens: &Matrix<E, Cuda>,
    channels: usize,
    size: usize,
    patch: usize,
) -> Result<Matrix<E, Cuda>, CudaError> {
    let side = size / patch;
    assert_eq!(
        tokens.shape().1,
        patch * patch * channels,
        "unpatchify: values of a token"
    );
    assert_eq!(tokens.shape().0 % (side * side), 0, "unpatchify: tokens of an image");
    let batch = tokens.shape().0 / (side * side);
    let out: Matrix<E, Cuda> = device.try_zeros_like(&(batch, channels * size * size))?;
    permute(device, "unpatchify", tokens, &out, [batch, channels, size, patch])?;
    Ok(out)
}

fn permute<E: Precision>(
    device: &Cuda,
    kernel: &str,
    from: &Matrix<E, Cuda>,
    to: &Matrix<E, Cuda>,
    [batch, channels, size, patch]: [usize; 4],
) -> Result<(), CudaError> {
    Kernel::of::<E>(kernel)
        .pointer(pointer(from))
        .pointer(pointer(to))
        .int(batch)
        .int(channels)
        .int(size)
        .int(patch)
        .over_elements(context(device)?, batch * channels * size * size)?;
    Ok(())
}
