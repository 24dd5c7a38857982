//! The encode and decode stages at work: on photographs and latents that are made up, with everything around the codec.
//!
//! The stages run as they are, from files to files in a temporary folder. A step is a batch through the codec, timed from
//! the end of the batch before it, so that waiting for pictures, for the writer or for a core is part of it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use deepflow_datasets::random::{Purpose, Stream};
use deepflow_datasets::{Codec as CodecRecord, Compression, DatasetPlan, DatasetWriter, Dtype, Sample, LATENT};
use deepflow_model::autoencoder::{AutoencoderConfig, AutoencoderKl};
use deepflow_model::device::AnyDevice;
use deepflow_preprocess::codec::{
    AutoencoderKlCodec, Codec, CodecError, CodecIdentity, IdentityCodec, Moments, PcaCodec, PcaOptions,
};
use deepflow_preprocess::picture::{centre_crop, Colour, DecodeOptions as PictureOptions, Fit, Pixels, PngCompression};
use deepflow_preprocess::sources::SourceOptions;
use serde_json::json;

use super::gpu::{self, GpuMeasurement};
use super::photograph::{photograph, write_photographs};
use super::Timer;
use crate::codecs::CodecDevice;
use crate::config::{CodecConfig, CodecKind, Config, OutputFormat};
use crate::decode::{decode, DecodeOptions};
use crate::encode::{encode, CodecChoice, EncodeOptions};
use crate::interrupt::Interrupt;
use crate::share::Share;
use crate::time_split::TimeSplit;

/// Photographs the patch transform is fitted to.
const FITTED_TO: usize = 16;
/// Seed of an autoencoder without weights; which it is does not matter to its speed.
const SEED: u64 = 1;

/// What a run of a stage has to tell beside the seconds of its steps.
pub struct StageRun {
    /// Pictures in a step.
    pub batch: usize,
    /// Parameters of the codec.
    pub parameters: usize,
    /// Where the time of the stage went.
    pub time: TimeSplit,
    /// Where the codec computed.
    pub device: String,
    /// The GPU's side, where there is one.
    pub gpu: Option<GpuMeasurement>,
}

/// What is measured.
#[derive(Clone, Copy)]
pub struct CodecBench<'a> {
    /// The configuration; its codec's weights, or random ones.
    pub config: &'a Config,
    /// Where the codec computes.
    pub place: CodecDevice<'a>,
    /// Pictures in a step; `None` leaves it to the codec.
    pub batch: Option<usize>,
    /// Whether one more step is run with the clock on every kernel of the GPU.
    pub by_kernel: bool,
}

/// Runs the encode stage over synthetic photographs, four thirds as wide as high and as large beside the crop as
/// ImageNet's are beside 256 pixels.
///
/// # Errors
/// When the codec cannot be opened, the temporary folder cannot be written, or the run is interrupted.
pub fn encode_stage(bench: CodecBench<'_>, timer: &mut Timer<'_>, interrupt: &Interrupt) -> anyhow::Result<StageRun> {
    let config = bench.config;
    let folder = tempfile::tempdir().context("a temporary folder for the pictures")?;
    let (codec, device) = open(bench.place)?;
    gpu::check_kernels(&device, bench.by_kernel)?;
    let (codec, ends) = Watched::new(codec);
    let batch = bench.batch.unwrap_or_else(|| codec.preferred_batch());
    let parameters = codec.parameters();
    let pictures = folder.path().join("pictures");
    write_photographs(&pictures, timer.steps_with_warm_up() * batch, config.codec.size)?;
    let options = EncodeOptions {
        pictures,
        source_options: SourceOptions::default(),
        limit: None,
        shuffle: Some(0),
        out: folder.path().join("latents"),
        name: config.output.name.clone(),
        shard_samples: timer.steps_with_warm_up() * batch,
        compression: config.output.compression(),
        dtype: config.output.dtype(),
        codec: CodecChoice::Ready(Box::new(codec.clone())),
        precision: config.codec.precision,
        tf32: config.codec.tf32,
        size: config.codec.size,
        decode: PictureOptions::default(),
        fit: Fit::Crop,
        mirror: false,
        keep_pictures: false,
        batch: Some(batch),
        threads: None,
        share: Share::WHOLE,
    };
    let report = encode(&options, interrupt)?;
    timer.take_ends(&ends.lock().unwrap_or_else(PoisonError::into_inner));
    let pictures = squares(batch, config.codec.size)?;
    let step = || Ok(codec.encode(&pictures).map(drop)?);
    Ok(StageRun {
        batch,
        parameters,
        time: report.time,
        device: device.name()?,
        gpu: gpu::measure(&device, bench.by_kernel, step)?,
    })
}

/// Runs the decode stage over normal latents, to PNG files.
///
/// # Errors
/// As [`encode_stage`].
pub fn decode_stage(bench: CodecBench<'_>, timer: &mut Timer<'_>, interrupt: &Interrupt) -> anyhow::Result<StageRun> {
    let folder = tempfile::tempdir().context("a temporary folder for the latents")?;
    let (codec, device) = open(bench.place)?;
    gpu::check_kernels(&device, bench.by_kernel)?;
    let (codec, ends) = Watched::new(codec);
    let batch = bench.batch.unwrap_or_else(|| codec.preferred_batch());
    let shards = folder.path().join("latents");
    write_latents(&shards, codec.identity(), timer.steps_with_warm_up() * batch)?;
    let options = DecodeOptions {
        shards,
        out: folder.path().join("pictures"),
        format: OutputFormat::Folders,
        compression: PngCompression::Fast,
        sheet_columns: 0,
        batch: Some(batch),
        precision: bench.config.codec.precision,
        tf32: bench.config.codec.tf32,
        share: Share::WHOLE,
    };
    let report = decode(&options, &codec, interrupt)?;
    timer.take_ends(&ends.lock().unwrap_or_else(PoisonError::into_inner));
    let mut latents = vec![0.0; batch * codec.identity().latent_len()];
    Stream::new(0, Purpose::Synthetic, 0, 0).fill_normal(&mut latents);
    let step = || Ok(codec.decode(&latents).map(drop)?);
    Ok(StageRun {
        batch,
        parameters: codec.parameters(),
        time: report.time,
        device: device.name()?,
        gpu: gpu::measure(&device, bench.by_kernel, step)?,
    })
}

/// The codec of the configuration, and where it computes; without weights a patch transform fitted to synthetic photographs,
/// or Stable Diffusion's autoencoder with random weights.
fn open(place: CodecDevice<'_>) -> anyhow::Result<(Box<dyn Codec>, AnyDevice)> {
    let config = place.config;
    let size = config.size;
    Ok(match (config.kind, &config.weights) {
        (CodecKind::Identity, _) => {
            let codec = IdentityCodec::new(size, Colour::Rgb);
            (Box::new(codec), place.processor("identity")?)
        }
        (CodecKind::Pca, weights) => {
            let device = place.processor("pca")?;
            (Box::new(patch_transform(config, weights.as_deref())?), device)
        }
        (CodecKind::AutoencoderKl, Some(folder)) => {
            let (codec, device) = place.autoencoder(folder, size)?;
            (Box::new(codec), device)
        }
        (CodecKind::AutoencoderKl, None) => {
            let device = place.open()?;
            let (sizes, half) = (AutoencoderConfig::default(), place.half_precision());
            let autoencoder = AutoencoderKl::random_on(sizes, SEED, &device, half)?;
            (Box::new(AutoencoderKlCodec::new(autoencoder, size)?), device)
        }
    })
}

fn patch_transform(config: &CodecConfig, weights: Option<&Path>) -> anyhow::Result<PcaCodec> {
    let size = config.size;
    if let Some(file) = weights {
        return Ok(PcaCodec::load(file, size)?);
    }
    let options = PcaOptions {
        patch: config.patch,
        channels: config.channels,
        floor: config.whitening_floor,
    };
    Ok(PcaCodec::fit(&squares(FITTED_TO, size)?, options)?)
}

/// The middles of the first photographs.
fn squares(count: usize, size: usize) -> anyhow::Result<Vec<Pixels>> {
    (0..count)
        .map(|number| Ok(centre_crop(photograph(number, size)?, size)))
        .collect()
}

/// One shard of latents with the spread that sampling gives them.
fn write_latents(folder: &Path, identity: &CodecIdentity, samples: usize) -> anyhow::Result<()> {
    let plan = DatasetPlan {
        name: "latents".to_owned(),
        compression: Compression::None,
        codec: CodecRecord {
            name: identity.name.clone(),
            weights_sha256: Some(identity.weights_sha256.clone()).filter(|sha256| !sha256.is_empty()),
            scale_factor: identity.scale_factor,
            latent_shape: identity.latent_shape,
            dtype: Dtype::F32,
            resolution: identity.picture_size(),
            settings: [("shift_factor".to_owned(), json!(identity.shift_factor))].into(),
        },
        classes: Vec::new(),
    };
    let writer = DatasetWriter::create(folder, plan)?;
    let mut shard = writer.begin_shard(0)?;
    let mut latent = vec![0.0; identity.latent_len()];
    for index in 0..samples {
        Stream::new(0, Purpose::Synthetic, 0, index as u64).fill_normal(&mut latent);
        for value in &mut latent {
            *value = (f64::from(*value) / identity.scale_factor + identity.shift_factor) as f32;
        }
        let sample =
            Sample::new(format!("{index:08}")).with_array(LATENT, &latent, &identity.latent_shape, Dtype::F32)?;
        shard.write(&sample)?;
    }
    shard.finish()?;
    writer.finish(1)?;
    Ok(())
}

/// When the batches of a codec ended.
type Ends = Arc<Mutex<Vec<Instant>>>;

/// A codec that notes when each of its batches is done.
#[derive(Clone)]
struct Watched {
    codec: Arc<dyn Codec>,
    ends: Ends,
}

impl Watched {
    fn new(codec: Box<dyn Codec>) -> (Self, Ends) {
        let ends = Ends::default();
        let watched = Self {
            codec: codec.into(),
            ends: Arc::clone(&ends),
        };
        (watched, ends)
    }

    fn note(&self) {
        self.ends
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Instant::now());
    }
}

impl Codec for Watched {
    fn identity(&self) -> &CodecIdentity {
        self.codec.identity()
    }

    fn encode(&self, pictures: &[Pixels]) -> Result<Moments, CodecError> {
        self.codec.encode(pictures).inspect(|_| self.note())
    }

    fn decode(&self, latents: &[f32]) -> Result<Vec<Pixels>, CodecError> {
        self.codec.decode(latents).inspect(|_| self.note())
    }

    fn preferred_batch(&self) -> usize {
        self.codec.preferred_batch()
    }

    fn parameters(&self) -> usize {
        self.codec.parameters()
    }
}
