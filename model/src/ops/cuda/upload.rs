//! Batches on their way to the GPU while it still computes the step before.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{result, sys, CudaDevice, CudaSlice, CudaStream, DeviceSlice, DriverError};
use dfdx::tensor::{Cuda, CudaError};

use super::context::context;
use super::event::Event;
use super::launch::start;
use super::tensor::{matrix, pointer};
use crate::ops::Matrix;

/// Sends floats to the GPU through pinned memory and a stream of its own, next to whatever the GPU computes. There are two
/// buffers on either side: the host waits only for the copy before the last.
pub struct Upload {
    // Dropped first: work on the device's stream that comes later waits for what is still on its way.
    stream: CudaStream,
    cuda: Cuda,
    device: Arc<CudaDevice>,
    slots: [Slot; 2],
    current: usize,
}

struct Slot {
    pinned: Pinned,
    memory: CudaSlice<f32>,
    /// The values have left the pinned memory and are in the GPU's.
    arrived: Event,
    /// The GPU has read its memory.
    read: Event,
}

impl Upload {
    /// Without any memory yet.
    ///
    /// # Errors
    /// What the driver says, here and below.
    pub fn new(device: &Cuda) -> Result<Self, CudaError> {
        let cuda = device.clone();
        let device = context(device)?.device.clone();
        let slot = || {
            Ok::<_, CudaError>(Slot {
                pinned: Pinned::new(0)?,
                memory: device.null()?,
                arrived: Event::new()?,
                read: Event::new()?,
            })
        };
        Ok(Self {
            slots: [slot()?, slot()?],
            stream: device.fork_default_stream()?,
            cuda,
            device,
            current: 0,
        })
    }

    /// Starts the way of `values` to the GPU. They replace those of the call before the last.
    ///
    /// # Errors
    /// What the driver says.
    pub fn send(&mut self, values: &[f32]) -> Result<(), CudaError> {
        self.device.bind_to_thread()?;
        self.current = 1 - self.current;
        let slot = &mut self.slots[self.current];
        slot.arrived.wait()?;
        if slot.pinned.length < values.len() {
            slot.pinned = Pinned::new(values.len())?;
            // SAFETY: written by the copy below before anything reads it.
            slot.memory = unsafe { self.device.alloc(values.len()) }?;
            // The allocation is work on the device's stream like a reading of the memory.
            slot.read.record(*self.device.cu_stream())?;
        }
        let pinned = slot.pinned.values(values.len());
        pinned.copy_from_slice(values);
        slot.read.hold(self.stream.stream)?;
        // SAFETY: both buffers hold as many floats; the pinned one is neither written nor freed before `arrived`, the
        // other is allocated (the hold above) and is freed on the device's stream, which waits for `arrived`.
        unsafe { result::memcpy_htod_async(start(&slot.memory), pinned, self.stream.stream) }?;
        slot.arrived.record(self.stream.stream)?;
        slot.arrived.hold(*self.device.cu_stream())?;
        Ok(())
    }

    /// Some rows of what was sent last, as a matrix of `columns`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn rows(&self, rows: Range<usize>, columns: usize) -> Result<Matrix<f32, Cuda>, CudaError> {
        let slot = &self.slots[self.current];
        assert!(
            rows.end * columns <= slot.memory.len(),
            "upload: rows {rows:?} of {columns} floats were not sent"
        );
        let out = matrix::<f32>(&self.cuda, rows.len(), columns)?;
        let float = size_of::<f32>();
        let from = start(&slot.memory) + (rows.start * columns * float) as u64;
        let stream = *self.device.cu_stream();
        // SAFETY: the range lies within the buffer (asserted), the matrix has the size of the range, and the stream waits
        // for the values (`send`).
        unsafe { result::memcpy_dtod_async(pointer(&out), from, rows.len() * columns * float, stream) }?;
        slot.read.record(stream)?;
        Ok(out)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // The pinned memory may only go when nothing is copied from it any more; a driver that fails here has lost the
        // device, and with it the copies.
        let _ = self.device.bind_to_thread();
        for slot in &self.slots {
            let _ = slot.arrived.wait();
        }
    }
}

/// Host memory that the GPU copies from by itself.
struct Pinned {
    address: *mut f32,
    length: usize,
}

// SAFETY: the memory belongs to this value alone and may be used from any thread.
unsafe impl Send for Pinned {}

impl Pinned {
    fn new(length: usize) -> Result<Self, DriverError> {
        let mut address = std::ptr::null_mut();
        let bytes = length.max(1) * size_of::<f32>();
        // SAFETY: the driver writes the address of so many bytes, which are zeroed before anybody reads them.
        unsafe {
            sys::cuMemHostAlloc(&mut address, bytes, 0).result()?;
            std::ptr::write_bytes(address.cast::<u8>(), 0, bytes);
        }
        Ok(Self {
            address: address.cast(),
            length,
        })
    }

    fn values(&mut self, length: usize) -> &mut [f32] {
        assert!(length <= self.length, "upload: pinned memory");
        // SAFETY: the allocation holds `self.length` initialised floats, and `self` is borrowed as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.address, length) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once; the owner has waited for the copies. An error means that the driver
        // is gone.
        let _ = unsafe { sys::cuMemFreeHost(self.address.cast()) };
    }
}
