use deepflow_model::{parameter_shapes, Network, NetworkConfig, VeraConfig};
use dfdx::prelude::{Cpu, NoneTape, TensorFromVec};

use crate::support::config;

/// Network spec §5: every output is zero and every block the identity.
#[test]
fn at_initialisation_outputs_are_zero_and_blocks_the_identity() {
    let deep = config();
    // The features at the first branch's end have passed one block in one network and three in the other.
    let shallow = NetworkConfig {
        branch_ends: vec![1, 3],
        ..deep.clone()
    };
    let late = NetworkConfig {
        branch_ends: vec![3],
        ..deep.clone()
    };
    let run = |config: &NetworkConfig| {
        let device = Cpu::default();
        let network: Network<f32, Cpu> = Network::new(config.clone(), device.clone(), 5).unwrap();
        let values: Vec<f32> = (0..2 * config.latent_values())
            .map(|i| (i as f32 * 0.3).sin())
            .collect();
        let shape = (2 * config.tokens(), config.patch_values());
        let patches = device.tensor_from_vec(values, shape);
        let times = vec![vec![0.3, 0.8]; config.branches()];
        network.forward(&mut NoneTape, &patches, &times, &[1, 5]).unwrap()
    };
    let outputs = run(&shallow);
    for matrix in outputs.velocities.iter().chain(&outputs.accelerations) {
        assert!(matrix.as_vec().iter().all(|&value| value == 0.0));
    }
    let first = outputs.features[0].as_vec();
    assert_eq!(first, run(&late).features[0].as_vec());
    assert!(first.iter().any(|&value| value != 0.0));
}

#[test]
fn initial_weights_depend_on_seed_and_name_only() {
    let weights = |seed, config: NetworkConfig| {
        let network: Network<f32, Cpu> = Network::new(config, Cpu::default(), seed).unwrap();
        let named = |p: &&deepflow_model::Parameter<f32, Cpu>| p.name() == "blocks.1.mlp.fc1.weight";
        network.parameters().into_iter().find(named).unwrap().values.as_vec()
    };
    let other_depth = NetworkConfig { depth: 6, ..config() };
    assert_eq!(weights(1, config()), weights(1, other_depth));
    assert_ne!(weights(1, config()), weights(2, config()));
}

/// Every combination of the components runs, and has the parameters of its components only.
#[test]
fn components_of_vera_can_be_left_out() {
    for mask in 0..8 {
        let vera = VeraConfig {
            acceleration: mask & 1 != 0,
            time_gap: mask & 2 != 0,
            cross_attention: mask & 4 != 0,
        };
        let config = NetworkConfig { vera, ..config() };
        let device = Cpu::default();
        let network: Network<f32, Cpu> = Network::new(config.clone(), device.clone(), 0).unwrap();
        let has = |part: &str| network.parameters().iter().any(|p| p.name().contains(part));
        assert_eq!(has("acc_mlp"), vera.acceleration);
        assert_eq!(has("final_acc_layer"), vera.acceleration);
        assert_eq!(has("dt_embedder"), vera.time_gap);
        assert_eq!(has("acc_norm.adaLN_modulation"), vera.time_gap);
        assert_eq!(has("acc_norm.mlp"), vera.acceleration || vera.time_gap);
        assert_eq!(has("cross_attention"), vera.cross_attention);
        let patches = device.tensor_from_vec(
            vec![0.1; config.latent_values()],
            (config.tokens(), config.patch_values()),
        );
        let times = vec![vec![0.5], vec![0.49], vec![0.48]];
        let outputs = network.forward(&mut NoneTape, &patches, &times, &[0]).unwrap();
        assert_eq!(outputs.velocities.len(), 3);
        assert_eq!(outputs.accelerations.len(), if vera.acceleration { 2 } else { 0 });
    }
}

#[test]
fn the_shapes_of_a_network_are_known_without_making_it() {
    for config in [
        config(),
        NetworkConfig {
            branch_ends: Vec::new(),
            class_dropout: 0.0,
            ..config()
        },
    ] {
        let network: Network<f32, Cpu> = Network::new(config.clone(), Cpu::default(), 0).unwrap();
        let made = network.parameters().into_iter();
        let made: Vec<_> = made.map(|p| (p.name().to_owned(), p.shape().to_vec())).collect();
        assert_eq!(parameter_shapes(&config).unwrap(), made);
    }
}

#[test]
fn sizes_that_no_memory_holds_are_refused() {
    for (key, config) in [
        (
            "model.width",
            NetworkConfig {
                width: 1 << 40,
                heads: 1,
                ..config()
            },
        ),
        (
            "model.depth",
            NetworkConfig {
                depth: usize::MAX,
                ..config()
            },
        ),
        (
            "model.classes",
            NetworkConfig {
                classes: usize::MAX,
                ..config()
            },
        ),
        (
            "model.latent_size",
            NetworkConfig {
                latent_size: 1 << 30,
                ..config()
            },
        ),
    ] {
        let error = config.validate().unwrap_err().to_string();
        assert!(error.starts_with(key) && error.contains("must be at most"), "{error}");
    }
}
