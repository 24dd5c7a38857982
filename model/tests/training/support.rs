//! A small network and batches for it.

use deepflow_model::ops::Operators;
use deepflow_model::training::{Batch, LossSettings, OptimizerSettings, SamplePlace, StepRates, Trainer};
use deepflow_model::{Network, NetworkConfig};
use dfdx::prelude::{Cpu, Dtype};

pub const RATES: StepRates = StepRates {
    learning_rate: 1e-3,
    ema_decay: 0.9,
};

pub fn config() -> NetworkConfig {
    NetworkConfig {
        width: 16,
        depth: 4,
        heads: 2,
        patch: 2,
        latent_channels: 3,
        latent_size: 4,
        classes: 5,
        branch_ends: vec![1, 3],
        acceleration_width: 12,
        class_dropout: 0.3,
        qk_norm: true,
        alignment_width: Some(6),
        projector_width: 10,
        ..NetworkConfig::default()
    }
}

/// `samples` samples that stand at `first`, `first + 1`, … of the order.
pub fn batch(config: &NetworkConfig, first: u64, samples: usize) -> Batch {
    let wave = |scale: f64, count: usize| -> Vec<f32> {
        (0..count)
            .map(|i| ((first as f64 + i as f64) * scale).sin() as f32)
            .collect()
    };
    Batch {
        latents: wave(0.37, samples * config.latent_values()),
        labels: (0..samples).map(|i| (first as usize + i) % config.classes).collect(),
        places: (0..samples as u64)
            .map(|i| SamplePlace {
                epoch: 0,
                position: first + i,
            })
            .collect(),
        features: config
            .alignment_width
            .map(|width| wave(0.71, samples * config.tokens() * width)),
    }
}

/// A network none of whose parameters is zero, so that every path carries a gradient.
pub fn busy_network<E: Dtype, D: Operators<E>>(config: &NetworkConfig) -> Network<E, D> {
    let mut network = Network::new(config.clone(), D::default(), 7).unwrap();
    for (index, parameter) in network.parameters_mut().into_iter().enumerate() {
        if parameter.is_trained() {
            let mut values = parameter.values.as_vec();
            for (i, value) in values.iter_mut().enumerate() {
                *value += E::from_f64(0.2 * ((index * 31 + i) as f64 * 1.7).sin()).unwrap();
            }
            parameter.values.copy_from(&values);
        }
    }
    network
}

pub fn trainer(micro_batch: usize) -> Trainer<f32, Cpu> {
    trainer_of(config(), micro_batch)
}

pub fn trainer_of(config: NetworkConfig, micro_batch: usize) -> Trainer<f32, Cpu> {
    let loss = LossSettings::published(config.branches());
    Trainer::new(
        busy_network(&config),
        loss,
        OptimizerSettings::default(),
        micro_batch,
        3,
    )
    .unwrap()
}

/// Bits of all weights, moments and averages.
pub fn bits(trainer: &Trainer<f32, Cpu>) -> Vec<u32> {
    let state = trainer.state();
    let weights = trainer.network().parameters().into_iter().map(|p| &p.values);
    weights
        .chain(&state.ema)
        .chain(&state.first_moments)
        .chain(&state.second_moments)
        .flat_map(|values| values.as_vec())
        .map(f32::to_bits)
        .collect()
}
