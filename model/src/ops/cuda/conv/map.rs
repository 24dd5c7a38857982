//! Maps of many channels in a GPU's memory.

use cudarc::driver::CudaSlice;
use dfdx::tensor::CudaError;

use super::super::context::Context;
use super::super::launch::{start, undefined, upload};
use super::super::precision::Precision;
use super::LoadedDevice;

/// A batch of feature maps; in memory the channels of a pixel are neighbours: `(batch, height, width, channels)`.
pub struct DeviceMap<E: Precision> {
    pub(super) context: &'static Context,
    values: CudaSlice<E>,
    shape: [usize; 4],
}

impl<E: Precision> DeviceMap<E> {
    /// To be written by the next kernel.
    pub(super) fn undefined(context: &'static Context, shape: [usize; 4]) -> Result<Self, CudaError> {
        Ok(Self {
            context,
            values: undefined(context, shape.iter().product())?,
            shape,
        })
    }

    /// From values in the usual order `(batch, channels, height, width)`, as many as `shape` says.
    ///
    /// # Errors
    /// What the driver says, here and below.
    pub fn from_nchw(device: LoadedDevice, values: &[f32], shape: [usize; 4]) -> Result<Self, CudaError> {
        let [batch, channels, height, width] = shape;
        assert_eq!(
            values.len(),
            batch * channels * height * width,
            "feature map: values for {shape:?}"
        );
        let context = device.0;
        let pixels = height * width;
        let mut turned = Vec::with_capacity(values.len().max(1));
        for picture in values.chunks_exact((channels * pixels).max(1)) {
            for pixel in 0..pixels {
                turned.extend(
                    picture
                        .iter()
                        .skip(pixel)
                        .step_by(pixels)
                        .map(|&value| rounded::<E>(value)),
                );
            }
        }
        turned.resize(values.len().max(1), E::default());
        Ok(Self {
            context,
            values: upload(context, turned)?,
            shape,
        })
    }

    /// Waits for the device; the values in the usual order `(batch, channels, height, width)`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn to_nchw(&self) -> Result<Vec<f32>, CudaError> {
        let [batch, channels, height, width] = self.shape;
        let pixels = height * width;
        let found = self.context.device.dtoh_sync_copy(&self.values)?;
        let mut values = Vec::with_capacity(batch * channels * pixels);
        for picture in found.chunks_exact((channels * pixels).max(1)).take(batch) {
            for channel in 0..channels {
                let plane = picture.iter().skip(channel).step_by(channels);
                values.extend(plane.map(|value| value.to_f32().unwrap_or(f32::NAN)));
            }
        }
        Ok(values)
    }

    /// `[batch, channels, height, width]`.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Pixels of the whole batch.
    pub(super) fn pixels(&self) -> usize {
        self.shape[0] * self.shape[2] * self.shape[3]
    }

    /// The address of the first channel of a pixel, counted through the batch.
    pub(super) fn pixel(&self, index: usize) -> u64 {
        start(&self.values) + (index * self.shape[1] * size_of::<E>()) as u64
    }
}

/// A number of the host's in another precision.
pub(super) fn rounded<E: Precision>(value: f32) -> E {
    E::from_f32(value).unwrap_or_default()
}
