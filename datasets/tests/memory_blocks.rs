//! Memory does not grow with a data set of compressed shards. Alone in its process, because it looks at the process's
//! memory.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use common::peak_memory;
use deepflow_datasets::bench::SyntheticDataset;
use deepflow_datasets::{Compression, Dataset, Loader, LoaderConfig, LoaderState, OpenOptions, Shuffle};
use std::sync::Arc;

const LIMIT: u64 = 300 << 20;

#[test]
fn a_data_set_of_the_size_of_imagenet_is_shuffled_in_blocks_within_300_mb() {
    let folder = tempfile::tempdir().unwrap();
    let synthetic = SyntheticDataset {
        samples: 1_281_167,
        samples_per_shard: 64,
        distinct_shards: 16,
        compression: Compression::Zstd(1),
        ..SyntheticDataset::default()
    };
    synthetic.write(folder.path()).unwrap();
    let dataset = Arc::new(Dataset::open(folder.path(), OpenOptions::default()).unwrap());
    let config = LoaderConfig {
        shuffle: Shuffle::Block { samples: 4096 },
        ..LoaderConfig::default()
    };
    let mut loader = Loader::new(dataset, &config, LoaderState::default()).unwrap();
    // Ten blocks, far more than memory may hold at once.
    for _ in 0..160 {
        assert_eq!(loader.next_batch().unwrap().unwrap().len(), 256);
    }
    let peak = peak_memory();
    assert!(peak < LIMIT, "{} MB", peak >> 20);
}
