//! Training samples made on the device: the noise, the points on the path and their targets, as patches.

use deepflow_datasets::random::Purpose;
use dfdx::prelude::HasShape;
use dfdx::tensor::{Cuda, CudaError};

use super::context::context;
use super::launch::{start, upload, Kernel};
use super::precision::Precision;
use super::tensor::{matrix, pointer};
use crate::ops::Matrix;
use crate::patches::{PatchGrid, PatchOrder};
use crate::training::SamplePlace;

/// Standard normal numbers, a row for each place: bit for bit those of
/// [`Stream::fill_normal`](deepflow_datasets::random::Stream::fill_normal) for `(seed, purpose, epoch, position)`.
///
/// # Errors
/// What the driver says, here and below.
pub fn fill_normal(
    device: &Cuda,
    seed: u64,
    purpose: Purpose,
    places: &[SamplePlace],
    per_sample: usize,
) -> Result<Matrix<f32, Cuda>, CudaError> {
    let context = context(device)?;
    let out = matrix::<f32>(device, places.len(), per_sample)?;
    let positions = upload(context, places.iter().map(|place| place.position).collect())?;
    let epochs = upload(context, places.iter().map(|place| place.epoch).collect())?;
    Kernel::named("fill_normal")
        .pointer(pointer(&out))
        .pointer(start(&positions))
        .pointer(start(&epochs))
        .word(seed as u32)
        .word((seed >> 32) as u32)
        .word(purpose as u32)
        .int(places.len())
        .int(per_sample)
        .moves_floats(places.len() * per_sample)
        .over_elements(context, places.len() * per_sample.div_ceil(64) * 16)?;
    Ok(out)
}

/// `a·data + b·noise`, cut into patches: latents (B, C·S·S) and a pair `(a, b)` for each sample →
/// (B·T, P·P·C) (network spec §1, §2).
///
/// # Errors
/// What the driver says.
pub fn mix_patches<E: Precision>(
    device: &Cuda,
    data: &Matrix<f32, Cuda>,
    noise: &Matrix<f32, Cuda>,
    weights: &[(f64, f64)],
    grid: PatchGrid,
    order: PatchOrder,
) -> Result<Matrix<E, Cuda>, CudaError> {
    let PatchGrid { channels, size, patch } = grid;
    let (batch, values) = *data.shape();
    assert_eq!(data.shape(), noise.shape(), "mixing: shapes of data and noise");
    assert_eq!(values, channels * size * size, "mixing: values of a latent");
    assert_eq!(weights.len(), batch, "mixing: weights");
    assert_eq!(size % patch, 0, "mixing: patches of {patch} in {size}");
    let context = context(device)?;
    let pairs = weights.iter().flat_map(|&(data, noise)| [data as f32, noise as f32]);
    let weights = upload(context, pairs.collect())?;
    let side = size / patch;
    let out = matrix::<E>(device, batch * side * side, patch * patch * channels)?;
    Kernel::of::<E>("mix_patches")
        .pointer(pointer(data))
        .pointer(pointer(noise))
        .pointer(start(&weights))
        .pointer(pointer(&out))
        .int(batch)
        .int(channels)
        .int(size)
        .int(patch)
        .int(usize::from(order == PatchOrder::ChannelFirst))
        .moves_floats(2 * batch * values)
        .moves(batch * values)
        .over_elements(context, batch * values)?;
    Ok(out)
}
