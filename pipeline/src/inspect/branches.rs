//! `deepflow inspect branches`: what every branch of a trained network knows, on data it was not trained on.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{ensure, Context};
use clap::Args;
use deepflow_datasets::{Dataset, LastBatch, Loader, LoaderConfig, LoaderState, OpenOptions, Shuffle};
use deepflow_model::checkpoint;
use deepflow_model::ops::{Matrix, Operators};
use deepflow_model::training::{Batch, LossSettings, SamplePlace};
use deepflow_model::{FeaturePlace, ModelError, Network, NetworkConfig};
use dfdx::tensor::NoneTape;
use serde::Serialize;

use crate::cli::{Stage, UsageError};
use crate::config::ConfigArgs;
use crate::device::DeviceArgs;
use crate::interrupt::Interrupt;
use crate::on_device;
use crate::progress::Progress;
use crate::rank::Rank;
use crate::sample::Source;
use crate::train::{loss_settings, shift_factor};

/// Samples the network sees at once; no number depends on it but by rounding.
const BATCH: usize = 128;

/// The velocity loss of every branch on other data, and how far its features are from the last ones
///
/// The loss is the mean squared error of the velocity, without its weight, with the labels as they are and one time for all
/// branches. Times and noise follow from the seed and the place of a sample alone, so the numbers of two networks on the same
/// data compare sample by sample. Features are compared token by token with those after the last block: their mean Euclidean
/// distance, and their mean cosine.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  deepflow inspect branches --checkpoint runs/first --data held-out --json")]
pub struct BranchesArgs {
    /// A run (its newest checkpoint), a checkpoint's folder, or a safetensors file with a configuration in it
    #[arg(long, value_name = "PATH")]
    checkpoint: PathBuf,
    /// Folder of encoded shards, of the codec that the network was trained with
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// Look at the features after these blocks, too (counted from 1)
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    blocks: Vec<usize>,
    /// Use at most so many samples
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    samples: u64,
    /// Seed of times and noise
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Report {
    samples: u64,
    /// Mean squared error of each branch's velocity; the last one is what sampling uses.
    velocity_loss: Vec<f64>,
    /// In the order in which the network computes them.
    features: Vec<Apartness>,
}

/// How far features are from those after the last block.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Apartness {
    /// `block N` or `vera N`, counted from 1.
    after: String,
    /// Mean over tokens of the Euclidean distance.
    distance: f64,
    /// Mean over tokens of the cosine.
    cosine: f64,
}

impl Stage for BranchesArgs {
    fn run(self, interrupt: &Interrupt) -> anyhow::Result<()> {
        let source = Source::open(&self.checkpoint, &self.config, &[])?;
        let model = &source.config.model;
        if let Some(block) = self.blocks.iter().find(|&&block| block == 0 || block >= model.depth) {
            let message = format!(
                "--blocks {block}, expected 1 to {} (the last is compared with)",
                model.depth - 1
            );
            return Err(UsageError(message).into());
        }
        let settings = LossSettings {
            time_gap: 0.0,
            ..loss_settings(&source.config.loss, model.branches())
        };
        let data = HeldOut::open(&self, model)?;
        let report = on_device!(self.device.open(Rank::ALONE)?, device => {
            let network = checkpoint::load_network(&source.weights, model.clone(), device)?;
            self.measure(&network, data, &settings, interrupt)?
        });
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(&report)?)?;
        } else {
            report.print(&mut out)?;
        }
        Ok(())
    }
}

impl BranchesArgs {
    fn measure<D: Operators<f32>>(
        &self,
        network: &Network<f32, D>,
        mut data: HeldOut,
        settings: &LossSettings,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Report> {
        let config = network.config();
        // Labels are what they are: what is measured is the velocity that sampling with a label uses.
        let keeping_labels = NetworkConfig {
            class_dropout: 0.0,
            ..config.clone()
        };
        let mut sums = Sums::default();
        let total = self.samples.min(data.samples);
        let progress = Progress::start("looking", "samples", 0, total);
        while sums.samples < total {
            interrupt.check()?;
            let wanted = usize::try_from(total - sums.samples)?;
            let batch = data.next(wanted)?;
            let count = batch.len();
            let inputs = batch
                .draw(0..count, &keeping_labels, settings, self.seed, 0, network.device())
                .map_err(ModelError::device)?;
            let mut seen: Vec<(FeaturePlace, Matrix<f32, D>)> = Vec::new();
            let outputs = network.forward_observed(
                &mut NoneTape,
                &inputs.patches,
                &inputs.times,
                &inputs.labels,
                &mut |place, features| {
                    if self.wants(place, config) {
                        seen.push((place, features.clone()));
                    }
                },
            )?;
            let rows = count * config.tokens();
            for (branch, (found, target)) in outputs.velocities.iter().zip(&inputs.targets).enumerate() {
                sums.add_velocity(branch, &found.as_vec(), &target.as_vec(), count);
            }
            if let Some(last) = outputs.features.last() {
                let last = last.as_vec();
                for (place, features) in &seen {
                    sums.add_features(*place, &features.as_vec(), &last, config.width);
                }
            }
            sums.samples += count as u64;
            sums.rows += rows as u64;
            progress.advance(count as u64);
        }
        Ok(sums.report())
    }

    fn wants(&self, place: FeaturePlace, config: &NetworkConfig) -> bool {
        match place {
            FeaturePlace::Block(block) => self.blocks.contains(&block) || config.branch_ends.contains(&block),
            FeaturePlace::Vera(_) => true,
        }
    }
}

/// The data in the order of the shards, once.
struct HeldOut {
    loader: Loader,
    shift: f32,
    samples: u64,
}

impl HeldOut {
    fn open(args: &BranchesArgs, model: &NetworkConfig) -> anyhow::Result<Self> {
        let dataset = Dataset::open(&args.data, OpenOptions::default())?;
        let expected = [model.latent_channels, model.latent_size, model.latent_size];
        ensure!(
            dataset.latent_shape() == expected,
            "{}: holds latents of shape {:?}, the network was trained on {expected:?}",
            args.data.display(),
            dataset.latent_shape()
        );
        let scale = dataset.codec().map_or(1.0, |codec| codec.scale_factor);
        let shift = dataset.codec().map_or(0.0, shift_factor);
        let config = LoaderConfig {
            seed: args.seed,
            batch_size: BATCH,
            shuffle: Shuffle::None,
            last_batch: LastBatch::Pad,
            epochs: Some(1),
            classes: Some(u32::try_from(model.classes)?),
            ..LoaderConfig::default()
        };
        let samples = dataset.len();
        Ok(Self {
            loader: Loader::new(Arc::new(dataset), &config, LoaderState::default())?,
            shift: (shift * scale) as f32,
            samples,
        })
    }

    /// The next samples, at most `wanted`.
    fn next(&mut self, wanted: usize) -> anyhow::Result<Batch> {
        let batch = self.loader.next_batch()?.context("the data ended early")?;
        let count = batch.real.min(wanted);
        let values = batch.latent_shape.iter().product::<usize>();
        Ok(Batch {
            latents: batch.latents[..count * values]
                .iter()
                .map(|value| value - self.shift)
                .collect(),
            labels: batch.classes[..count].iter().map(|&class| class as usize).collect(),
            places: batch.positions[..count]
                .iter()
                .map(|&position| SamplePlace { epoch: 0, position })
                .collect(),
            features: None,
        })
    }
}

/// Sums over samples and tokens.
#[derive(Default)]
struct Sums {
    samples: u64,
    rows: u64,
    velocity: Vec<f64>,
    features: Vec<(FeaturePlace, Apartness)>,
}

impl Sums {
    fn add_velocity(&mut self, branch: usize, found: &[f32], target: &[f32], count: usize) {
        if self.velocity.len() <= branch {
            self.velocity.resize(branch + 1, 0.0);
        }
        let squares: f64 = found.iter().zip(target).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        self.velocity[branch] += squares / found.len() as f64 * count as f64;
    }

    fn add_features(&mut self, place: FeaturePlace, features: &[f32], last: &[f32], width: usize) {
        let known = self.features.iter().position(|(known, _)| *known == place);
        let index = known.unwrap_or_else(|| {
            self.features.push((place, Apartness::start(place)));
            self.features.len() - 1
        });
        let sum = &mut self.features[index].1;
        for (features, last) in features.chunks_exact(width).zip(last.chunks_exact(width)) {
            let (mut apart, mut along, mut own, mut others) = (0.0, 0.0, 0.0, 0.0);
            for (&a, &b) in features.iter().zip(last) {
                let (a, b) = (f64::from(a), f64::from(b));
                apart += (a - b) * (a - b);
                along += a * b;
                own += a * a;
                others += b * b;
            }
            sum.distance += apart.sqrt();
            sum.cosine += along / (own * others).sqrt().max(f64::MIN_POSITIVE);
        }
    }

    fn report(self) -> Report {
        let (samples, rows) = (self.samples as f64, self.rows as f64);
        let mean = |(_, sum): (FeaturePlace, Apartness)| Apartness {
            distance: sum.distance / rows,
            cosine: sum.cosine / rows,
            ..sum
        };
        Report {
            samples: self.samples,
            velocity_loss: self.velocity.into_iter().map(|sum| sum / samples).collect(),
            features: self.features.into_iter().map(mean).collect(),
        }
    }
}

impl Apartness {
    fn start(place: FeaturePlace) -> Self {
        let after = match place {
            FeaturePlace::Block(block) => format!("block {block}"),
            FeaturePlace::Vera(branch) => format!("vera {}", branch + 1),
        };
        Self {
            after,
            distance: 0.0,
            cosine: 0.0,
        }
    }
}

impl Report {
    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        for (branch, loss) in self.velocity_loss.iter().enumerate() {
            writeln!(
                out,
                "branch {}: velocity loss {loss:.5} on {} samples",
                branch + 1,
                self.samples
            )?;
        }
        for place in &self.features {
            writeln!(
                out,
                "after {}: distance {:.3} from the last features, cosine {:.4}",
                place.after, place.distance, place.cosine
            )?;
        }
        Ok(())
    }
}
