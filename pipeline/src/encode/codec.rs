//! The codec of a run: given, or fitted to the pictures and kept beside the shards.

use std::path::{Path, PathBuf};

use anyhow::bail;
use deepflow_preprocess::codec::{Codec, IdentityCodec, PcaCodec, PcaOptions};
use deepflow_preprocess::picture::Pixels;
use deepflow_preprocess::sources::Sources;
use rayon::prelude::*;

use super::{load, make_out, EncodeOptions};

/// The file beside `index.json` that holds a codec small enough to travel with its latents.
pub const CODEC_FILE: &str = "codec.safetensors";

/// The pictures that a codec is fitted to are in memory together: at most so many bytes of them, but never fewer than
/// [`FEWEST_FITTED`].
const FIT_BYTES: usize = 512 << 20;
const FEWEST_FITTED: usize = 16;

/// What turns pictures into latents.
pub enum CodecChoice {
    /// Pixels as they are.
    Identity,
    /// The patch transform.
    Pca(PcaSource),
    /// Any other, ready to use.
    Ready(Box<dyn Codec>),
}

/// Where the patch transform comes from.
#[derive(Clone, Debug)]
pub enum PcaSource {
    /// Fitted to the first `pictures` of an evenly spaced sample.
    Fit {
        /// Patch, channels and whitening.
        options: PcaOptions,
        /// Pictures to fit to.
        pictures: usize,
    },
    /// A file that an earlier run left.
    File(PathBuf),
}

/// A codec in use, owned here or by the caller.
pub(super) enum OpenCodec<'a> {
    Owned(Box<dyn Codec>),
    Borrowed(&'a dyn Codec),
}

impl OpenCodec<'_> {
    pub(super) fn as_ref(&self) -> &dyn Codec {
        match self {
            Self::Owned(codec) => codec.as_ref(),
            Self::Borrowed(codec) => *codec,
        }
    }
}

/// Opens the codec. A patch transform is kept in `keep`, and what an earlier run kept there is used again.
pub(super) fn open<'a>(
    options: &'a EncodeOptions,
    sources: &Sources,
    keep: Option<&Path>,
) -> anyhow::Result<OpenCodec<'a>> {
    let codec = match &options.codec {
        CodecChoice::Identity => OpenCodec::Owned(Box::new(IdentityCodec::new(options.size, options.decode.colour))),
        CodecChoice::Ready(codec) => OpenCodec::Borrowed(codec.as_ref()),
        CodecChoice::Pca(source) => {
            let kept = keep.map(|folder| folder.join(CODEC_FILE));
            OpenCodec::Owned(Box::new(open_pca(options, source, sources, kept.as_deref())?))
        }
    };
    let identity = codec.as_ref().identity();
    if identity.picture_size() != options.size || identity.colour != options.decode.colour {
        bail!(
            "codec {}: made for {size}×{size} {:?} pictures, expected {}×{} {:?}",
            identity.name,
            identity.colour,
            options.size,
            options.size,
            options.decode.colour,
            size = identity.picture_size(),
        );
    }
    Ok(codec)
}

fn open_pca(
    options: &EncodeOptions,
    source: &PcaSource,
    sources: &Sources,
    kept: Option<&Path>,
) -> anyhow::Result<PcaCodec> {
    if let (PcaSource::Fit { options: wanted, .. }, Some(path)) = (source, kept.filter(|path| path.exists())) {
        let codec = PcaCodec::load(path, options.size)?;
        if codec.options() != *wanted {
            bail!(
                "{}: the folder holds another run (codec pca with {:?}, this run has {wanted:?}); give another folder",
                path.display(),
                codec.options()
            );
        }
        return Ok(codec);
    }
    let codec = match source {
        PcaSource::File(path) => PcaCodec::load(path, options.size)?,
        PcaSource::Fit { options: pca, pictures } => PcaCodec::fit(&sample(options, sources, *pictures)?, *pca)?,
    };
    if let Some(path) = kept.filter(|path| !path.exists()) {
        make_out(options)?;
        codec.save(path)?;
    }
    Ok(codec)
}

/// `count` pictures evenly spaced over the sources, without those that cannot be used.
fn sample(options: &EncodeOptions, sources: &Sources, count: usize) -> anyhow::Result<Vec<Pixels>> {
    let entries = sources.entries();
    let picture_bytes = options.size * options.size * options.decode.colour.channels();
    let count = count
        .min(FIT_BYTES / picture_bytes)
        .max(FEWEST_FITTED)
        .min(entries.len());
    let loaded: Vec<_> = (0..count)
        .into_par_iter()
        .map(|index| load(options, sources, &entries[index * entries.len() / count]).map(|picture| picture.pixels))
        .collect();
    let mut pictures = Vec::with_capacity(count);
    let mut first_error = None;
    for result in loaded {
        match result {
            Ok(pixels) => pictures.push(pixels),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    match first_error {
        Some(error) if pictures.is_empty() => {
            bail!("none of the {count} pictures to fit codec pca to could be used; the first: {error}")
        }
        _ => Ok(pictures),
    }
}
