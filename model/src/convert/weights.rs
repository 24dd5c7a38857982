//! A named set of tensors, still in its file or already changed.

use super::error::ConvertError;
use super::names::without_wrappers;
use super::safetensors_file::{self, SafetensorsFile};
use crate::torch_pickle::{TensorData, TensorReference, TorchFile, Value};
use ::safetensors::Dtype;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Tensors by name, in the file's order; their numbers are read when they are needed.
pub struct Weights<'a> {
    path: PathBuf,
    order: Vec<String>,
    tensors: BTreeMap<String, Tensor<'a>>,
}

enum Tensor<'a> {
    Torch(&'a TorchFile, &'a TensorReference),
    Safetensors(&'a SafetensorsFile, String, Vec<usize>),
    Changed(TensorData),
}

impl<'a> Weights<'a> {
    /// The tensors of a Python dict, wrappers' prefixes removed.
    ///
    /// # Errors
    /// The value is no dict of tensors, or two of its names are the same without prefixes.
    pub fn from_torch(file: &'a TorchFile, dict: Value<'a>) -> Result<Self, ConvertError> {
        let mut weights = Self {
            path: file.path().to_owned(),
            order: Vec::new(),
            tensors: BTreeMap::new(),
        };
        let entries = dict.entries().ok_or_else(|| {
            ConvertError::content(
                file.path(),
                format!("the weights are {}, expected a dict of tensors", dict.kind()),
            )
        })?;
        for (name, value) in entries {
            let name = name.as_str().ok_or_else(|| {
                ConvertError::content(
                    file.path(),
                    format!("a tensor is named by {}, expected a string", name.kind()),
                )
            })?;
            let tensor = value.as_tensor().ok_or_else(|| {
                ConvertError::tensor(file.path(), name, format!("is {}, expected a tensor", value.kind()))
            })?;
            weights.add(name, Tensor::Torch(file, tensor))?;
        }
        Ok(weights)
    }

    /// The tensors of a safetensors file, wrappers' prefixes removed.
    ///
    /// # Errors
    /// Two names are the same without prefixes.
    pub fn from_safetensors(file: &'a SafetensorsFile) -> Result<Self, ConvertError> {
        let mut weights = Self {
            path: file.path().to_owned(),
            order: Vec::new(),
            tensors: BTreeMap::new(),
        };
        for (name, _, shape) in file.tensors() {
            weights.add(name, Tensor::Safetensors(file, name.to_owned(), shape.to_vec()))?;
        }
        Ok(weights)
    }

    fn add(&mut self, raw_name: &str, tensor: Tensor<'a>) -> Result<(), ConvertError> {
        let name = without_wrappers(raw_name);
        if self.tensors.insert(name.clone(), tensor).is_some() {
            return Err(ConvertError::tensor(
                &self.path,
                raw_name,
                format!("a second tensor named `{name}`"),
            ));
        }
        self.order.push(name);
        Ok(())
    }

    /// The file these tensors come from, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All names, in the file's order.
    pub fn names(&self) -> &[String] {
        &self.order
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor's shape.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| match tensor {
            Tensor::Torch(_, reference) => reference.shape(),
            Tensor::Safetensors(_, _, shape) => shape,
            Tensor::Changed(data) => &data.shape,
        })
    }

    /// Numbers in all tensors.
    pub fn parameters(&self) -> usize {
        self.order
            .iter()
            .filter_map(|name| self.shape(name))
            .map(|shape| shape.iter().product::<usize>())
            .sum()
    }

    /// Reads one tensor in its own number format.
    ///
    /// # Errors
    /// There is none of this name, or its file is damaged.
    pub fn read(&self, name: &str) -> Result<TensorData, ConvertError> {
        match self.tensors.get(name) {
            Some(Tensor::Torch(file, reference)) => Ok(file.read(reference)?),
            Some(Tensor::Safetensors(file, stored_name, ..)) => file.read(stored_name),
            Some(Tensor::Changed(data)) => Ok(data.clone()),
            None => Err(ConvertError::tensor(&self.path, name, "not in the file")),
        }
    }

    /// Reads one tensor's numbers as f32.
    ///
    /// # Errors
    /// As [`Weights::read`], or its format holds no numbers.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, ConvertError> {
        let data = self.read(name)?;
        data.to_f32().ok_or_else(|| {
            ConvertError::tensor(
                &self.path,
                name,
                format!("holds {:?}, expected real numbers", data.dtype),
            )
        })
    }

    /// Puts a new tensor in the place of the old one, or behind all others.
    pub(super) fn replace(&mut self, name: &str, data: TensorData) {
        if self.tensors.insert(name.to_owned(), Tensor::Changed(data)).is_none() {
            self.order.push(name.to_owned());
        }
    }

    /// Gives a tensor another name; nothing happens when there is none.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        if let Some(tensor) = self.tensors.remove(from) {
            self.tensors.insert(to.to_owned(), tensor);
            self.order
                .iter_mut()
                .filter(|name| *name == from)
                .for_each(|name| *name = to.to_owned());
        }
    }

    /// Writes everything as f32 safetensors, one tensor in memory at a time.
    pub(super) fn write_safetensors(
        &self,
        path: &Path,
        metadata: &BTreeMap<String, String>,
    ) -> Result<(), ConvertError> {
        let shapes = self
            .order
            .iter()
            .map(|name| {
                (
                    name.clone(),
                    (Dtype::F32, self.shape(name).unwrap_or_default().to_vec()),
                )
            })
            .collect();
        safetensors_file::write(path, metadata, &shapes, |name| {
            let shape = self.shape(name).unwrap_or_default().to_vec();
            Ok(TensorData::from_f32(shape, &self.read_f32(name)?))
        })
    }
}
