//! What Inception-v3 sees in a set of pictures, kept in constant memory, and kept on disk for reference sets.

use super::metrics::{Features, Gaussian, GaussianAccumulator, InceptionScore, InceptionScoreAccumulator};
use super::pictures::PictureSet;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use anyhow::{ensure, Context};
use deepflow_model::inception::{resize, Inception, ResizeMode, CLASSES, INPUT_SIZE, POOL_FEATURES, SPATIAL_FEATURES};
use deepflow_preprocess::picture::Pixels;
use faer::Mat;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Pictures the network sees at once.
const BATCH: usize = 16;
/// Predictions in a split of the Inception Score.
const SCORE_SPLIT: usize = 5000;
/// The key of the count, width and height in a cached file's header; one key, so that the header's bytes do not vary.
const CACHE_KEY: &str = "deepflow";

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
        let content = hex(&pictures.content_hash()?);
        let mode_name = match mode {
            ResizeMode::Tf1 => "tf1",
            ResizeMode::HalfPixel => "half-pixel",
        };
        let file: PathBuf = cache.join(format!(
            "{content}-{}-{mode_name}-{keep}.safetensors",
            &weights_sha256[..16]
        ));
        if let Some(set) = Self::read(&file) {
            tracing::info!(
                "statistics of {} come from {}",
                pictures.path().display(),
                file.display()
            );
            return Ok(set);
        }
        let set = Self::compute(pictures, network, mode, keep, interrupt)?;
        crate::files::make_folder(cache)?;
        set.write(&file).with_context(|| file.display().to_string())?;
        Ok(set)
    }

    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let columns = |matrix: &Mat<f64>| -> Vec<u8> {
            (0..matrix.ncols())
                .flat_map(|column| bytes_of(matrix.col(column).iter().copied()))
                .collect()
        };
        let width = |gaussian: &Gaussian| gaussian.width();
        let vectors: Vec<u8> = self
            .vectors
            .values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let buffers = [
            (
                "pool.mean",
                Dtype::F64,
                vec![width(&self.pool)],
                bytes_of(self.pool.mean.iter().copied()),
            ),
            (
                "pool.covariance",
                Dtype::F64,
                vec![width(&self.pool); 2],
                columns(&self.pool.covariance),
            ),
            (
                "spatial.mean",
                Dtype::F64,
                vec![width(&self.spatial)],
                bytes_of(self.spatial.mean.iter().copied()),
            ),
            (
                "spatial.covariance",
                Dtype::F64,
                vec![width(&self.spatial); 2],
                columns(&self.spatial.covariance),
            ),
            (
                "vectors",
                Dtype::F32,
                vec![self.vectors.len(), self.vectors.width],
                vectors,
            ),
        ];
        let views = buffers
            .iter()
            .map(|(name, dtype, shape, bytes)| Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let facts = serde_json::json!([self.pool.count, self.picture_size.0, self.picture_size.1]);
        let metadata = HashMap::from([(CACHE_KEY.to_owned(), facts.to_string())]);
        let bytes = safetensors::serialize(views, Some(metadata))?;
        crate::files::write_atomically(path, &bytes)
    }

    /// `None` when there is no such file or it is not one of ours: then it is made anew.
    fn read(path: &Path) -> Option<Self> {
        let bytes = std::fs::read(path).ok()?;
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        let tensors = SafeTensors::deserialize(&bytes).ok()?;
        let facts = header.metadata().as_ref()?.get(CACHE_KEY)?;
        let (count, width, height): (u64, usize, usize) = serde_json::from_str(facts).ok()?;
        let doubles = |name: &str| -> Option<Vec<f64>> {
            let (chunks, _) = tensors.tensor(name).ok()?.data().as_chunks::<8>();
            Some(chunks.iter().map(|&chunk| f64::from_le_bytes(chunk)).collect())
        };
        let gaussian = |name: &str| -> Option<Gaussian> {
            let mean = doubles(&format!("{name}.mean"))?;
            let columns = doubles(&format!("{name}.covariance"))?;
            let size = mean.len();
            let covariance =
                (columns.len() == size * size).then(|| Mat::from_fn(size, size, |i, j| columns[j * size + i]))?;
            Some(Gaussian {
                count: Some(count),
                mean,
                covariance,
            })
        };
        let vectors = tensors.tensor("vectors").ok()?;
        let (chunks, _) = vectors.data().as_chunks::<4>();
        Some(Self {
            pool: gaussian("pool")?,
            spatial: gaussian("spatial")?,
            vectors: Features {
                width: *vectors.shape().get(1)?,
                values: chunks.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect(),
            },
            score: None,
            picture_size: (width, height),
        })
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

fn bytes_of(values: impl Iterator<Item = f64>) -> Vec<u8> {
    values.flat_map(f64::to_le_bytes).collect()
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
