//! `deepflow bench`: a stage's own code on synthetic data, nothing but the work, and one line of numbers.

mod codec;
mod compute;
mod photograph;
mod result;

use clap::{Args, ValueEnum};
use deepflow_model::device::DeviceChoice;

use crate::cli::{Stage, UsageError};
use crate::config::ConfigArgs;
use crate::device::{start_threads, DeviceArgs};
use crate::interrupt::Interrupt;
use crate::on_device;
use crate::rank::Rank;

pub use result::{Measurement, Timer};

/// Time a stage's own code on synthetic data
///
/// Prints the median time of a step, images (or samples) a second and the peak memory. Numbers of two builds compare only
/// when taken on the same machine, in turn.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  deepflow bench train --config configs/laptop.toml --batch 16\n  \
                        deepflow bench forward --set model.width=384 --set model.heads=6 --steps 20 --json\n  \
                        deepflow bench decode --set codec.kind=autoencoder-kl --set codec.size=256 --json"
)]
pub struct BenchArgs {
    /// What to time
    what: What,
    /// Samples in a step [default: 16; for encode and decode what suits the codec]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Steps to time, after one to warm up
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Print one JSON line
    #[arg(long)]
    json: bool,
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
}

/// Samples in a step of the network.
const NETWORK_BATCH: usize = 16;

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Forward => "forward",
            Self::Encode => "encode",
            Self::Decode => "decode",
        }
    }
}

impl Stage for BenchArgs {
    fn run(self, interrupt: &Interrupt) -> anyhow::Result<()> {
        let config = self.config.load(&[])?;
        let mut timer = Timer::new(self.steps as usize, interrupt);
        let asked = self.batch.map(|batch| batch as usize);
        let mut batch = asked.unwrap_or(NETWORK_BATCH);
        let (mut device, mut time) = (self.device.device, None);
        let parameters = match self.what {
            What::Train => {
                on_device!(self.device.open(Rank::ALONE)?, device => compute::train(device, &config, batch, &mut timer)?)
            }
            What::Forward => {
                on_device!(self.device.open(Rank::ALONE)?, device => compute::forward(device, &config, batch, &mut timer)?)
            }
            What::Encode | What::Decode => {
                if let DeviceChoice::Cuda(_) = device {
                    let only = format!("--device {device}: codecs run on the cpu");
                    return Err(UsageError(only).into());
                }
                start_threads(self.device.threads)?;
                device = DeviceChoice::Cpu;
                let stage = match self.what {
                    What::Encode => codec::encode_stage,
                    _ => codec::decode_stage,
                };
                let run = stage(&config, asked, &mut timer, interrupt)?;
                batch = run.batch;
                time = Some(run.time);
                run.parameters
            }
        };
        let measurement = Measurement {
            what: self.what.name(),
            config: self.config.config.unwrap_or_else(|| "defaults".into()),
            batch,
            threads: rayon::current_num_threads(),
            device: device.to_string(),
            median_s: timer.median_seconds(),
            items_per_s: batch as f64 / timer.median_seconds(),
            peak_rss_bytes: result::peak_rss_bytes(),
            parameters,
            time,
        };
        measurement.print(self.json)
    }
}
