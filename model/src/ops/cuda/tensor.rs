//! The device addresses behind dfdx's tensors and gradients, and new tensors to write to.

use std::fmt::{self, Write};

use cudarc::driver::DevicePtr;
use dfdx::prelude::{Shape, Tensor, ZerosTensor};
use dfdx::tensor::{Cuda, CudaError, Storage};

use super::precision::Precision;
use crate::ops::Matrix;

/// The address of a tensor's first element; valid as long as the tensor lives.
///
/// dfdx 0.13 keeps a tensor's buffer private and offers no accessor. Its `Debug` prints the address first of all, and
/// this formatter stops there, which costs about a microsecond and no copy. The version of dfdx is pinned; were the
/// format to change, every test on the (emulated) device would stop here.
pub(super) fn pointer<S: Shape, E: Precision>(tensor: &Tensor<S, E, Cuda>) -> u64 {
    let mut address = Address::default();
    // The error is how the formatter stops early.
    let _ = write!(address, "{tensor:?}");
    assert!(
        address.complete,
        "dfdx prints its CUDA tensors differently: no device address in {:?}",
        address.seen
    );
    address.value
}

const FIELD: &str = "cu_device_ptr: ";

#[derive(Default)]
struct Address {
    seen: String,
    value: u64,
    complete: bool,
}

impl Write for Address {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.seen.push_str(text);
        let Some(start) = self.seen.find(FIELD) else {
            return Ok(());
        };
        let rest = &self.seen[start + FIELD.len()..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == rest.len() {
            return Ok(()); // more digits may follow
        }
        if let Ok(value) = rest[..digits].parse() {
            self.value = value;
            self.complete = true;
        }
        Err(fmt::Error)
    }
}

/// A new matrix of zeros to write to.
pub(super) fn matrix<E: Precision>(device: &Cuda, rows: usize, columns: usize) -> Result<Matrix<E, Cuda>, CudaError> {
    device.try_zeros_like(&(rows, columns))
}

/// The buffer of a gradient.
pub(super) type Buffer<E> = <Cuda as Storage<E>>::Vec;

/// Takes a gradient that nothing reads any more, so that its memory is free when the caller is done with it.
pub(super) fn take<E: Precision>(device: &Cuda, gradient: &mut Buffer<E>) -> Result<Buffer<E>, CudaError> {
    Ok(std::mem::replace(gradient, device.try_alloc_len(1)?))
}

/// The address of a gradient's first element.
pub(super) fn address<E: Precision>(gradient: &Buffer<E>) -> u64 {
    *gradient.device_ptr()
}
