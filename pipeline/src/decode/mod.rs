//! The decode stage: shards of latents to pictures.
//!
//! Every picture first becomes a PNG file of its own, whole or not there, so that a run that was stopped goes on with the
//! next picture even where one picture takes seconds. Tars and `.npz` files are packed from those files once a shard, or
//! everything, is there. A shard belongs to one process, so several share the work without overlap.

mod arguments;
mod pack;
mod pictures;
mod places;
mod sheet;

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use deepflow_datasets::{hex, Index, INDEX_FILE};
use deepflow_preprocess::codec::Codec;
use deepflow_preprocess::picture::PngCompression;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::codecs::has_precision;
use crate::config::{CodecConfig, OutputFormat, Precision};
use crate::files::{make_folder, write_atomically};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::share::Share;
use crate::time_split::TimeSplit;
use places::Places;

pub use arguments::DecodeArgs;
pub(crate) use places::{RECORD_FILE, SHEET_FILE};

/// What to decode, and to where.
#[derive(Clone, Debug)]
pub struct DecodeOptions {
    /// Folder of latent shards with an `index.json`: generated latents, or encoded moments, whose mean is decoded.
    pub shards: PathBuf,
    /// Folder to write to.
    pub out: PathBuf,
    /// PNG files, tars of PNG files, or one `.npz`.
    pub format: OutputFormat,
    /// How much time goes into the size of the PNG files.
    pub compression: PngCompression,
    /// Columns of the contact sheet; 0 makes none.
    pub sheet_columns: usize,
    /// Latents decoded at once; `None` leaves it to the codec.
    pub batch: Option<usize>,
    /// What a codec that is a network computes in.
    pub precision: Precision,
    /// Whether a GPU may round the factors of that network's products to TF32.
    pub tf32: bool,
    /// The shards that fall to this process.
    pub share: Share,
}

/// What was decoded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecodeReport {
    /// Pictures decoded by this call.
    pub decoded: usize,
    /// Pictures that were there already.
    pub found: usize,
    /// Whether all shards are done, by this process and the others, and what is made of all of them is written.
    pub complete: bool,
    /// The contact sheet, once everything is there.
    pub contact_sheet: Option<PathBuf>,
    /// Where the time went, without packing and the contact sheet.
    pub time: TimeSplit,
}

/// What decided the pictures in a folder: a later run with another record is another run.
#[derive(Debug, Serialize)]
struct Record {
    index_sha256: String,
    codec: String,
    weights_sha256: String,
    /// This and the next, of codecs whose results depend on them.
    #[serde(skip_serializing_if = "Option::is_none")]
    precision: Option<Precision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tf32: Option<bool>,
    format: OutputFormat,
    compression: PngCompression,
    sheet_columns: usize,
}

/// Decodes the shards that fall to this process, and finishes what is made of all shards when it is the last.
///
/// # Errors
/// When a shard or the output cannot be read or written, a sample has no latent of the codec's shape, the output folder
/// holds another run, or the work was interrupted ([`crate::interrupt::Interrupted`]).
pub fn decode(options: &DecodeOptions, codec: &dyn Codec, interrupt: &Interrupt) -> anyhow::Result<DecodeReport> {
    let index = Index::load(&options.shards)?;
    if index.samples == 0 {
        bail!("{}: no samples to decode", options.shards.join(INDEX_FILE).display());
    }
    let mine = options
        .share
        .of(index.shards.len(), &options.shards.display().to_string())?;
    let places = Places::new(&options.out, options.format, &index);
    begin(options, codec, &places)?;
    let wanted = sheet::plan(&options.shards, &index, options.sheet_columns)?;

    let total = mine.iter().map(|&shard| index.shards[shard].samples).sum();
    let progress = Progress::start("decode", "images", 0, total);
    let ((decoded, found), time) = TimeSplit::of(|time| {
        let (mut decoded, mut found) = (0, 0);
        for shard in mine {
            let samples = index.shards[shard].samples as usize;
            if places.is_done(shard) {
                found += samples;
                progress.advance(samples as u64);
                continue;
            }
            let work = pictures::Work {
                shards: &options.shards,
                shard,
                places: &places,
                codec,
                compression: options.compression,
                batch: options.batch.unwrap_or_else(|| codec.preferred_batch()).max(1),
            };
            let new = work.run(&progress, interrupt, time)?;
            decoded += new;
            found += samples.saturating_sub(new);
            sheet::keep(&places, shard, &wanted)?;
            if options.format == OutputFormat::Tar {
                pack::tar(&options.shards, &places, shard)?;
            }
            places.mark_done(shard)?;
        }
        Ok((decoded, found))
    })?;
    drop(progress);

    let complete = (0..index.shards.len()).all(|shard| places.is_done(shard));
    let contact_sheet = complete
        .then(|| finish(options, codec, &index, &places, &wanted))
        .transpose()?;
    Ok(DecodeReport {
        decoded,
        found,
        complete,
        contact_sheet: contact_sheet.flatten(),
        time,
    })
}

/// Makes what is made of all pictures; the path of the contact sheet, if there is to be one. Processes that find at the
/// same time that everything is there do it one after the other, and those that come later find it done.
fn finish(
    options: &DecodeOptions,
    codec: &dyn Codec,
    index: &Index,
    places: &Places,
    wanted: &[sheet::Tile],
) -> anyhow::Result<Option<PathBuf>> {
    let record = places.record();
    let lock = OpenOptions::new().read(true).write(true).open(&record);
    let lock = lock.with_context(|| record.display().to_string())?;
    match lock.lock() {
        Err(error) if error.kind() != std::io::ErrorKind::Unsupported => {
            return Err(error).with_context(|| record.display().to_string());
        }
        // Where files cannot be locked, processes that share the work must not end in the same second.
        _ => {}
    }
    if options.format == OutputFormat::Npz {
        let side = codec.identity().picture_size();
        pack::npz(&options.shards, index, places, side)?;
    }
    let contact_sheet = sheet::write(places, wanted)?;
    places.remove_work()?;
    Ok(contact_sheet)
}

/// Makes the output folder, or checks that what it holds came from the same latents, codec and settings.
fn begin(options: &DecodeOptions, codec: &dyn Codec, places: &Places) -> anyhow::Result<()> {
    let index_path = options.shards.join(INDEX_FILE);
    let index = fs::read(&index_path).with_context(|| index_path.display().to_string())?;
    let has_precision = has_precision(&codec.identity().name);
    let record = Record {
        index_sha256: hex(&Sha256::digest(index)),
        codec: codec.identity().name.clone(),
        weights_sha256: codec.identity().weights_sha256.clone(),
        precision: has_precision.then_some(options.precision),
        tf32: has_precision.then_some(options.tf32),
        format: options.format,
        compression: options.compression,
        sheet_columns: options.sheet_columns,
    };
    let path = places.record();
    match fs::read(&path) {
        Ok(bytes) => check_same_run(&record, &bytes, &path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if holds_other_files(&options.out, &path) {
                // Unless another process of this run has begun in the meantime.
                return match fs::read(&path) {
                    Ok(bytes) => check_same_run(&record, &bytes, &path),
                    Err(_) => bail!(
                        "{}: holds files that decode did not write; expected a new or empty folder, or an earlier run's",
                        options.out.display()
                    ),
                };
            }
            make_folder(&options.out)?;
            write_atomically(&path, &serde_json::to_vec_pretty(&record)?)
        }
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Whether a folder holds anything but a record that is just being written.
fn holds_other_files(folder: &Path, record: &Path) -> bool {
    let name = record.file_name().unwrap_or_default().to_string_lossy();
    let partial = format!(".{name}.");
    fs::read_dir(folder).is_ok_and(|entries| {
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        names
            .into_iter()
            .any(|name| !name.to_string_lossy().starts_with(&partial))
    })
}

/// What a field was in the folders of builds that did not record it.
fn before_it_was_recorded(field: &str) -> serde_json::Value {
    let CodecConfig { precision, tf32, .. } = CodecConfig::default();
    match field {
        "precision" => json!(precision),
        "tf32" => json!(tf32),
        _ => serde_json::Value::Null,
    }
}

fn check_same_run(record: &Record, earlier: &[u8], path: &Path) -> anyhow::Result<()> {
    let earlier: serde_json::Value = serde_json::from_slice(earlier).with_context(|| path.display().to_string())?;
    let expected = serde_json::to_value(record)?;
    let fields = expected.as_object().into_iter().flatten();
    for (field, expected) in fields {
        let found = earlier
            .get(field)
            .cloned()
            .unwrap_or_else(|| before_it_was_recorded(field));
        if found != *expected {
            bail!(
                "{}: the folder holds another run ({field} is {found}, this run has {expected}); give another folder",
                path.display()
            );
        }
    }
    Ok(())
}
