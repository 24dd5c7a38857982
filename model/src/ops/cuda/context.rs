//! What a device needs once: the embedded kernels, a cuBLAS handle, an allocator that keeps its memory.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use cudarc::cublas::CudaBlas;
use cudarc::driver::{result, sys, CudaDevice, DriverError};
use dfdx::tensor::{Cuda, CudaError, Storage};

use super::profile::{Profiler, Work};

/// The kernels and handles of the process's CUDA device.
pub(super) struct Context {
    pub device: Arc<CudaDevice>,
    pub blas: CudaBlas,
    functions: BTreeMap<&'static str, Function>,
    tensor_float_32: AtomicBool,
    pub profiler: Profiler,
}

/// A kernel of a module that is never unloaded.
#[derive(Clone, Copy)]
pub(super) struct Function(pub sys::CUfunction);

// SAFETY: the handle is an address inside the driver, which may be called from any thread.
unsafe impl Send for Function {}
// SAFETY: as above; the handle itself is never written.
unsafe impl Sync for Function {}

static CONTEXT: OnceLock<Context> = OnceLock::new();

/// Loads the kernels onto `device` and tells its allocator to keep freed memory for the next step. Called by every
/// operator on first use; calling it at the start shows a missing kernel before any data is read.
///
/// A process computes on one device (a run on several devices has one process for each).
///
/// # Errors
/// What the driver says when it cannot load the embedded kernels or create a cuBLAS handle.
pub fn prepare(device: &Cuda) -> Result<(), CudaError> {
    context(device).map(|_| ())
}

/// Whether products of f32 matrices may round their factors to TF32 (19 bits) on the tensor cores; off at the start.
///
/// # Errors
/// As [`prepare`].
pub fn set_tensor_float_32(device: &Cuda, allowed: bool) -> Result<(), CudaError> {
    context(device)?.tensor_float_32.store(allowed, Ordering::Relaxed);
    Ok(())
}

/// The number of the device among those of the driver.
///
/// # Errors
/// As [`prepare`].
pub fn ordinal(device: &Cuda) -> Result<usize, CudaError> {
    Ok(context(device)?.device.ordinal())
}

pub(super) fn context(device: &Cuda) -> Result<&'static Context, CudaError> {
    static LOADING: Mutex<()> = Mutex::new(());
    if let Some(context) = CONTEXT.get() {
        return Ok(context);
    }
    // A panic while loading leaves nothing half done: the context is set as a whole.
    let _loading = LOADING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if CONTEXT.get().is_none() {
        let loaded = Context::load(device)?;
        return Ok(CONTEXT.get_or_init(|| loaded));
    }
    context(device)
}

impl Context {
    fn load(device: &Cuda) -> Result<Self, CudaError> {
        // dfdx keeps its device private; every buffer names it.
        let device = Storage::<f32>::try_alloc_len(device, 1)?.device();
        device.bind_to_thread()?;
        keep_freed_memory(&device)?;
        let mut functions = BTreeMap::new();
        for module in MODULES {
            // SAFETY: the image is a complete fat binary made by nvcc and lives as long as the program.
            let loaded = unsafe { result::module::load_data(module.image.as_ptr().cast()) }?;
            for &name in module.kernels {
                let symbol = CString::new(name).map_err(|_| DriverError(sys::CUresult::CUDA_ERROR_INVALID_VALUE))?;
                // SAFETY: the module was just loaded and is never unloaded.
                let function = unsafe { result::module::get_function(loaded, symbol) }?;
                if module.shared_bytes > 0 {
                    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                    // SAFETY: the function is valid; the attribute only raises its limit.
                    unsafe { sys::cuFuncSetAttribute(function, attribute, module.shared_bytes) }.result()?;
                }
                functions.insert(name, Function(function));
            }
        }
        Ok(Self {
            blas: CudaBlas::new(device.clone())?,
            device,
            functions,
            tensor_float_32: AtomicBool::new(false),
            profiler: Profiler::default(),
        })
    }

    pub fn function(&self, name: &str) -> Result<Function, DriverError> {
        self.functions
            .get(name)
            .copied()
            .ok_or(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND))
    }

    /// Starts work on the device's stream; its time is taken while somebody measures.
    pub fn watched<E: From<DriverError>>(
        &self,
        name: &str,
        work: Work,
        start: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        self.profiler.watch(*self.device.cu_stream(), name, work, start)
    }

    pub fn tensor_float_32(&self) -> bool {
        self.tensor_float_32.load(Ordering::Relaxed)
    }
}

/// Freed memory stays in the device's pool instead of going back to the system at every synchronisation: after the
/// first step no step allocates anything.
fn keep_freed_memory(device: &CudaDevice) -> Result<(), DriverError> {
    let pools = device.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)?;
    if pools == 0 {
        return Ok(());
    }
    let mut pool = std::ptr::null_mut();
    let mut threshold = u64::MAX;
    // SAFETY: the pool is written before it is used, the attribute's value is a u64 as the driver documents.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, *device.cu_device()).result()?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, attribute, std::ptr::from_mut(&mut threshold).cast()).result()
    }
}

struct Module {
    /// The fat binary of one kernel file (build.rs); empty in a build that is only checked.
    image: &'static [u8],
    kernels: &'static [&'static str],
    /// Dynamic shared memory a block may ask for beyond what every kernel gets; 0 for none.
    shared_bytes: i32,
}

macro_rules! image {
    ($file:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $file, ".fatbin"))
    };
}

macro_rules! in_both_precisions {
    ($($name:literal),* $(,)?; $($single:literal),* $(,)?) => {
        &[$(concat!($name, "_f32"), concat!($name, "_f16"),)* $($single),*]
    };
    ($($name:literal),* $(,)?) => {
        in_both_precisions![$($name),*;]
    };
}

const MODULES: &[Module] = &[
    Module {
        image: image!("activation"),
        kernels: in_both_precisions![
            "gelu_forward",
            "gelu_backward",
            "silu_forward",
            "silu_backward",
            "add_bias",
            "add",
            "add_scaled";
            "cast_f32_to_f16",
            "cast_f16_to_f32",
        ],
        shared_bytes: 0,
    },
    Module {
        image: image!("attention"),
        kernels: in_both_precisions![
            "attention_forward",
            "attention_backward_delta",
            "attention_backward_queries",
            "attention_backward_keys_values",
        ],
        shared_bytes: 64 * 1024,
    },
    Module {
        image: image!("convolution"),
        kernels: in_both_precisions!["gather_windows"],
        shared_bytes: 0,
    },
    Module {
        image: image!("diffusion"),
        kernels: in_both_precisions!["mix_patches"; "fill_normal"],
        shared_bytes: 0,
    },
    Module {
        image: image!("embedding"),
        kernels: in_both_precisions![
            "fourier_features",
            "gather_rows",
            "scatter_rows",
            "add_repeated",
            "copy_columns",
            "add_columns",
        ],
        shared_bytes: 0,
    },
    Module {
        image: image!("group_norm"),
        kernels: in_both_precisions!["channel_moments"; "group_norm_affine"],
        shared_bytes: 0,
    },
    Module {
        image: image!("layer_norm"),
        kernels: in_both_precisions![
            "modulated_layer_norm_forward",
            "modulated_layer_norm_backward_input",
            "modulated_layer_norm_backward_modulation",
            "affine_layer_norm_forward",
            "affine_layer_norm_backward_input",
            "affine_layer_norm_backward_parameters",
            "plain_layer_norm_forward",
            "plain_layer_norm_backward",
        ],
        shared_bytes: 0,
    },
    Module {
        image: image!("loss"),
        kernels: in_both_precisions![
            "squared_error_forward",
            "squared_error_backward",
            "acceleration_error_forward",
            "acceleration_error_backward",
            "cosine_forward",
            "cosine_backward",
        ],
        shared_bytes: 0,
    },
    Module {
        image: image!("optimizer"),
        kernels: in_both_precisions!["adamw", "scale_loss_gradient", "add_loss"; "prepare_step"],
        shared_bytes: 0,
    },
    Module {
        image: image!("reduce"),
        kernels: in_both_precisions![
            "sum_columns",
            "add_partial_columns",
            "sum_of_squares",
            "add_partial_sums"
        ],
        shared_bytes: 0,
    },
    Module {
        image: image!("residual"),
        kernels: in_both_precisions!["gated_residual_forward", "gated_residual_backward"],
        shared_bytes: 0,
    },
    Module {
        image: image!("softmax"),
        kernels: in_both_precisions!["softmax_rows"],
        shared_bytes: 0,
    },
];
