//! What a classifier sees in a folder of latents, in memory that does not grow with it.

use super::latents::LatentReader;
use super::network::Classifier;
use crate::evaluate::content_hash::content_hash;
use crate::evaluate::metrics::{Gaussian, GaussianAccumulator};
use crate::evaluate::pictures::shard_paths;
use crate::evaluate::statistics_file::StatisticsFile;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use anyhow::{ensure, Context};
use deepflow_datasets::Index;
use std::path::Path;

/// Latents the classifier sees at once.
const BATCH: usize = 512;

/// Names of the distributions in the cache.
const WHOLE: &str = "whole";
const EVEN: &str = "even";
const ODD: &str = "odd";

/// Features of a set, and of its two halves.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Judged {
    /// All samples.
    pub(super) whole: Gaussian,
    /// The samples of even and those of odd position; absent for fewer than four samples.
    pub(super) halves: Option<[Gaussian; 2]>,
    /// Share of the samples with a class that the classifier assigns to it; absent where none has one.
    pub(super) agreement: Option<f64>,
}

impl Judged {
    /// Shows every latent of the folder to the classifier.
    ///
    /// # Errors
    /// A shard is unreadable or of another shape than the classifier takes, there are too few samples, or the user interrupts.
    pub(super) fn compute(
        folder: &Path,
        index: &Index,
        network: &Classifier,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Self> {
        let name = folder.display().to_string();
        let progress = Progress::start(&name, "samples", 0, index.samples);
        let mut parts = [(); 3].map(|()| GaussianAccumulator::new(network.feature_width()));
        let (mut position, mut asked, mut agreeing) = (0usize, 0u64, 0u64);
        let mut reader = LatentReader::new(folder, index);
        loop {
            interrupt.check()?;
            let batch = reader.by_ref().take(BATCH).collect::<anyhow::Result<Vec<_>>>()?;
            if batch.is_empty() {
                break;
            }
            let latents: Vec<f32> = batch.iter().flat_map(|sample| &sample.latent).copied().collect();
            let seen = network.look(&latents)?;
            for features in seen.features.chunks_exact(network.feature_width()) {
                parts[0].add(features);
                parts[1 + position % 2].add(features);
                position += 1;
            }
            for (sample, &assigned) in batch.iter().zip(&seen.classes) {
                if let Some(class) = sample.class {
                    asked += 1;
                    agreeing += u64::from(class as usize == assigned);
                }
            }
            progress.advance(batch.len() as u64);
        }
        let [whole, even, odd] = parts.map(GaussianAccumulator::finish);
        Ok(Self {
            whole: whole.with_context(|| format!("{name}: {position} samples, expected at least 2"))?,
            halves: even.zip(odd).map(|(even, odd)| [even, odd]),
            agreement: (asked > 0).then(|| agreeing as f64 / asked as f64),
        })
    }

    /// [`Judged::compute`] without the agreement, unless `cache` holds the result for the same shards and classifier.
    ///
    /// # Errors
    /// As [`Judged::compute`]; a cache that cannot be written.
    pub(super) fn cached(
        folder: &Path,
        index: &Index,
        network: &Classifier,
        classifier_sha256: &str,
        cache: &Path,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Self> {
        let hash = content_hash(folder, &shard_paths(folder, index), &["classifier", classifier_sha256])?;
        let file = cache.join(format!("{hash}.safetensors"));
        if let Some(judged) = StatisticsFile::read(&file).and_then(Self::from_file) {
            tracing::info!("statistics of {} come from {}", folder.display(), file.display());
            return Ok(judged);
        }
        let judged = Self::compute(folder, index, network, interrupt)?;
        let mut content = StatisticsFile::default();
        content.gaussians.insert(WHOLE.to_owned(), judged.whole.clone());
        if let Some([even, odd]) = judged.halves.clone() {
            content
                .gaussians
                .extend([(EVEN.to_owned(), even), (ODD.to_owned(), odd)]);
        }
        content.write(&file)?;
        Ok(judged)
    }

    fn from_file(mut content: StatisticsFile) -> Option<Self> {
        let halves = content.gaussians.remove(EVEN).zip(content.gaussians.remove(ODD));
        Some(Self {
            whole: content.gaussians.remove(WHOLE)?,
            halves: halves.map(|(even, odd)| [even, odd]),
            agreement: None,
        })
    }

    /// Number of samples.
    pub(super) fn count(&self) -> u64 {
        self.whole.count.unwrap_or(0)
    }
}

/// Opens a folder of shards that the classifier can judge.
///
/// # Errors
/// There is no index, or its latents have another shape.
pub(super) fn open(folder: &Path, network: &Classifier, classifier: &Path) -> anyhow::Result<Index> {
    let index = Index::load(folder)?;
    let found = index.codec.latent_shape;
    ensure!(
        found == network.facts.latent_shape,
        "{}: latents of shape {found:?}, the classifier {} was trained on {:?}",
        folder.display(),
        classifier.display(),
        network.facts.latent_shape
    );
    Ok(index)
}
