//! What `deepflow bench loader` is measured against: `cargo bench -p deepflow-datasets --bench loader -- [copy|sizes]`.
//!
//! `copy` times memcpy of the same bytes in the same order with as many threads, and the loader beside it, taking the
//! posterior's mean and drawing from it. `sizes` times a sample in data sets of growing size. One JSON line each.
#![allow(clippy::unwrap_used)]

use deepflow_datasets::bench::{measure_copy, measure_loader, measure_scaling, Measurement, SyntheticDataset};
use deepflow_datasets::{Dataset, LoaderConfig, OpenOptions, Posterior};
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

const ROUNDS: usize = 3;

fn report(what: &str, samples: u64, config: &LoaderConfig, measured: &Measurement) {
    println!(
        "{}",
        serde_json::json!({
            "what": what, "samples": samples, "batch": config.batch_size, "readers": config.readers,
            "samples_per_second": measured.samples_per_second().round(),
            "microseconds_per_sample": 1e6 / measured.samples_per_second(),
        })
    );
}

fn copy(config: &LoaderConfig) {
    let folder = tempfile::tempdir().unwrap();
    let synthetic = SyntheticDataset::default();
    synthetic.write(folder.path()).unwrap();
    let dataset = Arc::new(Dataset::open(folder.path(), OpenOptions::default()).unwrap());
    let epoch = synthetic.samples as usize / config.batch_size;
    let never = AtomicBool::new(false);
    for _ in 0..ROUNDS {
        measure_copy(&dataset, config, epoch).unwrap();
        let copied = measure_copy(&dataset, config, 8 * epoch).unwrap();
        report("memcpy", synthetic.samples, config, &copied);
        for (what, posterior) in [("loader, mean", Posterior::Mean), ("loader, drawn", Posterior::Sample)] {
            let config = LoaderConfig {
                posterior,
                ..config.clone()
            };
            let loaded = measure_loader(&dataset, &config, epoch, 8 * epoch, &never).unwrap();
            report(what, synthetic.samples, &config, &loaded);
        }
    }
}

fn sizes(config: &LoaderConfig) {
    let folder = tempfile::tempdir().unwrap();
    let synthetic = SyntheticDataset {
        samples_per_shard: 250,
        distinct_shards: 4,
        ..SyntheticDataset::default()
    };
    let sizes = [1_000, 100_000, 1_000_000];
    for (samples, measured) in measure_scaling(folder.path(), &synthetic, config, &sizes, 400).unwrap() {
        report("loader, cost by size", samples, config, &measured);
    }
}

fn main() {
    let config = LoaderConfig {
        seed: 1,
        batch_size: 256,
        readers: 2,
        ..LoaderConfig::default()
    };
    let wanted = std::env::args().nth(1).unwrap_or_default();
    if wanted != "sizes" {
        copy(&config);
    }
    if wanted != "copy" {
        sizes(&config);
    }
}
