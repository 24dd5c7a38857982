//! The command line of the encode stage.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};
use deepflow_preprocess::codec::PcaOptions;
use deepflow_preprocess::picture::{Background, Colour, DecodeOptions, Fit};
use deepflow_preprocess::sources::SourceOptions;

use super::{dry_run, encode, CodecChoice, EncodeOptions, PcaSource, SKIPPED_FILE};
use crate::cli::{Stage, UsageError};
use crate::codecs::CodecDevice;
use crate::config::{long_help, CodecConfig, CodecKind, Config, ConfigArgs};
use crate::device::DeviceArgs;
use crate::files::write_atomically;
use crate::interrupt::Interrupt;
use crate::progress::{counted, duration};
use crate::share::ShareArgs;

const EXAMPLES: &str = "\
Examples:
  deepflow encode --pictures photographs --out latents --set codec.size=64 --dry-run
  deepflow encode --pictures ILSVRC2012_img_train.tar --out imagenet-256 --set codec.kind=autoencoder-kl \
                  --set codec.weights=sd-vae-ft-ema --set output.half=true
  deepflow encode --pictures ILSVRC2012_img_val.tar --labels validation-labels.txt --out validation
  deepflow encode --pictures t10k-images-idx3-ubyte.gz --grey --fit pad --out clothes --set codec.size=32";

/// Turn pictures into shards of latents
///
/// Reads a folder of class folders, a flat folder, a tar of either, ImageNet's ILSVRC2012_img_train.tar (a tar of class
/// tars, read in place), WebDataset tars of pictures, or an IDX file as of MNIST; JPEG, PNG and WebP. Every picture becomes
/// a square (the centre crop of guided-diffusion), goes through the codec, and into a WebDataset shard. Files that cannot
/// be used are left out and listed in skipped.jsonl. A run that was stopped goes on when the same command runs again, with
/// the same bytes as if it had not been; several processes share the work with --shard-range, with --rank and --world, or
/// their launcher's variables.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, after_long_help = long_help(EXAMPLES, &["codec", "output"]))]
pub struct EncodeArgs {
    /// Folder, tar or IDX file of pictures
    #[arg(long, value_name = "PATH")]
    pictures: PathBuf,
    /// Folder to write to; new, empty, or of the same run
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Count, measure a few pictures, say how long and how large it would be, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Classes of pictures that are not in class folders: a label a line in the order of the file names, or NAME LABEL
    /// lines; labels are numbers from 0 or class names
    #[arg(long, value_name = "FILE", help_heading = "Pictures")]
    labels: Option<PathBuf>,
    /// What the classes are called: FOLDER NAME lines, such as ImageNet's LOC_synset_mapping.txt
    #[arg(long, value_name = "FILE", help_heading = "Pictures")]
    class_names: Option<PathBuf>,
    /// Only the first N pictures, in the order in which they are encoded
    #[arg(long, value_name = "N", value_parser = at_least_one(), help_heading = "Pictures")]
    limit: Option<usize>,
    /// Seed of the order in which pictures go into shards
    #[arg(long, value_name = "SEED", default_value_t = 0, help_heading = "Pictures")]
    order_seed: u64,
    /// Keep the order of the source; then compressed and remote shards cannot be shuffled well
    #[arg(long, conflicts_with = "order_seed", help_heading = "Pictures")]
    in_order: bool,
    /// Encode grey pictures (one channel)
    #[arg(long, help_heading = "Pictures")]
    grey: bool,
    /// Lay transparent pictures over this colour, such as ffffff [default: keep the stored colour, as Pillow does]
    #[arg(long, value_name = "RRGGBB", value_parser = background, help_heading = "Pictures")]
    background: Option<[u8; 3]>,
    /// How pictures become squares
    #[arg(long, value_enum, default_value_t = FitArg::Crop, help_heading = "Pictures")]
    fit: FitArg,
    /// Keep the cropped picture beside its moments, as a PNG
    #[arg(long, help_heading = "Pictures")]
    keep_pictures: bool,
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

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FitArg {
    /// Resize the short side, take the middle
    Crop,
    /// Lay small pictures unscaled on black, crop larger ones
    Pad,
}

impl Stage for EncodeArgs {
    fn run(self, interrupt: &Interrupt) -> anyhow::Result<()> {
        self.device.threads.start()?;
        let config = self.config.load(&[])?;
        let (json, dry, out) = (self.json, self.dry_run, self.out.clone());
        let options = self.options(&config)?;
        if dry {
            return report_dry_run(&options, json);
        }
        let report = encode(&options, interrupt)?;
        write_atomically(&out.join(Config::FILE_NAME), config.to_toml().as_bytes())?;
        let mut stdout = io::stdout().lock();
        if json {
            writeln!(stdout, "{}", serde_json::to_string(&report)?)?;
            return Ok(());
        }
        let state = if report.complete {
            ""
        } else {
            " (other processes have shards to write yet)"
        };
        writeln!(
            stdout,
            "{}: {} samples encoded, {} of {} there already{state}",
            out.display(),
            report.encoded,
            report.shards_found,
            counted(report.shards, "shard")
        )?;
        if report.skipped + report.repaired + report.ignored > 0 {
            let list = out.join(SKIPPED_FILE);
            writeln!(
                stdout,
                "{}: {} pictures skipped, {} repaired, {} other files ignored",
                list.display(),
                report.skipped,
                report.repaired,
                report.ignored
            )?;
        }
        Ok(())
    }
}

impl EncodeArgs {
    fn options(self, config: &Config) -> anyhow::Result<EncodeOptions> {
        let colour = if self.grey { Colour::Grey } else { Colour::Rgb };
        let background = self.background.map_or(Background::Ignore, Background::Over);
        let share = self.share.detect()?;
        let place = CodecDevice {
            arguments: self.device,
            rank: share.rank,
            config: &config.codec,
        };
        Ok(EncodeOptions {
            source_options: SourceOptions {
                labels: self.labels,
                class_names: self.class_names,
            },
            pictures: self.pictures,
            limit: self.limit,
            shuffle: (!self.in_order).then_some(self.order_seed),
            out: self.out,
            name: config.output.name.clone(),
            shard_samples: config.output.shard_samples,
            compression: config.output.compression(),
            dtype: config.output.dtype(),
            codec: codec_choice(place)?,
            precision: config.codec.precision,
            tf32: config.codec.tf32,
            size: config.codec.size,
            decode: DecodeOptions {
                colour,
                background,
                ..DecodeOptions::default()
            },
            fit: match self.fit {
                FitArg::Crop => Fit::Crop,
                FitArg::Pad => Fit::Pad,
            },
            mirror: config.output.mirror,
            keep_pictures: self.keep_pictures,
            batch: config.codec.batch,
            threads: self.device.threads.threads,
            share,
        })
    }
}

fn codec_choice(place: CodecDevice<'_>) -> anyhow::Result<CodecChoice> {
    let config = place.config;
    match (config.kind, &config.weights) {
        (CodecKind::Identity, _) => {
            place.processor("identity")?;
            Ok(CodecChoice::Identity)
        }
        (CodecKind::Pca, weights) => {
            place.processor("pca")?;
            Ok(CodecChoice::Pca(pca_source(config, weights.as_deref())))
        }
        (CodecKind::AutoencoderKl, Some(folder)) => {
            let (codec, _) = place.autoencoder(folder, config.size)?;
            Ok(CodecChoice::Ready(Box::new(codec)))
        }
        (CodecKind::AutoencoderKl, None) => {
            let needed = "codec.kind = \"autoencoder-kl\" needs codec.weights, a diffusers folder of an AutoencoderKL";
            Err(UsageError(needed.into()).into())
        }
    }
}

fn pca_source(config: &CodecConfig, weights: Option<&Path>) -> PcaSource {
    if let Some(file) = weights {
        return PcaSource::File(file.to_owned());
    }
    PcaSource::Fit {
        options: PcaOptions {
            patch: config.patch,
            channels: config.channels,
            floor: config.whitening_floor,
        },
        pictures: config.fit_images,
    }
}

fn report_dry_run(options: &EncodeOptions, json: bool) -> anyhow::Result<()> {
    let plan = dry_run(options)?;
    let mut stdout = io::stdout().lock();
    if json {
        writeln!(stdout, "{}", serde_json::to_string(&plan)?)?;
        return Ok(());
    }
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    writeln!(
        stdout,
        "{}: {} pictures ({:.1} MiB) in {} classes",
        options.pictures.display(),
        plan.pictures,
        mebibytes(plan.source_bytes),
        plan.classes
    )?;
    writeln!(
        stdout,
        "{} measured: {:.2} ms to read and crop, {:.2} ms in the codec, {} unusable",
        plan.measured,
        plan.load_s * 1e3,
        plan.codec_s * 1e3,
        plan.unusable
    )?;
    if let Some(reason) = plan.first_reason {
        writeln!(stdout, "unusable: {reason}")?;
    }
    if let Some(reason) = plan.first_ignored {
        writeln!(
            stdout,
            "{} other files would not be read; the first: {reason}",
            plan.ignored
        )?;
    }
    writeln!(
        stdout,
        "latents {:?}: about {} and {:.1} MiB in {} before compression",
        plan.latent_shape,
        duration(Duration::from_secs_f64(plan.seconds.min(1e9))),
        mebibytes(plan.bytes),
        counted(plan.shards, "shard")
    )?;
    Ok(())
}

fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

fn background(text: &str) -> Result<[u8; 3], UsageError> {
    let digits = text.strip_prefix('#').unwrap_or(text);
    let whole = digits.len() == 6 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    match u32::from_str_radix(digits, 16) {
        Ok(value) if whole => Ok([(value >> 16) as u8, (value >> 8) as u8, value as u8]),
        _ => Err(UsageError(format!(
            "{text:?}: expected six hexadecimal digits, such as ffffff"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_background_is_six_digits() {
        for text in ["ff8000", "#FF8000"] {
            assert_eq!(background(text).ok(), Some([255, 128, 0]), "{text}");
        }
        for text in ["+fffff", "-fffff", "###ffffff", "fff", "ff80001", "", "#", "ffffé"] {
            assert!(background(text).is_err(), "{text}");
        }
    }
}
