//! `cargo bench -p deepflow-datasets --bench loader`: samples a second from plain and compressed shards, and the cost of
//! copying the same bytes. One JSON line a measurement, for `benches/peers/compare.py`. `-- --quick` leaves out the cost
//! of a sample in data sets of growing size.
#![allow(clippy::unwrap_used)]

use deepflow_datasets::bench::{measure_copy, measure_loader, measure_scaling, Measurement, SyntheticDataset};
use deepflow_datasets::{Compression, Dataset, LoaderConfig, OpenOptions};
use std::sync::Arc;

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

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let config = LoaderConfig {
        seed: 1,
        batch_size: 256,
        readers: 2,
        ..LoaderConfig::default()
    };
    for compression in [Compression::None, Compression::Zstd(3)] {
        let synthetic = SyntheticDataset {
            compression,
            ..SyntheticDataset::default()
        };
        let path = folder.path().join(compression.extension());
        synthetic.write(&path).unwrap();
        let dataset = Arc::new(Dataset::open(&path, OpenOptions::default()).unwrap());
        let batches = synthetic.samples as usize / config.batch_size;
        for _ in 0..3 {
            if compression == Compression::None {
                measure_copy(&dataset, &config, batches).unwrap();
                report(
                    "copy",
                    synthetic.samples,
                    &config,
                    &measure_copy(&dataset, &config, 4 * batches).unwrap(),
                );
            }
            let name = format!("loader, .{}", compression.extension());
            report(
                &name,
                synthetic.samples,
                &config,
                &measure_loader(&dataset, &config, 4 * batches).unwrap(),
            );
        }
    }
    let synthetic = SyntheticDataset {
        samples_per_shard: 250,
        distinct_shards: 4,
        ..SyntheticDataset::default()
    };
    let sizes = [1_000, 100_000, 1_000_000];
    for (samples, measured) in measure_scaling(folder.path(), &synthetic, &config, &sizes, 400).unwrap() {
        report("loader, cost by size", samples, &config, &measured);
    }
}
