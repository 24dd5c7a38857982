//! The stage: shard after shard of generated latents.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use deepflow_datasets::{DatasetPlan, DatasetWriter, Error as ShardError, Sample, LATENT};
use deepflow_model::checkpoint;
use deepflow_model::ops::Operators;
use deepflow_model::sampling::{sample, IndexedNoise, SamplerSettings};
use deepflow_model::Network;
use dfdx::dtypes::Dtype as Element;
use serde_json::json;

use super::classes::{class_of, ClassChoice};
use super::settings::sampler_settings;
use super::source::Source;
use crate::cli::Stage;
use crate::codecs::CODEC_FILE;
use crate::config::{long_help, ConfigArgs};
use crate::device::{check_precision, DeviceArgs};
use crate::files::{refuse_foreign_shards, sha256, write_atomically};
use crate::interrupt::{Interrupt, Interrupted};
use crate::memory::check_sampling;
use crate::on_device_in;
use crate::progress::{counted, Progress};
use crate::share::{Share, ShareArgs};
use crate::train::shift_factor;

/// The codec's setting that holds what generated the latents.
pub const GENERATOR: &str = "generator";

const EXAMPLES: &str = "\
Examples:
  deepflow sample --checkpoint runs/first --out generated --per-class 10
  deepflow sample --checkpoint runs/first/checkpoints/step-0005000 --out cats --classes 281,282 --per-class 50 \
                  --set sample.sampler=heun --set sample.steps=50 --set sample.guidance=2";

/// Generate latents from a trained network
///
/// Writes WebDataset shards of latents, which decode turns into pictures. Sample i is a function of the seed, i and the
/// settings alone: not of the batch, nor of how many processes share the work. A run that was stopped goes on when the same
/// command runs again; several processes share the work with --shard-range, with --rank and --world, or their launcher's
/// variables.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, after_long_help = long_help(EXAMPLES, &["sample", "output"]))]
pub struct SampleArgs {
    /// A run (its newest checkpoint), a checkpoint's folder, or a safetensors file with a configuration in it
    #[arg(long, value_name = "PATH")]
    checkpoint: PathBuf,
    /// Folder to write to; new, empty, or of the same run
    #[arg(short, long, value_name = "FOLDER")]
    out: PathBuf,
    /// `all`, or a list such as 0,3,7
    #[arg(long, value_name = "CLASSES", default_value = "all")]
    classes: ClassChoice,
    /// Samples of each class
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    per_class: u64,
    /// Seed of the samples (sample.seed)
    #[arg(long, value_name = "SEED", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seed: Option<u64>,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    share: ShareArgs,
}

impl Stage for SampleArgs {
    fn run(self, interrupt: &Interrupt) -> anyhow::Result<()> {
        let seed = self
            .seed
            .and_then(|seed| i64::try_from(seed).ok())
            .map(toml::Value::Integer);
        let source = Source::open(&self.checkpoint, &self.config, &[("sample.seed", seed)])?;
        let classes = self.classes.resolve(source.config.model.classes)?;
        let share = self.share.detect()?;
        let device = self.device.open(share.rank)?;
        let precision = source.config.sample.precision;
        check_precision(&device, precision, "sample.precision")?;
        device.allow_tensor_float_32(source.config.sample.tf32)?;
        check_sampling(&source.config, &device)?;
        let job = Job::prepare(source, &self.out, classes, self.per_class, share)?;
        on_device_in!(device, precision, E, device => job.run::<E, _>(device, interrupt))
    }
}

/// All samples of one command.
struct Job {
    source: Source,
    out: PathBuf,
    writer: DatasetWriter,
    settings: SamplerSettings,
    classes: Vec<usize>,
    samples: u64,
    shards: usize,
    /// The shards that fall to this process.
    mine: Vec<usize>,
}

impl Job {
    fn prepare(source: Source, out: &Path, classes: Vec<usize>, per_class: u64, share: Share) -> anyhow::Result<Self> {
        let config = &source.config;
        let samples = classes.len() as u64 * per_class;
        let shard_samples = config.sample.shard_samples;
        let shards = usize::try_from(samples.div_ceil(shard_samples as u64))?;
        let settings = sampler_settings(config);
        settings.validate(&config.model)?;
        let mine = share.of(shards, &out.display().to_string())?;
        let mut codec = source.codec.clone();
        codec.dtype = config.output.dtype();
        let generator = json!({
            "weights_sha256": sha256(&source.weights)?,
            "sample": { "classes": &classes, "samples": samples, "shard_samples": shard_samples },
            "model": &config.model,
            "settings": deciding_settings(config)?,
        });
        codec.settings.insert(GENERATOR.to_owned(), generator);
        refuse_foreign_shards(out, &config.output.name)?;
        let writer = DatasetWriter::create(
            out,
            DatasetPlan {
                name: config.output.name.clone(),
                compression: config.output.compression(),
                codec,
                classes: source.classes.clone(),
            },
        )?;
        Ok(Self {
            out: out.to_owned(),
            writer,
            settings,
            classes,
            samples,
            shards,
            mine,
            source,
        })
    }

    fn run<E: Element, D: Operators<E>>(&self, device: D, interrupt: &Interrupt) -> anyhow::Result<()> {
        let config = &self.source.config;
        self.keep_companions()?;
        let network: Network<E, D> = checkpoint::load_network(&self.source.weights, config.model.clone(), device)?;
        let total = self
            .mine
            .iter()
            .map(|&shard| self.range(shard))
            .map(|range| range.end - range.start);
        let progress = Progress::start("sampling", "samples", 0, total.sum());
        for &shard in &self.mine {
            let range = self.range(shard);
            if self.writer.is_complete(shard)? {
                progress.advance(range.end - range.start);
            } else {
                self.write_shard(&network, shard, range, &progress, interrupt)?;
            }
        }
        drop(progress);
        self.finish()
    }

    /// Writes the index, unless other processes have shards to write yet; then the last of them writes it.
    fn finish(&self) -> anyhow::Result<()> {
        let (out, mut stdout) = (self.out.display(), io::stdout().lock());
        match self.writer.finish(self.shards) {
            Ok(index) => writeln!(
                stdout,
                "{out}: {} samples in {}",
                index.samples,
                counted(index.shards.len(), "shard")
            )?,
            Err(ShardError::ShardMissing { .. }) if self.mine.len() < self.shards => writeln!(
                stdout,
                "{out}: {} of {} done, which are this process's; others have shards to write yet",
                self.mine.len(),
                counted(self.shards, "shard")
            )?,
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// The samples of a shard.
    fn range(&self, shard: usize) -> std::ops::Range<u64> {
        let (shard, size) = (shard as u64, self.source.config.sample.shard_samples as u64);
        shard * size..((shard + 1) * size).min(self.samples)
    }

    fn write_shard<E: Element, D: Operators<E>>(
        &self,
        network: &Network<E, D>,
        number: usize,
        range: std::ops::Range<u64>,
        progress: &Progress,
        interrupt: &Interrupt,
    ) -> anyhow::Result<()> {
        let mut shard = self.writer.begin_shard(number)?;
        let mut first = range.start;
        while first < range.end {
            let end = range.end.min(first + self.source.config.sample.batch as u64);
            let indices: Vec<u64> = (first..end).collect();
            for (index, latent) in indices.iter().zip(self.generate(network, &indices, interrupt)?) {
                shard.write(&self.sample(*index, &latent)?)?;
            }
            progress.advance(end - first);
            first = end;
        }
        shard.finish()?;
        Ok(())
    }

    /// The latents of some samples, as they are stored: without the codec's scale.
    fn generate<E: Element, D: Operators<E>>(
        &self,
        network: &Network<E, D>,
        indices: &[u64],
        interrupt: &Interrupt,
    ) -> anyhow::Result<Vec<Vec<f32>>> {
        let labels: Vec<usize> = indices.iter().map(|&index| class_of(index, &self.classes)).collect();
        let noise = IndexedNoise {
            seed: self.source.config.sample.seed,
            indices: indices.to_vec(),
        };
        let mut watch = |_: f64| interrupt.flow();
        let Some(latents) = sample(network, &self.settings, &labels, &noise, &mut watch)? else {
            return Err(Interrupted.into());
        };
        let (scale, shift) = (self.source.codec.scale_factor, shift_factor(&self.source.codec));
        let stored = |latent: &[f64]| latent.iter().map(|value| (value / scale + shift) as f32).collect();
        Ok(latents
            .chunks_exact(network.config().latent_values())
            .map(stored)
            .collect())
    }

    fn sample(&self, index: u64, latent: &[f32]) -> anyhow::Result<Sample> {
        let class = class_of(index, &self.classes);
        let name = self.source.classes.get(class).map(|class| class.name.as_str());
        let seed = self.source.config.sample.seed;
        let codec = &self.source.codec;
        let dtype = self.source.config.output.dtype();
        Ok(Sample::new(format!("{index:08}"))
            .with_array(LATENT, latent, &codec.latent_shape, dtype)?
            .with_class(u32::try_from(class)?)
            .with_metadata(&json!({ "seed": seed, "index": index, "class_name": name }))?)
    }

    /// Puts the configuration, and the codec's weights where there are such, beside the shards.
    fn keep_companions(&self) -> anyhow::Result<()> {
        self.source.config.save(&self.out)?;
        if let Some(file) = &self.source.codec_file {
            let bytes = fs::read(file).with_context(|| file.display().to_string())?;
            write_atomically(&self.out.join(CODEC_FILE), &bytes)?;
        }
        Ok(())
    }
}

/// The keys that decide what a sample is: those of `[sample]`, and the path the network was trained on.
fn deciding_settings(config: &crate::config::Config) -> anyhow::Result<serde_json::Value> {
    let mut settings = serde_json::to_value(&config.sample)?;
    if let Some(settings) = settings.as_object_mut() {
        settings.insert("path".to_owned(), serde_json::to_value(config.loss.path)?);
        for only_speed in ["batch", "shard_samples"] {
            settings.remove(only_speed);
        }
    }
    Ok(settings)
}
