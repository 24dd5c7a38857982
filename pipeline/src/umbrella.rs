//! `deepflow STAGE`: all stages in one program.

use clap::{Parser, Subcommand};

use crate::bench::BenchArgs;
use crate::cli::{LogArgs, Stage};
use crate::decode::DecodeArgs;
use crate::demo::DemoArgs;
use crate::encode::EncodeArgs;
use crate::evaluate::EvaluateArgs;
use crate::inspect::InspectArgs;
use crate::interrupt::Interrupt;
use crate::sample::SampleArgs;
use crate::train::TrainArgs;

/// DeepFlow from pictures to pictures: encode, train, sample, decode, evaluate
///
/// Every stage reads and writes files that other tools can read, can be stopped at any time, and continues when the same
/// command runs again.
#[derive(Parser, Debug)]
#[command(
    name = "deepflow",
    version,
    after_help = "Examples:\n  deepflow demo\n  deepflow encode --pictures photographs --out latents --dry-run\n  \
                        deepflow train --help"
)]
pub struct Umbrella {
    #[command(subcommand)]
    stage: AnyStage,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Subcommand, Debug)]
enum AnyStage {
    Demo(DemoArgs),
    Encode(EncodeArgs),
    Train(TrainArgs),
    Sample(SampleArgs),
    Decode(DecodeArgs),
    Evaluate(EvaluateArgs),
    Bench(BenchArgs),
    Inspect(InspectArgs),
}

impl Umbrella {
    pub(crate) fn run(self, interrupt: &Interrupt) -> anyhow::Result<()> {
        match self.stage {
            AnyStage::Demo(args) => args.run(interrupt),
            AnyStage::Encode(args) => args.run(interrupt),
            AnyStage::Train(args) => args.run(interrupt),
            AnyStage::Sample(args) => args.run(interrupt),
            AnyStage::Decode(args) => args.run(interrupt),
            AnyStage::Evaluate(args) => args.run(interrupt),
            AnyStage::Bench(args) => args.run(interrupt),
            AnyStage::Inspect(args) => args.run(interrupt),
        }
    }
}
