//! Checkpoints of a training run: `model.safetensors`, `ema.safetensors`, `optimizer.safetensors` and `state.json` in
//! one folder (pipeline spec, "The outside that stays put").
//!
//! A folder appears under its name only when everything in it is on disk: it is written beside that name, synced and
//! renamed. What a full disk or a kill leaves behind is never mistaken for a checkpoint.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dfdx::prelude::{Dtype, HasShape};
use safetensors::{Dtype as FileType, SafeTensors};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::NetworkConfig;
use crate::convert::import::config_of;
use crate::convert::safetensors_file::write as write_safetensors;
use crate::convert::{ConvertError, SafetensorsFile};
use crate::error::ModelError;
use crate::network::Network;
use crate::ops::{Operators, Vector};
use crate::torch_pickle::TensorData;
use crate::training::Trainer;
use crate::weights::WeightSource;

/// The trained weights.
pub const MODEL_FILE: &str = "model.safetensors";
/// Their moving average.
pub const EMA_FILE: &str = "ema.safetensors";
/// The optimiser's moments: `first_moment.NAME` and `second_moment.NAME`.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// Step, seed and place in the data.
pub const STATE_FILE: &str = "state.json";

const FORMAT: u32 = 1;
const FIRST_MOMENT: &str = "first_moment.";
const SECOND_MOMENT: &str = "second_moment.";

/// Why a checkpoint cannot be written or read.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A weights file cannot be written or read.
    #[error(transparent)]
    File(#[from] ConvertError),
    /// A file holds something else than a checkpoint's.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },
    /// The checkpoint does not fit the network.
    #[error("{}: {source}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        source: ModelError,
    },
}

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    format: u32,
    step: u64,
    updates: u64,
    seed: u64,
    model: NetworkConfig,
    data: serde_json::Value,
}

impl<E: Dtype, D: Operators<E>> Trainer<E, D> {
    /// Writes everything that training needs to go on as if it had never stopped. `data` is the caller's own: the place
    /// in the data, as a rule.
    ///
    /// # Errors
    /// What the system says, with the file. Nothing is left under `folder` then, and other checkpoints are untouched.
    pub fn save(&self, folder: &Path, data: &serde_json::Value) -> Result<(), CheckpointError> {
        let partial = partial_name(folder)?;
        remove_if_there(&partial)?;
        let written = self.write_files(&partial, data).and_then(|()| {
            remove_if_there(folder)?;
            fs::rename(&partial, folder).map_err(io_error(folder))?;
            sync_folder(folder.parent().unwrap_or(Path::new(".")))
        });
        if written.is_err() {
            // The first error is the one to report; what is left is of no use to anybody.
            let _ = fs::remove_dir_all(&partial);
        }
        written
    }

    fn write_files(&self, partial: &Path, data: &serde_json::Value) -> Result<(), CheckpointError> {
        fs::create_dir_all(partial).map_err(io_error(partial))?;
        let network = self.network();
        let named = |prefix: &str, values: &[Vector<E, D>]| -> Vec<NamedTensor<E, D>> {
            let parameters = network.parameters().into_iter().zip(values);
            let tensor = |(parameter, values): (&crate::Parameter<E, D>, &Vector<E, D>)| NamedTensor {
                name: format!("{prefix}{}", parameter.name()),
                shape: parameter.shape().to_vec(),
                values: values.clone(),
            };
            parameters.map(tensor).collect()
        };
        let weights: Vec<Vector<E, D>> = network.parameters().iter().map(|p| p.values.clone()).collect();
        let state = self.state();
        let mut moments = named(FIRST_MOMENT, &state.first_moments);
        moments.extend(named(SECOND_MOMENT, &state.second_moments));
        let metadata = metadata(network.config(), self.step_count(), partial)?;
        for (file, tensors) in [
            (MODEL_FILE, named("", &weights)),
            (EMA_FILE, named("", &state.ema)),
            (OPTIMIZER_FILE, moments),
        ] {
            write_tensors(&partial.join(file), &metadata, tensors)?;
        }
        let state = State {
            format: FORMAT,
            step: self.step_count(),
            updates: self.update_count(),
            seed: self.seed(),
            model: network.config().clone(),
            data: data.clone(),
        };
        let path = partial.join(STATE_FILE);
        let text = to_json(&state, &path)?;
        let mut file = File::create(&path).map_err(io_error(&path))?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(io_error(&path))?;
        sync_folder(partial)
    }

    /// Takes everything from a checkpoint that [`save`](Self::save) wrote, and returns its `data`. Nothing changes
    /// unless everything fits.
    ///
    /// # Errors
    /// The first file, tensor or setting that does not fit this training.
    pub fn resume(&mut self, folder: &Path) -> Result<serde_json::Value, CheckpointError> {
        let path = folder.join(STATE_FILE);
        let text = fs::read_to_string(&path).map_err(io_error(&path))?;
        let content = |problem: String| CheckpointError::Content {
            path: path.clone(),
            problem,
        };
        let state: State = serde_json::from_str(&text).map_err(|error| content(error.to_string()))?;
        if state.format != FORMAT {
            return Err(content(format!("format {}, expected {FORMAT}", state.format)));
        }
        if state.seed != self.seed() {
            return Err(content(format!(
                "trained with seed {}, this run has {}",
                state.seed,
                self.seed()
            )));
        }
        let mut network = self.network().clone();
        load_file(&mut network, &folder.join(MODEL_FILE), "")?;
        let read = |file: &str, prefix| {
            let mut values = self.network().clone();
            load_file(&mut values, &folder.join(file), prefix)?;
            Ok::<_, CheckpointError>(values.parameters().into_iter().map(|p| p.values.clone()).collect())
        };
        let (ema, first_moments, second_moments) = (
            read(EMA_FILE, "")?,
            read(OPTIMIZER_FILE, FIRST_MOMENT)?,
            read(OPTIMIZER_FILE, SECOND_MOMENT)?,
        );
        let restored = crate::training::OptimizerState {
            first_moments,
            second_moments,
            ema,
        };
        self.restore(network, restored, state.step, state.updates);
        Ok(state.data)
    }
}

/// The configuration that a weights file carries in its metadata; `None` where it carries none. `heads` are 0 in files
/// that were converted from weights which do not show them.
///
/// # Errors
/// The file cannot be read, or its configuration is none.
pub fn read_config(file: &Path) -> Result<Option<NetworkConfig>, CheckpointError> {
    let opened = SafetensorsFile::open(file)?;
    if !opened.metadata().contains_key("config") {
        return Ok(None);
    }
    Ok(Some(config_of(&opened)?))
}

/// A network of the given configuration with the weights of a safetensors file.
///
/// # Errors
/// The file cannot be read, or the first tensor that does not fit.
pub fn load_network<E: Dtype, D: Operators<E>>(
    file: &Path,
    config: NetworkConfig,
    device: D,
) -> Result<Network<E, D>, CheckpointError> {
    let mut network = Network::new(config, device, 0).map_err(|source| CheckpointError::Model {
        path: file.to_owned(),
        source,
    })?;
    load_file(&mut network, file, "")?;
    Ok(network)
}

/// The tensors of a file whose names begin with a prefix, without it.
struct Below<'a> {
    tensors: &'a SafeTensors<'a>,
    prefix: &'a str,
}

impl WeightSource for Below<'_> {
    fn tensor(&self, name: &str) -> Option<safetensors::tensor::TensorView<'_>> {
        self.tensors.tensor(&format!("{}{name}", self.prefix)).ok()
    }

    fn names(&self) -> Vec<String> {
        let names = WeightSource::names(self.tensors).into_iter();
        names
            .filter_map(|name| name.strip_prefix(self.prefix).map(str::to_owned))
            .collect()
    }
}

fn load_file<E: Dtype, D: Operators<E>>(
    network: &mut Network<E, D>,
    path: &Path,
    prefix: &str,
) -> Result<(), CheckpointError> {
    let bytes = fs::read(path).map_err(io_error(path))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| CheckpointError::Content {
        path: path.to_owned(),
        problem: format!("not a safetensors file: {error}"),
    })?;
    let source = Below {
        tensors: &tensors,
        prefix,
    };
    network
        .load_weights(&source)
        .map(drop)
        .map_err(|source| CheckpointError::Model {
            path: path.to_owned(),
            source,
        })
}

struct NamedTensor<E: Dtype, D: Operators<E>> {
    name: String,
    shape: Vec<usize>,
    values: Vector<E, D>,
}

/// Writes tensors one at a time, so that a checkpoint never has to fit in memory twice.
fn write_tensors<E: Dtype, D: Operators<E>>(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: Vec<NamedTensor<E, D>>,
) -> Result<(), CheckpointError> {
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
    })?;
    Ok(())
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

fn metadata(config: &NetworkConfig, step: u64, path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    Ok(BTreeMap::from([
        // What the Python libraries write and some insist on.
        ("format".to_owned(), "pt".to_owned()),
        ("config".to_owned(), to_json(config, path)?),
        ("step".to_owned(), step.to_string()),
    ]))
}

fn to_json(value: &impl Serialize, path: &Path) -> Result<String, CheckpointError> {
    serde_json::to_string(value).map_err(|error| CheckpointError::Content {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

fn partial_name(folder: &Path) -> Result<PathBuf, CheckpointError> {
    let name = folder.file_name().ok_or_else(|| CheckpointError::Content {
        path: folder.to_owned(),
        problem: "expected a path that ends with a folder's name".into(),
    })?;
    Ok(folder.with_file_name(format!(".{}.partial", name.to_string_lossy())))
}

fn remove_if_there(folder: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(folder)(error)),
        _ => Ok(()),
    }
}

/// Makes the names inside a folder durable.
fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    if cfg!(unix) {
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(io_error(folder))?;
    }
    Ok(())
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError + '_ {
    move |source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    }
}
