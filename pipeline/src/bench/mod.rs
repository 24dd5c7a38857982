//! `deepflow bench`: a stage's own code on synthetic data, nothing but the work, and one line of numbers.

mod codec;
mod compute;
mod gpu;
mod loader;
mod photograph;
mod result;

use clap::{Args, ValueEnum};
use deepflow_model::device::DeviceChoice;

use crate::cli::{Stage, UsageError};
use crate::codecs::CodecDevice;
use crate::config::{Config, ConfigArgs};
use crate::device::{check_precision, DeviceArgs};
use crate::interrupt::Interrupt;
use crate::memory::check_training;
use crate::on_device_in;
use crate::rank::Rank;

use codec::CodecBench;
pub use gpu::{GpuMeasurement, KernelMeasurement};
pub use result::{Measurement, Timer};

/// Time a stage's own code on synthetic data
///
/// Prints the median time of a step, images (or samples) a second and the peak memory. Numbers of two builds compare only
/// when taken on the same machine, in turn.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  deepflow bench train --config configs/laptop.toml --batch 16\n  \
                        deepflow bench forward --set model.width=384 --set model.heads=6 --steps 20 --json\n  \
                        deepflow bench decode --set codec.kind=autoencoder-kl --set codec.size=256 --json\n  \
                        deepflow bench loader --steps 200 --set output.zstd=3"
)]
pub struct BenchArgs {
    /// What to time
    what: What,
    /// Samples in a step, however many of them a codec computes at once [default: 16; 256 for the loader; for encode and
    /// decode what suits the codec]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Steps to time, after one to warm up
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Print one JSON line
    #[arg(long)]
    json: bool,
    /// Run one more step with the clock on every kernel of the GPU
    #[arg(long)]
    kernels: bool,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What can be timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Training steps: forward, backward, update
    Train,
    /// Evaluations of the network as in sampling
    Forward,
    /// The encode stage over photographs; codec.weights or random ones
    Encode,
    /// The decode stage over latents, to PNG files; codec.weights or random ones
    Decode,
    /// Batches of latents from shards (plain, or compressed by output.zstd), by the [data] section
    Loader,
}

/// Samples in a step of the network.
const NETWORK_BATCH: usize = 16;
/// Samples in a batch of the loader.
const LOADER_BATCH: usize = 256;

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Forward => "forward",
            Self::Encode => "encode",
            Self::Decode => "decode",
            Self::Loader => "loader",
        }
    }
}

impl Stage for BenchArgs {
    fn run(self, interrupt: &Interrupt) -> anyhow::Result<()> {
        let config = self.config.load(&[])?;
        if self.kernels && self.what == What::Loader {
            return Err(UsageError(format!("--kernels: {} runs on the cpu", self.what.name())).into());
        }
        let measurement = match self.what {
            What::Train | What::Forward => self.network(&config, interrupt)?,
            What::Encode | What::Decode => self.codec(&config, interrupt)?,
            What::Loader => self.loader(&config, interrupt)?,
        };
        measurement.print(self.json)
    }
}

impl BenchArgs {
    fn network(&self, config: &Config, interrupt: &Interrupt) -> anyhow::Result<Measurement> {
        let mut timer = Timer::new(self.steps as usize, interrupt);
        let batch = self.batch_or(NETWORK_BATCH);
        let device = self.device.open(Rank::ALONE)?;
        let name = device.name()?;
        gpu::check_kernels(&device, self.kernels)?;
        let measured = match self.what {
            What::Forward => {
                let precision = config.sample.precision;
                check_precision(&device, precision, "sample.precision")?;
                device.allow_tensor_float_32(config.sample.tf32)?;
                let any = device.clone();
                on_device_in!(device, precision, E, device => {
                    compute::forward::<E, _>((device, &any), config, batch, &mut timer, self.kernels)?
                })
            }
            _ => {
                check_precision(&device, config.train.precision, "train.precision")?;
                check_training(config, batch.div_ceil(config.train.accumulation), &device)?;
                compute::train(device, config, batch, &mut timer, self.kernels)?
            }
        };
        Ok(Measurement {
            device: name,
            parameters: measured.parameters,
            gpu: measured.gpu,
            ..self.measurement(batch, timer.median_seconds())
        })
    }

    fn codec(&self, config: &Config, interrupt: &Interrupt) -> anyhow::Result<Measurement> {
        self.device.threads.start()?;
        let bench = CodecBench {
            config,
            place: CodecDevice {
                arguments: self.device,
                rank: Rank::ALONE,
                config: &config.codec,
            },
            batch: self.batch.map(|batch| batch as usize),
            by_kernel: self.kernels,
        };
        let mut timer = Timer::new(self.steps as usize, interrupt);
        let run = match self.what {
            What::Encode => codec::encode_stage(bench, &mut timer, interrupt)?,
            _ => codec::decode_stage(bench, &mut timer, interrupt)?,
        };
        Ok(Measurement {
            device: run.device,
            parameters: run.parameters,
            gpu: run.gpu,
            time: Some(run.time),
            ..self.measurement(run.batch, timer.median_seconds())
        })
    }

    /// The loader computes no network: no device, no parameters; its threads are its readers.
    fn loader(&self, config: &Config, interrupt: &Interrupt) -> anyhow::Result<Measurement> {
        let batch = self.batch_or(LOADER_BATCH);
        let measured = loader::run(config, batch, self.steps as usize, interrupt)?;
        Ok(Measurement {
            threads: config.data.readers,
            ..self.measurement(batch, measured.median.as_secs_f64())
        })
    }

    fn batch_or(&self, default: usize) -> usize {
        self.batch.map_or(default, |batch| batch as usize)
    }

    /// What every line says.
    fn measurement(&self, batch: usize, median_s: f64) -> Measurement {
        Measurement {
            what: self.what.name(),
            config: self.config.config.clone().unwrap_or_else(|| "defaults".into()),
            batch,
            threads: rayon::current_num_threads(),
            device: DeviceChoice::Cpu.to_string(),
            median_s,
            items_per_s: batch as f64 / median_s,
            peak_rss_bytes: result::peak_rss_bytes(),
            parameters: 0,
            gpu: None,
            time: None,
        }
    }
}
