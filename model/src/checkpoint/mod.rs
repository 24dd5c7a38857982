//! Checkpoints of a training run: `model.safetensors`, `ema.safetensors`, `optimizer.safetensors` and `state.json` in
//! one folder (pipeline spec, "The outside that stays put").
//!
//! A folder appears under its name only when everything in it is on disk: it is written beside that name, synced and
//! renamed. What a full disk or a kill leaves behind is never mistaken for a checkpoint.

mod folder;
mod tensors;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use dfdx::prelude::Dtype;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::tensors::{Below, ReadPart};
use crate::config::NetworkConfig;
use crate::convert::import::config_of;
use crate::convert::{ConvertError, SafetensorsFile};
use crate::error::ModelError;
use crate::network::Network;
use crate::ops::Operators;
use crate::training::{OptimizerSettings, StepRates, Trainer};
use crate::weights::fill;

pub(crate) use self::folder::{write_file_whole, write_whole, FolderError, State};
pub(crate) use self::tensors::Part;

/// The trained weights.
pub const MODEL_FILE: &str = "model.safetensors";
/// Their moving average.
pub const EMA_FILE: &str = "ema.safetensors";
/// The optimiser's moments: `first_moment.NAME` and `second_moment.NAME`.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// Step, seed and place in the data.
pub const STATE_FILE: &str = "state.json";

/// What the names of the first and second moments begin with.
pub(crate) const FIRST_MOMENT: &str = "first_moment.";
pub(crate) const SECOND_MOMENT: &str = "second_moment.";
/// The metadata of [`OPTIMIZER_FILE`] that hold an [`AdamWRecord`].
const OPTIMIZER_KEY: &str = "optimizer";

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

impl From<FolderError> for CheckpointError {
    fn from(error: FolderError) -> Self {
        match error {
            FolderError::Io { path, source } => Self::Io { path, source },
            FolderError::Content { path, problem } => Self::Content { path, problem },
        }
    }
}

/// AdamW's settings at the last step, for programs that go on with the moments of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct AdamWRecord {
    pub(crate) learning_rate: f64,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) epsilon: f64,
    pub(crate) weight_decay: f64,
}

impl AdamWRecord {
    /// Those of the published recipe.
    pub(crate) fn published() -> Self {
        let (optimizer, rates) = (OptimizerSettings::default(), StepRates::default());
        Self::new(optimizer, rates.learning_rate)
    }

    pub(crate) fn new(optimizer: OptimizerSettings, learning_rate: f64) -> Self {
        let OptimizerSettings {
            beta1,
            beta2,
            epsilon,
            weight_decay,
            ..
        } = optimizer;
        Self {
            learning_rate,
            beta1,
            beta2,
            epsilon,
            weight_decay,
        }
    }

    /// What an [`OPTIMIZER_FILE`] says; `None` in files of other programs.
    pub(crate) fn of(file: &SafetensorsFile) -> Option<Self> {
        serde_json::from_str(file.metadata().get(OPTIMIZER_KEY)?).ok()
    }

    pub(crate) fn add_to(self, metadata: &mut BTreeMap<String, String>) {
        metadata.insert(OPTIMIZER_KEY.to_owned(), serde_json::json!(self).to_string());
    }
}

impl<E: Dtype, D: Operators<E>> Trainer<E, D> {
    /// Writes everything that training needs to go on as if it had never stopped. `data` is the caller's own: the place
    /// in the data, as a rule.
    ///
    /// # Errors
    /// What the system says, with the file. Nothing is left under `folder` then, and other checkpoints are untouched.
    pub fn save(&self, folder: &Path, data: &serde_json::Value) -> Result<(), CheckpointError> {
        let (network, optimizer) = (self.network(), self.state());
        let weights: Vec<_> = network.parameters().iter().map(|p| p.values.clone()).collect();
        let (step, updates, seed) = (self.step_count(), self.update_count(), self.seed());
        let state = State::new(step, updates, seed, network.config().clone(), data.clone());
        write(folder, &state, self.adamw_record(), network, &|part, index| {
            let values = match part {
                Part::Weights => &weights,
                Part::Average => &optimizer.ema,
                Part::FirstMoment => &optimizer.first_moments,
                Part::SecondMoment => &optimizer.second_moments,
            };
            Ok(tensors::bytes(&values[index]))
        })
    }

    /// Takes everything from a checkpoint that [`save`](Self::save) wrote, and returns its `data`. Nothing changes
    /// unless everything fits.
    ///
    /// # Errors
    /// The first file, tensor or setting that does not fit this training.
    pub fn resume(&mut self, folder: &Path) -> Result<serde_json::Value, CheckpointError> {
        let state = State::read(folder)?;
        if state.seed != self.seed() {
            let problem = format!("trained with seed {}, this run has {}", state.seed, self.seed());
            let path = folder.join(STATE_FILE);
            return Err(CheckpointError::Content { path, problem });
        }
        self.take_over(folder)?;
        Ok(state.data)
    }

    /// Takes weights, moving average, moments and the number of steps from a checkpoint of another run, or of another
    /// program ([`convert`](crate::convert)): training goes on with this run's own seed and data. Nothing changes unless
    /// everything fits. One tensor is in memory at a time.
    ///
    /// # Errors
    /// The first file or tensor that does not fit this training.
    pub fn take_over(&mut self, folder: &Path) -> Result<(), CheckpointError> {
        let state = State::read(folder)?;
        let [model, ema, optimizer] = [MODEL_FILE, EMA_FILE, OPTIMIZER_FILE].map(|file| folder.join(file));
        let [model, ema, optimizer] = [
            SafetensorsFile::open(model)?,
            SafetensorsFile::open(ema)?,
            SafetensorsFile::open(optimizer)?,
        ];
        let parts = [
            (&model, ""),
            (&ema, ""),
            (&optimizer, FIRST_MOMENT),
            (&optimizer, SECOND_MOMENT),
        ];
        let parts = parts.map(|(file, prefix)| Below { file, prefix });
        let mut taken = Vec::new();
        for part in &parts {
            let selection = self.network().select(part, |_, _| false);
            taken.push(selection.map_err(CheckpointError::in_file(part.file.path()))?.taken);
        }
        let (network, moments) = self.parts_mut();
        let weights = network
            .parameters_mut()
            .into_iter()
            .map(|parameter| &mut parameter.values);
        let [of_model, of_ema, of_first, of_second] = &parts;
        let filled = fill(of_model, &taken[0], weights)
            .and_then(|()| fill(of_ema, &taken[1], moments.ema.iter_mut()))
            .and_then(|()| fill(of_first, &taken[2], moments.first_moments.iter_mut()))
            .and_then(|()| fill(of_second, &taken[3], moments.second_moments.iter_mut()));
        filled.map_err(CheckpointError::in_file(folder))?;
        self.go_on_after(&state, AdamWRecord::of(&optimizer));
        Ok(())
    }
}

/// Writes the checkpoint of a network that stands at `state`, whole or not at all.
pub(crate) fn write<E: Dtype, D: Operators<E>>(
    folder: &Path,
    state: &State,
    optimizer: AdamWRecord,
    network: &Network<E, D>,
    read: ReadPart<'_>,
) -> Result<(), CheckpointError> {
    write_whole(folder, |partial| {
        let metadata = crate::convert::import::metadata(network.config(), Some(state.step));
        let mut with_optimizer = metadata.clone();
        optimizer.add_to(&mut with_optimizer);
        let moments = [(FIRST_MOMENT, Part::FirstMoment), (SECOND_MOMENT, Part::SecondMoment)];
        tensors::write(
            &partial.join(MODEL_FILE),
            &metadata,
            network,
            &[("", Part::Weights)],
            read,
        )?;
        tensors::write(
            &partial.join(EMA_FILE),
            &metadata,
            network,
            &[("", Part::Average)],
            read,
        )?;
        tensors::write(&partial.join(OPTIMIZER_FILE), &with_optimizer, network, &moments, read)?;
        Ok(state.write(partial)?)
    })
}

/// The configuration that a weights file carries in its metadata; `None` where it carries none. `heads` are 0 in files
/// that were converted from weights which do not show them.
///
/// # Errors
/// The file cannot be read, or its configuration is none.
pub fn read_config(file: &Path) -> Result<Option<NetworkConfig>, CheckpointError> {
    Ok(config_of(&SafetensorsFile::open(file)?)?)
}

/// A network of the given configuration with the weights of a safetensors file, which are read one tensor at a time.
///
/// # Errors
/// The file cannot be read, or the first tensor that does not fit.
pub fn load_network<E: Dtype, D: Operators<E>>(
    file: &Path,
    config: NetworkConfig,
    device: D,
) -> Result<Network<E, D>, CheckpointError> {
    let opened = SafetensorsFile::open(file)?;
    let mut network = Network::new(config, device, 0).map_err(CheckpointError::in_file(file))?;
    network.load_weights(&opened).map_err(CheckpointError::in_file(file))?;
    Ok(network)
}

impl CheckpointError {
    /// What does not fit, in which file.
    fn in_file<E: Into<ModelError>>(path: &Path) -> impl FnOnce(E) -> Self + '_ {
        move |source| Self::Model {
            path: path.to_owned(),
            source: source.into(),
        }
    }
}
