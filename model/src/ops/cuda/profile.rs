//! Where the time of the device goes: by kernel, beside what each kernel moves and computes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::time::Duration;

use cudarc::driver::{result, sys, DriverError};
use dfdx::tensor::{Cuda, CudaError};

use super::context::context;
use super::event::{mark, Event};

/// What a kernel does at least, whatever the device: the two sides of a roofline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes read from and written to the device's memory, each counted once.
    pub bytes: u64,
    /// Floating-point operations of matrix products; those of the others do not count beside their bytes.
    pub flops: u64,
}

/// All launches of one kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTime {
    /// The kernel, with its precision; `product_…` are cuBLAS's.
    pub name: String,
    /// How often it ran.
    pub launches: u64,
    /// How long it ran.
    pub time: Duration,
    /// What it did.
    pub work: Work,
}

/// Where the time of some work went.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// From the beginning of the work to its end.
    pub total: Duration,
    /// The kernels, the longest first. What is missing in the total is memory being cleared and copied, and the device waiting.
    pub kernels: Vec<KernelTime>,
}

/// Runs `work` and takes the time of every kernel it starts, which slows it down a little. One at a time.
///
/// # Errors
/// The work's, and what the driver says.
pub fn profile<E: From<CudaError>>(device: &Cuda, work: impl FnOnce() -> Result<(), E>) -> Result<Profile, E> {
    let context = context(device)?;
    let begin = mark(device)?;
    context.profiler.begin();
    let done = work();
    let launches = context.profiler.end();
    done?;
    let end = mark(device)?;
    context.device.synchronize().map_err(CudaError::from)?;
    let total = begin.until(&end)?;
    Ok(Profile {
        total,
        kernels: by_kernel(launches).map_err(CudaError::from)?,
    })
}

fn by_kernel(launches: Vec<Launch>) -> Result<Vec<KernelTime>, DriverError> {
    let mut kernels = BTreeMap::<String, KernelTime>::new();
    for launch in launches {
        let time = launch.begin.until(&launch.end)?;
        let kernel = kernels.entry(launch.name.clone()).or_insert(KernelTime {
            name: launch.name,
            launches: 0,
            time: Duration::ZERO,
            work: Work::default(),
        });
        kernel.launches += 1;
        kernel.time += time;
        kernel.work.bytes += launch.work.bytes;
        kernel.work.flops += launch.work.flops;
    }
    let mut kernels: Vec<_> = kernels.into_values().collect();
    kernels.sort_by_key(|kernel| std::cmp::Reverse(kernel.time));
    Ok(kernels)
}

/// The most memory the device's pool ever gave out, and the memory the device has.
///
/// # Errors
/// What the driver says.
pub fn memory(device: &Cuda) -> Result<DeviceMemory, CudaError> {
    let device = &context(device)?.device;
    device.bind_to_thread()?;
    let mut pool = std::ptr::null_mut();
    let mut most = 0u64;
    // SAFETY: the pool is written before it is used, the attribute's value is a u64 as the driver documents.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, *device.cu_device()).result()?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        sys::cuMemPoolGetAttribute(pool, attribute, std::ptr::from_mut(&mut most).cast()).result()?;
    }
    let (_, total) = result::mem_get_info()?;
    Ok(DeviceMemory {
        most_used: most,
        total: total as u64,
    })
}

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Most that was in use at once.
    pub most_used: u64,
    /// All of it.
    pub total: u64,
}

/// The device's name, such as `NVIDIA A100-SXM4-80GB`.
///
/// # Errors
/// What the driver says.
pub fn device_name(device: &Cuda) -> Result<String, CudaError> {
    let mut name = [0u8; 256];
    let cu_device = *context(device)?.device.cu_device();
    // SAFETY: the driver writes at most so many bytes, the last of them 0.
    unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32 - 1, cu_device) }.result()?;
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

/// Takes the time of what is started, while it is asked to.
#[derive(Default)]
pub(super) struct Profiler {
    on: AtomicBool,
    launches: Mutex<Vec<Launch>>,
}

struct Launch {
    name: String,
    work: Work,
    begin: Event,
    end: Event,
}

impl Profiler {
    fn begin(&self) {
        self.launches().clear();
        self.on.store(true, Ordering::Relaxed);
    }

    fn end(&self) -> Vec<Launch> {
        self.on.store(false, Ordering::Relaxed);
        std::mem::take(&mut self.launches())
    }

    pub fn watch<E: From<DriverError>>(
        &self,
        stream: sys::CUstream,
        name: &str,
        work: Work,
        start: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.on.load(Ordering::Relaxed) {
            return start();
        }
        let (begin, end) = (Event::timed()?, Event::timed()?);
        begin.record(stream)?;
        start()?;
        end.record(stream)?;
        self.launches().push(Launch {
            name: name.to_owned(),
            work,
            begin,
            end,
        });
        Ok(())
    }

    fn launches(&self) -> std::sync::MutexGuard<'_, Vec<Launch>> {
        // Whoever panicked left a whole list behind.
        self.launches.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
