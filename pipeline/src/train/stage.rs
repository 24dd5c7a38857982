//! The stage: from a command line to a finished run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use deepflow_datasets::{LoaderState, ShardFolder};
use deepflow_model::checkpoint::MODEL_FILE;
use deepflow_model::ops::Operators;
use deepflow_model::training::Trainer;
use deepflow_model::Network;
use toml::Value;

use super::data::{self, Feed};
use super::fine_tune;
use super::run_directory::{find_checkpoint, RunDirectory};
use super::session::Session;
use super::settings::{loss_settings, optimizer_settings};
use crate::cli::Stage;
use crate::config::{long_help, Config, ConfigArgs, StartWith};
use crate::device::DeviceArgs;
use crate::files::write_atomically;
use crate::interrupt::Interrupt;
use crate::memory::check_training;
use crate::on_device;
use crate::rank::Rank;

const EXAMPLES: &str = "\
Examples:
  deepflow train --config configs/laptop.toml --data latents --out runs/first
  deepflow train --config configs/laptop.toml --data latents --out runs/fast --steps 2000 --set train.learning_rate=3e-4
  deepflow train --data flowers --out runs/flowers --set model.classes=5 --set train.start_from=runs/first";

/// Train a network on latent shards
///
/// Writes a run directory: config.toml (the resolved configuration), metrics.jsonl and TensorBoard events, samples/ with
/// sheets of pictures made on the way, and checkpoints/step-N/ with model, ema, optimizer and state. Ctrl-C saves a
/// checkpoint and exits with 130; the same command continues, and the result is the same to the last bit as without the
/// stop. train.steps may be raised to train longer (with a constant learning rate).
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, after_long_help = long_help(EXAMPLES, &["data", "model", "train", "loss", "sample"]))]
pub struct TrainArgs {
    /// Folder of latent shards, as encode writes it, or its address: s3://, gs://, az://, https:// (data.shards)
    #[arg(short, long, value_name = "FOLDER")]
    pub data: Option<String>,
    /// The run directory; a run that is there is continued
    #[arg(short, long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Steps of the whole run (train.steps)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    pub steps: Option<u64>,
    /// Configuration
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Machine
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl Stage for TrainArgs {
    fn run(self, interrupt: &Interrupt) -> anyhow::Result<()> {
        let config = self.config.load(&[
            ("data.shards", self.data.map(Value::String)),
            (
                "train.steps",
                self.steps
                    .and_then(|steps| i64::try_from(steps).ok())
                    .map(Value::Integer),
            ),
        ])?;
        train(&config, &self.out, self.device, interrupt)
    }
}

/// Trains by `config` in the run directory `out`, or continues there.
///
/// # Errors
/// When the data or the run directory do not fit the configuration, a file cannot be read or written, too many steps in a
/// row are not finite; [`crate::interrupt::Interrupted`] after saving.
pub fn train(config: &Config, out: &Path, device: DeviceArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    let device = device.open(Rank::ALONE)?;
    check_training(config, config.train.batch / config.train.accumulation, &device)?;
    on_device!(device, device => train_on(device, config, out, interrupt))
}

fn train_on<D: Operators<f32>>(device: D, config: &Config, out: &Path, interrupt: &Interrupt) -> anyhow::Result<()> {
    let dataset = data::open(config)?;
    let run = RunDirectory::open(out, config)?;
    let newest = run.latest()?;
    let start = config.train.start_from.as_deref().filter(|_| newest.is_none());
    let (weights, everything) = match config.train.start_with {
        StartWith::Weights => (start, None),
        StartWith::Everything => (None, start),
    };
    let network = start_network(device, config, weights)?;
    let mut trainer = Trainer::new(
        network,
        loss_settings(&config.loss, config.model.branches()),
        optimizer_settings(&config.train),
        config.train.batch / config.train.accumulation,
        config.train.seed,
    )?;
    let place = match &newest {
        Some(folder) => {
            let place: LoaderState = serde_json::from_value(trainer.resume(folder)?)
                .with_context(|| folder.join("state.json").display().to_string())?;
            tracing::info!(
                "continuing after step {} of {}",
                trainer.step_count(),
                config.train.steps
            );
            place
        }
        None => {
            if let Some(other) = everything {
                fine_tune::take_over(&mut trainer, &find_checkpoint(other)?, config.train.steps)?;
            }
            LoaderState::default()
        }
    };
    let feed = Feed::start(Arc::clone(&dataset), config, Rank::ALONE, place)?;
    feed.record().keep(run.root())?;
    keep_codec(dataset.folder(), run.root())?;
    Session::start(config, run, trainer, feed, place)?.run(interrupt)
}

/// A new network, or one with the weights of another run.
fn start_network<D: Operators<f32>>(
    device: D,
    config: &Config,
    start_from: Option<&Path>,
) -> anyhow::Result<Network<f32, D>> {
    let mut network = Network::new(config.model.clone(), device, config.train.seed)?;
    network.set_checkpoint_blocks(config.train.checkpoint_blocks);
    let Some(other) = start_from else { return Ok(network) };
    let file = if other.is_file() {
        other.to_owned()
    } else {
        find_checkpoint(other)?.join(MODEL_FILE)
    };
    tracing::info!("starting from {}", file.display());
    fine_tune::load(&mut network, &file)?;
    Ok(network)
}

/// Copies the codec's own weights, where it has such, beside the run: generated latents are decoded with them.
fn keep_codec(shards: &ShardFolder, root: &Path) -> anyhow::Result<()> {
    let kept = root.join(CODEC_FILE);
    if kept.exists() {
        return Ok(());
    }
    match shards.file(CODEC_FILE) {
        Ok(Some(bytes)) => write_atomically(&kept, &bytes),
        Ok(None) => Ok(()),
        Err(error) => {
            // A store may refuse to say whether a file exists; training itself does not need it.
            tracing::warn!("{error}; without it generated latents can only be decoded with --weights");
            Ok(())
        }
    }
}

/// Weights of a fitted codec, beside the index of the shards it made.
pub const CODEC_FILE: &str = "codec.safetensors";
