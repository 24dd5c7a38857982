//! A judge for those without Inception's weights: a small classifier of latents, trained on the user's own shards.
//!
//! Its penultimate layer feeds the same Fréchet distance that FID is, but with other features, so the number is named
//! FD-classifier and always stands beside its floor: the distance between two halves of the real set.

mod fit;
mod judged;
mod latents;
mod network;

pub use fit::FitArgs;
pub use latents::{Labelled, LatentReader, LatentSet};
pub use network::{Classifier, ClassifierFacts};

use super::metrics::frechet_distance;
use crate::interrupt::Interrupt;
use anyhow::Context;
use judged::Judged;
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

/// What the classifier says about a generated set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassifierReport {
    /// Fréchet distance between the generated and the real set's features.
    pub fd_classifier: f64,
    /// The same between the samples of even and of odd position of the real set.
    pub real_versus_real: f64,
    /// Share of generated samples that the classifier assigns to the class that was asked for; absent without classes.
    pub class_agreement: Option<f64>,
    /// The classifier's accuracy on real samples it was not trained on.
    pub held_out_accuracy: f64,
    /// Generated samples.
    pub generated_count: u64,
    /// Real samples.
    pub reference_count: u64,
    /// The generated set.
    pub generated: PathBuf,
    /// The real set.
    pub reference: PathBuf,
    /// How far the numbers can be trusted.
    pub trust: Vec<String>,
}

/// Measures latent shards with a classifier that `fit-features` wrote; keeps the reference's statistics in `cache`.
///
/// # Errors
/// One line that names the file, shard or key that is unreadable or does not fit the others.
pub fn evaluate(
    generated: &Path,
    reference: &Path,
    classifier: &Path,
    cache: Option<&Path>,
    interrupt: &Interrupt,
) -> anyhow::Result<ClassifierReport> {
    let network = Classifier::load(classifier)?;
    let reference_index = judged::open(reference, &network, classifier)?;
    let generated_index = judged::open(generated, &network, classifier)?;
    let real = match cache {
        Some(cache) => {
            let sha256 = crate::files::sha256(classifier)?;
            Judged::cached(reference, &reference_index, &network, &sha256, cache, interrupt)?
        }
        None => Judged::compute(reference, &reference_index, &network, interrupt)?,
    };
    let fake = Judged::compute(generated, &generated_index, &network, interrupt)?;
    let few = || format!("{}: {} samples, expected at least 4", reference.display(), real.count());
    let [even, odd] = real.halves.as_ref().with_context(few)?;
    let facts = &network.facts;
    let of_reference = || reference.display().to_string();
    let of_both = || format!("{} beside {}", generated.display(), reference.display());
    // The reference by itself first: what is wrong with it is not to be blamed on both.
    let real_versus_real = frechet_distance(even, odd).with_context(of_reference)?.distance;
    let report = ClassifierReport {
        fd_classifier: frechet_distance(&real.whole, &fake.whole)
            .with_context(of_both)?
            .distance,
        real_versus_real,
        class_agreement: fake.agreement,
        held_out_accuracy: facts.held_out_accuracy,
        generated_count: fake.count(),
        reference_count: real.count(),
        generated: generated.to_owned(),
        reference: reference.to_owned(),
        trust: Vec::new(),
    };
    Ok(report.with_trust(network.feature_width() as u64))
}

impl ClassifierReport {
    fn with_trust(mut self, features: u64) -> Self {
        self.trust.push(
            "FD-classifier is not FID: compare it only between sets that this very classifier has judged".to_owned(),
        );
        if self.generated_count <= features || self.reference_count / 2 <= features {
            self.trust.push(format!(
                "too few samples for {features} features: the covariances are rank-deficient"
            ));
        }
        if self.fd_classifier < 2.0 * self.real_versus_real {
            self.trust
                .push("the distance is near its floor: this classifier cannot tell much better sets apart".to_owned());
        }
        self
    }
}

impl fmt::Display for ClassifierReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "FD-classifier    {:>10.4}", self.fd_classifier)?;
        writeln!(f, "real versus real {:>10.4} (the floor)", self.real_versus_real)?;
        if let Some(agreement) = self.class_agreement {
            writeln!(f, "class agreement  {:>9.2}%", 100.0 * agreement)?;
        }
        writeln!(
            f,
            "the classifier is right on {:.2}% of held-out real samples",
            100.0 * self.held_out_accuracy
        )?;
        for words in &self.trust {
            writeln!(f, "- {words}")?;
        }
        Ok(())
    }
}
