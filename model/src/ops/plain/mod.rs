//! The operators written with dfdx's own operations: correct on every device and in every precision, and what the fused
//! versions are tested against.

mod activation;
mod attention;
mod embedding;
mod linear;
mod loss;
mod normalization;
mod optimizer;
pub(super) mod record;
mod residual;

pub use activation::{gelu_tanh, silu};
pub use attention::{cross_attention, query_key_norm, self_attention};
pub use embedding::{add_position, embedding, fourier_features};
pub use linear::{linear, linear_rows};
pub use loss::{acceleration_loss, cosine_alignment_loss, mean_squared_error, weighted_sum};
pub use normalization::{layer_norm, modulated_layer_norm, plain_layer_norm};
pub use optimizer::{adamw, gradient_square_sum};
pub use residual::{add, concat, gated_residual};
