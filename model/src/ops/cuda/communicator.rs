//! The processes that train one network together.

use cudarc::driver::CudaSlice;
use half::f16;

use crate::error::ModelError;

/// Numbers in a GPU's memory.
#[derive(Debug)]
pub enum DeviceValues<'a> {
    /// In single precision.
    Single(&'a mut CudaSlice<f32>),
    /// In half precision.
    Half(&'a mut CudaSlice<f16>),
}

/// Adds up numbers over the processes that train one network together, each on its own GPU and its own share of every batch.
///
/// Every process makes the same calls in the same order.
pub trait Communicator {
    /// The number of this process.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn world(&self) -> usize;

    /// Replaces the values, in the order of the device's stream, by their sum over all processes; the same bits
    /// everywhere.
    ///
    /// # Errors
    /// When another process cannot be reached.
    fn sum(&self, values: DeviceValues<'_>) -> Result<(), ModelError>;
}

/// A process that trains alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct SingleProcess;

impl Communicator for SingleProcess {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn sum(&self, _: DeviceValues<'_>) -> Result<(), ModelError> {
        Ok(())
    }
}
