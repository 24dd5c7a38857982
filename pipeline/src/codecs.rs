//! Opens the codec that a folder of latent shards was made with.

use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use deepflow_datasets::Codec as CodecRecord;
use deepflow_model::device::{AnyDevice, DeviceChoice};
use deepflow_preprocess::codec::{AutoencoderKlCodec, Codec, IdentityCodec, PcaCodec};
use deepflow_preprocess::picture::Colour;
use dfdx::prelude::Cpu;

use crate::cli::UsageError;
use crate::config::{CodecConfig, Precision};
use crate::device::{check_precision, DeviceArgs};
use crate::rank::Rank;

/// The file beside `index.json`, and in a run, that holds a codec small enough to travel with its latents.
pub const CODEC_FILE: &str = "codec.safetensors";

/// The codec that is a network.
const NETWORK: &str = "autoencoder-kl";

/// Whether `codec.precision` and `codec.tf32` say anything of this codec's results.
#[must_use]
pub fn has_precision(codec: &str) -> bool {
    codec == NETWORK
}

/// Where a codec that is a network computes: on the device of the command line, in the precision of `[codec]`.
#[derive(Clone, Copy, Debug)]
pub struct CodecDevice<'a> {
    /// `--device` and `--threads`.
    pub arguments: DeviceArgs,
    /// Which of several processes this is.
    pub rank: Rank,
    /// The section.
    pub config: &'a CodecConfig,
}

impl CodecDevice<'_> {
    /// Opens the device for a network.
    ///
    /// # Errors
    /// As [`DeviceArgs::open`], and [`UsageError`] for mixed precision on the processor.
    pub fn open(self) -> anyhow::Result<AnyDevice> {
        let device = self.arguments.open(self.rank)?;
        check_precision(&device, self.config.precision, "codec.precision")?;
        device.allow_tensor_float_32(self.config.tf32)?;
        Ok(device)
    }

    /// Loads an autoencoder for square pictures of side `size`; the device it is on.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when the weights cannot be loaded.
    pub fn autoencoder(self, weights: &Path, size: usize) -> anyhow::Result<(AutoencoderKlCodec, AnyDevice)> {
        let device = self.open()?;
        let codec = AutoencoderKlCodec::load_on(weights, size, &device, self.half_precision())?;
        Ok((codec, device))
    }

    /// Whether a network holds its numbers in half precision.
    #[must_use]
    pub fn half_precision(self) -> bool {
        self.config.precision == Precision::Mixed
    }

    /// The processor, for a codec that computes nowhere else.
    ///
    /// # Errors
    /// [`UsageError`] when a GPU was asked for by name.
    pub fn processor(self, codec: &str) -> Result<AnyDevice, UsageError> {
        match self.arguments.device {
            DeviceChoice::Cuda(_) => Err(UsageError(format!(
                "--device {}: codec {codec} runs on the cpu; only autoencoder-kl runs on a GPU",
                self.arguments.device
            ))),
            _ => Ok(AnyDevice::Cpu(Cpu::default())),
        }
    }
}

/// Opens the codec that `record`, of the index in the folder `shards`, describes.
///
/// `weights` overrides where the codec's weights are; without it `pca` is looked for beside the index. Weights other than
/// those that encoded give a warning, because pictures then come out wrong in a way that only the eye sees. Without `place`
/// the codec runs on the processor.
///
/// # Errors
/// When the weights are missing or unreadable, or make latents of another shape than `record` says.
pub fn open(
    record: &CodecRecord,
    shards: &Path,
    weights: Option<&Path>,
    place: Option<CodecDevice<'_>>,
) -> anyhow::Result<Box<dyn Codec>> {
    let codec = load(record, shards, weights, place)?;
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

fn load(
    record: &CodecRecord,
    shards: &Path,
    weights: Option<&Path>,
    place: Option<CodecDevice<'_>>,
) -> anyhow::Result<Box<dyn Codec>> {
    if let Some(place) = place.filter(|_| record.name != NETWORK) {
        place.processor(&record.name)?;
    }
    match record.name.as_str() {
        "identity" => Ok(Box::new(IdentityCodec::new(record.resolution, colour(record)?))),
        "pca" => {
            let path = weights.map_or_else(|| shards.join(CODEC_FILE), PathBuf::from);
            Ok(Box::new(PcaCodec::load(&path, record.resolution)?))
        }
        NETWORK => match weights {
            Some(path) => Ok(Box::new(match place {
                Some(place) => place.autoencoder(path, record.resolution)?.0,
                None => AutoencoderKlCodec::load(path, record.resolution)?,
            })),
            None => Err(UsageError(format!(
                "{}: encoded with {NETWORK}; say where its weights are (--weights DIR or codec.weights)",
                shards.display()
            ))
            .into()),
        },
        other => bail!(
            "{}: made with the codec {other:?}, expected one of identity, pca, {NETWORK}",
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
