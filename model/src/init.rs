//! Initial values of parameters (network spec §5): a pure function of the seed and the parameter's name.

use deepflow_datasets::random::{Purpose, Stream};
use dfdx::dtypes::Dtype;
use sha2::{Digest, Sha256};

use crate::embeddings::position_table;
use crate::ops::scalar;

/// How a parameter starts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Initial {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Uniform in ±√(6/(rows + columns)) of the view (first dimension, all others).
    XavierUniform,
    /// Normal with this standard deviation.
    Normal(f64),
    /// The table of the positions in a square grid of this side, shape `(1, T, D)`.
    Positions(usize),
}

impl Initial {
    pub(crate) fn values<E: Dtype>(self, seed: u64, name: &str, shape: &[usize]) -> Vec<E> {
        let length: usize = shape.iter().product();
        match self {
            Self::Zeros => vec![E::default(); length],
            Self::Ones => vec![E::ONE; length],
            Self::Positions(grid) => position_table(shape[2], grid).into_iter().map(scalar).collect(),
            Self::XavierUniform => {
                let rows = shape[0];
                let bound = (6.0 / (rows + length / rows) as f64).sqrt();
                let mut draws = vec![0f32; length];
                stream(seed, name).fill_uniform(&mut draws);
                let spread = |draw: f32| scalar((2.0 * f64::from(draw) - 1.0) * bound);
                draws.into_iter().map(spread).collect()
            }
            Self::Normal(deviation) => {
                let mut draws = vec![0f32; length];
                stream(seed, name).fill_normal(&mut draws);
                let spread = |draw: f32| scalar(f64::from(draw) * deviation);
                draws.into_iter().map(spread).collect()
            }
        }
    }
}

/// The stream of one parameter: its place is the first 56 bits of the SHA-256 of its name.
fn stream(seed: u64, name: &str) -> Stream {
    let digest = Sha256::digest(name.as_bytes());
    let place = digest[..7]
        .iter()
        .fold(0u64, |place, &byte| place << 8 | u64::from(byte));
    Stream::new(seed, Purpose::Initialization, 0, place)
}
