//! The velocity field the samplers integrate: the network with guidance and branch times.

use std::any::Any;

use dfdx::prelude::{Cpu, Dtype, HasShape};

use super::SamplerSettings;
use crate::error::ModelError;
use crate::network::Network;
use crate::ops::cpu::on_awake_pool;
use crate::ops::{scalar, Operators};
use crate::patches::{PatchGrid, PatchOrder};

/// Velocities of a batch of labelled samples.
pub(super) struct VelocityField<'a, E: Dtype, D: Operators<E>> {
    network: &'a Network<E, D>,
    settings: &'a SamplerSettings,
    labels: &'a [usize],
}

impl<'a, E: Dtype, D: Operators<E>> VelocityField<'a, E, D> {
    pub(super) fn new(network: &'a Network<E, D>, settings: &'a SamplerSettings, labels: &'a [usize]) -> Self {
        Self {
            network,
            settings,
            labels,
        }
    }

    /// Number of samples.
    pub(super) fn samples(&self) -> usize {
        self.labels.len()
    }

    /// Values of a sample.
    pub(super) fn values(&self) -> usize {
        self.network.config().latent_values()
    }

    /// Whether guidance applies at a time.
    pub(super) fn is_guided(&self, time: f64) -> bool {
        let (low, high) = self.settings.guidance_interval;
        self.settings.guidance > 1.0 && low <= time && time <= high
    }

    /// Velocities of all samples at one time, with or without guidance: one batch of 2B or of B.
    pub(super) fn at(&self, x: &[f64], time: f64, guided: bool) -> Result<Vec<f64>, ModelError> {
        let everyone: Vec<usize> = (0..self.samples()).collect();
        let guided: &[usize] = if guided { &everyone } else { &[] };
        self.evaluate(x, &[time], self.labels, guided)
    }

    /// Velocities of chosen samples, each at its own time and with guidance where its time asks for it.
    pub(super) fn of(&self, samples: &[usize], x: &[f64], times: &[f64]) -> Result<Vec<f64>, ModelError> {
        let labels: Vec<usize> = samples.iter().map(|&sample| self.labels[sample]).collect();
        let guided: Vec<usize> = (0..samples.len()).filter(|&i| self.is_guided(times[i])).collect();
        self.evaluate(x, times, &labels, &guided)
    }

    /// x (n,C,S,S), one common time or n of them, n labels; the samples `guided` are evaluated with "no class" as well,
    /// all in one batch.
    fn evaluate(&self, x: &[f64], times: &[f64], labels: &[usize], guided: &[usize]) -> Result<Vec<f64>, ModelError> {
        let values = self.values();
        let mut state = x.to_vec();
        let mut labels = labels.to_vec();
        let mut times = times.to_vec();
        let common_time = times.len() == 1;
        if let Some(no_class) = self.network.config().no_class() {
            for &sample in guided {
                state.extend_from_slice(&x[sample * values..][..values]);
                labels.push(no_class);
                if !common_time {
                    times.push(times[sample]);
                }
            }
        }
        let mut velocity = self.network_velocity(&state, &times, &labels)?;
        let unconditional = velocity.split_off(x.len());
        for (&sample, unconditional) in guided.iter().zip(unconditional.chunks_exact(values)) {
            let conditional = &mut velocity[sample * values..][..values];
            for (v, &u) in conditional.iter_mut().zip(unconditional) {
                *v = u + self.settings.guidance * (*v - u);
            }
        }
        Ok(velocity)
    }

    fn network_velocity(&self, state: &[f64], times: &[f64], labels: &[usize]) -> Result<Vec<f64>, ModelError> {
        let times = self.branch_times(times);
        // As a step of training: on the CPU on a thread of rayon's pool.
        let any: &dyn Any = self.network;
        match any.downcast_ref::<Network<f32, Cpu>>() {
            Some(network) => on_awake_pool(|| velocity_of(network, state, &times, labels)),
            None => velocity_of(self.network, state, &times, labels),
        }
    }

    fn branch_times(&self, times: &[f64]) -> Vec<Vec<f64>> {
        let offset = |branch: usize| self.settings.branch_times.get(branch).copied().unwrap_or(0.0);
        (0..self.network.config().branches())
            .map(|branch| times.iter().map(|t| (t + offset(branch)).clamp(0.0, 1.0)).collect())
            .collect()
    }
}

/// The network's velocities of the states (n,C,S,S).
fn velocity_of<E: Dtype, D: Operators<E>>(
    network: &Network<E, D>,
    state: &[f64],
    times: &[Vec<f64>],
    labels: &[usize],
) -> Result<Vec<f64>, ModelError> {
    let config = network.config();
    let grid = PatchGrid::from(config);
    let patches = grid.patchify(state, PatchOrder::ChannelFirst);
    let patches = patches.into_iter().map(scalar::<E>).collect();
    let shape = (labels.len() * config.tokens(), config.patch_values());
    let patches = network
        .device()
        .try_tensor_from_vec(patches, shape)
        .map_err(ModelError::device)?;
    let velocity = network.velocity(&patches, times, labels)?;
    let mut values = vec![E::default(); velocity.shape().0 * velocity.shape().1];
    velocity.copy_into(&mut values);
    let velocity = grid.unpatchify(&values, PatchOrder::ChannelLast);
    Ok(velocity
        .into_iter()
        .map(|value| value.to_f64().unwrap_or(f64::NAN))
        .collect())
}
