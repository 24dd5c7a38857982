//! `deepflow bench`: a stage's own code on synthetic data, nothing but the work, and one line of numbers.

mod compute;
mod result;

use clap::{Args, ValueEnum};

use crate::cli::Stage;
use crate::config::ConfigArgs;
use crate::device::DeviceArgs;
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
                        deepflow bench forward --set model.width=384 --set model.heads=6 --steps 20 --json"
)]
pub struct BenchArgs {
    /// What to time
    what: What,
    /// Samples in a step
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
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
}

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Forward => "forward",
        }
    }
}

impl Stage for BenchArgs {
    fn run(self, interrupt: &Interrupt) -> anyhow::Result<()> {
        let config = self.config.load(&[])?;
        let mut timer = Timer::new(self.steps as usize, interrupt);
        let batch = self.batch as usize;
        let device = self.device.open(Rank::ALONE)?;
        let parameters = match self.what {
            What::Train => on_device!(device, device => compute::train(device, &config, batch, &mut timer)?),
            What::Forward => on_device!(device, device => compute::forward(device, &config, batch, &mut timer)?),
        };
        let measurement = Measurement {
            what: self.what.name(),
            config: self.config.config.unwrap_or_else(|| "defaults".into()),
            batch,
            threads: rayon::current_num_threads(),
            device: self.device.device.to_string(),
            median_s: timer.median_seconds(),
            items_per_s: batch as f64 / timer.median_seconds(),
            peak_rss_bytes: result::peak_rss_bytes(),
            parameters,
        };
        measurement.print(self.json)
    }
}
