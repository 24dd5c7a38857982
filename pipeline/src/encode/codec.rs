//! The codec of a run: given, or fitted to the pictures and kept beside the shards.

use std::path::{Path, PathBuf};

use anyhow::bail;
use deepflow_preprocess::codec::{Codec, IdentityCodec, PcaCodec, PcaOptions, PcaSums};
use deepflow_preprocess::picture::Pixels;
use deepflow_preprocess::sources::Sources;
use rayon::prelude::*;

use super::{load, EncodeOptions, Unusable};

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
    /// Fitted to an evenly spaced sample.
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
    /// Travels with its latents.
    Pca(PcaCodec),
    Borrowed(&'a dyn Codec),
}

impl OpenCodec<'_> {
    pub(super) fn as_ref(&self) -> &dyn Codec {
        match self {
            Self::Owned(codec) => codec.as_ref(),
            Self::Pca(codec) => codec,
            Self::Borrowed(codec) => *codec,
        }
    }

    /// Puts the codec beside its latents, where it is small enough to travel with them.
    pub(super) fn keep(&self, path: &Path) -> anyhow::Result<()> {
        match self {
            Self::Pca(codec) => Ok(codec.save(path)?),
            _ => Ok(()),
        }
    }
}

/// Opens the codec; a patch transform that an earlier run left in `kept` is used again.
pub(super) fn open<'a>(
    options: &'a EncodeOptions,
    sources: &Sources,
    kept: Option<&Path>,
) -> anyhow::Result<OpenCodec<'a>> {
    let codec = match &options.codec {
        CodecChoice::Identity => OpenCodec::Owned(Box::new(IdentityCodec::new(options.size, options.decode.colour))),
        CodecChoice::Ready(codec) => OpenCodec::Borrowed(codec.as_ref()),
        CodecChoice::Pca(source) => OpenCodec::Pca(open_pca(options, source, sources, kept)?),
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
    let (pca, pictures) = match source {
        PcaSource::File(path) => return Ok(PcaCodec::load(path, options.size)?),
        PcaSource::Fit { options, pictures } => (*options, *pictures),
    };
    let Some(path) = kept.filter(|path| path.exists()) else {
        return fit(options, sources, pca, pictures);
    };
    let codec = PcaCodec::load(path, options.size)?;
    if codec.options() != pca {
        bail!(
            "{}: the folder holds another run (codec pca with {:?}, this run has {pca:?}); give another folder",
            path.display(),
            codec.options()
        );
    }
    Ok(codec)
}

/// How many pictures a transform is fitted to that is to be fitted to `wanted`.
pub(super) fn fitted_to(wanted: usize, sources: &Sources) -> usize {
    wanted.clamp(1, sources.entries().len())
}

/// Fits to `count` pictures evenly spaced over the sources, less those that cannot be used. They are in memory one at a time.
fn fit(options: &EncodeOptions, sources: &Sources, pca: PcaOptions, count: usize) -> anyhow::Result<PcaCodec> {
    let entries = sources.entries();
    let count = fitted_to(count, sources);
    let nothing = PcaSums::new(pca, options.size, options.decode.colour)?;
    let fitted = (0..count)
        .into_par_iter()
        .map(|index| load(options, sources, &entries[index * entries.len() / count]).map(|picture| picture.pixels))
        .fold(
            || Fitted::of(nothing.clone()),
            |mut fitted, picture| {
                fitted.add(picture);
                fitted
            },
        )
        .reduce(|| Fitted::of(nothing.clone()), Fitted::and);
    match fitted.first_error {
        Some(error) if fitted.pictures == 0 => {
            bail!("none of the {count} pictures to fit codec pca to could be used; the first: {error}")
        }
        _ => Ok(fitted.sums.fit()?),
    }
}

/// What became of the pictures that a transform is fitted to.
struct Fitted {
    sums: PcaSums,
    pictures: usize,
    first_error: Option<anyhow::Error>,
}

impl Fitted {
    fn of(sums: PcaSums) -> Self {
        Self {
            sums,
            pictures: 0,
            first_error: None,
        }
    }

    fn add(&mut self, picture: Result<Pixels, Unusable>) {
        let added = picture.map_err(anyhow::Error::from);
        match added.and_then(|pixels| Ok(self.sums.add(&pixels)?)) {
            Ok(()) => self.pictures += 1,
            Err(error) => self.first_error = self.first_error.take().or(Some(error)),
        }
    }

    /// Both, in the order of the pictures.
    fn and(self, later: Self) -> Self {
        Self {
            sums: self.sums.and(&later.sums),
            pictures: self.pictures + later.pictures,
            first_error: self.first_error.or(later.first_error),
        }
    }
}
