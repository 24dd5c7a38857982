//! The operators on NVIDIA GPUs: our own kernels and cuBLAS on dfdx's CUDA device and tape (docs/cuda.md).
//!
//! `kernels/*.cu` hold the kernels, compiled ahead of time for sm_80 and sm_90 and embedded in the binary; the files
//! here launch them. Everything runs on the device's one stream, so the order of the calls is the order of the work, and
//! memory returned to the allocator is used again only by later work. `lazy_link` lets the binary start where no CUDA
//! library exists. `host` executes the same kernels on the processor, for tests on machines without a GPU.

mod activation;
mod attention;
mod communicator;
mod context;
pub mod conv;
mod diffusion;
mod embedding;
mod event;
mod launch;
mod layer_norm;
mod linear;
mod loss;
mod operators;
mod optimizer;
mod precision;
mod product;
mod profile;
mod residual;
mod step_controller;
mod tensor;
mod upload;

pub use communicator::{Communicator, DeviceValues, SingleProcess};
pub use context::{ordinal, prepare, set_tensor_float_32};
pub use diffusion::{fill_normal, mix_patches};
pub use event::{mark, Mark};
pub use half::f16;
pub use optimizer::{MasterParameter, MasterState, UpdateRule};
pub use precision::{cast, Precision};
pub use profile::{device_name, memory, profile, DeviceMemory, KernelTime, Profile, Work};
pub use step_controller::{LossScaling, StepController, StepEntry};
pub use upload::Upload;
