//! The network as a whole, and the three kinds of features that metrics are made of.

use super::blocks::{halving_max_pool, BasicConv, Builder, Mixed, MixedOutput, POINT, THREE, THREE_HALF, THREE_SAME};
use super::error::InceptionError;
use super::weights::{WeightSource, WeightsFile};
use crate::ops::conv::{FeatureMap, Pool, Pooling};
use rayon::prelude::*;
use std::path::Path;

/// Height and width of the pictures the network takes.
pub const INPUT_SIZE: usize = 299;
/// Numbers in the pooled feature vector (FID, KID, precision and recall).
pub const POOL_FEATURES: usize = 2048;
/// Numbers in the spatial feature vector (sFID): 7 channels of 17×17.
pub const SPATIAL_FEATURES: usize = SPATIAL_CHANNELS * 17 * 17;
/// Outputs of the classifier (Inception Score).
pub const CLASSES: usize = 1008;

const SPATIAL_CHANNELS: usize = 7;

/// Inception-v3 with the differences FID needs.
pub struct Inception {
    stem: Vec<BasicConv>,
    middle: Vec<BasicConv>,
    before_spatial: Vec<Mixed>,
    spatial: Mixed,
    after_spatial: Vec<Mixed>,
    classifier_weight: Vec<f32>,
    classifier_bias: Vec<f32>,
}

/// What the network says about a batch; one row a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct InceptionFeatures {
    /// `(batch, 2048)`
    pub pool: Vec<f32>,
    /// `(batch, 7·17·17)`: the first 7 channels of the first branch of Mixed_6d.
    pub spatial: Vec<f32>,
    /// `(batch, 1008)` without the bias, which is what the Inception Score's softmax takes.
    pub logits_without_bias: Vec<f32>,
}

impl Inception {
    /// Reads weights under torchvision's names from safetensors or a torch file.
    ///
    /// # Errors
    /// The file is unreadable, or a tensor is missing or has another shape; extra tensors (an auxiliary head) are ignored.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, InceptionError> {
        WeightsFile::open(path.as_ref(), |weights| Self::new(weights))
    }

    /// Builds the network from any source of weights.
    ///
    /// # Errors
    /// The source has no tensor of a name and shape.
    pub fn new(weights: &impl WeightSource) -> Result<Self, InceptionError> {
        let at = |name: &'static str| Builder { weights, name };
        Ok(Self {
            stem: vec![
                at("Conv2d_1a_3x3").conv("", 3, 32, THREE_HALF)?,
                at("Conv2d_2a_3x3").conv("", 32, 32, THREE)?,
                at("Conv2d_2b_3x3").conv("", 32, 64, THREE_SAME)?,
            ],
            middle: vec![
                at("Conv2d_3b_1x1").conv("", 64, 80, POINT)?,
                at("Conv2d_4a_3x3").conv("", 80, 192, THREE)?,
            ],
            before_spatial: vec![
                Mixed::a(&at("Mixed_5b"), 192, 32)?,
                Mixed::a(&at("Mixed_5c"), 256, 64)?,
                Mixed::a(&at("Mixed_5d"), 288, 64)?,
                Mixed::b(&at("Mixed_6a"), 288)?,
                Mixed::c(&at("Mixed_6b"), 128)?,
                Mixed::c(&at("Mixed_6c"), 160)?,
            ],
            spatial: Mixed::c(&at("Mixed_6d"), 160)?,
            after_spatial: vec![
                Mixed::c(&at("Mixed_6e"), 192)?,
                Mixed::d(&at("Mixed_7a"))?,
                Mixed::e(&at("Mixed_7b"), 1280, Pooling::AverageWithoutPadding)?,
                Mixed::e(&at("Mixed_7c"), 2048, Pooling::Maximum)?,
            ],
            classifier_weight: weights.tensor("fc.weight", &[CLASSES, POOL_FEATURES])?,
            classifier_bias: weights.tensor("fc.bias", &[CLASSES])?,
        })
    }

    /// Features of a batch of pictures `(batch, 3, 299, 299)` with values in 0..=255.
    ///
    /// # Errors
    /// The number of values fits no batch.
    pub fn features(&self, pictures: &[f32]) -> Result<InceptionFeatures, InceptionError> {
        let picture = 3 * INPUT_SIZE * INPUT_SIZE;
        let batch = pictures.len() / picture;
        if batch == 0 || !pictures.len().is_multiple_of(picture) {
            return Err(InceptionError::Input { found: pictures.len() });
        }
        let input: Vec<f32> = pictures.par_iter().map(|value| (value - 128.0) / 128.0).collect();
        let mut x = FeatureMap::from_nchw(&input, [batch, 3, INPUT_SIZE, INPUT_SIZE])?;
        for layer in &self.stem {
            x = layer.forward(&x)?;
        }
        x = halving_max_pool(&x)?;
        for layer in &self.middle {
            x = layer.forward(&x)?;
        }
        x = halving_max_pool(&x)?;
        for block in &self.before_spatial {
            x = block.forward(&x)?.joined;
        }
        let MixedOutput { joined, first_branch } = self.spatial.forward(&x)?;
        x = joined;
        for block in &self.after_spatial {
            x = block.forward(&x)?.joined;
        }
        let pool = Pool::global_average(&x);
        Ok(InceptionFeatures {
            logits_without_bias: self.classify(&pool),
            spatial: first_channels(&first_branch, SPATIAL_CHANNELS),
            pool,
        })
    }

    /// The bias of the classifier, `(1008,)`: logits are [`InceptionFeatures::logits_without_bias`] plus this.
    pub fn classifier_bias(&self) -> &[f32] {
        &self.classifier_bias
    }

    fn classify(&self, pool: &[f32]) -> Vec<f32> {
        let rows = pool.par_chunks_exact(POOL_FEATURES);
        let products = |features: &[f32]| -> Vec<f32> {
            let product =
                |weights: &[f32]| weights.iter().zip(features).map(|(w, f)| f64::from(w * f)).sum::<f64>() as f32;
            self.classifier_weight
                .chunks_exact(POOL_FEATURES)
                .map(product)
                .collect()
        };
        rows.flat_map_iter(products).collect()
    }
}

fn first_channels(map: &FeatureMap, channels: usize) -> Vec<f32> {
    let pixels = map.height() * map.width();
    let all = map.to_nchw();
    all.chunks_exact(map.channels() * pixels)
        .flat_map(|picture| &picture[..channels * pixels])
        .copied()
        .collect()
}
