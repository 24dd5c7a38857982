use deepflow_model::training::{batch_losses, LossSettings, Path, TrainingInputs};
use deepflow_model::{Network, NetworkConfig, Outputs, VeraConfig};
use dfdx::prelude::{Backward, Cpu, NoneTape, OwnedTape, PutTape};

use crate::support::{batch, busy_network, config};

const SMALL: f64 = 1e-5;

/// The whole loss by its definition. The acceleration loss stops the gradient of its velocities: here they are `frozen`.
fn total(
    network: &Network<f64, Cpu>,
    inputs: &TrainingInputs<f64, Cpu>,
    settings: &LossSettings,
    frozen: &[Vec<f64>],
) -> f64 {
    let without_acceleration = LossSettings {
        acceleration: 0.0,
        ..settings.clone()
    };
    let terms = batch_losses(network, &mut NoneTape, inputs, &without_acceleration, 1.0).unwrap();
    let outputs = forward(network, inputs);
    let mut acceleration = 0.0;
    for (k, predicted) in outputs.accelerations.iter().enumerate() {
        let (predicted, displacements) = (predicted.as_vec(), inputs.displacements[k].as_vec());
        let per_sample = predicted.len() / inputs.labels.len();
        let errors = (0..predicted.len()).map(|i| {
            let t = inputs.times[k][i / per_sample];
            displacements[i] - t * frozen[k][i] + 0.5 * t * t * predicted[i]
        });
        acceleration += errors.map(|error| error * error).sum::<f64>() / predicted.len() as f64;
    }
    terms.values().total + settings.acceleration * acceleration
}

fn forward(network: &Network<f64, Cpu>, inputs: &TrainingInputs<f64, Cpu>) -> Outputs<f64, Cpu> {
    let TrainingInputs {
        patches, times, labels, ..
    } = inputs;
    network.forward(&mut NoneTape, patches, times, labels).unwrap()
}

/// The gradient of the whole loss against central differences, at two values of every parameter.
fn check(config: &NetworkConfig, path: Path) {
    let mut network: Network<f64, Cpu> = busy_network(config);
    let settings = LossSettings {
        path,
        ..LossSettings::published(config.branches())
    };
    let batch = batch(config, 0, 2);
    let inputs = batch.draw(0..2, config, &settings, 1, 0, network.device()).unwrap();
    let velocities = forward(&network, &inputs).velocities;
    let frozen: Vec<Vec<f64>> = velocities.iter().map(|velocity| velocity.as_vec()).collect();

    let mut tape: OwnedTape<f64, Cpu> = OwnedTape::default();
    let terms = batch_losses(&network, &mut tape, &inputs, &settings, 1.0).unwrap();
    let whole = total(&network, &inputs, &settings, &frozen);
    assert!((terms.values().total - whole).abs() < 1e-12 * whole);
    let mut gradients = terms.total.put_tape(tape).backward();
    let trained: Vec<(usize, String)> = network
        .parameters()
        .into_iter()
        .enumerate()
        .filter(|(_, p)| p.is_trained())
        .map(|(index, p)| (index, p.name().to_string()))
        .collect();
    for (index, name) in trained {
        let parameter = &network.parameters()[index].values;
        gradients.get_or_alloc_mut(parameter).unwrap();
        let analytic = gradients.get(parameter).as_vec();
        for place in [analytic.len() / 3, analytic.len() - 1] {
            let mut moved = |by: f64| {
                let original = network.parameters()[index].values.as_vec();
                let mut values = original.clone();
                values[place] += by;
                network.parameters_mut()[index].values.copy_from(&values);
                let loss = total(&network, &inputs, &settings, &frozen);
                network.parameters_mut()[index].values.copy_from(&original);
                loss
            };
            let numeric = (moved(SMALL) - moved(-SMALL)) / (2.0 * SMALL);
            let error = (numeric - analytic[place]).abs();
            let size = numeric.abs().max(1e-3);
            assert!(
                error < 1e-5 * size,
                "{name}[{place}]: {numeric} by differences, {} by tape",
                analytic[place]
            );
        }
    }
}

#[test]
fn the_whole_loss_with_every_feature() {
    check(&config(), Path::Linear);
}

#[test]
fn the_whole_loss_with_clamped_scales_and_without_query_key_norm() {
    let config = NetworkConfig {
        qk_norm: false,
        legacy_scaling: true,
        ..config()
    };
    check(&config, Path::Linear);
}

#[test]
fn the_whole_loss_without_components() {
    for vera in [
        VeraConfig {
            acceleration: false,
            ..VeraConfig::default()
        },
        VeraConfig {
            time_gap: false,
            ..VeraConfig::default()
        },
        VeraConfig {
            cross_attention: false,
            ..VeraConfig::default()
        },
    ] {
        check(&NetworkConfig { vera, ..config() }, Path::Linear);
    }
}

#[test]
fn the_whole_loss_on_the_cosine_path() {
    check(&config(), Path::Cosine);
}

#[test]
fn the_whole_loss_of_one_branch() {
    let config = NetworkConfig {
        branch_ends: Vec::new(),
        alignment_width: None,
        ..config()
    };
    check(&config, Path::Linear);
}
