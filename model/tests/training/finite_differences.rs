use deepflow_model::training::{batch_losses, LossSettings, TrainingInputs};
use deepflow_model::{Network, NetworkConfig, VeraConfig};
use dfdx::prelude::{Backward, Cpu, NoneTape, OwnedTape, PutTape};

use crate::support::{batch, busy_network, config};

const SMALL: f64 = 1e-5;

fn total(network: &Network<f64, Cpu>, inputs: &TrainingInputs<f64, Cpu>, settings: &LossSettings) -> f64 {
    let terms = batch_losses(network, &mut NoneTape, inputs, settings, 1.0).unwrap();
    terms.values().total
}

/// The gradient of the whole loss against central differences, at two values of every parameter.
fn check(config: &NetworkConfig) {
    let mut network: Network<f64, Cpu> = busy_network(config);
    let settings = LossSettings {
        // The stop-gradient of the acceleration loss is no derivative of the loss: its velocities have weight 0 below.
        acceleration: 0.0,
        ..LossSettings::published(config.branches())
    };
    let batch = batch(config, 0, 2);
    let inputs = batch.draw(0..2, config, &settings, 1, 0, network.device()).unwrap();
    compare(&mut network, &inputs, &settings, |_| true);

    // The acceleration loss alone, for parameters that do not reach the velocity it is measured against.
    let only_acceleration = LossSettings {
        branch_weights: vec![0.0; config.branches()],
        alignment: 0.0,
        acceleration: 1.0,
        ..settings
    };
    compare(&mut network, &inputs, &only_acceleration, |name| {
        name.starts_with("final_acc_layer") || name.starts_with("df_blocks.1.acc_mlp")
    });
}

fn compare(
    network: &mut Network<f64, Cpu>,
    inputs: &TrainingInputs<f64, Cpu>,
    settings: &LossSettings,
    wanted: impl Fn(&str) -> bool,
) {
    let mut tape: OwnedTape<f64, Cpu> = OwnedTape::default();
    let terms = batch_losses(network, &mut tape, inputs, settings, 1.0).unwrap();
    let mut gradients = terms.total.put_tape(tape).backward();
    let trained: Vec<(usize, String)> = network
        .parameters()
        .into_iter()
        .enumerate()
        .filter(|(_, p)| p.is_trained() && wanted(p.name()))
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
                let loss = total(network, inputs, settings);
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
    check(&config());
}

#[test]
fn the_whole_loss_with_clamped_scales_and_without_query_key_norm() {
    check(&NetworkConfig {
        qk_norm: false,
        legacy_scaling: true,
        ..config()
    });
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
        check(&NetworkConfig { vera, ..config() });
    }
}
