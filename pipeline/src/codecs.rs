//! Opens the codec that a folder of latent shards was made with.

use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use deepflow_datasets::Codec as CodecRecord;
use deepflow_preprocess::codec::{AutoencoderKlCodec, Codec, IdentityCodec, PcaCodec};
use deepflow_preprocess::picture::Colour;

use crate::cli::UsageError;
use crate::encode::CODEC_FILE;

/// Opens the codec that `record`, of the index in the folder `shards`, describes.
///
/// `weights` overrides where the codec's weights are; without it `pca` is looked for beside the index. Weights other than
/// those that encoded give a warning, because pictures then come out wrong in a way that only the eye sees.
///
/// # Errors
/// When the weights are missing or unreadable, or make latents of another shape than `record` says.
pub fn open(record: &CodecRecord, shards: &Path, weights: Option<&Path>) -> anyhow::Result<Box<dyn Codec>> {
    let codec = load(record, shards, weights)?;
    let identity = codec.identity();
    if identity.latent_shape != record.latent_shape {
        bail!(
            "codec {}: makes latents of shape {:?}, but the shards of {} hold {:?}",
            record.name,
            identity.latent_shape,
            shards.display(),
            record.latent_shape,
        );
    }
    if let Some(encoded_with) = record
        .weights_sha256
        .as_deref()
        .filter(|sha| *sha != identity.weights_sha256)
    {
        tracing::warn!(
            "codec {}: these weights (SHA-256 {}) are not the ones {} was encoded with ({encoded_with}); expect wrong \
             colours or worse",
            record.name,
            identity.weights_sha256,
            shards.display(),
        );
    }
    Ok(codec)
}

fn load(record: &CodecRecord, shards: &Path, weights: Option<&Path>) -> anyhow::Result<Box<dyn Codec>> {
    match record.name.as_str() {
        "identity" => Ok(Box::new(IdentityCodec::new(record.resolution, colour(record)?))),
        "pca" => {
            let path = weights.map_or_else(|| shards.join(CODEC_FILE), PathBuf::from);
            Ok(Box::new(PcaCodec::load(&path, record.resolution)?))
        }
        "autoencoder-kl" => match weights {
            Some(path) => Ok(Box::new(AutoencoderKlCodec::load(path, record.resolution)?)),
            None => Err(UsageError(format!(
                "{}: encoded with autoencoder-kl; say where its weights are (--weights DIR or codec.weights)",
                shards.display()
            ))
            .into()),
        },
        other => bail!(
            "{}: made with the codec {other:?}, expected one of identity, pca, autoencoder-kl",
            shards.join(deepflow_datasets::INDEX_FILE).display()
        ),
    }
}

fn colour(record: &CodecRecord) -> anyhow::Result<Colour> {
    match record.latent_shape[0] {
        1 => Ok(Colour::Grey),
        3 => Ok(Colour::Rgb),
        found => Err(anyhow::anyhow!(
            "{found} channels, expected 1 (grey) or 3 (red, green, blue)"
        ))
        .context("codec identity: latent_shape"),
    }
}
