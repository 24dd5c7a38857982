//! Loaders end: when they are dropped early, when their consumer panics, when a reader fails.
#![allow(clippy::unwrap_used)]

mod common;

use common::{open, write};
use deepflow_datasets::{Compression, Loader, LoaderConfig, LoaderState, Shuffle};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Runs `work` and fails if it has not ended after a minute.
fn ends(work: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::channel();
    let worker = thread::spawn(move || {
        work();
        done.send(()).unwrap();
    });
    if finished.recv_timeout(Duration::from_secs(60)) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("the loader hangs");
    }
    worker.join().unwrap();
}

#[cfg(target_os = "linux")]
fn threads() -> usize {
    let names = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("deepflow-")).count()
}

#[test]
fn loaders_that_are_dropped_after_any_number_of_batches_leave_no_threads() {
    let folder = tempfile::tempdir().unwrap();
    for (name, compression) in [("plain", Compression::None), ("zstd", Compression::Zstd(1))] {
        write(&folder.path().join(name), &[20; 12], compression);
    }
    let path = folder.path().to_owned();
    ends(move || {
        for round in 0..400_usize {
            let dataset = open(&path.join(if round % 2 == 0 { "plain" } else { "zstd" }));
            let config = LoaderConfig {
                batch_size: 1 + round % 7,
                readers: 1 + round % 4,
                prefetch: 1 + round % 3,
                shuffle: if round % 5 == 0 {
                    Shuffle::Block { samples: 45 }
                } else {
                    Shuffle::Auto
                },
                ..LoaderConfig::default()
            };
            let mut loader = Loader::new(dataset, &config, LoaderState::default()).unwrap();
            let kept: Vec<_> = loader.by_ref().take(round % 11).map(Result::unwrap).collect();
            drop(loader);
            assert_eq!(kept.len(), round % 11);
        }
        #[cfg(target_os = "linux")]
        assert_eq!(threads(), 0, "threads are left");
    });
}

#[test]
fn a_consumer_that_panics_joins_the_threads_while_it_unwinds() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[20; 4], Compression::Zstd(1));
    let path = folder.path().to_owned();
    ends(move || {
        let consumer = thread::spawn(move || {
            let config = LoaderConfig {
                batch_size: 4,
                ..LoaderConfig::default()
            };
            let mut loader = Loader::new(open(&path), &config, LoaderState::default()).unwrap();
            loader.next_batch().unwrap().unwrap();
            panic!("the consumer's own fault");
        });
        assert!(consumer.join().is_err());
    });
}

#[test]
fn an_error_ends_the_loader_once_and_for_all() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[20; 4], Compression::None);
    let path = folder.path().to_owned();
    ends(move || {
        let dataset = open(&path);
        // The class is beyond what the configuration allows, so that the first batch with such a sample fails.
        let config = LoaderConfig {
            batch_size: 4,
            classes: Some(3),
            ..LoaderConfig::default()
        };
        let mut loader = Loader::new(dataset, &config, LoaderState::default()).unwrap();
        assert!(loader.by_ref().any(|batch| batch.is_err()));
        assert!(loader.next().is_none() && loader.next_batch().unwrap().is_none());
    });
}
