//! One golden case: its configuration, weights and expected numbers.

use std::borrow::Cow;
use std::path::PathBuf;

use deepflow_model::ops::{Matrix, Operators};
use deepflow_model::patches::{PatchGrid, PatchOrder};
use deepflow_model::{Network, NetworkConfig, WeightSource, WeightsError};
use dfdx::prelude::{Dtype, HasShape};
use safetensors::{Dtype as FileType, SafeTensors};
use serde_json::Value;

pub struct Case {
    pub name: String,
    pub config: NetworkConfig,
    bytes: Vec<u8>,
    metadata: Value,
}

/// The tensors of a case below a prefix.
pub struct Prefixed<'a> {
    tensors: SafeTensors<'a>,
    prefix: &'static str,
}

impl WeightSource for Prefixed<'_> {
    fn describe(&self, name: &str) -> Option<(FileType, Vec<usize>)> {
        self.tensors.describe(&format!("{}{name}", self.prefix))
    }

    fn read(&self, name: &str) -> Result<Cow<'_, [u8]>, WeightsError> {
        self.tensors.read(&format!("{}{name}", self.prefix))
    }

    fn names(&self) -> Vec<String> {
        let names = self.tensors.names().into_iter();
        names
            .filter_map(|name| name.strip_prefix(self.prefix))
            .map(ToString::to_string)
            .collect()
    }
}

/// DEEPFLOW_GOLDEN_DIR, or the project's own fixtures.
pub fn directory() -> PathBuf {
    std::env::var_os("DEEPFLOW_GOLDEN_DIR").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden")),
        PathBuf::from,
    )
}

/// Every network case, sorted by name; finding none is a failure.
pub fn all() -> Vec<Case> {
    let directory = directory();
    let mut cases: Vec<Case> = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name.starts_with("deepflow_") || name.starts_with("sit_")) && name.ends_with(".safetensors")
        })
        .map(Case::read)
        .collect();
    assert!(!cases.is_empty(), "no golden case in {}", directory.display());
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

/// A case of the project's own fixtures.
pub fn own(name: &str) -> Case {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden"));
    Case::read(folder.join(format!("{name}.safetensors")))
}

impl Case {
    fn read(path: PathBuf) -> Self {
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let mut metadata = serde_json::Map::new();
        for (key, text) in header.metadata().as_ref().unwrap() {
            metadata.insert(key.clone(), serde_json::from_str(text).unwrap());
        }
        let metadata = Value::Object(metadata);
        Self {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            config: network_config(&metadata["config"]),
            bytes,
            metadata,
        }
    }

    /// A number of the header's metadata, as `section/key`.
    pub fn number(&self, pointer: &str) -> f64 {
        let value = self.metadata.pointer(&format!("/{pointer}"));
        value
            .and_then(Value::as_f64)
            .unwrap_or_else(|| panic!("{pointer} in {}", self.name))
    }

    pub fn weights(&self, prefix: &'static str) -> Prefixed<'_> {
        Prefixed {
            tensors: SafeTensors::deserialize(&self.bytes).unwrap(),
            prefix,
        }
    }

    pub fn network<E: Dtype, D: Operators<E>>(&self) -> Network<E, D> {
        let mut network = Network::new(self.config.clone(), D::default(), 0).unwrap();
        let report = network.load_weights(&self.weights("param.")).unwrap();
        assert_eq!(report, Default::default(), "{}", self.name);
        network
    }

    pub fn find(&self, name: &str) -> Option<Vec<f64>> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(name).ok()?;
        let bytes = view.data();
        Some(match view.dtype() {
            safetensors::Dtype::F32 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| f32::from_le_bytes(b).into())
                .collect(),
            safetensors::Dtype::F64 => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
            safetensors::Dtype::I64 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| i64::from_le_bytes(b) as f64)
                .collect(),
            other => panic!("{name} holds {other:?}"),
        })
    }

    pub fn get(&self, name: &str) -> Vec<f64> {
        self.find(name).unwrap_or_else(|| panic!("{name} in {}", self.name))
    }

    pub fn labels(&self, name: &str) -> Vec<usize> {
        self.get(name).into_iter().map(|label| label as usize).collect()
    }

    pub fn times(&self) -> Vec<Vec<f64>> {
        (0..self.config.branches())
            .map(|k| self.get(&format!("in.t{k}")))
            .collect()
    }

    pub fn grid(&self) -> PatchGrid {
        PatchGrid::from(&self.config)
    }

    /// Latents as the matrix of patches that enters the network.
    pub fn patches<E: Dtype, D: Operators<E>>(&self, device: &D, latents: &[f64]) -> Matrix<E, D> {
        let values = self.grid().patchify(latents, PatchOrder::ChannelFirst);
        let values: Vec<E> = values.into_iter().map(|v| E::from_f64(v).unwrap()).collect();
        let shape = (values.len() / self.config.patch_values(), self.config.patch_values());
        device.tensor_from_vec(values, shape)
    }
}

fn network_config(golden: &Value) -> NetworkConfig {
    let size = |key: &str| golden[key].as_u64().map(|size| size as usize);
    NetworkConfig {
        width: size("dim").unwrap(),
        depth: size("depth").unwrap(),
        heads: size("heads").unwrap(),
        patch: size("patch").unwrap(),
        latent_channels: size("chans").unwrap(),
        latent_size: size("size").unwrap(),
        classes: size("classes").unwrap(),
        branch_ends: serde_json::from_value(golden["branch_ends"].clone()).unwrap(),
        mlp_ratio: size("mlp_ratio").unwrap(),
        acceleration_width: size("acc_hidden").unwrap(),
        class_dropout: golden["class_dropout"].as_f64().unwrap(),
        qk_norm: golden["qk_norm"].as_bool().unwrap(),
        legacy_scaling: golden["legacy_scaling"].as_bool().unwrap(),
        alignment_width: size("align"),
        projector_width: size("proj_hidden").unwrap(),
        ..NetworkConfig::default()
    }
}

pub fn to_f64<E: Dtype, S: dfdx::shapes::Shape, D: Operators<E>>(tensor: &dfdx::tensor::Tensor<S, E, D>) -> Vec<f64> {
    assert!(tensor.shape().num_elements() > 0);
    tensor.as_vec().iter().map(|value| value.to_f64().unwrap()).collect()
}

#[track_caller]
pub fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let worst = found
        .iter()
        .zip(expected)
        .map(|(found, expected)| (found - expected).abs())
        .fold(0.0, |worst: f64, error| {
            if error.is_nan() {
                f64::INFINITY
            } else {
                worst.max(error)
            }
        });
    assert!(worst <= tolerance, "{what}: off by {worst:e}, allowed {tolerance:e}");
}
