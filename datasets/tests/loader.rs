//! The promises of the loader: order, resume, draws, shapes of batches.
#![allow(clippy::unwrap_used)]

mod common;

use common::{open, write};
use deepflow_datasets::random::{Purpose, Stream};
use deepflow_datasets::{
    order, Batch, Compression, Dataset, LastBatch, Loader, LoaderConfig, LoaderState, OpenOptions, Posterior, Shuffle,
};
use proptest::prelude::*;
use std::sync::Arc;

const SHARDS: [usize; 5] = [9, 4, 7, 11, 6];
const SAMPLES: u64 = 37;

fn config() -> LoaderConfig {
    LoaderConfig {
        seed: 5,
        batch_size: 8,
        epochs: Some(1),
        posterior: Posterior::Mean,
        ..LoaderConfig::default()
    }
}

fn batches(dataset: &Arc<Dataset>, config: &LoaderConfig, state: LoaderState) -> Vec<Batch> {
    Loader::new(Arc::clone(dataset), config, state)
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

/// (position, key, first number of the latent) of every row, in the order of delivery.
fn rows(batches: &[Batch]) -> Vec<(u64, String, f32)> {
    let row = |batch: &Batch, i: usize| (batch.positions[i], batch.keys[i].clone(), batch.latent(i)[0]);
    batches
        .iter()
        .flat_map(|batch| (0..batch.len()).map(|i| row(batch, i)).collect::<Vec<_>>())
        .collect()
}

#[test]
fn an_epoch_is_the_order_function_over_the_data_set() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &SHARDS, Compression::None);
    let dataset = open(folder.path());
    let config = LoaderConfig {
        last_batch: LastBatch::Pad,
        batch_size: 10,
        ..config()
    };
    let delivered = batches(&dataset, &config, LoaderState::default());
    assert_eq!(delivered.iter().map(|batch| batch.real as u64).sum::<u64>(), SAMPLES);
    for (position, key, value) in rows(&delivered) {
        let number = order(5, 0, position % SAMPLES, SAMPLES);
        assert_eq!(key, format!("folder/{number:05}"));
        assert_eq!(value, number as f32 * 0.18215_f32);
    }
    let last = delivered.last().unwrap();
    assert_eq!(
        (last.len(), last.real, last.classes.len(), last.latents.len()),
        (10, 7, 10, 10 * 24)
    );
    assert_eq!(
        last.next,
        LoaderState {
            epoch: 0,
            consumed: SAMPLES
        }
    );
}

/// Data sets too large to stay mapped are read sample by sample; with nothing allowed to be resident, so is a small one.
#[cfg(unix)]
#[test]
fn reading_at_positions_gives_what_mapping_gives_and_notices_a_shard_that_is_cut_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &SHARDS, Compression::None);
    let options = OpenOptions {
        table_cache: None,
        resident_bytes: 0,
        ..OpenOptions::default()
    };
    let positioned = Arc::new(Dataset::open(folder.path(), options).unwrap());
    let config = LoaderConfig {
        flip: true,
        features: true,
        posterior: Posterior::Sample,
        epochs: Some(2),
        ..config()
    };
    let mapped = batches(&open(folder.path()), &config, LoaderState::default());
    let read = batches(&positioned, &config, LoaderState::default());
    assert_eq!(rows(&read), rows(&mapped));
    for (read, mapped) in read.iter().zip(&mapped) {
        assert_eq!(*read.latents, *mapped.latents);
        assert_eq!((&read.classes, &read.features), (&mapped.classes, &mapped.features));
    }

    let shard = folder.path().join("latents-000003.tar");
    let file = std::fs::OpenOptions::new().write(true).open(&shard).unwrap();
    file.set_len(600).unwrap();
    let error = Loader::new(positioned, &config, LoaderState::default())
        .unwrap()
        .find_map(Result::err)
        .unwrap()
        .to_string();
    assert!(error.contains("latents-000003.tar"), "{error}");
}

#[test]
fn dropping_leaves_out_what_does_not_fill_a_batch_and_epochs_follow_each_other() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &SHARDS, Compression::None);
    let dataset = open(folder.path());
    let delivered = batches(
        &dataset,
        &LoaderConfig {
            epochs: Some(3),
            ..config()
        },
        LoaderState::default(),
    );
    let epochs: Vec<u32> = delivered.iter().map(|batch| batch.epoch).collect();
    assert_eq!(epochs, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]);
    assert!(delivered.iter().all(|batch| batch.len() == 8 && batch.real == 8));
    assert_ne!(rows(&delivered[..1]), rows(&delivered[4..5]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn ranks_readers_and_batch_sizes_never_change_the_global_sequence(
        world in 1_usize..=16, more in 0_usize..20, readers in 1_usize..4, prefetch in 1_usize..5,
        zstd: bool, block in 1_u64..40, shuffled: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &SHARDS, if zstd { Compression::Zstd(1) } else { Compression::None });
        let dataset = open(folder.path());
        let shuffle = match (shuffled, zstd) {
            (false, _) => Shuffle::None,
            (true, true) => Shuffle::Block { samples: block },
            (true, false) => Shuffle::Global,
        };
        let posterior = Posterior::Sample;
        let reference = LoaderConfig { shuffle, posterior, flip: true, batch_size: 1, readers: 1, ..config() };
        let expected = rows(&batches(&dataset, &reference, LoaderState::default()));
        prop_assert_eq!(expected.len() as u64, SAMPLES);
        let mut found: Vec<_> = (0..world).flat_map(|rank| {
            let config = LoaderConfig {
                batch_size: world + more, rank, world, readers, prefetch, last_batch: LastBatch::Pad, ..reference.clone()
            };
            rows(&batches(&dataset, &config, LoaderState::default()))
        }).collect();
        found.sort_by_key(|row| row.0);
        prop_assert_eq!(&found[..SAMPLES as usize], &expected[..]);
    }

    #[test]
    fn stopping_anywhere_and_continuing_with_other_threads_batches_and_ranks_gives_the_remaining_sequence(
        stop_after in 1_usize..4, first_batch in 1_usize..9, more in 0_usize..9, readers in 1_usize..4,
        world in 1_usize..=16, zstd: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &SHARDS, if zstd { Compression::Zstd(1) } else { Compression::None });
        let dataset = open(folder.path());
        let whole = LoaderConfig { batch_size: 1, posterior: Posterior::Sample, ..config() };
        let expected = rows(&batches(&dataset, &whole, LoaderState::default()));
        let before = LoaderConfig { batch_size: first_batch, ..whole.clone() };
        let mut loader = Loader::new(Arc::clone(&dataset), &before, LoaderState::default()).unwrap();
        let taken: Vec<Batch> = loader.by_ref().take(stop_after).map(Result::unwrap).collect();
        let state = loader.state();
        drop(loader);
        prop_assert_eq!(state.consumed as usize, stop_after * first_batch);
        let mut found = rows(&taken);
        for rank in 0..world {
            let after = LoaderConfig {
                batch_size: world + more, rank, world, readers, last_batch: LastBatch::Pad, ..whole.clone()
            };
            found.extend(rows(&batches(&dataset, &after, state)));
        }
        found.sort_by_key(|row| row.0);
        prop_assert_eq!(&found[..SAMPLES as usize], &expected[..]);
    }
}

#[test]
fn every_sample_is_drawn_from_its_own_counter() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &SHARDS, Compression::None);
    let dataset = open(folder.path());
    let config = LoaderConfig {
        posterior: Posterior::Sample,
        flip: true,
        scale_factor: Some(2.0),
        ..config()
    };
    for batch in batches(&dataset, &config, LoaderState::default()) {
        assert_eq!(batch.latents.as_ptr() as usize % 64, 0);
        for row in 0..batch.len() {
            let position = batch.positions[row];
            let mirrored = Stream::new(5, Purpose::Flip, 0, position).uniform(0) < 0.5;
            let sign = if mirrored { -1.0 } else { 1.0 };
            let number: f32 = batch.keys[row][7..].parse().unwrap();
            assert_eq!(batch.classes[row], number as u32 % 10);
            let stream = Stream::new(5, Purpose::Posterior, 0, position);
            for (i, &value) in batch.latent(row).iter().enumerate() {
                assert_eq!(value, (sign * number + sign * 0.5 * stream.normal(i)) * 2.0);
            }
        }
    }
}

#[test]
fn features_come_with_their_shape() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &SHARDS, Compression::Zstd(1));
    let config = LoaderConfig {
        features: true,
        ..config()
    };
    for batch in batches(&open(folder.path()), &config, LoaderState::default()) {
        let features = batch.features.as_ref().unwrap();
        assert_eq!((features.shape, features.data.len()), ([2, 3], batch.len() * 6));
        for (key, features) in batch.keys.iter().zip(features.data.chunks(6)) {
            assert!(features.iter().all(|&value| value == key[7..].parse::<f32>().unwrap()));
        }
    }
}

#[test]
fn counters_tell_what_was_delivered() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &SHARDS, Compression::None);
    let mut loader = Loader::new(open(folder.path()), &config(), LoaderState::default()).unwrap();
    while loader.next_batch().unwrap().is_some() {}
    let stats = loader.stats();
    assert_eq!(
        (stats.batches, stats.samples, stats.skipped, stats.bytes),
        (4, 32, 0, 32 * 24 * 4)
    );
    assert!((0.0..=1.0).contains(&stats.waiting_share()) && stats.samples_per_second() > 0.0);
    assert!(stats.to_string().contains("waiting for data"));
}
