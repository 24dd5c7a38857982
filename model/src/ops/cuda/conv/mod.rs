//! Convolutional operators for inference on a GPU: the twins of [`crate::ops::conv`], in single and in half precision.
//!
//! A convolution is a matrix product (cuBLAS) over windows that a kernel gathers band by band, and that normalises,
//! activates and enlarges what it reads on the way. Memory beside the maps is bounded by [`BAND_BYTES`].

use dfdx::tensor::{Cuda, CudaError};

use super::context::{context, Context};

mod attention;
mod convolution;
mod group_norm;
mod map;

pub use attention::pixel_attention;
pub use convolution::{DeviceConvolution, DeviceInput};
pub use group_norm::{DeviceAffine, DeviceGroupNorm};
pub use map::DeviceMap;

/// A GPU with the kernels on it; unlike dfdx's device it may be shared between threads.
#[derive(Clone, Copy)]
pub struct LoadedDevice(&'static Context);

impl LoadedDevice {
    /// Loads the kernels, if that was not done before.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(device: &Cuda) -> Result<Self, CudaError> {
        context(device).map(Self)
    }
}

/// Bytes of windows or of attention's scores that exist at a time.
pub const BAND_BYTES: usize = 64 << 20;

/// Rows of a band of `values` numbers of `size` bytes each: at least one, at most `rows`.
fn band_rows(rows: usize, values: usize, size: usize) -> usize {
    (BAND_BYTES / (values * size).max(1)).clamp(1, rows.max(1))
}
