//! What a tensor on the GPU may hold: f32 or f16.

use cudarc::cublas::sys::cudaDataType;
use cudarc::driver::{CudaSlice, DeviceRepr};
use dfdx::dtypes::Dtype;
use dfdx::prelude::{HasShape, Shape, Tensor, ZerosTensor};
use dfdx::tensor::{Cuda, CudaError};
use half::f16;

use super::communicator::DeviceValues;
use super::context::context;
use super::launch::Kernel;
use super::tensor::pointer;

/// What a tensor on the GPU may hold. Sums, softmax and normalisation are in f32 whatever this is.
pub trait Precision: Dtype + DeviceRepr {
    /// The suffix of this precision's kernels.
    const NAME: &'static str;
    /// cuBLAS's name for it.
    const TYPE: cudaDataType;
    /// Whether it is f32.
    const IS_SINGLE: bool;

    /// Numbers of this precision, for a [`Communicator`](super::Communicator).
    fn values(values: &mut CudaSlice<Self>) -> DeviceValues<'_>;
}

impl Precision for f32 {
    const NAME: &'static str = "f32";
    const TYPE: cudaDataType = cudaDataType::CUDA_R_32F;
    const IS_SINGLE: bool = true;

    fn values(values: &mut CudaSlice<Self>) -> DeviceValues<'_> {
        DeviceValues::Single(values)
    }
}

impl Precision for f16 {
    const NAME: &'static str = "f16";
    const TYPE: cudaDataType = cudaDataType::CUDA_R_16F;
    const IS_SINGLE: bool = false;

    fn values(values: &mut CudaSlice<Self>) -> DeviceValues<'_> {
        DeviceValues::Half(values)
    }
}

/// A copy in another precision, rounded to nearest even; what is too large for f16 becomes infinite.
///
/// # Errors
/// What the driver says.
pub fn cast<S: Shape, From: Precision, To: Precision>(
    device: &Cuda,
    x: &Tensor<S, From, Cuda>,
) -> Result<Tensor<S, To, Cuda>, CudaError> {
    let out: Tensor<S, To, Cuda> = ZerosTensor::<To>::try_zeros_like(device, x.shape())?;
    let length = x.shape().num_elements();
    let kernel = if From::NAME == To::NAME {
        Kernel::of::<To>("add_scaled")
            .pointer(pointer(x))
            .pointer(pointer(&out))
            .float(1.0)
    } else {
        Kernel::named(format!("cast_{}_to_{}", From::NAME, To::NAME))
            .pointer(pointer(x))
            .pointer(pointer(&out))
    };
    kernel.length(length).over_elements(context(device)?, length)?;
    Ok(out)
}
