//! Memory does not grow with the data set. Alone in its process, because it looks at the process's memory.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use deepflow_datasets::bench::SyntheticDataset;
use deepflow_datasets::{Dataset, Loader, LoaderConfig, LoaderState, OpenOptions};
use std::fs;
use std::sync::Arc;

const LIMIT: u64 = 300 << 20;

/// The largest memory this process has had, in bytes.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_data_set_of_the_size_of_imagenet_is_shuffled_within_300_mb() {
    let folder = tempfile::tempdir().unwrap();
    let synthetic = SyntheticDataset {
        samples: 1_281_167,
        samples_per_shard: 64,
        distinct_shards: 16,
        ..SyntheticDataset::default()
    };
    synthetic.write(folder.path()).unwrap();
    let options = OpenOptions {
        resident_bytes: 64 << 20,
        ..OpenOptions::default()
    };
    let dataset = Arc::new(Dataset::open(folder.path(), options).unwrap());
    assert_eq!(dataset.len(), 1_281_167);
    let config = LoaderConfig {
        prefetch: 3,
        ..LoaderConfig::default()
    };
    let mut loader = Loader::new(dataset, &config, LoaderState::default()).unwrap();
    // So many samples at random touch all but a few of the 20,019 shards.
    for _ in 0..500 {
        assert_eq!(loader.next_batch().unwrap().unwrap().len(), 256);
    }
    let peak = peak_memory();
    assert!(peak < LIMIT, "{} MB", peak >> 20);
}
