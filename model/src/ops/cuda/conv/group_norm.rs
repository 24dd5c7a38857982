//! GroupNorm as a scale and a shift for every channel, applied by the convolution that reads the map.

use cudarc::driver::CudaSlice;
use dfdx::tensor::CudaError;

use super::super::launch::{place, scratch, start, Kernel};
use super::super::precision::Precision;
use super::map::DeviceMap;
use super::LoadedDevice;

/// Pixels whose mean and deviation are taken together; more where a picture would have more chunks than a launch takes.
const CHUNK: usize = 128;
const MOST_CHUNKS: usize = 65_535;

/// GroupNorm with its learned parameters; they and all its sums are in f32.
pub struct DeviceGroupNorm {
    groups: usize,
    channels: usize,
    weight: CudaSlice<f32>,
    bias: CudaSlice<f32>,
    epsilon: f64,
}

/// A scale and a shift for every channel of every picture: `(batch, 2, channels)`.
pub struct DeviceAffine {
    values: CudaSlice<f32>,
    batch: usize,
    channels: usize,
}

impl DeviceGroupNorm {
    /// `weight` and `bias` have a value a channel; the channels can be cut into `groups`.
    ///
    /// # Errors
    /// What the driver says, here and below.
    pub fn new(
        device: LoadedDevice,
        groups: usize,
        weight: &[f32],
        bias: &[f32],
        epsilon: f64,
    ) -> Result<Self, CudaError> {
        assert_eq!(weight.len(), bias.len(), "group norm: weights and biases");
        assert!(
            groups > 0 && weight.len().is_multiple_of(groups),
            "group norm: {} channels in {groups} groups",
            weight.len()
        );
        let context = device.0;
        Ok(Self {
            groups,
            channels: weight.len(),
            weight: place(context, weight)?,
            bias: place(context, bias)?,
            epsilon,
        })
    }

    /// Measures the groups of every picture; `scale · x + shift` is the normalised map.
    ///
    /// # Errors
    /// What the driver says.
    pub fn measure<E: Precision>(&self, map: &DeviceMap<E>) -> Result<DeviceAffine, CudaError> {
        let [batch, channels, height, width] = map.shape();
        assert_eq!(channels, self.channels, "group norm: channels of the input");
        let context = map.context;
        let pixels = height * width;
        let chunk = CHUNK.max(pixels.div_ceil(MOST_CHUNKS));
        let chunks = pixels.div_ceil(chunk);
        let partial = scratch(context, batch * chunks * 2 * channels)?;
        Kernel::of::<E>("channel_moments")
            .pointer(map.pixel(0))
            .pointer(start(&partial))
            .int(pixels)
            .int(channels)
            .int(chunk)
            .moves(batch * pixels * channels)
            .over_column_chunks(context, channels, [chunks, batch])?;
        let affine = DeviceAffine {
            values: scratch(context, batch * 2 * channels)?,
            batch,
            channels,
        };
        Kernel::named("group_norm_affine")
            .pointer(start(&partial))
            .pointer(start(&self.weight))
            .pointer(start(&self.bias))
            .pointer(affine.address())
            .int(batch)
            .int(pixels)
            .int(channels)
            .int(self.groups)
            .int(chunk)
            .float(self.epsilon)
            .moves_floats(batch * chunks * 2 * channels)
            .over_rows(context, batch * self.groups)?;
        Ok(affine)
    }
}

impl DeviceAffine {
    /// Pictures and channels.
    pub(super) fn shape(&self) -> [usize; 2] {
        [self.batch, self.channels]
    }

    pub(super) fn address(&self) -> u64 {
        start(&self.values)
    }
}
