//! `deepflow inspect convert`: weights of other programs to ours, and back.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use deepflow_model::convert::{convert, Options, SingleHead, WeightSet};

use crate::cli::Stage;
use crate::interrupt::Interrupt;
use crate::train::find_checkpoint;

/// Convert weights between torch checkpoints and safetensors
///
/// Reads the torch checkpoints of the DeepFlow authors' trainer, public SiT and DiT checkpoints, and safetensors with the
/// same names; writes safetensors with the names of the reference, a checkpoint's folder (OUT without an ending) that
/// training goes on from, or (OUT ending in .pt) a torch file of ours. Nothing stored in a torch file is executed. A SiT's
/// convention of time is folded into its weights, so that the same samplers work; a DiT predicts noise, which no change of
/// weights makes a velocity of: it is only a start for fine-tuning.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  deepflow inspect convert 0400000.pt deepflow-b.safetensors\n  \
                        deepflow inspect convert 0400000.pt step-0400000\n  \
                        deepflow inspect convert SiT-XL-2-256x256.pt sit-xl.safetensors"
)]
pub struct ConvertArgs {
    /// Weights to read: .pt, .pth, .ckpt or .safetensors, a run (its newest checkpoint) or a checkpoint of a run
    input: PathBuf,
    /// File to write, .safetensors or .pt, or the new folder of a checkpoint
    output: PathBuf,
    /// Which weights of a training checkpoint to take
    #[arg(long, value_enum, default_value_t = Set::Ema)]
    weights: Set,
    /// What a checkpoint with a single final layer was trained as
    #[arg(long, value_enum, default_value_t = Head::Sit)]
    single_head: Head,
    /// Attention heads [default: those of the published network of this width]
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Ends of the inner branches [default: from the checkpoint, else equal parts]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    branch_ends: Option<Vec<usize>>,
    /// Whether the scale of the time-gap modulation is clamped [default: from the checkpoint]
    #[arg(long, value_name = "BOOL")]
    legacy_scaling: Option<bool>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Set {
    /// The moving average, which samples are drawn from
    Ema,
    /// The weights that were being trained
    Model,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Head {
    /// A velocity, with time running from noise to data: folded into the weights
    Sit,
    /// The noise at a discrete time: kept as it is, for fine-tuning only
    Dit,
}

impl Stage for ConvertArgs {
    fn run(self, _interrupt: &Interrupt) -> anyhow::Result<()> {
        let options = Options {
            weights: match self.weights {
                Set::Ema => WeightSet::Ema,
                Set::Model => WeightSet::Model,
            },
            single_head: match self.single_head {
                Head::Sit => SingleHead::Sit,
                Head::Dit => SingleHead::Dit,
            },
            heads: self.heads,
            branch_ends: self.branch_ends,
            legacy_scaling: self.legacy_scaling,
        };
        let input = if self.input.is_dir() {
            find_checkpoint(&self.input)?
        } else {
            self.input
        };
        let report = convert(&input, &self.output, &options)?;
        write!(std::io::stdout(), "{report}")?;
        Ok(())
    }
}
