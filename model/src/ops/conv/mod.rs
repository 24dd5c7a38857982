//! Convolutional operators for inference on a CPU: convolution, GroupNorm + SiLU, pools, attention over pixels.
//!
//! They know nothing of dfdx: their currency is the [`FeatureMap`]. Every kernel exists for AVX-512, AVX2 + FMA and
//! portable Rust and is chosen when it runs; results do not depend on the number of threads nor on the batch.
//!
//! A ResNet block's first half, `conv(silu(group_norm(x)))`, in one pass over `x` (after one to measure it):
//!
//! ```
//! use deepflow_model::ops::conv::{Convolution, ConvolutionShape, FeatureMap, GroupNorm, Input, Output};
//! let x = FeatureMap::from_nchw(&vec![0.5; 32 * 8 * 8], [1, 32, 8, 8])?;
//! let norm = GroupNorm::new(8, vec![1.0; 32], vec![0.1; 32], 1e-6)?;
//! let convolution = Convolution::new(ConvolutionShape::same(32, 16, 3), &vec![0.01; 16 * 32 * 9], &[0.0; 16])?;
//! let y = convolution.forward(Input::normalized_silu(&x, &norm.measure(&x)?), Output::Plain)?;
//! assert_eq!(y.shape(), [1, 16, 8, 8]);
//! # Ok::<(), deepflow_model::ops::conv::ConvolutionError>(())
//! ```

mod aligned;
mod attention;
mod convolution;
mod direct;
mod error;
mod feature_map;
mod group_norm;
mod lanes;
pub mod plain;
mod pool;
mod product;
mod source;
#[cfg(test)]
mod tests;
mod transform;
mod winograd;

pub use attention::pixel_attention;
pub use convolution::{BatchNorm, Convolution, ConvolutionShape, Output, Padding};
pub use error::ConvolutionError;
pub use feature_map::FeatureMap;
pub use group_norm::{ChannelAffine, GroupNorm};
pub use pool::{Pool, Pooling};
pub use source::Input;
