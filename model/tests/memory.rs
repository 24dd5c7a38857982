//! The estimates of memory against what is allocated. Alone in its process, because it counts the whole process's memory.
#![allow(clippy::unwrap_used)]

#[path = "training/support.rs"]
#[allow(dead_code)]
mod support;

use deepflow_model::training::{LossSettings, OptimizerSettings, Trainer};
use deepflow_model::{sampling_memory, training_memory, Network, NetworkConfig, TrainingSizes, VeraConfig};
use dfdx::prelude::{Cpu, TensorFromVec};
use peak_alloc::PeakAlloc;

use support::{batch, RATES};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Estimates are for deciding whether something fits.
const TOLERANCE: f64 = 0.1;

/// The most bytes that are allocated at the same time while what `prepare` makes works, less those that were before.
fn peak<W: FnMut()>(prepare: impl FnOnce() -> W) -> usize {
    let before = HEAP.current_usage();
    let mut work = prepare();
    work();
    HEAP.reset_peak_usage();
    work();
    HEAP.peak_usage() - before
}

fn check(what: &str, estimate: usize, found: usize, failures: &mut Vec<String>) {
    let ratio = estimate as f64 / found as f64;
    let line = format!(
        "{what}: {:.1} MB estimated, {:.1} MB found: {ratio:.3}",
        mega(estimate),
        mega(found)
    );
    println!("{line}");
    if (ratio - 1.0).abs() > TOLERANCE {
        failures.push(line);
    }
}

fn mega(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// Deep enough for what is kept to outweigh what a single operator works on.
fn base() -> NetworkConfig {
    NetworkConfig {
        width: 128,
        depth: 8,
        heads: 4,
        latent_channels: 4,
        latent_size: 16,
        classes: 10,
        branch_ends: vec![4],
        acceleration_width: 256,
        ..NetworkConfig::default()
    }
}

fn training(config: &NetworkConfig, sizes: TrainingSizes, parts: usize) -> usize {
    peak(|| {
        let mut network: Network<f32, Cpu> = Network::new(config.clone(), Cpu::default(), 1).unwrap();
        network.set_checkpoint_blocks(sizes.checkpoint_blocks);
        let loss = LossSettings::published(config.branches());
        let mut trainer = Trainer::new(network, loss, OptimizerSettings::default(), sizes.samples, 0).unwrap();
        let batch = batch(config, 0, parts * sizes.samples);
        move || drop(trainer.step(&batch, RATES).unwrap())
    })
}

fn sampling(config: &NetworkConfig, samples: usize) -> usize {
    peak(|| {
        let network: Network<f32, Cpu> = Network::new(config.clone(), Cpu::default(), 1).unwrap();
        let values = vec![0.1; samples * config.latent_values()];
        let shape = (samples * config.tokens(), config.patch_values());
        let x = Cpu::default().tensor_from_vec(values, shape);
        let times = vec![vec![0.5]; config.branches()];
        let labels = vec![1; samples];
        move || drop(network.velocity(&x, &times, &labels).unwrap())
    })
}

#[test]
fn estimates_are_what_is_allocated() {
    let whole = |samples| TrainingSizes {
        samples,
        accumulates: false,
        checkpoint_blocks: false,
    };
    let without = |vera| NetworkConfig { vera, ..base() };
    let all = VeraConfig::default();
    let wide = NetworkConfig {
        width: 256,
        latent_size: 4,
        acceleration_width: 1024,
        ..base()
    };
    let wide_acceleration = NetworkConfig {
        acceleration_width: 1024,
        ..base()
    };
    let cases = [
        ("batch 8", base(), whole(8), 1),
        ("batch 32", base(), whole(32), 1),
        ("more weights than activations", wide.clone(), whole(2), 1),
        (
            "in parts",
            wide,
            TrainingSizes {
                accumulates: true,
                ..whole(16)
            },
            3,
        ),
        (
            "checkpointed",
            base(),
            TrainingSizes {
                checkpoint_blocks: true,
                ..whole(16)
            },
            1,
        ),
        (
            "SiT",
            NetworkConfig {
                branch_ends: Vec::new(),
                ..base()
            },
            whole(16),
            1,
        ),
        (
            "aligned",
            NetworkConfig {
                alignment_width: Some(96),
                projector_width: 512,
                qk_norm: true,
                branch_ends: vec![2, 5],
                ..base()
            },
            whole(16),
            1,
        ),
        (
            "no acceleration",
            without(VeraConfig {
                acceleration: false,
                ..all
            }),
            whole(16),
            1,
        ),
        (
            "no time gap",
            without(VeraConfig { time_gap: false, ..all }),
            whole(16),
            1,
        ),
        (
            "no cross attention",
            without(VeraConfig {
                cross_attention: false,
                ..all
            }),
            whole(16),
            1,
        ),
    ];
    // Threads keep buffers for the largest products they have seen; they belong to no network.
    training(&wide_acceleration, whole(32), 1);
    let mut failures = Vec::new();
    for (what, config, sizes, parts) in cases {
        let memory = training_memory(&config, sizes).unwrap();
        assert!(memory.peak < memory.state + memory.gradients + memory.activations * 2);
        check(what, memory.peak, training(&config, sizes, parts), &mut failures);
    }
    let sit = NetworkConfig {
        branch_ends: Vec::new(),
        ..base()
    };
    let heavy = NetworkConfig { width: 512, ..base() };
    for (what, config, samples) in [
        ("sampling", base(), 128),
        ("sampling with SiT", sit, 128),
        ("sampling with a wide acceleration", wide_acceleration, 128),
        ("sampling one", heavy, 1),
    ] {
        let found = sampling(&config, samples);
        check(what, sampling_memory(&config, samples).unwrap(), found, &mut failures);
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
