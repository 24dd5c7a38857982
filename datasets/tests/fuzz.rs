//! Damaged input of every kind must give an error, never a panic, a hang or a flood of memory.
//!
//! Each target runs for `DEEPFLOW_FUZZ_SECONDS` (default 2; continuous integration sets 60) on mutations of valid
//! files, beginning with the seed `DEEPFLOW_FUZZ_SEED`. A failure names the seed that repeats it.
#![allow(clippy::unwrap_used)]

mod common;

use deepflow_datasets::random::{Purpose, Stream};
use deepflow_datasets::{to_npy, Array, Compression, Dtype, Index, Limits, OffsetTable, ShardReader};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Cursor;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::{Duration, Instant};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// The choices of one case, one after the other.
struct Choices {
    stream: Stream,
    drawn: usize,
}

impl Choices {
    fn below(&mut self, bound: usize) -> usize {
        self.drawn += 1;
        self.stream.below(self.drawn, bound.max(1) as u64) as usize
    }
}

const DIGITS: &[u8] = b"0179-( {[':,";

/// A few changes of the kinds that break parsers: bits, bytes, extreme numbers, digits, cuts, repetitions, splices.
fn mutate(seeds: &[Vec<u8>], choices: &mut Choices) -> Vec<u8> {
    let mut bytes = seeds[choices.below(seeds.len())].clone();
    for _ in 0..1 + choices.below(6) {
        let place = choices.below(bytes.len());
        let length = 1 + choices.below(64);
        let end = (place + length).min(bytes.len());
        match choices.below(9) {
            _ if bytes.is_empty() => bytes.push(choices.below(256) as u8),
            0 => bytes[place] ^= 1 << choices.below(8),
            1 => bytes[place] = choices.below(256) as u8,
            2 => bytes[place] = DIGITS[choices.below(DIGITS.len())],
            3 => bytes[place..end].fill([0, 0xff, 0x7f, 0x80, b'7', b'9'][choices.below(6)]),
            4 => bytes.truncate(place),
            5 => drop(bytes.drain(place..end)),
            6 => {
                let copy = bytes[place..end].to_vec();
                let target = choices.below(bytes.len());
                bytes.splice(target..target, copy);
            }
            7 => {
                let other = &seeds[choices.below(seeds.len())];
                bytes.truncate(place);
                bytes.extend(&other[place.min(other.len())..]);
            }
            _ => {
                let block = place / 512 * 512;
                let target = choices.below(bytes.len()) / 512 * 512;
                let copy = bytes[block..(block + 512).min(bytes.len())].to_vec();
                bytes.splice(target..target, copy);
            }
        }
    }
    bytes
}

fn fuzz(target: &str, seeds: &[Vec<u8>], check: impl Fn(&[u8], &mut Choices)) {
    let limit = Duration::from_secs(setting("DEEPFLOW_FUZZ_SECONDS", 2));
    let first = setting("DEEPFLOW_FUZZ_SEED", 0);
    let began = Instant::now();
    let mut seed = first;
    while began.elapsed() < limit {
        let mut choices = Choices {
            stream: Stream::new(seed, Purpose::Synthetic, 0, 0),
            drawn: 0,
        };
        let bytes = mutate(seeds, &mut choices);
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&bytes, &mut choices)));
        assert!(
            outcome.is_ok(),
            "{target} panicked: DEEPFLOW_FUZZ_SEED={seed} repeats it"
        );
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "{target} hung: DEEPFLOW_FUZZ_SEED={seed} repeats it"
        );
        seed += 1;
    }
    assert!(seed > first + 100, "{target}: only {} cases", seed - first);
}

/// Makes the checksums of all tar headers right again, so that mutations reach what lies behind them.
fn repair_checksums(tar: &mut [u8]) {
    for block in tar.as_chunks_mut::<512>().0 {
        if &block[257..262] == b"ustar" {
            let mut header = tar::Header::from_byte_slice(block).clone();
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
    }
}

#[test]
fn tar() {
    let folder = tempfile::tempdir().unwrap();
    common::write(folder.path(), &[2], Compression::None);
    common::write(&folder.path().join("zstd"), &[2], Compression::Zstd(1));
    let mut seeds = vec![fs::read(folder.path().join("latents-000000.tar")).unwrap()];
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/webdataset");
    seeds.extend(
        fs::read_dir(fixtures)
            .unwrap()
            .map(|entry| fs::read(entry.unwrap().path()).unwrap()),
    );
    seeds.push(fs::read(folder.path().join("zstd/latents-000000.tar.zst")).unwrap());
    let limits = Limits {
        shard_bytes: 8 << 20,
        ..Limits::default()
    };
    fuzz("tar", &seeds, |bytes, choices| {
        let mut bytes = bytes.to_vec();
        if choices.below(2) == 0 {
            repair_checksums(&mut bytes);
        }
        if let Ok(table) = OffsetTable::of_tar(&bytes, "fuzz", limits) {
            let members = (0..table.len()).flat_map(|sample| table.members(sample));
            assert!(members
                .into_iter()
                .all(|member| (member.offset + u64::from(member.size)) as usize <= bytes.len()));
        }
        let Ok(reader) = ShardReader::new(Cursor::new(bytes), "fuzz", limits) else {
            return;
        };
        for sample in reader.flatten() {
            let _ = (sample.class("fuzz"), sample.array("moments.npy", "fuzz"));
        }
    });
}

#[test]
fn npy() {
    let seeds: Vec<_> = [Dtype::F16, Dtype::F32, Dtype::F64]
        .map(|dtype| to_npy(&[1.5; 24], &[2, 3, 4], dtype).unwrap())
        .into_iter()
        .collect();
    fuzz("npy", &seeds, |bytes, _| {
        if let Ok(array) = Array::from_npy(bytes) {
            assert_eq!(array.data.len(), array.shape.iter().product::<usize>());
        }
    });
}

#[test]
fn index() {
    let folder = tempfile::tempdir().unwrap();
    let seeds = [common::write(folder.path(), &[2, 3], Compression::Zstd(1))
        .to_json()
        .into_bytes()];
    fuzz("index", &seeds, |bytes, _| {
        if let Ok(index) = Index::from_bytes(bytes, "fuzz") {
            assert_eq!(
                index.samples,
                index.shards.iter().map(|shard| shard.samples).sum::<u64>()
            );
        }
    });
}

#[test]
fn offset_table() {
    let folder = tempfile::tempdir().unwrap();
    common::write(folder.path(), &[5], Compression::None);
    let seeds = [fs::read(folder.path().join("latents-000000.tar.offsets")).unwrap()];
    fuzz("offset table", &seeds, |bytes, choices| {
        let mut bytes = bytes.to_vec();
        // With the hash made right, the fields behind it are what is tested.
        if let (Some(content), true) = (bytes.len().checked_sub(32), choices.below(4) > 0) {
            let digest = Sha256::digest(&bytes[..content]);
            bytes[content..].copy_from_slice(&digest);
        }
        if let Ok(table) = OffsetTable::from_bytes(&bytes, "fuzz") {
            for sample in 0..table.len() {
                let _ = (table.key(sample), table.members(sample).count());
            }
        }
    });
}
