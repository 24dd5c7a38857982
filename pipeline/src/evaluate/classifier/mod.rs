//! A judge for those without Inception's weights: a small classifier of latents, trained on the user's own shards.
//!
//! Its penultimate layer feeds the same Fréchet distance that FID is, but with other features, so the number is named
//! FD-classifier and always stands beside its floor: the distance between two halves of the real set.

mod fit;
mod latents;
mod network;

pub use fit::FitArgs;
pub use latents::{latent_of, LatentSet};
pub use network::{Classifier, ClassifierFacts};

use super::metrics::{frechet_distance, Features, Gaussian, GaussianAccumulator};
use crate::interrupt::Interrupt;
use anyhow::{ensure, Context};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

/// Latents the classifier sees at once.
const BATCH: usize = 512;

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
    pub generated_count: usize,
    /// Real samples.
    pub reference_count: usize,
    /// The generated set.
    pub generated: PathBuf,
    /// The real set.
    pub reference: PathBuf,
    /// How far the numbers can be trusted.
    pub trust: Vec<String>,
}

/// Measures latent shards with a classifier that `fit-features` wrote.
///
/// # Errors
/// One line that names the file, shard or key that is unreadable or does not fit the others.
pub fn evaluate(
    generated: &Path,
    reference: &Path,
    classifier: &Path,
    interrupt: &Interrupt,
) -> anyhow::Result<ClassifierReport> {
    let network = Classifier::load(classifier)?;
    let judge = |path: &Path| -> anyhow::Result<(LatentSet, Features<f32>, Vec<usize>)> {
        let set = LatentSet::read(path, usize::MAX, interrupt)?;
        ensure!(
            set.shape == network.facts.latent_shape,
            "{}: latents of shape {:?}, the classifier {} was trained on {:?}",
            path.display(),
            set.shape,
            classifier.display(),
            network.facts.latent_shape
        );
        let mut features = Features {
            width: network.feature_width(),
            values: Vec::new(),
        };
        let mut classes = Vec::new();
        for batch in set.values.chunks(set.width() * BATCH) {
            interrupt.check()?;
            let seen = network.look(batch)?;
            features.values.extend(seen.features);
            classes.extend(seen.classes);
        }
        Ok((set, features, classes))
    };
    let (real_set, real, _) = judge(reference)?;
    let (generated_set, fake, assigned) = judge(generated)?;
    let whole = |path: &Path, features: &Features<f32>| {
        fit_gaussian(features, |_| true)
            .with_context(|| format!("{}: {} samples, expected at least 2", path.display(), features.len()))
    };
    let (real_fit, fake_fit) = (whole(reference, &real)?, whole(generated, &fake)?);
    let few = || format!("{}: {} samples, expected at least 4", reference.display(), real.len());
    let even = fit_gaussian(&real, |row| row % 2 == 0).with_context(few)?;
    let odd = fit_gaussian(&real, |row| row % 2 == 1).with_context(few)?;

    let asked: Vec<(usize, usize)> = generated_set
        .classes
        .iter()
        .zip(&assigned)
        .filter_map(|(asked, &assigned)| Some(((*asked)? as usize, assigned)))
        .collect();
    let agreeing = asked.iter().filter(|(asked, assigned)| asked == assigned).count();
    let facts = &network.facts;
    let report = ClassifierReport {
        fd_classifier: frechet_distance(&real_fit, &fake_fit)?,
        real_versus_real: frechet_distance(&even, &odd)?,
        class_agreement: (!asked.is_empty()).then(|| agreeing as f64 / asked.len() as f64),
        held_out_accuracy: facts.held_out_accuracy,
        generated_count: generated_set.len(),
        reference_count: real_set.len(),
        generated: generated.to_owned(),
        reference: reference.to_owned(),
        trust: Vec::new(),
    };
    let features = network.feature_width();
    Ok(report.with_trust(features))
}

fn fit_gaussian(features: &Features<f32>, keep: impl Fn(usize) -> bool) -> Option<Gaussian> {
    let mut accumulator = GaussianAccumulator::new(features.width);
    (0..features.len())
        .filter(|&row| keep(row))
        .for_each(|row| accumulator.add(features.row(row)));
    accumulator.finish()
}

impl ClassifierReport {
    fn with_trust(mut self, features: usize) -> Self {
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
