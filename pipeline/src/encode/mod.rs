//! The encode stage: pictures to shards of latents.
//!
//! Shard `s` holds the sources `s·N .. (s+1)·N` less those that cannot be read, and depends on nothing else, so a run that
//! was killed goes on with the first shard that is not whole, and any number of processes share the shards. Reading and
//! cropping, the codec, and writing overlap: threads joined by bounded channels, in the order of the sources.

mod arguments;
mod codec;
mod dry_run;
mod load;
mod shard;
mod skipped;
mod stream;

use std::path::PathBuf;

use anyhow::bail;
use deepflow_datasets::random::{Purpose, Stream};
use deepflow_datasets::{Codec as CodecRecord, Compression, DatasetPlan, DatasetWriter, Dtype, Error as ShardError};
use deepflow_preprocess::codec::Codec;
use deepflow_preprocess::picture::{DecodeOptions, Fit};
use deepflow_preprocess::sources::{SourceOptions, Sources};
use serde::Serialize;
use serde_json::json;

use crate::codecs::{has_precision, CODEC_FILE};
use crate::config::{CodecConfig, Precision};
use crate::files::refuse_foreign_shards;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::share::Share;
use crate::time_split::TimeSplit;

pub use arguments::EncodeArgs;
pub use codec::{CodecChoice, PcaSource};
pub use dry_run::{dry_run, DryRun};
pub use load::{load, Picture, Unusable};
pub use skipped::{Incident, SKIPPED_FILE};

/// What to encode, how, and to where.
pub struct EncodeOptions {
    /// Folder, tar or IDX file of pictures (see [`Sources::open`]).
    pub pictures: PathBuf,
    /// Label file and class names.
    pub source_options: SourceOptions,
    /// Only this many pictures, the first in the order they are encoded.
    pub limit: Option<usize>,
    /// Seed of the order in which pictures go into shards; `None` keeps the order of the source. Readers that shuffle
    /// within a window (compressed and remote shards) need classes to be mixed.
    pub shuffle: Option<u64>,
    /// Folder to write to.
    pub out: PathBuf,
    /// First part of the shards' names.
    pub name: String,
    /// Sources a shard stands for. A killed run loses at most the shard it was in.
    pub shard_samples: usize,
    /// Whether shards are compressed.
    pub compression: Compression,
    /// Element type of the moments.
    pub dtype: Dtype,
    /// What turns pictures into latents.
    pub codec: CodecChoice,
    /// What a codec that is a network computes in.
    pub precision: Precision,
    /// Whether a GPU may round the factors of that network's products to TF32.
    pub tf32: bool,
    /// Side of the square pictures in pixels; a multiple of the codec's factor.
    pub size: usize,
    /// How files become pixels.
    pub decode: DecodeOptions,
    /// How pixels become a square.
    pub fit: Fit,
    /// Adds the moments of the mirrored picture.
    pub mirror: bool,
    /// Adds the cropped picture as a PNG.
    pub keep_pictures: bool,
    /// Pictures the codec gets at once; `None` leaves it to the codec. The result does not depend on it.
    pub batch: Option<usize>,
    /// Threads that read and crop; `None` means as many as compute.
    pub threads: Option<usize>,
    /// The shards that fall to this process.
    pub share: Share,
}

/// What was encoded.
#[derive(Clone, Debug, Serialize)]
pub struct EncodeReport {
    /// Samples written by this call.
    pub encoded: usize,
    /// Shards that were whole already.
    pub shards_found: usize,
    /// Shards of the whole data set.
    pub shards: usize,
    /// Sources left out over all shards, once all are there; else those of this call.
    pub skipped: usize,
    /// Damaged files that could be decoded without loss, counted like `skipped`.
    pub repaired: usize,
    /// Files among the pictures that are none, and were not looked at.
    pub ignored: usize,
    /// Whether all shards are there, written by this process and the others, and the index over them.
    pub complete: bool,
    /// Where the time went.
    pub time: TimeSplit,
}

/// Encodes the shards that fall to this process, and writes the index when all are there.
///
/// # Errors
/// When the sources, the codec or the output do not fit, nothing can be read, the output folder holds another run, a shard
/// cannot be written, or the work was interrupted ([`crate::interrupt::Interrupted`]).
pub fn encode(options: &EncodeOptions, interrupt: &Interrupt) -> anyhow::Result<EncodeReport> {
    let sources = open_sources(options)?;
    if let Some(first) = Incident::ignored(&sources).next() {
        tracing::warn!("{} files are not read; the first: {first}", sources.ignored().len());
    }
    let shards = sources.entries().len().div_ceil(options.shard_samples);
    let mine = options.share.of(shards, &options.pictures.display().to_string())?;
    refuse_foreign_shards(&options.out, &options.name)?;
    let beside = options.out.join(CODEC_FILE);
    // A transform that nothing was encoded with may be of other pictures.
    let kept = DatasetWriter::is_begun(&options.out, &options.name)?.then_some(beside.as_path());
    let codec = codec::open(options, &sources, kept)?;
    let writer = DatasetWriter::create(&options.out, plan(options, &sources, codec.as_ref()))?;
    codec.keep(&beside)?;

    let job = stream::Job {
        options,
        sources: &sources,
        codec: codec.as_ref(),
        writer: &writer,
    };
    let total = mine.iter().map(|&shard| job.range(shard).len() as u64).sum();
    let progress = Progress::start("encode", "images", 0, total);
    let (done, time) = TimeSplit::of(|time| stream::run(&job, &mine, &progress, interrupt, time))?;
    drop(progress);

    let incidents = skipped::read_all(&options.out, &options.name, shards)?;
    let count = |skipped: bool| {
        incidents
            .iter()
            .filter(|incident| incident.is_skipped() == skipped)
            .count()
    };
    let mut report = EncodeReport {
        encoded: done.samples,
        shards_found: done.shards_found,
        shards,
        skipped: count(true),
        repaired: count(false),
        ignored: sources.ignored().len(),
        complete: false,
        time,
    };
    if report.skipped == sources.entries().len() {
        let reason = incidents.first().map(ToString::to_string).unwrap_or_default();
        bail!(
            "none of the {} pictures could be used; the first: {reason}",
            report.skipped
        );
    }
    report.complete = match writer.finish(shards) {
        Ok(_) => true,
        // Another process, or another shard range, has still to write it.
        Err(ShardError::ShardMissing { .. }) if mine.len() < shards => false,
        Err(error) => return Err(error.into()),
    };
    if report.complete {
        let all: Vec<Incident> = Incident::ignored(&sources).chain(incidents).collect();
        skipped::write_list(&options.out, &all)?;
    }
    Ok(report)
}

/// The pictures in the order in which they are encoded.
fn open_sources(options: &EncodeOptions) -> anyhow::Result<Sources> {
    let mut sources = Sources::open(&options.pictures, &options.source_options)?;
    if let Some(inner) = sources.nested_classes() {
        let folder = options.pictures.join(inner);
        let classes = sources.classes().len();
        tracing::warn!(
            "all pictures lie in folders inside the {classes} class folders, such as {}; if those are the classes, give the \
             folder above them",
            folder.display()
        );
    }
    if let Some(seed) = options.shuffle {
        let draw = |index: &usize| Stream::new(seed, Purpose::Order, 0, *index as u64).word64(0);
        let mut order: Vec<usize> = (0..sources.entries().len()).collect();
        order.sort_by_cached_key(|index| (draw(index), *index));
        sources.reorder(&order);
    }
    if let Some(limit) = options.limit {
        sources.truncate(limit);
    }
    Ok(sources)
}

/// Everything that decides the bytes of the shards, for the index and for telling runs apart.
fn plan(options: &EncodeOptions, sources: &Sources, codec: &dyn Codec) -> DatasetPlan {
    let identity = codec.identity();
    let mut settings = vec![
        ("colour", json!(identity.colour)),
        ("factor", json!(identity.factor)),
        ("shift_factor", json!(identity.shift_factor)),
        ("background", json!(options.decode.background)),
        ("fit", json!(options.fit)),
        ("mirror", json!(options.mirror)),
        ("keep_pictures", json!(options.keep_pictures)),
        ("shard_samples", json!(options.shard_samples)),
        ("sources_sha256", json!(sources.fingerprint())),
    ];
    if let CodecChoice::Pca(PcaSource::Fit { pictures, .. }) = options.codec {
        // The codec that a run before has fitted is used again, whatever it was fitted to.
        settings.push(("fit_images", json!(codec::fitted_to(pictures, sources))));
    }
    if has_precision(&identity.name) {
        // What is not said is the default, also in the folders of builds that knew nothing else.
        let CodecConfig { precision, tf32, .. } = CodecConfig::default();
        if options.precision != precision {
            settings.push(("precision", json!(options.precision)));
        }
        if options.tf32 != tf32 {
            settings.push(("tf32", json!(options.tf32)));
        }
    }
    let weights = Some(identity.weights_sha256.clone()).filter(|sha256| !sha256.is_empty());
    DatasetPlan {
        name: options.name.clone(),
        compression: options.compression,
        codec: CodecRecord {
            name: identity.name.clone(),
            weights_sha256: weights,
            scale_factor: identity.scale_factor,
            latent_shape: identity.latent_shape,
            dtype: options.dtype,
            resolution: options.size,
            settings: settings
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        },
        classes: sources.classes().to_vec(),
    }
}

/// Threads that read and crop.
fn threads(options: &EncodeOptions) -> usize {
    options.threads.unwrap_or_else(rayon::current_num_threads).max(1)
}
