//! Tensors of any number type from safetensors files, as plain vectors.

use std::path::Path;

use anyhow::{bail, Context};
use safetensors::{Dtype, SafeTensors};

/// A file's bytes, to be opened with [`SafeTensors::deserialize`].
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}

/// The shape and the numbers of tensor `name`.
pub fn numbers(file: &SafeTensors<'_>, name: &str) -> anyhow::Result<(Vec<usize>, Vec<f64>)> {
    let Ok(view) = file.tensor(name) else {
        bail!("found no tensor {name}, expected one")
    };
    let bytes = view.data();
    macro_rules! each {
        ($number:ty) => {
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|&chunk| <$number>::from_le_bytes(chunk) as f64)
                .collect()
        };
    }
    let values = match view.dtype() {
        Dtype::F32 => each!(f32),
        Dtype::F64 => each!(f64),
        Dtype::I32 => each!(i32),
        Dtype::I64 => each!(i64),
        other => bail!("tensor {name} holds {other} values, expected F32, F64, I32 or I64"),
    };
    Ok((view.shape().to_vec(), values))
}
