//! What `deepflow bench loader` is measured against: `cargo bench -p deepflow-datasets --bench loader -- [copy|sizes]`.
//!
//! `copy` times memcpy of the same bytes in the same order with as many threads, and the loader beside it, taking the
//! posterior's mean and drawing from it. `sizes` times a sample in data sets of growing size, in turn. One JSON line each.
#![allow(clippy::unwrap_used)]

use deepflow_datasets::bench::{measure_copy, measure_loader, Measurement, SyntheticDataset};
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
    let open = |samples: u64, resident_bytes: u64| {
        let folder = folder.path().join(samples.to_string());
        if !folder.exists() {
            let synthetic = SyntheticDataset {
                samples,
                // The same bytes in all sizes: only their places become more.
                samples_per_shard: 1_000,
                distinct_shards: 1,
                ..SyntheticDataset::default()
            };
            synthetic.write(&folder).unwrap();
        }
        let options = OpenOptions {
            resident_bytes,
            ..OpenOptions::default()
        };
        Arc::new(Dataset::open(&folder, options).unwrap())
    };
    let ways = [
        ("read at its place", 0),
        ("as by default", OpenOptions::default().resident_bytes),
    ];
    let sizes = [1_000, 100_000, 1_000_000];
    let datasets: Vec<_> = ways
        .iter()
        .flat_map(|&(way, resident_bytes)| sizes.map(|samples| (way, open(samples, resident_bytes))))
        .collect();
    let never = AtomicBool::new(false);
    for round in 0..ROUNDS {
        for (way, dataset) in &datasets {
            // Every shard is opened once before time is taken.
            let epoch = if round == 0 {
                dataset.len() as usize / config.batch_size
            } else {
                0
            };
            for (what, posterior) in [("mean", Posterior::Mean), ("drawn", Posterior::Sample)] {
                let config = LoaderConfig {
                    posterior,
                    ..config.clone()
                };
                let measured = measure_loader(dataset, &config, epoch.max(100), 1000, &never).unwrap();
                report(&format!("loader, {what}, {way}"), dataset.len(), &config, &measured);
            }
        }
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
