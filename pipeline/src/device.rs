//! `--device` and `--threads`: where tensors live and how many threads compute.

use std::error::Error;

use deepflow_model::device::{AnyDevice, DeviceChoice, DeviceError};

use crate::cli::UsageError;
use crate::config::Precision;
use crate::rank::Rank;

/// The flags of every stage that computes with tensors.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct DeviceArgs {
    /// Where tensors live: cpu, cuda, cuda:N, or auto (cuda where there is one)
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Auto, help_heading = "Machine")]
    pub device: DeviceChoice,
    /// How many threads compute.
    #[command(flatten)]
    pub threads: ThreadArgs,
}

/// The flag of every stage that computes.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct ThreadArgs {
    /// Threads that compute; changes speed, never results [default: one per core]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    pub threads: Option<usize>,
}

impl ThreadArgs {
    /// Makes rayon's pool as large as asked.
    ///
    /// # Errors
    /// [`UsageError`] for 0, and for more than the system gives.
    pub fn start(self) -> Result<(), UsageError> {
        let Some(threads) = self.threads else { return Ok(()) };
        if threads == 0 {
            return Err(UsageError("--threads is 0, expected at least 1".to_owned()));
        }
        match rayon::ThreadPoolBuilder::new().num_threads(threads).build_global() {
            Ok(()) => Ok(()),
            Err(error) => match error.source() {
                Some(reason) => Err(UsageError(format!(
                    "--threads is {threads}, expected no more than the system starts: {reason}"
                ))),
                // A pool runs already (`demo` runs several stages): the first size stays.
                None => Ok(()),
            },
        }
    }
}

impl DeviceArgs {
    /// Starts the threads and opens the device.
    ///
    /// # Errors
    /// [`UsageError`] when the number of threads is 0, or this binary or this machine does not have the device asked for;
    /// [`DeviceError`] when it is there and cannot be opened.
    pub fn open(self, rank: Rank) -> anyhow::Result<AnyDevice> {
        self.threads.start()?;
        let choice = self.device.for_rank(rank.on_this_machine()?);
        let selected = choice.select().map_err(|error| match error {
            DeviceError::CannotOpen { .. } => anyhow::Error::from(error),
            not_there => UsageError(format!("--device {not_there}")).into(),
        })?;
        match selected.fallback {
            // Nobody who built for the processor waits for a GPU.
            Some(DeviceError::NotBuilt) | None => {}
            Some(reason) => tracing::info!("running on the cpu: {reason}"),
        }
        Ok(selected.device)
    }
}

/// Refuses a precision that the device does not compute in; `key` is where it was asked for.
///
/// # Errors
/// [`UsageError`] for mixed precision on the processor.
pub fn check_precision(device: &AnyDevice, precision: Precision, key: &str) -> Result<(), UsageError> {
    match (device, precision) {
        (AnyDevice::Cpu(_), Precision::Mixed) => Err(UsageError(format!(
            "`{key}` is mixed, which needs a GPU (--device cuda); on the cpu it is f32"
        ))),
        _ => Ok(()),
    }
}

/// Runs an expression with the opened device, whichever type it has.
#[macro_export]
macro_rules! on_device {
    ($any:expr, $device:ident => $body:expr) => {
        match $any {
            deepflow_model::device::AnyDevice::Cpu($device) => $body,
            #[cfg(feature = "cuda")]
            deepflow_model::device::AnyDevice::Cuda($device) => $body,
        }
    };
}

/// Runs an expression with the opened device and, as the type `E`, what networks on it hold in the precision asked for.
#[macro_export]
macro_rules! on_device_in {
    ($any:expr, $precision:expr, $E:ident, $device:ident => $body:expr) => {
        match ($any, $precision) {
            (deepflow_model::device::AnyDevice::Cpu($device), _) => {
                type $E = f32;
                $body
            }
            #[cfg(feature = "cuda")]
            (deepflow_model::device::AnyDevice::Cuda($device), $crate::config::Precision::F32) => {
                type $E = f32;
                $body
            }
            #[cfg(feature = "cuda")]
            (deepflow_model::device::AnyDevice::Cuda($device), $crate::config::Precision::Mixed) => {
                type $E = deepflow_model::ops::cuda::f16;
                $body
            }
        }
    };
}
