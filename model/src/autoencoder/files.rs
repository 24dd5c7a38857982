//! The files an autoencoder's weights come in, and their tensors, read one at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::AutoencoderError;
use crate::convert::SafetensorsFile;
use crate::torch_pickle::{TensorData, TorchFile, Value};

/// What diffusers calls its weights, in the order they are looked for; an index names the shards.
const NAMES: [&str; 4] = [
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
];

/// Where the tensors of an autoencoder are, by the names the files use.
pub(super) struct WeightFiles {
    /// The folder or file the user named.
    pub(super) path: PathBuf,
    paths: Vec<PathBuf>,
    files: Vec<WeightFile>,
}

enum WeightFile {
    Safetensors(SafetensorsFile),
    Torch(TorchFile),
}

impl WeightFiles {
    /// Opens the weights in a folder, or one file.
    pub(super) fn open(path: &Path) -> Result<Self, AutoencoderError> {
        let paths = if path.is_dir() {
            find(path)?
        } else {
            vec![path.to_owned()]
        };
        let files = paths
            .iter()
            .map(|path| WeightFile::open(path))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            path: path.to_owned(),
            paths,
            files,
        })
    }

    /// Every tensor's name and the file that has it.
    pub(super) fn names(&self) -> Vec<(String, usize)> {
        let all = self.files.iter().enumerate();
        all.flat_map(|(index, file)| file.names().into_iter().map(move |name| (name, index)))
            .collect()
    }

    pub(super) fn read(&self, name: &str, file: usize) -> Result<TensorData, AutoencoderError> {
        self.files[file].read(name)
    }

    /// SHA-256 of the file, or of all shards one after the other in the order of their names.
    pub(super) fn sha256(&self) -> Result<String, AutoencoderError> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        for path in &self.paths {
            let io_error = |source| AutoencoderError::Io {
                path: path.clone(),
                source,
            };
            let mut file = File::open(path).map_err(io_error)?;
            loop {
                match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => hasher.update(&buffer[..count]),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(io_error(error)),
                }
            }
        }
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// The weight files of a diffusers folder.
fn find(folder: &Path) -> Result<Vec<PathBuf>, AutoencoderError> {
    let Some(path) = NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file()) else {
        return Err(AutoencoderError::NoWeights {
            path: folder.to_owned(),
            problem: format!("no weights, expected one of {}", NAMES.join(", ")),
        });
    };
    if path.extension().is_none_or(|extension| extension != "json") {
        return Ok(vec![path]);
    }
    let text = std::fs::read(&path).map_err(|source| AutoencoderError::Io {
        path: path.clone(),
        source,
    })?;
    let index: serde_json::Value = serde_json::from_slice(&text).map_err(|error| AutoencoderError::NoWeights {
        path: path.clone(),
        problem: format!("not an index of shards: {error}"),
    })?;
    let shards: Option<BTreeSet<&str>> = index["weight_map"]
        .as_object()
        .map(|map| map.values().filter_map(|file| file.as_str()).collect());
    match shards {
        Some(shards) if !shards.is_empty() => Ok(shards.into_iter().map(|shard| folder.join(shard)).collect()),
        _ => Err(AutoencoderError::NoWeights {
            path,
            problem: "no weight_map, expected tensor names and files".to_owned(),
        }),
    }
}

impl WeightFile {
    fn open(path: &Path) -> Result<Self, AutoencoderError> {
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            return Ok(Self::Safetensors(SafetensorsFile::open(path)?));
        }
        let file = TorchFile::open(path)?;
        if state_dict(&file).entries().is_none() {
            let problem = format!("{}, expected a state dict", state_dict(&file).kind());
            return Err(AutoencoderError::NoWeights {
                path: path.to_owned(),
                problem,
            });
        }
        Ok(Self::Torch(file))
    }

    fn names(&self) -> Vec<String> {
        match self {
            Self::Safetensors(file) => file.tensors().map(|(name, _, _)| name.to_owned()).collect(),
            Self::Torch(file) => {
                let entries = state_dict(file).entries().into_iter().flatten();
                let tensors = entries.filter(|(_, value)| value.as_tensor().is_some());
                let names: BTreeMap<String, ()> = tensors
                    .filter_map(|(name, _)| Some((name.as_str()?.to_owned(), ())))
                    .collect();
                names.into_keys().collect()
            }
        }
    }

    fn read(&self, name: &str) -> Result<TensorData, AutoencoderError> {
        match self {
            Self::Safetensors(file) => Ok(file.read(name)?),
            Self::Torch(file) => match state_dict(file).get(name).and_then(|value| value.as_tensor()) {
                Some(tensor) => Ok(file.read(tensor)?),
                None => Err(AutoencoderError::NoWeights {
                    path: file.path().to_owned(),
                    problem: format!("no tensor {name}"),
                }),
            },
        }
    }
}

/// The dictionary of tensors: the file's root, or what CompVis' trainer stores under `state_dict`.
fn state_dict(file: &TorchFile) -> Value<'_> {
    let root = file.root();
    root.get("state_dict").unwrap_or(root)
}
