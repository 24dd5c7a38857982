//! Weights under torchvision's names.

use super::error::InceptionError;
use crate::convert::{ConvertError, SafetensorsFile, Weights};
use crate::torch_pickle::TorchFile;
use std::path::{Path, PathBuf};

/// Where Inception's weights come from: a file, or in tests a formula.
pub trait WeightSource {
    /// The numbers of one tensor; `shape` is what the network needs.
    ///
    /// # Errors
    /// The tensor is missing, of another shape, or unreadable.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, InceptionError>;
}

/// A safetensors or torch file.
pub(super) struct WeightsFile<'a> {
    path: PathBuf,
    weights: Weights<'a>,
}

impl WeightsFile<'_> {
    /// Opens the file by what it starts with and hands its tensors to `with`.
    pub(super) fn open<R>(
        path: &Path,
        with: impl FnOnce(&WeightsFile<'_>) -> Result<R, InceptionError>,
    ) -> Result<R, InceptionError> {
        if SafetensorsFile::recognises(path)? {
            let file = SafetensorsFile::open(path)?;
            let weights = Weights::from_safetensors(&file)?;
            return with(&WeightsFile {
                path: path.to_owned(),
                weights,
            });
        }
        let file = TorchFile::open(path).map_err(ConvertError::from)?;
        let root = file.root();
        let dict = root.get("state_dict").unwrap_or(root);
        let weights = Weights::from_torch(&file, dict)?;
        with(&WeightsFile {
            path: path.to_owned(),
            weights,
        })
    }
}

impl WeightSource for WeightsFile<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, InceptionError> {
        let found = match self.weights.shape(name) {
            Some(found) if found == shape => return Ok(self.weights.read_f32(name)?),
            Some(found) => format!("has shape {found:?}"),
            None => "is missing".to_owned(),
        };
        Err(InceptionError::Weight {
            path: self.path.clone(),
            tensor: name.to_owned(),
            found,
            expected: shape.to_vec(),
        })
    }
}
