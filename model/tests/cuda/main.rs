//! The CUDA side on a device: our kernels against plain dfdx operations in f64, on odd shapes, forwards and backwards.
//!
//! Without a card the device is the host emulation; `DEEPFLOW_CUDA_TESTS=card` runs the same tests on one.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[macro_use]
mod compare;
mod convolution;
mod emulation;
mod faults;
mod network;
mod operators;
mod optimizer;
mod samples;
#[path = "../training/support.rs"]
#[allow(dead_code)] // what the processor's tests take
mod support;
mod training;
