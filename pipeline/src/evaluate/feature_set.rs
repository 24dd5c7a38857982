//! What Inception-v3 sees in a set of pictures, kept in constant memory, and kept on disk for reference sets.

use super::metrics::{Features, Gaussian, GaussianAccumulator, InceptionScore, InceptionScoreAccumulator};
use super::pictures::PictureSet;
use super::statistics_file::StatisticsFile;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use anyhow::{ensure, Context};
use deepflow_model::inception::{resize, Inception, ResizeMode, CLASSES, INPUT_SIZE, POOL_FEATURES, SPATIAL_FEATURES};
use deepflow_preprocess::picture::Pixels;
use std::path::Path;

/// Pictures the network sees at once.
const BATCH: usize = 16;
/// Predictions in a split of the Inception Score.
const SCORE_SPLIT: usize = 5000;
/// Names of the distributions in the cache.
const POOL: &str = "pool";
const SPATIAL: &str = "spatial";

/// Statistics of a set of pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureSet {
    /// Pooled features, for FID.
    pub pool: Gaussian,
    /// Spatial features, for sFID.
    pub spatial: Gaussian,
    /// The first pooled feature vectors, for precision, recall and KID.
    pub vectors: Features<f32>,
    /// Inception Score of the set itself; not known of a set that comes from the cache.
    pub score: Option<InceptionScore>,
    /// Width and height of the pictures before resizing.
    pub picture_size: (usize, usize),
}

impl FeatureSet {
    /// Shows every picture of a set to the network and keeps the first `keep` feature vectors.
    ///
    /// # Errors
    /// A picture is unreadable or of another size, there are fewer than two, or the user interrupts.
    pub fn compute(
        pictures: &PictureSet,
        network: &Inception,
        mode: ResizeMode,
        keep: usize,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Self> {
        let name = pictures.path().display().to_string();
        let progress = Progress::start(&name, "pictures", 0, pictures.count().unwrap_or(0) as u64);
        let mut pool = GaussianAccumulator::new(POOL_FEATURES);
        let mut spatial = GaussianAccumulator::new(SPATIAL_FEATURES);
        let mut score = InceptionScoreAccumulator::new(CLASSES, SCORE_SPLIT);
        let mut vectors = Features {
            width: POOL_FEATURES,
            values: Vec::new(),
        };
        let mut picture_size = None;
        pictures.for_each_batch(BATCH, interrupt, |batch| {
            let Some(first) = batch.first() else { return Ok(()) };
            picture_size = Some((first.width(), first.height()));
            let features = network.features(&network_input(batch, mode))?;
            ensure!(
                features.pool.iter().all(|value| value.is_finite()),
                "{name}: Inception-v3 gives values that are not finite"
            );
            pool.add(&features.pool);
            spatial.add(&features.spatial);
            for logits in features.logits_without_bias.chunks_exact(CLASSES) {
                score.add(&super::metrics::softmax(logits));
            }
            let room = (keep * POOL_FEATURES).saturating_sub(vectors.values.len());
            vectors
                .values
                .extend_from_slice(&features.pool[..room.min(features.pool.len())]);
            progress.advance(batch.len() as u64);
            Ok(())
        })?;
        let count = pool.count();
        let few = || format!("{name}: {count} pictures, expected at least 2");
        Ok(Self {
            pool: pool.finish().with_context(few)?,
            spatial: spatial.finish().with_context(few)?,
            score: score.finish(),
            picture_size: picture_size.with_context(few)?,
            vectors,
        })
    }

    /// [`FeatureSet::compute`], unless `cache` holds the result for a set of the same content, weights and settings.
    ///
    /// # Errors
    /// As [`FeatureSet::compute`]; a cache that cannot be written.
    pub fn cached(
        pictures: &PictureSet,
        network: &Inception,
        weights_sha256: &str,
        mode: ResizeMode,
        keep: usize,
        cache: &Path,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Self> {
        let settings = ["inception", weights_sha256, mode_name(mode), &keep.to_string()];
        let file = cache.join(format!("{}.safetensors", pictures.content_hash(&settings)?));
        if let Some(set) = StatisticsFile::read(&file).and_then(Self::from_file) {
            tracing::info!(
                "statistics of {} come from {}",
                pictures.path().display(),
                file.display()
            );
            return Ok(set);
        }
        let set = Self::compute(pictures, network, mode, keep, interrupt)?;
        let gaussians = [(POOL, &set.pool), (SPATIAL, &set.spatial)];
        let content = StatisticsFile {
            gaussians: gaussians
                .map(|(name, gaussian)| (name.to_owned(), gaussian.clone()))
                .into(),
            vectors: set.vectors.clone(),
            picture_size: set.picture_size,
        };
        content.write(&file)?;
        Ok(set)
    }

    fn from_file(mut content: StatisticsFile) -> Option<Self> {
        Some(Self {
            pool: content.gaussians.remove(POOL)?,
            spatial: content.gaussians.remove(SPATIAL)?,
            vectors: content.vectors,
            score: None,
            picture_size: content.picture_size,
        })
    }
}

/// What the mode is called on the command line and in results.
pub(super) fn mode_name(mode: ResizeMode) -> &'static str {
    match mode {
        ResizeMode::Tf1 => "tf1",
        ResizeMode::HalfPixel => "half-pixel",
    }
}

/// Pictures as planes of the network's size, 0..=255.
fn network_input(pictures: &[Pixels], mode: ResizeMode) -> Vec<f32> {
    let size = |pixels: &Pixels| (pixels.height(), pixels.width());
    let planes = |pixels: &Pixels| -> Vec<u8> {
        (0..3)
            .flat_map(|channel| pixels.data()[channel..].iter().step_by(3).copied())
            .collect()
    };
    let resized = |pixels: &Pixels| resize(&planes(pixels), size(pixels), (INPUT_SIZE, INPUT_SIZE), mode);
    pictures.iter().flat_map(resized).collect()
}
