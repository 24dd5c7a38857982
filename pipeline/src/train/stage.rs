//! The stage: from a command line to a finished run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use deepflow_datasets::ShardFolder;
use toml::Value;

use super::data::{self, Feed};
use super::run_directory::RunDirectory;
use super::session::Session;
use super::trainer;
use crate::cli::Stage;
use crate::codecs::CODEC_FILE;
use crate::config::{long_help, Config, ConfigArgs};
use crate::device::{check_precision, DeviceArgs};
use crate::files::write_atomically;
use crate::interrupt::Interrupt;
use crate::memory::check_training;
use crate::rank::Rank;

const EXAMPLES: &str = "\
Examples:
  deepflow train --config configs/laptop.toml --data latents --out runs/first
  deepflow train --config configs/laptop.toml --data latents --out runs/fast --steps 2000 --set train.learning_rate=3e-4
  deepflow train --data flowers --out runs/flowers --set model.classes=5 --set train.start_from=runs/first";

/// What of the configuration this stage reads: whole sections, and where the codec of its sample pictures lies.
const KEYS: [&str; 6] = ["data", "model", "train", "loss", "codec.weights", "sample"];

/// Train a network on latent shards
///
/// Writes a run directory: config.toml (the resolved configuration), metrics.jsonl and TensorBoard events, samples/ with
/// sheets of pictures made on the way, and checkpoints/step-N/ with model, ema, optimizer and state. Ctrl-C saves a
/// checkpoint and exits with 130; the same command continues, and the result is the same to the last bit as without the
/// stop. train.steps may be raised to train longer (with a constant learning rate).
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, after_long_help = long_help(EXAMPLES, &KEYS))]
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
    // The one process of `SingleProcess`; a communicator over several will say which of them this is.
    let rank = Rank::ALONE;
    let device = device.open(rank)?;
    check_precision(&device, config.train.precision, "train.precision")?;
    check_training(config, config.train.batch / config.train.accumulation, &device)?;
    let dataset = data::open(config)?;
    let run = RunDirectory::open(out, config)?;
    let newest = run.latest()?;
    let (trainer, place) = trainer::begin(device, config, newest.as_deref())?;
    let feed = Feed::start(Arc::clone(&dataset), config, rank, place)?;
    feed.record().keep(run.root())?;
    keep_codec(dataset.folder(), run.root())?;
    Session::start(config, run, trainer, feed, place)?.run(interrupt)
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
