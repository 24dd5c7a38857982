//! Marks in the work of a stream: for other streams and the host to wait for, and to tell how long it took.

use std::time::Duration;

use cudarc::driver::{result, sys, DriverError};
use dfdx::tensor::{Cuda, CudaError};

use super::context::context;

/// A CUDA event.
pub(super) struct Event(sys::CUevent);

// SAFETY: the handle is an address inside the driver, which may be called from any thread.
unsafe impl Send for Event {}

impl Event {
    /// One that is waited for.
    pub fn new() -> Result<Self, DriverError> {
        result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map(Self)
    }

    /// One that knows when it was reached.
    pub fn timed() -> Result<Self, DriverError> {
        result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map(Self)
    }

    /// Marks the end of what `stream` has to do so far.
    pub fn record(&self, stream: sys::CUstream) -> Result<(), DriverError> {
        // SAFETY: the event exists, and the streams of this project outlive what is recorded on them.
        unsafe { result::event::record(self.0, stream) }
    }

    /// Later work on `stream` waits for the mark; at once where there is none yet.
    pub fn hold(&self, stream: sys::CUstream) -> Result<(), DriverError> {
        // SAFETY: as above.
        unsafe { result::stream::wait_event(stream, self.0, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) }
    }

    /// The host waits for the mark; at once where there is none yet.
    pub fn wait(&self) -> Result<(), DriverError> {
        // SAFETY: the event exists.
        unsafe { sys::cuEventSynchronize(self.0) }.result()
    }

    /// The time from this mark to `later`, both timed and reached.
    pub fn until(&self, later: &Self) -> Result<Duration, DriverError> {
        // SAFETY: both events exist.
        let milliseconds = unsafe { result::event::elapsed(self.0, later.0) }?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created above, destroyed once. An error means that the driver is gone.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// A moment in the work of a device.
pub struct Mark(Event);

/// Marks the moment at which the device has done everything so far; nobody waits.
///
/// # Errors
/// What the driver says.
pub fn mark(device: &Cuda) -> Result<Mark, CudaError> {
    let event = Event::timed()?;
    event.record(*context(device)?.device.cu_stream())?;
    Ok(Mark(event))
}

impl Mark {
    /// The device's time from this moment to a later one, when both have passed.
    ///
    /// # Errors
    /// What the driver says.
    pub fn until(&self, later: &Self) -> Result<Duration, CudaError> {
        Ok(self.0.until(&later.0)?)
    }
}
