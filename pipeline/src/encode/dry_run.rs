//! How long an encode would take and how large its result would be, from a few pictures.

use std::time::Instant;

use anyhow::bail;
use serde::Serialize;

use super::load::load;
use super::{codec, open_sources, threads, EncodeOptions, Incident};

/// Pictures that are measured.
const MEASURED: usize = 16;
/// A tar pads members to blocks of this size and puts one before each.
const BLOCK: u64 = 512;
/// Length of the header of an `.npy` member.
const NPY_HEADER: u64 = 128;

/// What an encode would do.
#[derive(Clone, Debug, Serialize)]
pub struct DryRun {
    /// Pictures found.
    pub pictures: usize,
    /// Classes found.
    pub classes: usize,
    /// Bytes of the pictures as stored.
    pub source_bytes: u64,
    /// Shards they would fill.
    pub shards: usize,
    /// The latents' (C, S, S).
    pub latent_shape: [usize; 3],
    /// Pictures that were tried.
    pub measured: usize,
    /// Those of them that could not be used.
    pub unusable: usize,
    /// Why, for the first of them.
    pub first_reason: Option<String>,
    /// Files among the pictures that are none.
    pub ignored: usize,
    /// The first of them, and why it is not read.
    pub first_ignored: Option<String>,
    /// Seconds to read and crop a picture on one thread.
    pub load_s: f64,
    /// Seconds of the codec for a picture.
    pub codec_s: f64,
    /// Estimated seconds for all pictures, in this process alone.
    pub seconds: f64,
    /// Estimated bytes of all shards before compression.
    pub bytes: u64,
}

/// Lists the pictures, measures a few evenly spaced ones, and writes nothing.
///
/// # Errors
/// Like [`encode`](super::encode), and when none of the measured pictures can be used.
pub fn dry_run(options: &EncodeOptions) -> anyhow::Result<DryRun> {
    let sources = open_sources(options)?;
    let entries = sources.entries();
    let codec = codec::open(options, &sources, None)?;
    let codec = codec.as_ref();

    let measured = entries.len().min(MEASURED);
    let start = Instant::now();
    let (mut pixels, mut png_bytes, mut first_reason) = (Vec::new(), 0, None);
    for index in 0..measured {
        let entry = &entries[index * entries.len() / measured];
        match load(options, &sources, entry) {
            Ok(picture) => {
                png_bytes += picture.png.map_or(0, |png| padded(png.len() as u64));
                pixels.push(picture.pixels);
            }
            Err(reason) => first_reason = first_reason.or(Some(format!("{}: {reason}", sources.describe(entry)))),
        }
    }
    let load_s = start.elapsed().as_secs_f64() / measured as f64;
    if pixels.is_empty() {
        bail!(
            "none of the {measured} pictures tried could be used; the first: {}",
            first_reason.unwrap_or_default()
        );
    }
    let batch = options
        .batch
        .unwrap_or_else(|| codec.preferred_batch())
        .clamp(1, pixels.len());
    let start = Instant::now();
    codec.encode(&pixels[..batch])?;
    let passes = if options.mirror { 2.0 } else { 1.0 };
    let codec_s = passes * start.elapsed().as_secs_f64() / batch as f64;

    let moments = NPY_HEADER + (2 * codec.identity().latent_len() * options.dtype.bytes()) as u64;
    let arrays = if options.mirror { 2 } else { 1 };
    let sample = arrays * padded(moments) + 2 * padded(1) + png_bytes / pixels.len() as u64;
    let usable = pixels.len() as f64 / measured as f64;
    let first_ignored = Incident::ignored(&sources).next().map(|file| file.to_string());
    Ok(DryRun {
        pictures: entries.len(),
        classes: sources.classes().len(),
        source_bytes: entries.iter().map(|entry| sources.bytes(entry)).sum(),
        shards: entries.len().div_ceil(options.shard_samples),
        latent_shape: codec.identity().latent_shape,
        measured,
        unusable: measured - pixels.len(),
        first_reason,
        ignored: sources.ignored().len(),
        first_ignored,
        load_s,
        codec_s,
        seconds: entries.len() as f64 * codec_s.max(load_s / threads(options) as f64),
        bytes: (entries.len() as f64 * usable * sample as f64) as u64,
    })
}

/// Bytes that a member of `bytes` takes in a tar.
fn padded(bytes: u64) -> u64 {
    BLOCK + bytes.next_multiple_of(BLOCK)
}
