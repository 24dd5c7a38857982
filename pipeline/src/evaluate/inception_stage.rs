//! FID and its companions: a generated set against a reference.

use super::feature_set::{mode_name, FeatureSet};
use super::metrics::{
    frechet_distance, kernel_distance, kernel_subset_size, manifold_pairs, precision_recall, Features, PrecisionRecall,
};
use super::npz::{self, ReferenceStatistics};
use super::pictures::PictureSet;
use super::report::{Report, SetReport};
use crate::files::sha256;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use anyhow::{bail, ensure, Context};
use deepflow_model::inception::{Inception, ResizeMode, POOL_FEATURES};
use std::path::Path;

/// Reference pictures whose features precision, recall and KID use, as in ADM's evaluator.
const REFERENCE_VECTORS: usize = 10_000;
/// Generated pictures whose features they use.
const GENERATED_VECTORS: usize = 50_000;
/// Seed of KID's subsets.
const SUBSET_SEED: u64 = 0;

/// What to measure with what.
#[derive(Debug)]
pub struct InceptionEvaluation<'a> {
    /// Pictures to judge.
    pub generated: &'a Path,
    /// Real pictures, or their statistics.
    pub reference: &'a Path,
    /// File of Inception's weights.
    pub weights: &'a Path,
    /// The codec's weights, for latent shards that do not have them beside their index.
    pub codec_weights: Option<&'a Path>,
    /// How pictures are brought to 299×299.
    pub resize: ResizeMode,
    /// Where statistics of reference sets are kept; `None`: nowhere.
    pub cache: Option<&'a Path>,
    /// Where to write the reference's statistics as ADM's evaluator stores them.
    pub save_statistics: Option<&'a Path>,
}

/// A reference: its pictures' features, its statistics, or both.
struct Reference {
    features: Option<FeatureSet>,
    statistics: ReferenceStatistics,
}

impl InceptionEvaluation<'_> {
    /// Measures everything that the inputs allow.
    ///
    /// # Errors
    /// One line that names the file and what is wrong with it.
    pub fn run(&self, interrupt: &Interrupt) -> anyhow::Result<Report> {
        let weights_sha256 = sha256(self.weights)?;
        let network = Inception::load(self.weights)?;
        let generated_pictures = self.pictures(self.generated)?;
        let reference = self.reference(&network, &weights_sha256, interrupt)?;
        if let Some(path) = self.save_statistics {
            npz::write_statistics(path, &reference.statistics)?;
        }
        let generated = FeatureSet::compute(&generated_pictures, &network, self.resize, GENERATED_VECTORS, interrupt)?;
        if let Some(features) = &reference.features {
            let ((width, height), (found_width, found_height)) = (features.picture_size, generated.picture_size);
            ensure!(
                features.picture_size == generated.picture_size,
                "{}: pictures of {found_width}x{found_height}, the reference {} has {width}x{height}",
                self.generated.display(),
                self.reference.display()
            );
        }
        interrupt.check()?;
        let of_reference = || self.reference.display().to_string();
        let fid = frechet_distance(&reference.statistics.pool, &generated.pool).with_context(of_reference)?;
        interrupt.check()?;
        let spatial = reference.statistics.spatial.as_ref();
        let sfid = spatial.map(|spatial| frechet_distance(spatial, &generated.spatial));
        let sfid = sfid.transpose().with_context(of_reference)?;
        interrupt.check()?;
        let none = Features {
            width: POOL_FEATURES,
            values: Vec::new(),
        };
        let real = reference.features.as_ref().map_or(&none, |features| &features.vectors);
        let manifold = manifolds(real, &generated.vectors, interrupt)?;
        let subset = kernel_subset_size(real.len(), generated.vectors.len());
        let kernel = kernel_distance(real, &generated.vectors, subset, SUBSET_SEED);
        let report = Report {
            fid: fid.distance,
            sfid: sfid.map(|sfid| sfid.distance),
            inception_score: generated.score.map(|score| score.mean),
            inception_score_deviation: generated.score.map(|score| score.deviation),
            precision: manifold.map(|manifold| manifold.precision),
            recall: manifold.map(|manifold| manifold.recall),
            kid: kernel.map(|kernel| kernel.mean),
            kid_deviation: kernel.map(|kernel| kernel.deviation),
            generated: SetReport {
                path: self.generated.to_owned(),
                count: generated.pool.count,
                rank: None,
            },
            reference: SetReport {
                path: self.reference.to_owned(),
                count: reference.statistics.pool.count,
                rank: Some(fid.first_rank),
            },
            resize: mode_name(self.resize),
            weights_sha256,
            trust: Vec::new(),
        };
        Ok(report.with_trust(POOL_FEATURES as u64))
    }

    fn pictures(&self, path: &Path) -> anyhow::Result<PictureSet> {
        if !is_npz(path) {
            return PictureSet::open(path, self.codec_weights);
        }
        match npz::open(path)?.pictures {
            Some(array) => Ok(PictureSet::from_array(path, array)),
            None => bail!("{}: statistics only, expected pictures in arr_0", path.display()),
        }
    }

    fn reference(&self, network: &Inception, weights_sha256: &str, interrupt: &Interrupt) -> anyhow::Result<Reference> {
        let content = if is_npz(self.reference) {
            Some(npz::open(self.reference)?)
        } else {
            None
        };
        let (pictures, stored) = match content {
            Some(content) => {
                let pictures = content
                    .pictures
                    .map(|array| PictureSet::from_array(self.reference, array));
                (pictures, content.statistics)
            }
            None => (Some(PictureSet::open(self.reference, self.codec_weights)?), None),
        };
        let compute = |pictures: PictureSet| match self.cache {
            Some(cache) => FeatureSet::cached(
                &pictures,
                network,
                weights_sha256,
                self.resize,
                REFERENCE_VECTORS,
                cache,
                interrupt,
            ),
            None => FeatureSet::compute(&pictures, network, self.resize, REFERENCE_VECTORS, interrupt),
        };
        let features = pictures.map(compute).transpose()?;
        let computed = |features: &FeatureSet| ReferenceStatistics {
            pool: features.pool.clone(),
            spatial: Some(features.spatial.clone()),
        };
        // An archive with both holds statistics of more pictures than it shows: they count.
        match stored.or_else(|| features.as_ref().map(computed)) {
            Some(statistics) => Ok(Reference { features, statistics }),
            None => bail!("{}: neither pictures nor statistics", self.reference.display()),
        }
    }
}

/// Precision and recall, which take longest where there are many pictures.
fn manifolds(
    real: &Features<f32>,
    generated: &Features<f32>,
    interrupt: &Interrupt,
) -> anyhow::Result<Option<PrecisionRecall>> {
    let progress = Progress::start(
        "precision and recall",
        "pairs",
        0,
        manifold_pairs(real.len(), generated.len()),
    );
    precision_recall(real, generated, &|pairs| {
        progress.advance(pairs);
        Ok(interrupt.check()?)
    })
}

fn is_npz(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("npz"))
}
