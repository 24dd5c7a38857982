//! A GPU as what encoder and decoder compute with, in single or in half precision.

use std::marker::PhantomData;

use dfdx::tensor::{Cuda, CudaError};

use super::backend::Backend;
use super::AutoencoderError;
use crate::error::ModelError;
use crate::ops::conv::ConvolutionShape;
use crate::ops::cuda::conv::{
    pixel_attention, DeviceConvolution, DeviceGroupNorm, DeviceInput, DeviceMap, LoadedDevice,
};
use crate::ops::cuda::Precision;

type Result<T> = std::result::Result<T, AutoencoderError>;

/// A GPU whose maps and weights are in `E`; norms and all sums are in f32.
pub(super) struct Gpu<E: Precision> {
    device: LoadedDevice,
    precision: PhantomData<fn() -> E>,
}

impl<E: Precision> Gpu<E> {
    pub(super) fn new(device: &Cuda) -> Result<Self> {
        Ok(Self {
            device: LoadedDevice::new(device)?,
            precision: PhantomData,
        })
    }
}

impl From<CudaError> for AutoencoderError {
    fn from(error: CudaError) -> Self {
        Self::Device(ModelError::device(error))
    }
}

/// Refuses what the kernel does not fit on, as the processor's convolutions do.
fn check<E: Precision>(convolution: &DeviceConvolution<E>, [_, _, height, width]: [usize; 4]) -> Result<()> {
    convolution.shape().output_size(height, width)?;
    Ok(())
}

impl<E: Precision> Backend for Gpu<E> {
    /// The latents of one picture of 256 pixels are too few rows for all of the GPU.
    const PREFERRED_BATCH: usize = 4;

    type Map = DeviceMap<E>;
    type Convolution = DeviceConvolution<E>;
    type Norm = DeviceGroupNorm;

    fn convolution(&self, shape: ConvolutionShape, weight: &[f32], bias: &[f32]) -> Result<DeviceConvolution<E>> {
        Ok(DeviceConvolution::new(self.device, shape, weight, bias)?)
    }

    fn norm(&self, groups: usize, weight: Vec<f32>, bias: Vec<f32>, epsilon: f64) -> Result<DeviceGroupNorm> {
        Ok(DeviceGroupNorm::new(self.device, groups, &weight, &bias, epsilon)?)
    }

    fn map(&self, values: &[f32], shape: [usize; 4]) -> Result<DeviceMap<E>> {
        Ok(DeviceMap::from_nchw(self.device, values, shape)?)
    }

    fn values(map: &DeviceMap<E>) -> Result<(Vec<f32>, [usize; 4])> {
        Ok((map.to_nchw()?, map.shape()))
    }

    fn convolve(
        convolution: &DeviceConvolution<E>,
        x: &DeviceMap<E>,
        add_to: Option<DeviceMap<E>>,
    ) -> Result<DeviceMap<E>> {
        check(convolution, x.shape())?;
        Ok(convolution.forward(x, add_to)?)
    }

    fn norm_silu_convolve(
        norm: &DeviceGroupNorm,
        convolution: &DeviceConvolution<E>,
        x: &DeviceMap<E>,
        add_to: Option<DeviceMap<E>>,
    ) -> Result<DeviceMap<E>> {
        check(convolution, x.shape())?;
        let affine = norm.measure(x)?;
        Ok(convolution.forward(DeviceInput::normalized_silu(x, &affine), add_to)?)
    }

    fn upsample_convolve(convolution: &DeviceConvolution<E>, x: &DeviceMap<E>) -> Result<DeviceMap<E>> {
        let input = DeviceInput::upsampled(x);
        check(convolution, input.shape())?;
        Ok(convolution.forward(input, None)?)
    }

    fn normalize(norm: &DeviceGroupNorm, x: &DeviceMap<E>) -> Result<DeviceMap<E>> {
        let affine = norm.measure(x)?;
        Ok(DeviceInput::normalized(x, &affine).to_map()?)
    }

    fn attend(query: &DeviceMap<E>, key: &DeviceMap<E>, value: &DeviceMap<E>) -> Result<DeviceMap<E>> {
        Ok(pixel_attention(query, key, value)?)
    }
}
