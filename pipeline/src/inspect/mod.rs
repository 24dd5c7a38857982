//! `deepflow inspect`: looks at configurations, weights and shards, and changes none of them.

mod branches;
mod config;
mod convert;
mod forward;
mod shards;
mod summary;
mod tensors;

use clap::{Args, Subcommand};

use crate::cli::Stage;
use crate::interrupt::Interrupt;

/// Look at configurations, weights and shards
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  deepflow inspect config\n  deepflow inspect summary --config configs/laptop.toml\n  \
                        deepflow inspect shards latents"
)]
pub struct InspectArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    Branches(branches::BranchesArgs),
    Config(config::ShowConfigArgs),
    Summary(summary::SummaryArgs),
    Forward(forward::ForwardArgs),
    Convert(convert::ConvertArgs),
    Shards(shards::ShardsArgs),
}

impl Stage for InspectArgs {
    fn run(self, interrupt: &Interrupt) -> anyhow::Result<()> {
        match self.what {
            What::Branches(args) => args.run(interrupt),
            What::Config(args) => args.run(interrupt),
            What::Summary(args) => args.run(interrupt),
            What::Forward(args) => args.run(interrupt),
            What::Convert(args) => args.run(interrupt),
            What::Shards(args) => args.run(interrupt),
        }
    }
}
