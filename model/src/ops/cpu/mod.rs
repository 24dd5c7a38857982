//! The operators of the network on slices of `f32`: forward and backward, written for the CPU, without any tensor library.
//!
//! Matrices are row-major slices; rows count tokens over the whole batch. Every function gives the same bits whatever the
//! number of threads. Gradients of inputs are added to what is there already.

mod activation;
pub mod attention;
pub mod columns;
pub mod gemm;
pub mod head_norm;
pub mod layer_norm;
#[cfg(test)]
mod level_tests;
pub mod linear;
pub mod loss;
pub mod optimizer;
mod parallel;
pub mod residual;
pub mod rows;
pub(in crate::ops) mod simd;

pub use activation::Activation;
pub(crate) use parallel::{for_each_chunk, on_awake_pool};
