//! `deepflow inspect shards`: whether a folder of shards is what its index says.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use deepflow_datasets::{Index, Limits, ShardReader, ShardRecord};
use serde::Serialize;

use crate::cli::Stage;
use crate::files::sha256;
use crate::interrupt::Interrupt;
use crate::progress::Progress;

/// Check a folder of shards: index, sizes, hashes, and every sample
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  deepflow inspect shards latents --json")]
pub struct ShardsArgs {
    /// Folder with an index.json
    folder: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    codec: String,
    latent_shape: [usize; 3],
    scale_factor: f64,
    shards: usize,
    samples: u64,
    bytes: u64,
    classes: usize,
    /// Samples of each class, by index.
    per_class: Vec<u64>,
    unlabelled: u64,
}

impl Stage for ShardsArgs {
    fn run(self, interrupt: &Interrupt) -> anyhow::Result<()> {
        let index = Index::load(&self.folder)?;
        let mut report = Report {
            codec: index.codec.name.clone(),
            latent_shape: index.codec.latent_shape,
            scale_factor: index.codec.scale_factor,
            shards: index.shards.len(),
            samples: index.samples,
            bytes: index.shards.iter().map(|shard| shard.bytes).sum(),
            classes: index.classes.len(),
            per_class: vec![0; index.classes.len()],
            unlabelled: 0,
        };
        let progress = Progress::start("checking", "shards", 0, index.shards.len() as u64);
        for shard in &index.shards {
            interrupt.check()?;
            report.check(&self.folder, shard)?;
            progress.advance(1);
        }
        drop(progress);
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(&report)?)?;
        } else {
            let [channels, height, width] = report.latent_shape;
            writeln!(
                out,
                "{}: {} samples in {} shards, {:.1} MiB, all as the index says",
                self.folder.display(),
                report.samples,
                report.shards,
                report.bytes as f64 / f64::from(1 << 20)
            )?;
            writeln!(
                out,
                "codec {}, latents {channels}×{height}×{width}, scale {}",
                report.codec, report.scale_factor
            )?;
            for (class, samples) in index.classes.iter().zip(&report.per_class) {
                writeln!(
                    out,
                    "{:>5} {:<24} {samples}",
                    class.index,
                    class.label.as_ref().unwrap_or(&class.name)
                )?;
            }
        }
        Ok(())
    }
}

impl Report {
    /// Reads one shard from end to end.
    fn check(&mut self, folder: &Path, record: &ShardRecord) -> anyhow::Result<()> {
        let (path, name) = (folder.join(&record.name), &record.name);
        let found = sha256(&path)?;
        if !found.eq_ignore_ascii_case(&record.sha256) {
            bail!(
                "{}: SHA-256 is {found}, expected {} by the index",
                path.display(),
                record.sha256
            );
        }
        let mut samples = 0;
        for sample in ShardReader::open(&path, Limits::default())? {
            let class = sample?.class(name)?;
            samples += 1;
            match class.and_then(|class| self.per_class.get_mut(class as usize)) {
                Some(count) => *count += 1,
                None if class.is_some() && self.classes > 0 => {
                    bail!(
                        "{}: class {}, expected one below {}",
                        path.display(),
                        class.unwrap_or(0),
                        self.classes
                    )
                }
                None => self.unlabelled += 1,
            }
        }
        if samples != record.samples {
            bail!(
                "{}: {samples} samples, expected {} by the index",
                path.display(),
                record.samples
            );
        }
        Ok(())
    }
}
