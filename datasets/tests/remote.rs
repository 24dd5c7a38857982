//! Remote shards from an HTTP server on loopback that misbehaves on purpose.
#![allow(clippy::unwrap_used)]

mod common;

use common::server::{loader, local_rows, only_shards, open, options_with, rows, Behaviour, Server};
use common::write;
use deepflow_datasets::{Compression, Dataset, Error, Polled};
use std::fs;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn a_server_that_refuses_drops_stalls_and_falls_short_changes_nothing() {
    for compression in [Compression::None, Compression::Zstd(1)] {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &[9, 8, 15], compression);
        let server = Server::start(folder.path(), |_, request| match request % 6 {
            0 => Behaviour::Refuse,
            1 => Behaviour::Drop,
            2 => Behaviour::Stall,
            3 => Behaviour::Short,
            _ => Behaviour::Serve,
        });
        let dataset = open(&server, |remote| remote.attempts = 60);
        assert!(!dataset.is_random_access());
        assert_eq!(rows(dataset).unwrap(), local_rows(folder.path()));
    }
}

#[test]
fn a_server_that_never_recovers_is_an_error_with_the_address() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[9], Compression::None);
    let server = Server::start(folder.path(), only_shards(Behaviour::Stall));
    let error = rows(open(&server, |remote| remote.attempts = 2)).unwrap_err();
    assert!(matches!(&error, Error::Remote { attempts: 2, .. }), "{error}");
    assert!(
        error.to_string().contains("/shards/latents-000000.tar") && !error.to_string().contains('\n'),
        "{error}"
    );
}

#[test]
fn what_is_not_there_is_not_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), |_, _| Behaviour::Serve);
    let open_error = |location: &str| Dataset::open_location(location, options_with(|_| ())).err().unwrap();
    let error = open_error(&server.url());
    assert!(matches!(&error, Error::NoRemoteIndex { .. }), "{error}");
    assert_eq!(server.requests.load(Ordering::Relaxed), 1);
    let error = open_error("gopher://host/shards");
    assert!(matches!(&error, Error::UnknownLocation { .. }), "{error}");

    write(folder.path(), &[9, 9], Compression::None);
    fs::remove_file(folder.path().join("latents-000001.tar")).unwrap();
    let error = rows(open(&server, |_| ())).unwrap_err();
    assert!(
        matches!(&error, Error::ShardMissing { shard, .. } if shard == "latents-000001.tar"),
        "{error}"
    );
}

#[test]
fn a_bit_that_flips_on_the_way_is_found_and_the_shard_fetched_once_more() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[9], Compression::None);
    let server = Server::start(folder.path(), only_shards(Behaviour::Corrupt));
    let error = rows(open(&server, |_| ())).unwrap_err();
    assert!(matches!(&error, Error::HashMismatch { .. }), "{error}");

    let server = Server::start(folder.path(), |name, request| {
        if name.contains(".tar") && request == 0 {
            Behaviour::Corrupt
        } else {
            Behaviour::Serve
        }
    });
    assert_eq!(rows(open(&server, |_| ())).unwrap(), local_rows(folder.path()));
}

#[test]
fn servers_without_ranges_are_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[9, 12], Compression::Zstd(1));
    let server = Server::start(folder.path(), |_, _| Behaviour::Whole);
    assert_eq!(rows(open(&server, |_| ())).unwrap(), local_rows(folder.path()));
}

#[test]
fn a_consumer_need_not_wait_for_a_stalled_server() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[9], Compression::None);
    let server = Server::start(folder.path(), only_shards(Behaviour::Stall));
    let mut loader = loader(open(&server, |remote| remote.attempts = 2)).unwrap();
    let patience = Duration::from_millis(10);
    assert!(matches!(loader.poll_batch(patience), Ok(Polled::Pending)));
    let error = loop {
        match loader.poll_batch(patience) {
            Ok(polled) => assert!(matches!(polled, Polled::Pending)),
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, Error::Remote { attempts: 2, .. }), "{error}");
    assert!(matches!(loader.poll_batch(patience), Ok(Polled::End)));
}

#[test]
fn dropping_a_loader_does_not_wait_for_a_stalled_server() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[9, 9], Compression::None);
    let server = Server::start(folder.path(), only_shards(Behaviour::Stall));
    let loader = loader(open(&server, |remote| remote.request_timeout = Duration::from_secs(25))).unwrap();
    // The loader has begun to fetch: planning starts with the loader, not with the first batch.
    // The first two requests are for the index.
    while server.requests.load(Ordering::Relaxed) < 3 {
        thread::sleep(Duration::from_millis(10));
    }
    let began = Instant::now();
    drop(loader);
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "dropping took {:?}",
        began.elapsed()
    );
}
