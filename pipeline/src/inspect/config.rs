//! `deepflow inspect config`: every key with its meaning and default, or the configuration that files and flags give.

use std::io::Write;

use clap::Args;

use crate::cli::Stage;
use crate::config::{ConfigArgs, ALL_KEYS};
use crate::interrupt::Interrupt;

/// Print every key of the configuration with its meaning and default, or a resolved configuration
///
/// Without flags: a commented file with all sections and keys, a good start for one of your own. With --config or --set:
/// the configuration that a stage would work with, after checking it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  deepflow inspect config > mine.toml\n  \
                        deepflow inspect config --config configs/laptop.toml --set train.steps=1000")]
pub struct ShowConfigArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

impl Stage for ShowConfigArgs {
    fn run(self, _interrupt: &Interrupt) -> anyhow::Result<()> {
        let text = if self.config.config.is_none() && self.config.settings.is_empty() {
            ALL_KEYS.to_owned()
        } else {
            self.config.load(&[])?.to_toml()
        };
        std::io::stdout().lock().write_all(text.as_bytes())?;
        Ok(())
    }
}
