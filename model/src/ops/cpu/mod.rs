//! The operators of the network on slices of `f32`: forward and backward, written for the CPU, without any tensor library.
//!
//! Matrices are row-major slices; `rows` counts tokens over the whole batch. Every function gives the same bits whatever
//! the number of threads.

mod activation;
pub mod gemm;
mod parallel;
pub(in crate::ops) mod simd;

pub use activation::Activation;
