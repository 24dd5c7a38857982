//! Data sets for tests.
#![allow(dead_code, clippy::unwrap_used)]

pub mod server;

use deepflow_datasets::{
    Class, Codec, Compression, Dataset, DatasetPlan, DatasetWriter, Dtype, Index, OpenOptions, Sample,
};
use std::path::Path;
use std::sync::Arc;

pub const LATENT_SHAPE: [usize; 3] = [2, 3, 4];

pub fn plan(compression: Compression) -> DatasetPlan {
    let codec = Codec {
        name: "test".into(),
        weights_sha256: None,
        scale_factor: 0.18215,
        latent_shape: LATENT_SHAPE,
        dtype: Dtype::F32,
        resolution: 32,
        settings: Default::default(),
    };
    let classes = (0..10)
        .map(|index| Class {
            index,
            name: format!("class-{index}"),
            label: None,
        })
        .collect();
    DatasetPlan {
        name: "latents".into(),
        compression,
        codec,
        classes,
    }
}

/// Sample `number` has the mean `number` everywhere, the deviation 0.5, and the class `number mod 10`.
pub fn sample(number: usize) -> Sample {
    let [channels, height, width] = LATENT_SHAPE;
    let length = LATENT_SHAPE.iter().product::<usize>();
    let moments: Vec<f32> = (0..2 * length)
        .map(|i| if i < length { number as f32 } else { 0.5 })
        .collect();
    let mirrored: Vec<f32> = moments.iter().map(|value| -value).collect();
    let shape = [2 * channels, height, width];
    Sample::new(format!("folder/{number:05}"))
        .with_array("moments.npy", &moments, &shape, Dtype::F32)
        .unwrap()
        .with_array("moments_flip.npy", &mirrored, &shape, Dtype::F32)
        .unwrap()
        .with_class(number as u32 % 10)
        .with_array("features.npy", &[number as f32; 6], &[2, 3], Dtype::F16)
        .unwrap()
        .with_metadata(&serde_json::json!({ "number": number }))
        .unwrap()
}

pub fn write_shard(writer: &DatasetWriter, i: usize, numbers: std::ops::Range<usize>) {
    let mut shard = writer.begin_shard(i).unwrap();
    for number in numbers {
        shard.write(&sample(number)).unwrap();
    }
    shard.finish().unwrap();
}

pub fn write(folder: &Path, shards: &[usize], compression: Compression) -> Index {
    let writer = DatasetWriter::create(folder, plan(compression)).unwrap();
    let mut number = 0;
    for (i, &count) in shards.iter().enumerate() {
        write_shard(&writer, i, number..number + count);
        number += count;
    }
    writer.finish(shards.len()).unwrap()
}

pub fn open(folder: &Path) -> Arc<Dataset> {
    Arc::new(
        Dataset::open(
            folder,
            OpenOptions {
                table_cache: None,
                ..OpenOptions::default()
            },
        )
        .unwrap(),
    )
}

/// The largest memory this process has had, in bytes.
#[cfg(target_os = "linux")]
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
