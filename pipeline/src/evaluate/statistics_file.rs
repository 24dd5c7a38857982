//! Statistics of a reference set on disk, kept from one evaluation to the next.

use super::metrics::{Features, Gaussian};
use faer::Mat;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// One key of the header, so that the header's bytes do not vary.
const HEADER_KEY: &str = "deepflow";
const VECTORS: &str = "vectors";

/// Named distributions, and feature vectors where there are such.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatisticsFile {
    /// Distributions by name.
    pub gaussians: BTreeMap<String, Gaussian>,
    /// Feature vectors.
    pub vectors: Features<f32>,
    /// Width and height of the pictures, or 0.
    pub picture_size: (usize, usize),
}

/// What safetensors has no tensor for.
#[derive(Serialize, Deserialize)]
struct Header {
    counts: BTreeMap<String, Option<u64>>,
    picture_size: (usize, usize),
}

impl StatisticsFile {
    /// Writes the file, whole or not at all, and the folder where it is not there.
    ///
    /// # Errors
    /// The disk is full.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(folder) = path.parent() {
            crate::files::make_folder(folder)?;
        }
        let mut buffers = Vec::new();
        for (name, gaussian) in &self.gaussians {
            let width = gaussian.width();
            let columns = (0..width).flat_map(|column| gaussian.covariance.col(column).iter().copied());
            let mean = gaussian.mean.iter().copied();
            buffers.push((format!("{name}.mean"), Dtype::F64, vec![width], bytes_of(mean)));
            buffers.push((
                format!("{name}.covariance"),
                Dtype::F64,
                vec![width; 2],
                bytes_of(columns),
            ));
        }
        let vectors = self
            .vectors
            .values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        buffers.push((
            VECTORS.to_owned(),
            Dtype::F32,
            vec![self.vectors.len(), self.vectors.width],
            vectors,
        ));
        let views = buffers
            .iter()
            .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let counts = self
            .gaussians
            .iter()
            .map(|(name, gaussian)| (name.clone(), gaussian.count));
        let header = serde_json::to_string(&Header {
            counts: counts.collect(),
            picture_size: self.picture_size,
        })?;
        let bytes = safetensors::serialize(views, Some(HashMap::from([(HEADER_KEY.to_owned(), header)])))?;
        crate::files::write_atomically(path, &bytes)
    }

    /// `None` when there is no such file or it is not one of ours: then it is made anew.
    pub fn read(path: &Path) -> Option<Self> {
        let bytes = std::fs::read(path).ok()?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).ok()?;
        let tensors = SafeTensors::deserialize(&bytes).ok()?;
        let header: Header = serde_json::from_str(metadata.metadata().as_ref()?.get(HEADER_KEY)?).ok()?;
        let doubles = |name: String| -> Option<Vec<f64>> {
            let (chunks, _) = tensors.tensor(&name).ok()?.data().as_chunks::<8>();
            Some(chunks.iter().map(|&chunk| f64::from_le_bytes(chunk)).collect())
        };
        let gaussian = |(name, count): (String, Option<u64>)| -> Option<(String, Gaussian)> {
            let mean = doubles(format!("{name}.mean"))?;
            let columns = doubles(format!("{name}.covariance"))?;
            let width = mean.len();
            let whole = columns.len() == width * width;
            let covariance = whole.then(|| Mat::from_fn(width, width, |i, j| columns[j * width + i]))?;
            let gaussian = Gaussian {
                count,
                mean,
                covariance,
            };
            Some((name, gaussian))
        };
        let vectors = tensors.tensor(VECTORS).ok()?;
        let (chunks, _) = vectors.data().as_chunks::<4>();
        Some(Self {
            gaussians: header.counts.into_iter().map(gaussian).collect::<Option<_>>()?,
            vectors: Features {
                width: *vectors.shape().get(1)?,
                values: chunks.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect(),
            },
            picture_size: header.picture_size,
        })
    }
}

fn bytes_of(values: impl Iterator<Item = f64>) -> Vec<u8> {
    values.flat_map(f64::to_le_bytes).collect()
}
