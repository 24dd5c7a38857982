//! The command line of the decode stage.

use std::ops::Range;
use std::path::PathBuf;

use clap::Args;
use deepflow_datasets::Index;
use deepflow_preprocess::picture::PngCompression;

use super::{decode, DecodeOptions};
use crate::cli::{Stage, UsageError};
use crate::codecs;
use crate::config::{Config, ConfigArgs};
use crate::files::write_atomically;
use crate::interrupt::Interrupt;
use crate::rank::RankArgs;

/// Turn shards of latents into pictures
///
/// Reads generated latents, or encoded ones (then the posterior mean is decoded), with the codec their index names, and
/// writes PNG files in class folders (in large sets with a folder a shard below, so that millions of files do not land in
/// one), tars of PNG files, or one samples.npz for the ADM evaluator, and a contact sheet. A run that was stopped goes on
/// when the same command runs again; several processes share the work with --rank and --world or their launcher's
/// variables.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  deepflow decode --shards samples --out pictures --set output.format=npz")]
pub struct DecodeArgs {
    /// Folder of latent shards with their index.json
    #[arg(long, value_name = "DIR")]
    shards: PathBuf,
    /// Folder to write to; new, empty, or of the same run
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Weights of the codec [default: codec.weights, else what lies beside the index]
    #[arg(long, value_name = "PATH")]
    weights: Option<PathBuf>,
    /// Smaller PNG files in more time; the pixels are the same
    #[arg(long)]
    small: bool,
    /// Only the shards A up to but not including B, counted from 0
    #[arg(long, value_name = "A..B", value_parser = shard_range, help_heading = "Sharing the work")]
    shard_range: Option<Range<usize>>,
    #[command(flatten)]
    rank: RankArgs,
    /// Print a JSON line of what was done to stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Stage for DecodeArgs {
    fn run(self, interrupt: &Interrupt) -> anyhow::Result<()> {
        let config = self.config.load(&[])?;
        let index = Index::load(&self.shards)?;
        let weights = self.weights.as_deref().or(config.codec.weights.as_deref());
        let codec = codecs::open(&index.codec, &self.shards, weights)?;
        let options = DecodeOptions {
            shards: self.shards,
            out: self.out.clone(),
            format: config.output.format,
            compression: if self.small {
                PngCompression::Small
            } else {
                PngCompression::Fast
            },
            sheet_columns: config.output.sheet_columns,
            batch: None,
            shard_range: self.shard_range,
            rank: self.rank.detect()?,
        };
        let report = decode(&options, codec.as_ref(), interrupt)?;
        write_atomically(&self.out.join(Config::FILE_NAME), config.to_toml().as_bytes())?;
        if self.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            println!(
                "{}: {} pictures decoded, {} there already",
                self.out.display(),
                report.decoded,
                report.found
            );
            if let Some(sheet) = report.contact_sheet {
                println!("{}", sheet.display());
            }
        }
        Ok(())
    }
}

/// `A..B`, counted from 0, without B; shared by the stages that work shard by shard.
///
/// # Errors
/// When `text` is something else, or A is above B.
pub fn shard_range(text: &str) -> Result<Range<usize>, UsageError> {
    let numbers = text
        .split_once("..")
        .and_then(|(start, end)| Some((start.parse().ok()?, end.parse().ok()?)));
    match numbers {
        Some((start, end)) if start <= end => Ok(start..end),
        _ => Err(UsageError(format!("{text:?}: expected A..B, such as 0..16"))),
    }
}
