//! The command line of the decode stage.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use deepflow_datasets::Index;
use deepflow_preprocess::picture::PngCompression;

use super::{decode, DecodeOptions};
use crate::cli::Stage;
use crate::codecs::{self, CodecDevice};
use crate::config::{long_help, Config, ConfigArgs};
use crate::device::DeviceArgs;
use crate::files::write_atomically;
use crate::interrupt::Interrupt;
use crate::share::ShareArgs;

const EXAMPLES: &str = "\
Examples:
  deepflow decode --shards generated --out pictures
  deepflow decode --shards generated --out for-adm --weights sd-vae-ft-ema --set output.format=npz
  deepflow decode --shards latents --out what-the-codec-keeps --shard-range 0..1";

/// What of the configuration this stage reads.
const KEYS: [&str; 6] = [
    "codec.weights",
    "codec.batch",
    "codec.precision",
    "codec.tf32",
    "output.format",
    "output.sheet_columns",
];

/// Turn shards of latents into pictures
///
/// Reads generated latents, or encoded ones (then the posterior mean is decoded), with the codec their index names, and
/// writes PNG files in class folders (in large sets with a folder a shard below, so that millions of files do not land in
/// one), tars of PNG files, or one samples.npz for the ADM evaluator, and a contact sheet. A run that was stopped goes on
/// when the same command runs again; several processes share the work with --shard-range, with --rank and --world, or
/// their launcher's variables. The codec autoencoder-kl runs on a GPU where there is one; codec.batch, codec.precision and
/// codec.tf32 say how.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, after_long_help = long_help(EXAMPLES, &KEYS))]
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
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    share: ShareArgs,
    /// Print a JSON line of what was done to stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Stage for DecodeArgs {
    fn run(self, interrupt: &Interrupt) -> anyhow::Result<()> {
        self.device.threads.start()?;
        let config = self.config.load(&[])?;
        let index = Index::load(&self.shards)?;
        let weights = self.weights.as_deref().or(config.codec.weights.as_deref());
        let share = self.share.detect()?;
        let place = CodecDevice {
            arguments: self.device,
            rank: share.rank,
            config: &config.codec,
        };
        let codec = codecs::open(&index.codec, &self.shards, weights, Some(place))?;
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
            batch: config.codec.batch,
            precision: config.codec.precision,
            tf32: config.codec.tf32,
            share,
        };
        let report = decode(&options, codec.as_ref(), interrupt)?;
        write_atomically(&self.out.join(Config::FILE_NAME), config.to_toml().as_bytes())?;
        let mut stdout = io::stdout().lock();
        if self.json {
            writeln!(stdout, "{}", serde_json::to_string(&report)?)?;
        } else {
            writeln!(
                stdout,
                "{}: {} pictures decoded, {} there already",
                self.out.display(),
                report.decoded,
                report.found
            )?;
            if let Some(sheet) = report.contact_sheet {
                writeln!(stdout, "{}", sheet.display())?;
            }
        }
        Ok(())
    }
}
