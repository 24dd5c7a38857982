//! `deepflow inspect shards`: whether a folder of shards is what its index says.

use std::io::Write;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use deepflow_datasets::{verify, Codec, Index, Limits, VerifyReport, INDEX_FILE};
use serde::Serialize;

use crate::cli::Stage;
use crate::interrupt::{Interrupt, Interrupted};
use crate::progress::{counted, Progress};

/// Check a folder of shards: index, sizes, hashes, and every sample
///
/// Reads every byte and lists every fault it finds, one line each; exits with 1 if there is one. Folders without an
/// index.json, as other programs write them, are checked for what can be known without it.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  deepflow inspect shards latents --json")]
pub struct ShardsArgs {
    /// Folder of shards
    folder: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The JSON form of what was found.
#[derive(Serialize)]
struct Found<'a> {
    codec: Option<&'a Codec>,
    #[serde(flatten)]
    report: &'a VerifyReport,
}

impl Stage for ShardsArgs {
    fn run(self, interrupt: &Interrupt) -> anyhow::Result<()> {
        let index = if self.folder.join(INDEX_FILE).exists() {
            Some(Index::load(&self.folder)?)
        } else {
            None
        };
        let shards = index.as_ref().map_or(0, |index| index.shards.len() as u64);
        let progress = Progress::start("checking", "shards", 0, shards);
        let mut begun = 0;
        let outcome = verify(&self.folder, Limits::default(), |_| {
            progress.set(begun);
            begun += 1;
            interrupt.flow()
        });
        drop(progress);
        let report = match outcome {
            Err(deepflow_datasets::Error::Stopped) => return Err(Interrupted.into()),
            other => other?,
        };
        let mut out = std::io::stdout().lock();
        if self.json {
            let codec = index.as_ref().map(|index| &index.codec);
            let report = &report;
            writeln!(out, "{}", serde_json::to_string(&Found { codec, report })?)?;
        } else {
            self.print(&mut out, index.as_ref(), &report)?;
        }
        match report.faults.as_slice() {
            [] => Ok(()),
            [only] => bail!("{}: {only}", self.folder.display()),
            [first, rest @ ..] => bail!("{}: {first} (and {} more faults)", self.folder.display(), rest.len()),
        }
    }
}

impl ShardsArgs {
    fn print(&self, out: &mut impl Write, index: Option<&Index>, report: &VerifyReport) -> anyhow::Result<()> {
        let state = match (report.faults.len(), report.indexed) {
            (0, true) => "all as the index says".to_owned(),
            (0, false) => "no index, no faults".to_owned(),
            (faults, _) => format!("{faults} faults"),
        };
        writeln!(
            out,
            "{}: {} samples in {}, {:.1} MiB, {state}",
            self.folder.display(),
            report.samples,
            counted(report.shards, "shard"),
            report.bytes as f64 / f64::from(1 << 20)
        )?;
        if let Some(Index { codec, .. }) = index {
            let [channels, height, width] = codec.latent_shape;
            writeln!(
                out,
                "codec {}, latents {channels}×{height}×{width}, scale {}",
                codec.name, codec.scale_factor
            )?;
        }
        for (extension, samples) in &report.members {
            writeln!(out, "{extension:<24} {samples} samples")?;
        }
        for (class, samples) in &report.classes {
            let name = index
                .and_then(|index| index.classes.get(*class as usize))
                .map_or("", |class| class.label.as_ref().unwrap_or(&class.name));
            writeln!(out, "{class:>5} {name:<24} {samples}")?;
        }
        for fault in &report.faults {
            writeln!(out, "fault: {fault}")?;
        }
        Ok(())
    }
}
