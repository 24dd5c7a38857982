//! Memory does not grow with a data set of plain tars. Alone in its process, because it looks at the process's memory.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use common::peak_memory;
use deepflow_datasets::bench::SyntheticDataset;
use deepflow_datasets::{Dataset, Loader, LoaderConfig, LoaderState, OpenOptions};
use std::sync::Arc;

const LIMIT: u64 = 300 << 20;

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
