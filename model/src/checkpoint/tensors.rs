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
use crate::weights::{NetworkFacts, WeightSource};

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

    fn facts(&self) -> NetworkFacts {
        self.file.facts()
    }
}

/// One of the numbers that a checkpoint holds of every value of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Weights,
    Average,
    FirstMoment,
    SecondMoment,
}

/// Gives the bytes of a part's numbers of the parameter with this number.
pub(crate) type ReadPart<'a> = &'a dyn Fn(Part, usize) -> Result<Vec<u8>, ConvertError>;

/// Writes `parts` of all parameters under the parameters' names behind a prefix for each part. One tensor is read at a
/// time, so that a checkpoint never has to fit in memory twice.
pub(super) fn write<E: Dtype, D: Operators<E>>(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    network: &Network<E, D>,
    parts: &[(&str, Part)],
    read: ReadPart<'_>,
) -> Result<(), ConvertError> {
    let file_type = file_type::<E>();
    let parameters = network.parameters();
    let mut tensors = BTreeMap::new();
    for &(prefix, part) in parts {
        for (index, parameter) in parameters.iter().enumerate() {
            tensors.insert(format!("{prefix}{}", parameter.name()), (part, index));
        }
    }
    let shape = |index: usize| parameters[index].shape().to_vec();
    let shapes = tensors
        .iter()
        .map(|(name, &(_, index))| (name.clone(), (file_type, shape(index))));
    write_safetensors(path, metadata, &shapes.collect(), |name| {
        let (part, index) = tensors[name];
        Ok(TensorData {
            dtype: file_type,
            shape: shape(index),
            bytes: read(part, index)?,
        })
    })
}

/// What the numbers of a network are written as; working copies in half precision have masters in f32.
fn file_type<E: Dtype>() -> FileType {
    if size_of::<E>() == 8 {
        FileType::F64
    } else {
        FileType::F32
    }
}

/// The bytes of the numbers of one tensor, from its device.
pub(super) fn bytes<E: Dtype, D: Operators<E>>(values: &Vector<E, D>) -> Vec<u8> {
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
