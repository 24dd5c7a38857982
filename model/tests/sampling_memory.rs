//! Sampling allocates in every step what it has freed in the one before: the system is asked for nothing new.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::ops::ControlFlow;
use std::thread::sleep;
use std::time::Duration;

use deepflow_model::ops::memory::{keep_freed_memory, use_small_pages};
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

/// A step of a large network takes longer than mimalloc waits by itself until it gives memory back.
fn memory_is_kept_for_longer_than_a_second() {
    const LARGE: usize = 64 << 20;
    let write = |bytes: usize| drop(black_box(vec![1u8; bytes]));
    write(LARGE);
    sleep(Duration::from_millis(1200));
    // What is due is given back when other memory is freed.
    (0..16).for_each(|_| write(1 << 20));
    let before = page_faults();
    write(LARGE);
    let (faults, pages) = (page_faults() - before, LARGE / PAGE);
    assert!(faults < pages / 4, "{faults} of {pages} pages were given back");
}

#[test]
fn steps_reuse_the_memory_of_the_steps_before() {
    // A fault that brings 2 MiB at once would hide 511 others.
    use_small_pages();
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
    let (batch, steps) = (8, 24);
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
    // A thread that has its first step among these touches what the others touched before.
    assert!(
        faults < steps * hidden_pages / 4,
        "{steps} steps touched {faults} new pages; one has {hidden_pages} in its hidden layers alone"
    );
    memory_is_kept_for_longer_than_a_second();
}
