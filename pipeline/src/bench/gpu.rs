//! What a benchmark says of the GPU it ran on: memory, and where the time of a step goes by kernel.

use deepflow_model::device::AnyDevice;
use serde::Serialize;

use crate::cli::UsageError;

/// The GPU's side of a measurement.
#[derive(Clone, Debug, Serialize)]
pub struct GpuMeasurement {
    /// The card.
    pub name: String,
    /// Most memory the process had in use on it.
    pub peak_bytes: u64,
    /// The memory it has.
    pub memory_bytes: u64,
    /// Seconds of one further step with the clock on every kernel; with `--kernels`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profiled_step_s: Option<f64>,
    /// The kernels of that step, the longest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<KernelMeasurement>,
}

/// All launches of one kernel in a step, beside what they move and compute at least.
#[derive(Clone, Debug, Serialize)]
pub struct KernelMeasurement {
    /// The kernel, with its precision.
    pub name: String,
    /// How often it ran.
    pub launches: u64,
    /// How long it ran.
    pub seconds: f64,
    /// Bytes read and written, each once.
    pub bytes: u64,
    /// Floating-point operations of matrix products.
    pub flops: u64,
}

/// Refuses `--kernels` on a processor.
///
/// # Errors
/// [`UsageError`], then.
pub fn check_kernels(device: &AnyDevice, by_kernel: bool) -> Result<(), UsageError> {
    match device {
        AnyDevice::Cpu(_) if by_kernel => Err(UsageError("--kernels needs a GPU (--device cuda)".to_owned())),
        _ => Ok(()),
    }
}

/// Measures the device after `step` was timed on it, and `step` once more by kernel if asked; nothing of a processor.
///
/// # Errors
/// The step's, or what the driver says.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
pub fn measure(
    device: &AnyDevice,
    by_kernel: bool,
    step: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Option<GpuMeasurement>> {
    match device {
        AnyDevice::Cpu(_) => Ok(None),
        #[cfg(feature = "cuda")]
        AnyDevice::Cuda(device) => on_gpu::measure(device, by_kernel, step).map(Some),
    }
}

#[cfg(feature = "cuda")]
mod on_gpu {
    use deepflow_model::ops::cuda::{device_name, memory, profile, KernelTime};
    use deepflow_model::ModelError;
    use dfdx::tensor::{Cuda, CudaError};

    use super::{GpuMeasurement, KernelMeasurement};

    pub(super) fn measure(
        device: &Cuda,
        by_kernel: bool,
        step: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<GpuMeasurement> {
        let memory = memory(device).map_err(ModelError::device)?;
        let mut measurement = GpuMeasurement {
            name: device_name(device).map_err(ModelError::device)?,
            peak_bytes: memory.most_used,
            memory_bytes: memory.total,
            profiled_step_s: None,
            kernels: Vec::new(),
        };
        if by_kernel {
            let profile = profile(device, || step().map_err(Failure))?;
            measurement.profiled_step_s = Some(profile.total.as_secs_f64());
            measurement.kernels = profile.kernels.into_iter().map(KernelMeasurement::from).collect();
        }
        Ok(measurement)
    }

    /// The step's error, or the profiler's.
    struct Failure(anyhow::Error);

    impl From<CudaError> for Failure {
        fn from(error: CudaError) -> Self {
            Self(ModelError::device(error).into())
        }
    }

    impl From<Failure> for anyhow::Error {
        fn from(failure: Failure) -> Self {
            failure.0
        }
    }

    impl From<KernelTime> for KernelMeasurement {
        fn from(kernel: KernelTime) -> Self {
            Self {
                name: kernel.name,
                launches: kernel.launches,
                seconds: kernel.time.as_secs_f64(),
                bytes: kernel.work.bytes,
                flops: kernel.work.flops,
            }
        }
    }
}
