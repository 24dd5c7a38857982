//! A checkpoint's tensors, between the device and safetensors files, one in memory at a time.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use dfdx::prelude::{Dtype, HasShape};
use safetensors::Dtype as FileType;

use crate::convert::safetensors_file::write as write_safetensors;
use crate::convert::{ConvertError, SafetensorsFile};
use crate::error::WeightsError;
use crate::network::Network;
use crate::ops::{Operators, Vector};
use crate::torch_pickle::TensorData;
use crate::weights::WeightSource;

/// The tensors of a file whose names begin with a prefix, without it.
pub(super) struct Below<'a> {
    pub(super) file: &'a SafetensorsFile,
    pub(super) prefix: &'static str,
}

impl WeightSource for Below<'_> {
    fn describe(&self, name: &str) -> Option<(FileType, Vec<usize>)> {
        WeightSource::describe(self.file, &format!("{}{name}", self.prefix))
    }

    fn read(&self, name: &str) -> Result<Cow<'_, [u8]>, WeightsError> {
        WeightSource::read(self.file, &format!("{}{name}", self.prefix))
    }

    fn names(&self) -> Vec<String> {
        let names = WeightSource::names(self.file).into_iter();
        names
            .filter_map(|name| name.strip_prefix(self.prefix).map(str::to_owned))
            .collect()
    }
}

/// The numbers of one tensor, still on the device.
pub(super) struct NamedTensor<E: Dtype, D: Operators<E>> {
    name: String,
    shape: Vec<usize>,
    values: Vector<E, D>,
}

/// `values`, one for every parameter of the network, under the parameters' names behind `prefix`.
pub(super) fn named<'a, E: Dtype, D: Operators<E>>(
    network: &Network<E, D>,
    prefix: &str,
    values: impl IntoIterator<Item = &'a Vector<E, D>>,
) -> Vec<NamedTensor<E, D>> {
    let parameters = network.parameters().into_iter().zip(values);
    parameters
        .map(|(parameter, values)| NamedTensor {
            name: format!("{prefix}{}", parameter.name()),
            shape: parameter.shape().to_vec(),
            values: values.clone(),
        })
        .collect()
}

/// Writes tensors one at a time, so that a checkpoint never has to fit in memory twice.
pub(super) fn write<E: Dtype, D: Operators<E>>(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: Vec<NamedTensor<E, D>>,
) -> Result<(), ConvertError> {
    let file_type = file_type::<E>();
    let by_name: BTreeMap<String, NamedTensor<E, D>> = tensors
        .into_iter()
        .map(|tensor| (tensor.name.clone(), tensor))
        .collect();
    let shapes = by_name
        .iter()
        .map(|(name, tensor)| (name.clone(), (file_type, tensor.shape.clone())))
        .collect();
    write_safetensors(path, metadata, &shapes, |name| {
        let tensor = &by_name[name];
        Ok(TensorData {
            dtype: file_type,
            shape: tensor.shape.clone(),
            bytes: bytes(&tensor.values),
        })
    })
}

fn file_type<E: Dtype>() -> FileType {
    if size_of::<E>() == 8 {
        FileType::F64
    } else {
        FileType::F32
    }
}

fn bytes<E: Dtype, D: Operators<E>>(values: &Vector<E, D>) -> Vec<u8> {
    let mut host = vec![E::default(); values.shape().0];
    values.copy_into(&mut host);
    match file_type::<E>() {
        FileType::F64 => {
            let numbers = host.iter().map(|value| value.to_f64().unwrap_or(f64::NAN));
            numbers.flat_map(f64::to_le_bytes).collect()
        }
        _ => {
            let numbers = host.iter().map(|value| value.to_f32().unwrap_or(f32::NAN));
            numbers.flat_map(f32::to_le_bytes).collect()
        }
    }
}
