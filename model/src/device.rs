//! Where the network runs: the value of `--device` and the device it selects.
//!
//! The same binary serves machines with and without CUDA: whether a driver is present is asked at run time, and only
//! then is a CUDA device touched (dfdx panics when it is asked for a device that is not there).

use dfdx::tensor::Cpu;
use std::fmt;
use std::str::FromStr;

use crate::error::ModelError;

/// What was asked for: `cpu`, `cuda`, `cuda:N` or `auto`.
///
/// ```
/// use deepflow_model::device::DeviceChoice;
/// assert_eq!("cuda:1".parse(), Ok(DeviceChoice::Cuda(1)));
/// assert_eq!(DeviceChoice::Cuda(1).to_string(), "cuda:1");
/// assert!("gpu".parse::<DeviceChoice>().is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// The processor.
    Cpu,
    /// The CUDA device with this ordinal, or an error.
    Cuda(usize),
    /// CUDA device 0 where there is one, else the processor.
    #[default]
    Auto,
}

impl DeviceChoice {
    /// The choice of one process among several: rank `rank` (0-based, local to this machine) of a run on `cuda` takes
    /// the device `rank` places after the named one. `cpu` and `auto` without a device are unchanged.
    pub fn for_rank(self, rank: usize) -> Self {
        match self {
            Self::Cpu => Self::Cpu,
            Self::Cuda(first) => Self::Cuda(first + rank),
            Self::Auto if rank == 0 => Self::Auto,
            Self::Auto => match cuda_devices() {
                Ok(_) => Self::Cuda(rank),
                Err(_) => Self::Cpu,
            },
        }
    }

    /// Opens the device. `auto` never fails: where no CUDA device can be used it returns the processor together with
    /// the reason in [`Selected::fallback`].
    ///
    /// # Errors
    /// [`DeviceError`] for `cuda[:N]` where the binary, the driver or the machine does not have it.
    pub fn select(self) -> Result<Selected, DeviceError> {
        match self {
            Self::Cpu => Ok(Selected::cpu(None)),
            Self::Cuda(ordinal) => Ok(Selected {
                device: open_cuda(ordinal)?,
                fallback: None,
            }),
            Self::Auto => Ok(match open_cuda(0) {
                Ok(device) => Selected { device, fallback: None },
                Err(reason) => Selected::cpu(Some(reason)),
            }),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "auto" => Ok(Self::Auto),
            _ => text
                .strip_prefix("cuda:")
                .filter(|ordinal| ordinal.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|ordinal| ordinal.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| ParseDeviceError(text.to_owned())),
        }
    }
}

/// A `--device` that is none of the known forms.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device {0:?}: expected cpu, cuda, cuda:N or auto")]
pub struct ParseDeviceError(String);

/// An opened device.
#[derive(Clone, Debug)]
pub enum AnyDevice {
    /// The processor.
    Cpu(Cpu),
    /// A CUDA device.
    #[cfg(feature = "cuda")]
    Cuda(dfdx::tensor::Cuda),
}

impl AnyDevice {
    /// `cpu` or `cuda:N`.
    ///
    /// # Errors
    /// [`ModelError::Device`] when the GPU does not answer.
    pub fn name(&self) -> Result<String, ModelError> {
        match self {
            Self::Cpu(_) => Ok(DeviceChoice::Cpu.to_string()),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                let ordinal = crate::ops::cuda::ordinal(device).map_err(ModelError::device)?;
                Ok(DeviceChoice::Cuda(ordinal).to_string())
            }
        }
    }

    /// Whether a GPU may round the factors of products of f32 matrices to TF32; a processor never does.
    ///
    /// # Errors
    /// [`ModelError::Device`] when the GPU does not answer.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
    pub fn allow_tensor_float_32(&self, allowed: bool) -> Result<(), ModelError> {
        match self {
            Self::Cpu(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => crate::ops::cuda::set_tensor_float_32(device, allowed).map_err(ModelError::device),
        }
    }
}

/// The device a [`DeviceChoice`] led to.
#[derive(Clone, Debug)]
pub struct Selected {
    /// The device to run on.
    pub device: AnyDevice,
    /// Why `auto` settled for the processor; to be shown to the user as one line.
    pub fallback: Option<DeviceError>,
}

impl Selected {
    fn cpu(fallback: Option<DeviceError>) -> Self {
        Self {
            device: AnyDevice::Cpu(Cpu::default()),
            fallback,
        }
    }
}

/// Why a CUDA device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The binary was compiled without the feature.
    #[error("cuda: this binary was built without the feature `cuda` (docs/cuda.md)")]
    NotBuilt,
    /// The driver is missing or does not answer.
    #[error("cuda: no usable NVIDIA driver ({0})")]
    NoDriver(String),
    /// The driver sees no such device.
    #[error("cuda:{ordinal}: the driver sees {found} device(s), expected one with that number")]
    NoSuchDevice {
        /// The ordinal asked for.
        ordinal: usize,
        /// How many devices there are.
        found: usize,
    },
    /// The device is there and cannot be opened.
    #[error("cuda:{ordinal}: {reason}")]
    CannotOpen {
        /// The ordinal asked for.
        ordinal: usize,
        /// What the driver or cuBLAS said.
        reason: String,
    },
}

/// The number of CUDA devices, at least one.
///
/// # Errors
/// [`DeviceError`] where there is none, no driver, or no CUDA in this binary.
#[cfg(feature = "cuda")]
pub fn cuda_devices() -> Result<usize, DeviceError> {
    use cudarc::driver::result;
    // cudarc's own constructors unwrap this, so it has to be asked first.
    result::init().map_err(|error| DeviceError::NoDriver(driver_error_name(error)))?;
    match result::device::get_count() {
        Ok(found) if found > 0 => Ok(found as usize),
        Ok(_) => Err(DeviceError::NoSuchDevice { ordinal: 0, found: 0 }),
        Err(error) => Err(DeviceError::NoDriver(driver_error_name(error))),
    }
}

/// The number of CUDA devices, at least one.
///
/// # Errors
/// Always [`DeviceError::NotBuilt`]: this build has no CUDA.
#[cfg(not(feature = "cuda"))]
pub fn cuda_devices() -> Result<usize, DeviceError> {
    Err(DeviceError::NotBuilt)
}

/// The name of the code alone: asking the driver for its message, as cudarc's `Display` does, needs a driver.
#[cfg(feature = "cuda")]
fn driver_error_name(error: cudarc::driver::DriverError) -> String {
    format!("{:?}", error.0)
}

#[cfg(feature = "cuda")]
fn open_cuda(ordinal: usize) -> Result<AnyDevice, DeviceError> {
    let found = cuda_devices()?;
    if ordinal >= found {
        return Err(DeviceError::NoSuchDevice { ordinal, found });
    }
    // The seed feeds dfdx's own random tensors, which this project does not use.
    dfdx::tensor::Cuda::try_build(ordinal, 0)
        .map(AnyDevice::Cuda)
        .map_err(|error| DeviceError::CannotOpen {
            ordinal,
            reason: match error {
                dfdx::tensor::CudaError::Driver(error) => driver_error_name(error),
                dfdx::tensor::CudaError::Blas(error) => format!("cuBLAS {:?}", error.0),
                other => format!("{other:?}"),
            },
        })
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_ordinal: usize) -> Result<AnyDevice, DeviceError> {
    Err(DeviceError::NotBuilt)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_forms() {
        assert_eq!("cpu".parse(), Ok(DeviceChoice::Cpu));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert_eq!("cuda:12".parse(), Ok(DeviceChoice::Cuda(12)));
    }

    #[test]
    fn malformed_forms_are_named() {
        for text in [
            "",
            "CPU",
            "cuda:",
            "cuda:+1",
            "cuda:-1",
            "cuda: 1",
            "cuda:99999999999999999999999",
            "cuda1",
        ] {
            let error = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn ranks_take_neighbouring_devices() {
        assert_eq!(DeviceChoice::Cuda(2).for_rank(3), DeviceChoice::Cuda(5));
        assert_eq!(DeviceChoice::Cpu.for_rank(3), DeviceChoice::Cpu);
        assert_eq!(DeviceChoice::Auto.for_rank(0), DeviceChoice::Auto);
    }

    #[test]
    fn the_processor_is_always_there() {
        let selected = DeviceChoice::Cpu.select().unwrap();
        assert!(matches!(selected.device, AnyDevice::Cpu(_)));
        assert_eq!(selected.fallback, None);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_the_feature_cuda_is_refused_and_auto_falls_back() {
        let error = DeviceChoice::Cuda(0).select().unwrap_err();
        assert_eq!(error, DeviceError::NotBuilt);
        assert!(!error.to_string().contains('\n'));
        let selected = DeviceChoice::Auto.select().unwrap();
        assert!(matches!(selected.device, AnyDevice::Cpu(_)));
        assert_eq!(selected.fallback, Some(DeviceError::NotBuilt));
    }

    /// The trampolines let this binary start without any CUDA library; this is what it says then.
    #[cfg(feature = "cuda")]
    #[test]
    fn without_a_driver_cuda_is_refused_in_one_line_and_auto_falls_back() {
        if std::path::Path::new("/dev/nvidiactl").exists() {
            return; // a machine with a driver: tests/cuda.rs runs on its card
        }
        let error = DeviceChoice::Cuda(0).select().unwrap_err();
        assert!(matches!(error, DeviceError::NoDriver(_)), "{error}");
        assert!(!error.to_string().contains('\n'));
        let selected = DeviceChoice::Auto.select().unwrap();
        assert!(matches!(selected.device, AnyDevice::Cpu(_)));
        assert_eq!(selected.fallback, Some(error));
    }

    proptest! {
        #[test]
        fn display_parses_back(ordinal in 0usize..10_000) {
            let choice = DeviceChoice::Cuda(ordinal);
            prop_assert_eq!(choice.to_string().parse(), Ok(choice));
        }
    }
}
