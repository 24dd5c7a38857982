//! What is random about a training batch, and the matrices the network is trained with.

use std::ops::Range;

use deepflow_datasets::random::{Purpose, Stream};
use dfdx::prelude::Dtype;

use super::path::Path;
use super::settings::{LossSettings, TimeDistribution};
use crate::config::NetworkConfig;
use crate::error::ModelError;
use crate::ops::cpu::for_each_chunk;
use crate::ops::{scalar, Matrix, Operators};
use crate::patches::{PatchGrid, PatchOrder};

/// Where a sample stands in the order of the data; with the seed this decides everything random about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplePlace {
    /// Pass over the data.
    pub epoch: u32,
    /// Place within the epoch.
    pub position: u64,
}

/// Samples of one training step.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Latents (B,C,S,S) as the network sees them (sampled from the posterior and scaled).
    pub latents: Vec<f32>,
    /// Class indices (B).
    pub labels: Vec<usize>,
    /// Where each sample stands in the order of the data (B).
    pub places: Vec<SamplePlace>,
    /// Alignment targets (B,T,Z), when training aligns.
    pub features: Option<Vec<f32>>,
}

/// The tensors of a training forward pass and of its losses, for one part of a batch.
#[derive(Clone, Debug)]
pub struct TrainingInputs<E: Dtype, D: Operators<E>> {
    /// `x` at the first branch's times, (B·T, C·P·P), [`PatchOrder::ChannelFirst`].
    pub patches: Matrix<E, D>,
    /// Times of every branch, K lists of B.
    pub times: Vec<Vec<f64>>,
    /// Labels after class dropout (B).
    pub labels: Vec<usize>,
    /// Velocity of every branch's path, K of (B·T, P·P·C), [`PatchOrder::ChannelLast`].
    pub targets: Vec<Matrix<E, D>>,
    /// `x - data` at every inner branch's times, K-1 of (B·T, P·P·C), [`PatchOrder::ChannelLast`].
    pub displacements: Vec<Matrix<E, D>>,
    /// Alignment targets (B·T, Z).
    pub features: Option<Matrix<E, D>>,
}

impl Batch {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Checks the sizes against the configuration.
    ///
    /// # Errors
    /// [`ModelError::Input`] with the first that does not fit.
    pub fn check(&self, config: &NetworkConfig) -> Result<(), ModelError> {
        let expect = |what, found: usize, expected: usize| {
            if found == expected {
                return Ok(());
            }
            Err(ModelError::Input {
                what,
                found: format!("{found} values"),
                expected: format!("{expected} for {} samples", self.len()),
            })
        };
        expect("latents", self.latents.len(), self.len() * config.latent_values())?;
        expect("places", self.places.len(), self.len())?;
        if let (Some(features), Some(width)) = (&self.features, config.alignment_width) {
            expect("features", features.len(), self.len() * config.tokens() * width)?;
        }
        match self.labels.iter().find(|&&label| label >= config.classes) {
            None => Ok(()),
            Some(label) => Err(ModelError::Input {
                what: "label",
                found: label.to_string(),
                expected: format!("below model.classes = {}", config.classes),
            }),
        }
    }

    /// Draws noise, times and dropped labels for the samples `part`. Every draw is a function of `seed` and the
    /// sample's place (the sign of the gaps: of `seed` and `step`), so it does not depend on how a batch is split.
    ///
    /// # Errors
    /// The device's, when memory is short.
    pub fn draw<E: Dtype, D: Operators<E>>(
        &self,
        part: Range<usize>,
        config: &NetworkConfig,
        settings: &LossSettings,
        seed: u64,
        step: u64,
        device: &D,
    ) -> Result<TrainingInputs<E, D>, D::Err> {
        let (times, labels) = self.draw_times_and_labels(part.clone(), config, settings, seed, step);
        let places = &self.places[part.clone()];
        let values = config.latent_values();
        let mut noise = vec![0f32; part.len() * values];
        for_each_chunk(&mut noise, values, |sample, noise| {
            places[sample].stream(seed, Purpose::Noise).fill_normal(noise);
        });
        let latents = &self.latents[part.start * values..part.end * values];
        let features = self.features.as_ref().zip(config.alignment_width);
        let features = features.map(|(features, width)| {
            let per_sample = config.tokens() * width;
            &features[part.start * per_sample..part.end * per_sample]
        });
        TrainingInputs::new(config, settings.path, latents, &noise, times, labels, features, device)
    }

    /// The part of [`draw`](Self::draw) that is always done on the host: times of every branch, labels after dropout.
    pub(super) fn draw_times_and_labels(
        &self,
        part: Range<usize>,
        config: &NetworkConfig,
        settings: &LossSettings,
        seed: u64,
        step: u64,
    ) -> (Vec<Vec<f64>>, Vec<usize>) {
        let places = &self.places[part.clone()];
        let gap_sign = gap_sign(seed, step);
        let mut times = vec![Vec::with_capacity(part.len()); config.branches()];
        for place in places {
            let drawn = sample_times(settings, gap_sign, config.branches(), seed, *place);
            times.iter_mut().zip(drawn).for_each(|(list, time)| list.push(time));
        }
        let labels = self.labels[part]
            .iter()
            .zip(places)
            .map(|(&label, place)| dropped_label(label, config, seed, *place))
            .collect();
        (times, labels)
    }
}

impl SamplePlace {
    fn stream(self, seed: u64, purpose: Purpose) -> Stream {
        Stream::new(seed, purpose, self.epoch, self.position)
    }
}

impl<E: Dtype, D: Operators<E>> TrainingInputs<E, D> {
    /// Mixes data and noise at given times: `data` and `noise` (B,C,S,S), `features` (B,T,Z).
    ///
    /// # Errors
    /// The device's, when memory is short.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        config: &NetworkConfig,
        path: Path,
        data: &[f32],
        noise: &[f32],
        times: Vec<Vec<f64>>,
        labels: Vec<usize>,
        features: Option<&[f32]>,
        device: &D,
    ) -> Result<Self, D::Err> {
        let grid = PatchGrid::from(config);
        let rows = labels.len() * config.tokens();
        let columns = config.patch_values();
        let mix = |times: &[f64], order, weights: &dyn Fn(f64) -> (f64, f64)| {
            let mixed = mix::<E>(data, noise, config.latent_values(), times, weights);
            device.try_tensor_from_vec(grid.patchify(&mixed, order), (rows, columns))
        };
        let velocity = |t| path.velocity(t);
        let last = times.len() - 1;
        let targets = match path {
            // The same straight line for every branch.
            Path::Linear => {
                let target = mix(&times[0], PatchOrder::ChannelLast, &velocity)?;
                vec![target; times.len()]
            }
            Path::Cosine => times
                .iter()
                .map(|times| mix(times, PatchOrder::ChannelLast, &velocity))
                .collect::<Result<_, _>>()?,
        };
        let displacement = |t| {
            let (data, noise) = path.position(t);
            (data - 1.0, noise)
        };
        Ok(Self {
            patches: mix(&times[0], PatchOrder::ChannelFirst, &|t| path.position(t))?,
            targets,
            displacements: times[..last]
                .iter()
                .map(|times| mix(times, PatchOrder::ChannelLast, &displacement))
                .collect::<Result<_, _>>()?,
            features: features
                .map(|features| {
                    let values = features.iter().map(|&value| scalar(value.into())).collect();
                    device.try_tensor_from_vec(values, (rows, features.len() / rows))
                })
                .transpose()?,
            times,
            labels,
        })
    }
}

/// `a·data + b·noise` with the weights of each sample's time.
fn mix<E: Dtype>(
    data: &[f32],
    noise: &[f32],
    values: usize,
    times: &[f64],
    weights: &dyn Fn(f64) -> (f64, f64),
) -> Vec<E> {
    let samples = data.chunks_exact(values).zip(noise.chunks_exact(values));
    let mut mixed = Vec::with_capacity(data.len());
    for ((data, noise), &time) in samples.zip(times) {
        let (of_data, of_noise) = weights(time);
        let value =
            |(&data, &noise): (&f32, &f32)| scalar::<E>(of_data * f64::from(data) + of_noise * f64::from(noise));
        mixed.extend(data.iter().zip(noise).map(value));
    }
    mixed
}

/// +1 or -1, one for a whole batch.
fn gap_sign(seed: u64, step: u64) -> f64 {
    if Stream::new(seed, Purpose::TimeSign, 0, step).uniform(0) < 0.5 {
        1.0
    } else {
        -1.0
    }
}

fn sample_times(settings: &LossSettings, gap_sign: f64, branches: usize, seed: u64, place: SamplePlace) -> Vec<f64> {
    let stream = place.stream(seed, Purpose::Time);
    let first = match settings.times {
        TimeDistribution::LogitNormal => 1.0 / (1.0 + (-f64::from(stream.normal(0))).exp()),
        TimeDistribution::Uniform => f64::from(stream.uniform(0)),
    };
    let gaps = place.stream(seed, Purpose::TimeGap);
    let mut times = vec![first];
    for branch in 1..branches {
        let gap = gap_sign * settings.time_gap * f64::from(gaps.uniform(branch - 1));
        times.push((times[branch - 1] + gap).clamp(0.0, 1.0));
    }
    times
}

fn dropped_label(label: usize, config: &NetworkConfig, seed: u64, place: SamplePlace) -> usize {
    match config.no_class() {
        Some(no_class) => {
            let draw = place.stream(seed, Purpose::ClassDropout).uniform(0);
            if f64::from(draw) < config.class_dropout {
                no_class
            } else {
                label
            }
        }
        None => label,
    }
}
