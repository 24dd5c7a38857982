//! Sampling allocates in every step what it has freed in the one before: the system is asked for nothing new.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;

use deepflow_model::ops::memory::keep_freed_memory;
use deepflow_model::sampling::{sample, IndexedNoise, Method, SamplerSettings};
use deepflow_model::{Network, NetworkConfig};
use dfdx::prelude::Cpu;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PAGE: usize = 4096;

/// Pages this process got from the system so far.
fn page_faults() -> usize {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    after_name.split_whitespace().nth(7).unwrap().parse().unwrap()
}

#[test]
fn steps_reuse_the_memory_of_the_steps_before() {
    keep_freed_memory();
    let config = NetworkConfig {
        width: 128,
        depth: 4,
        heads: 4,
        latent_size: 16,
        classes: 10,
        branch_ends: vec![2],
        acceleration_width: 256,
        ..NetworkConfig::default()
    };
    let (batch, steps) = (8, 12);
    // Of all that one evaluation allocates, only the widest layer of every block.
    let hidden_pages =
        config.depth * batch * config.tokens() * config.mlp_ratio * config.width * size_of::<f32>() / PAGE;
    let network: Network<f32, Cpu> = Network::new(config, Cpu::default(), 1).unwrap();
    let run = |steps| {
        let settings = SamplerSettings {
            method: Method::Euler,
            steps,
            ..SamplerSettings::default()
        };
        let noise = IndexedNoise {
            seed: 1,
            indices: (0..batch as u64).collect(),
        };
        let labels: Vec<usize> = (0..batch).collect();
        sample(&network, &settings, &labels, &noise, &mut |_| ControlFlow::Continue(())).unwrap();
    };
    run(2);
    let before = page_faults();
    run(steps);
    let faults = page_faults() - before;
    assert!(
        faults < hidden_pages,
        "{steps} steps touched {faults} new pages; one has {hidden_pages} in its hidden layers alone"
    );
}
