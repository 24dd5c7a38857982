//! Starting a kernel: its arguments and its geometry.

use std::ffi::c_void;

use cudarc::driver::{result, CudaSlice, DevicePtr, DeviceRepr, DriverError};

use super::context::Context;
use super::precision::Precision;
use super::profile::Work;

/// Threads of a block in element-wise kernels.
const THREADS: usize = 256;
/// Blocks of an element-wise kernel at most: each thread then takes several elements.
const MAX_BLOCKS: usize = 16_384;
/// Warps of a block in kernels that give every row a warp.
const ROW_WARPS: usize = 4;
/// Columns of a block in kernels that sum columns, and the threads that share a column.
const COLUMNS: usize = 32;
const COLUMN_LANES: u32 = 8;
/// Blocks of a kernel that reduces everything to one number.
const REDUCTION_BLOCKS: usize = 512;

/// A kernel and the arguments it is given, in the order of its parameters.
pub(super) struct Kernel {
    name: String,
    /// Each argument in the low bytes of its own word.
    arguments: Vec<u64>,
    /// Bytes of a value of the kernel's precision.
    value: usize,
    work: Work,
}

// The driver reads an argument of 4 bytes from the first 4 bytes of its word.
const _: () = assert!(cfg!(target_endian = "little"));

impl Kernel {
    /// The kernel of this name for tensors of `E`.
    pub fn of<E: Precision>(name: &str) -> Self {
        Self {
            value: size_of::<E>(),
            ..Self::named(format!("{name}_{}", E::NAME))
        }
    }

    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            arguments: Vec::with_capacity(16),
            value: size_of::<f32>(),
            work: Work::default(),
        }
    }

    pub fn pointer(mut self, address: u64) -> Self {
        self.arguments.push(address);
        self
    }

    /// An `int`.
    pub fn int(mut self, value: usize) -> Self {
        assert!(value <= i32::MAX as usize, "{}: {value} does not fit an int", self.name);
        self.arguments.push(value as u64);
        self
    }

    /// A `uint32_t`.
    pub fn word(mut self, value: u32) -> Self {
        self.arguments.push(u64::from(value));
        self
    }

    /// A `size_t`.
    pub fn length(mut self, value: usize) -> Self {
        self.arguments.push(value as u64);
        self
    }

    /// A `float`.
    pub fn float(mut self, value: f64) -> Self {
        self.arguments.push(u64::from((value as f32).to_bits()));
        self
    }

    /// Says, for measurements, how many values of its precision the kernel reads and writes at least.
    pub fn moves(mut self, values: usize) -> Self {
        self.work.bytes += (values * self.value) as u64;
        self
    }

    /// [`moves`](Self::moves) for floats whatever its precision.
    pub fn moves_floats(mut self, values: usize) -> Self {
        self.work.bytes += (values * size_of::<f32>()) as u64;
        self
    }

    /// Says, for measurements, how many FLOPs its products are.
    pub fn computes(mut self, flops: usize) -> Self {
        self.work.flops += flops as u64;
        self
    }

    /// As many threads as elements, up to a number from which on they loop.
    pub fn over_elements(self, context: &Context, elements: usize) -> Result<(), DriverError> {
        let blocks = elements.div_ceil(THREADS).clamp(1, MAX_BLOCKS);
        self.launch(context, [blocks, 1, 1], (THREADS as u32, 1), 0)
    }

    /// One thread an element, however many there are.
    pub fn over_all_elements(self, context: &Context, elements: usize) -> Result<(), DriverError> {
        self.launch(context, [elements.div_ceil(THREADS), 1, 1], (THREADS as u32, 1), 0)
    }

    /// One warp a row.
    pub fn over_rows(self, context: &Context, rows: usize) -> Result<(), DriverError> {
        let threads = (ROW_WARPS * COLUMNS) as u32;
        self.launch(context, [rows.div_ceil(ROW_WARPS), 1, 1], (threads, 1), 0)
    }

    /// Blocks of 32 columns times `groups` of rows.
    pub fn over_columns(self, context: &Context, columns: usize, groups: usize) -> Result<(), DriverError> {
        let grid = [columns.div_ceil(COLUMNS), groups, 1];
        self.launch(context, grid, (COLUMNS as u32, COLUMN_LANES), 0)
    }

    /// Blocks of 32 columns times `chunks` of rows in each of some matrices: `[chunks, matrices]`.
    pub fn over_column_chunks(
        self,
        context: &Context,
        columns: usize,
        [chunks, matrices]: [usize; 2],
    ) -> Result<(), DriverError> {
        let grid = [columns.div_ceil(COLUMNS), chunks, matrices];
        self.launch(context, grid, (COLUMNS as u32, COLUMN_LANES), 0)
    }

    /// As many blocks as there are partial sums ([`reduction_blocks`]).
    pub fn over_reduction(self, context: &Context, blocks: usize) -> Result<(), DriverError> {
        self.launch(context, [blocks, 1, 1], (THREADS as u32, 1), 0)
    }

    pub fn launch(
        mut self,
        context: &Context,
        grid: [usize; 3],
        block: (u32, u32),
        shared_bytes: usize,
    ) -> Result<(), DriverError> {
        if grid.contains(&0) {
            return Ok(()); // nothing to compute
        }
        let function = context.function(&self.name)?;
        let mut addresses: Vec<*mut c_void> = self
            .arguments
            .iter_mut()
            .map(|argument| std::ptr::from_mut(argument).cast())
            .collect();
        context.device.bind_to_thread()?;
        let stream = *context.device.cu_stream();
        // SAFETY: the callers in this module pass what the kernel's parameter list in kernels/*.cu says, with buffers of
        // the sizes they name; the tests on the emulated device run every kernel with guarded buffers. The buffers
        // outlive the launch because freeing is queued on the same stream.
        let begin = || unsafe {
            result::launch_kernel(
                function.0,
                (grid[0] as u32, grid[1] as u32, grid[2] as u32),
                (block.0, block.1, 1),
                shared_bytes as u32,
                stream,
                &mut addresses,
            )
        };
        context.watched(&self.name, self.work, begin)
    }
}

/// How many partial sums a reduction over `elements` leaves.
pub(super) fn reduction_blocks(elements: usize) -> usize {
    elements.div_ceil(THREADS).clamp(1, REDUCTION_BLOCKS)
}

/// Into how many groups the rows of a column sum are divided: enough to fill the device, few enough to add up quickly.
pub(super) fn column_groups(rows: usize) -> usize {
    rows.div_ceil(128).clamp(1, 128)
}

/// A buffer of floats with undefined contents, to be written by the next kernel.
pub(super) fn scratch(context: &Context, length: usize) -> Result<CudaSlice<f32>, DriverError> {
    undefined(context, length)
}

/// The same of another type.
pub(super) fn undefined<T: DeviceRepr>(context: &Context, length: usize) -> Result<CudaSlice<T>, DriverError> {
    // SAFETY: every user writes the whole buffer before it reads it; the emulated device fills fresh memory with NaN.
    unsafe { context.device.alloc(length.max(1)) }
}

/// Copies a few numbers from the host; the host's copy is kept until the copy is done.
pub(super) fn upload<T: DeviceRepr + Unpin>(context: &Context, values: Vec<T>) -> Result<CudaSlice<T>, DriverError> {
    context.device.htod_copy(values)
}

/// Copies numbers that stay from the host and waits for it: [`upload`] would keep the host's copy as long as the device's.
pub(super) fn place<T: DeviceRepr>(context: &Context, values: &[T]) -> Result<CudaSlice<T>, DriverError> {
    context.device.htod_sync_copy(values)
}

/// The address of a buffer's first element.
pub(super) fn start<T>(buffer: &CudaSlice<T>) -> u64 {
    *buffer.device_ptr()
}
