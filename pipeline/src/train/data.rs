//! From shards to training batches, and what a run remembers of its data.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{bail, Context};
use deepflow_datasets as datasets;
use deepflow_datasets::{
    CacheOptions, Class, Codec, Dataset, Loader, LoaderConfig, LoaderState, OpenOptions, Polled, RemoteOptions,
    FEATURES,
};
use deepflow_model::training::{Batch, SamplePlace};
use deepflow_model::NetworkConfig;
use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};

use crate::cli::UsageError;
use crate::config::{first_difference, Config, DataConfig, LastBatch, OnError, Shuffle};
use crate::files::write_atomically;
use crate::interrupt::Interrupt;
use crate::rank::Rank;

/// How often a run that waits for data looks whether it is to stop.
const PATIENCE: Duration = Duration::from_millis(100);

/// What generating and decoding need to know of the data a network was trained on: `data.json` of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataRecord {
    /// Samples in the shards.
    pub samples: u64,
    /// How the latents were made; absent for shards of other programs.
    pub codec: Option<Codec>,
    /// The classes, by index.
    pub classes: Vec<Class>,
    /// The order the samples are visited in; unknown to runs that did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<datasets::Shuffle>,
}

impl DataRecord {
    /// The file's name.
    pub const FILE_NAME: &'static str = "data.json";

    fn of(dataset: &Dataset, order: datasets::Shuffle) -> Self {
        Self {
            order: Some(order),
            samples: dataset.len(),
            codec: dataset.codec().cloned(),
            classes: dataset.index().map(|index| index.classes.clone()).unwrap_or_default(),
        }
    }

    /// Reads the record of the run in `root`.
    ///
    /// # Errors
    /// What the system or the JSON reader says, with the path.
    pub fn read(root: &Path) -> anyhow::Result<Self> {
        let path = root.join(Self::FILE_NAME);
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        serde_json::from_slice(&text).with_context(|| path.display().to_string())
    }

    /// Writes the record into `root`, or checks that it is the one written there before.
    ///
    /// # Errors
    /// When the run was trained on other data.
    pub fn keep(&self, root: &Path) -> anyhow::Result<()> {
        if !root.join(Self::FILE_NAME).exists() {
            return write_atomically(&root.join(Self::FILE_NAME), &serde_json::to_vec_pretty(self)?);
        }
        let before = Self::read(root)?;
        if let Some((key, found, expected)) = first_difference("", &self.content(), &before.content(), &[]) {
            bail!(
                "{}: holds another run: {key} of its shards is {expected}, of these {found}",
                root.display()
            );
        }
        if let (Some(before), Some(now)) = (before.order, self.order) {
            if before != now {
                bail!(
                    "{}: holds another run: it visits its samples in {} order, these shards would be visited in {} \
                     order; continue from the shards it began with, or say data.shuffle and data.block_samples",
                    root.display(),
                    order_name(before),
                    order_name(now)
                );
            }
        }
        Ok(())
    }

    /// What has to stay the same, by name; classes by their index.
    fn content(&self) -> Value {
        let classes = self.classes.iter().map(|class| (class.index.to_string(), json!(class)));
        json!({ "samples": self.samples, "codec": self.codec, "classes": classes.collect::<Map<_, _>>() })
    }
}

fn order_name(order: datasets::Shuffle) -> String {
    match order {
        datasets::Shuffle::Block { samples } => format!("block ({samples} samples)"),
        _ => "global".to_owned(),
    }
}

/// The stream of batches of a run.
pub struct Feed {
    loader: Loader,
    record: DataRecord,
    /// What is taken off every latent after scaling.
    shift: f32,
    /// Tokens and width of the alignment features that the model takes, where it aligns.
    features: Option<[usize; 2]>,
    shards: String,
    skipped: u64,
}

/// A batch with the names of its samples.
pub struct Fed {
    /// What training takes.
    pub batch: Batch,
    /// The keys of the samples, for reports.
    pub keys: Vec<String>,
    /// Where to continue after it.
    pub next: LoaderState,
}

/// Opens the shards that `data.shards` names, and checks that the model fits them.
///
/// # Errors
/// [`UsageError`] when no shards are named; when they are not there, or of another shape than the model's latents.
pub fn open(config: &Config) -> anyhow::Result<Arc<Dataset>> {
    let Some(shards) = &config.data.shards else {
        return Err(UsageError("no data: give --data FOLDER or data.shards in the configuration".to_owned()).into());
    };
    let dataset = Dataset::open_location(shards, open_options(&config.data))?;
    fits(&dataset, &config.model).with_context(|| shards.clone())?;
    Ok(Arc::new(dataset))
}

/// How the shards that `config` names are opened.
#[must_use]
pub fn open_options(config: &DataConfig) -> OpenOptions {
    let cache = config.cache.as_ref().map(|folder| CacheOptions {
        folder: PathBuf::from(folder),
        bytes: config.cache_bytes,
    });
    OpenOptions {
        remote: RemoteOptions {
            cache,
            ..RemoteOptions::default()
        },
        ..OpenOptions::default()
    }
}

fn fits(dataset: &Dataset, model: &NetworkConfig) -> anyhow::Result<()> {
    let (found, expected) = (
        dataset.latent_shape(),
        [model.latent_channels, model.latent_size, model.latent_size],
    );
    if found != expected {
        let codec = dataset
            .codec()
            .map_or_else(String::new, |codec| format!(" of codec {}", codec.name));
        bail!(
            "holds latents{codec} of shape {found:?}, expected {expected:?} by model.latent_channels and \
             model.latent_size"
        );
    }
    if dataset.classes() > model.classes {
        bail!(
            "holds {} classes, expected at most model.classes = {}",
            dataset.classes(),
            model.classes
        );
    }
    Ok(())
}

impl Feed {
    /// Starts reading the share of `rank` of every batch, at `state`.
    ///
    /// # Errors
    /// When the settings do not fit the data.
    pub fn start(dataset: Arc<Dataset>, config: &Config, rank: Rank, state: LoaderState) -> anyhow::Result<Self> {
        let settings = loader_config(config, rank, &dataset);
        let record = DataRecord::of(&dataset, settings.shuffle);
        let scale = dataset.codec().map_or(1.0, |codec| codec.scale_factor);
        let shift = record.codec.as_ref().map_or(0.0, shift_factor);
        let loader = Loader::new(dataset, &settings, state)?;
        Ok(Self {
            loader,
            record,
            shift: (shift * scale) as f32,
            features: features(config),
            shards: config.data.shards.clone().unwrap_or_default(),
            skipped: 0,
        })
    }

    /// What a run remembers of the data.
    #[must_use]
    pub fn record(&self) -> &DataRecord {
        &self.record
    }

    /// Samples that could not be read so far.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The next batch; the data never end. `None` when the work is to stop before it has arrived.
    ///
    /// # Errors
    /// A sample that cannot be read, with shard, key and byte.
    pub fn next(&mut self, interrupt: &Interrupt) -> anyhow::Result<Option<Fed>> {
        let batch = loop {
            match self.loader.poll_batch(PATIENCE)? {
                Polled::Batch(batch) => break *batch,
                Polled::Pending if interrupt.is_requested() => return Ok(None),
                Polled::Pending => {}
                Polled::End => bail!("the data ended, expected one epoch after the other"),
            }
        };
        self.skipped += batch.skipped;
        if let (Some(features), Some(expected)) = (&batch.features, self.features) {
            if features.shape != expected {
                bail!(
                    "{}: {FEATURES} of shape {:?}, expected {expected:?}: the tokens of the model and \
                     model.alignment_width",
                    self.shards,
                    features.shape
                );
            }
        }
        let mut latents = batch.latents.to_vec();
        if self.shift != 0.0 {
            latents.iter_mut().for_each(|value| *value -= self.shift);
        }
        let place = |&position: &u64| SamplePlace {
            epoch: batch.epoch,
            position,
        };
        Ok(Some(Fed {
            batch: Batch {
                latents,
                labels: batch.classes.iter().map(|&class| class as usize).collect(),
                places: batch.positions.iter().map(place).collect(),
                features: batch.features.map(|features| features.data),
            },
            keys: batch.keys,
            next: batch.next,
        }))
    }
}

/// `shift_factor` of the codec's settings (training sees `(latent - shift)·scale`); 0 for most codecs.
#[must_use]
pub fn shift_factor(codec: &Codec) -> f64 {
    codec
        .settings
        .get("shift_factor")
        .and_then(Value::as_f64)
        .unwrap_or(0.0)
}

/// Tokens and width of the features that a run aligns with, if it does.
fn features(config: &Config) -> Option<[usize; 2]> {
    let width = config.model.alignment_width.filter(|_| config.loss.alignment > 0.0)?;
    Some([config.model.tokens(), width])
}

/// How the shards of `dataset` are read for training by `config`.
#[must_use]
pub fn loader_config(config: &Config, rank: Rank, dataset: &Dataset) -> LoaderConfig {
    let data: &DataConfig = &config.data;
    let features = features(config).is_some();
    let block = datasets::Shuffle::Block {
        samples: data.block_samples as u64,
    };
    LoaderConfig {
        seed: config.train.seed,
        batch_size: config.train.batch,
        rank: rank.rank,
        world: rank.world,
        readers: data.readers,
        prefetch: data.read_ahead,
        shuffle: match data.shuffle {
            Shuffle::Auto if dataset.is_random_access() => datasets::Shuffle::Global,
            Shuffle::Global => datasets::Shuffle::Global,
            Shuffle::Auto | Shuffle::Block => block,
        },
        last_batch: match data.last_batch {
            LastBatch::Drop => datasets::LastBatch::Drop,
            LastBatch::Pad => datasets::LastBatch::Pad,
        },
        // Alignment features are of the picture as it is, not of its mirror image.
        flip: data.mirror && !features,
        features,
        classes: u32::try_from(config.model.classes).ok(),
        on_error: match data.on_error {
            OnError::Stop => datasets::OnError::Stop,
            OnError::Skip => datasets::OnError::Skip,
        },
        ..LoaderConfig::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn other_shards_are_refused_by_what_differs() {
        let class = |index, name: &str| Class {
            index,
            name: name.to_owned(),
            label: None,
        };
        let record = DataRecord {
            samples: 1000,
            codec: None,
            classes: vec![class(0, "cat"), class(1, "dog")],
            order: None,
        };
        let folder = tempfile::tempdir().unwrap();
        record.keep(folder.path()).unwrap();
        record.keep(folder.path()).unwrap();
        let mut renamed = record.clone();
        renamed.classes[1] = class(1, "fox");
        let mut fewer = record.clone();
        fewer.classes.pop();
        let mut more = record;
        more.samples += 1;
        for (other, expected) in [
            (renamed, r#"classes.1.name of its shards is "dog", of these "fox""#),
            (
                fewer,
                r#"classes.1 of its shards is {"index":1,"name":"dog"}, of these null"#,
            ),
            (more, "samples of its shards is 1000, of these 1001"),
        ] {
            let error = other.keep(folder.path()).unwrap_err().to_string();
            let expected = format!("{}: holds another run: {expected}", folder.path().display());
            assert_eq!(error, expected);
        }
    }
}
