//! Copies of remote shards on a local disk.
#![allow(clippy::unwrap_used)]

mod common;

use common::server::{local_rows, open, options_with, rows, Behaviour, Server};
use common::write;
use deepflow_datasets::{CacheOptions, Compression, Dataset};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn cached_shards(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.file_name().unwrap().len() == 64 + ".shard".len())
        .collect()
}

#[test]
fn the_cache_serves_shards_within_its_size_and_leaves_other_files_alone() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let index = write(folder.path(), &[9, 8, 10, 7], Compression::None);
    let largest = index.shards.iter().map(|shard| shard.bytes).max().unwrap();
    let server = Server::start(folder.path(), |_, _| Behaviour::Serve);
    let with_room_for = |bytes| {
        open(&server, |remote| {
            remote.cache = Some(CacheOptions {
                folder: cache.path().to_owned(),
                bytes,
            })
        })
    };
    fs::write(cache.path().join("notes.txt"), "mine").unwrap();
    fs::write(cache.path().join("mine.shard"), vec![0; 1 << 20]).unwrap();
    let expected = local_rows(folder.path());

    assert_eq!(rows(with_room_for(1 << 30)).unwrap(), expected);
    assert_eq!(cached_shards(cache.path()).len(), 4);
    let before = server.requests.load(Ordering::Relaxed);
    assert_eq!(rows(with_room_for(1 << 30)).unwrap(), expected);
    let fetched = server.requests.load(Ordering::Relaxed) - before;
    assert!(
        fetched <= 3,
        "the second run fetched more than the index: {fetched} requests"
    );

    // A damaged file is fetched again, and a small cache keeps to its size.
    cached_shards(cache.path())
        .iter()
        .for_each(|shard| fs::write(shard, "damaged").unwrap());
    assert_eq!(rows(with_room_for(1 << 30)).unwrap(), expected);
    cached_shards(cache.path())
        .iter()
        .for_each(|shard| fs::remove_file(shard).unwrap());
    assert_eq!(rows(with_room_for(2 * largest)).unwrap(), expected);
    let kept: u64 = cached_shards(cache.path())
        .iter()
        .map(|shard| fs::metadata(shard).unwrap().len())
        .sum();
    assert!(kept > 0 && kept <= 2 * largest, "{kept} bytes are kept");
    assert!(cache.path().join("notes.txt").exists() && cache.path().join("mine.shard").exists());
}

/// The variables that make a process of [`several_processes_share_a_cache`] one of its children.
const CHILD: &str = "DEEPFLOW_TEST_CACHE_CHILD";

/// Reads an epoch through the cache; run by [`several_processes_share_a_cache`] in processes of its own.
#[test]
fn child_that_reads_through_the_cache() {
    let Ok(settings) = std::env::var(CHILD) else { return };
    let [url, cache, bytes, local] = settings.split('|').collect::<Vec<_>>()[..] else {
        panic!("{settings}")
    };
    let mut options = options_with(|remote| {
        remote.cache = Some(CacheOptions {
            folder: cache.into(),
            bytes: bytes.parse().unwrap(),
        });
    });
    options.remote.request_timeout = Duration::from_secs(20);
    let dataset = Dataset::open_location(url, options).unwrap();
    assert_eq!(rows(dataset).unwrap(), local_rows(Path::new(local)));
}

#[test]
fn several_processes_share_a_cache() {
    const PROCESSES: usize = 6;
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let index = write(folder.path(), &[40, 40, 40, 40, 40], Compression::None);
    let largest = index.shards.iter().map(|shard| shard.bytes).max().unwrap();
    let fetched = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
    let counted = Arc::clone(&fetched);
    let server = Server::start(folder.path(), move |name, _| {
        *counted.lock().unwrap().entry(name.to_owned()).or_default() += 1;
        Behaviour::Serve
    });
    let run_all = |bytes: u64| {
        let settings = format!(
            "{}|{}|{bytes}|{}",
            server.url(),
            cache.path().display(),
            folder.path().display()
        );
        let children: Vec<_> = (0..PROCESSES)
            .map(|_| {
                let mut child = Command::new(std::env::current_exe().unwrap());
                child.args(["--exact", "child_that_reads_through_the_cache"]);
                child.env(CHILD, &settings).stdout(Stdio::null());
                child.spawn().unwrap()
            })
            .collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
    };
    // What a process that was killed in the middle of writing leaves behind.
    let stale = cache.path().join(format!(".{}.shard.partial", "0".repeat(64)));
    fs::write(&stale, vec![0; 1 << 20]).unwrap();

    run_all(1 << 30);
    assert!(!stale.exists());
    assert_eq!(cached_shards(cache.path()).len(), 5);
    let ranges = largest.div_ceil(5000) as usize;
    for (name, requests) in fetched.lock().unwrap().iter().filter(|(name, _)| name.contains(".tar")) {
        assert!(
            *requests <= ranges,
            "{name} was fetched more than once: {requests} requests for {ranges} ranges"
        );
    }

    // Room for two: the processes take each other's copies away all the time, and none of them notices.
    run_all(2 * largest);
    let kept: u64 = cached_shards(cache.path())
        .iter()
        .map(|shard| fs::metadata(shard).unwrap().len())
        .sum();
    assert!(kept <= 2 * largest, "{kept} bytes are kept");
    let left = fs::read_dir(cache.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let locks: Vec<_> = left
        .filter(|name| name.to_string_lossy().ends_with(".fetching"))
        .collect();
    assert!(locks.is_empty(), "{locks:?}");
}
