//! Every way a data set can be wrong has a test and an error of its own.
#![allow(clippy::unwrap_used)]

mod common;

use common::{plan, sample, write, write_shard};
use deepflow_datasets::{
    verify, Compression, Dataset, DatasetWriter, Dtype, Error, Index, Limits, Loader, LoaderConfig, LoaderState,
    OffsetTable, OnError, OpenOptions, Posterior, Sample, ShardReader, ShardWriter, Shuffle, INDEX_FILE,
};
use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tar::EntryType;

fn options() -> OpenOptions {
    OpenOptions {
        table_cache: None,
        ..OpenOptions::default()
    }
}

fn config() -> LoaderConfig {
    LoaderConfig {
        batch_size: 4,
        epochs: Some(1),
        posterior: Posterior::Mean,
        ..LoaderConfig::default()
    }
}

/// The first error of opening a folder and loading an epoch; it is one line.
fn load_error(folder: &Path) -> Error {
    let load = || -> Result<(), Error> {
        let dataset = Arc::new(Dataset::open(folder, options())?);
        let mut loader = Loader::new(dataset, &config(), LoaderState::default())?;
        loader.try_for_each(|batch| batch.map(drop))
    };
    let error = load().unwrap_err();
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

/// The error of a tar, which is of the same kind whether it is read from the beginning or scanned.
fn read_error(tar: &[u8], limits: Limits) -> Error {
    let mut reader = ShardReader::new(Cursor::new(tar.to_vec()), "shard.tar", limits).unwrap();
    let streamed = reader.find_map(Result::err).unwrap();
    let scanned = OffsetTable::of_tar(tar, "shard.tar", limits).unwrap_err();
    assert_eq!(
        std::mem::discriminant(&streamed),
        std::mem::discriminant(&scanned),
        "{streamed} | {scanned}"
    );
    assert!(reader.next().is_none(), "nothing follows an error");
    streamed
}

fn write_samples(folder: &Path, samples: impl IntoIterator<Item = Sample>) {
    let writer = DatasetWriter::create(folder, plan(Compression::None)).unwrap();
    let mut shard = writer.begin_shard(0).unwrap();
    samples.into_iter().for_each(|sample| shard.write(&sample).unwrap());
    shard.finish().unwrap();
    writer.finish(1).unwrap();
}

/// A tar without the checks of a writer.
fn raw_tar(members: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, data) in members {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(data.len() as u64);
        header.set_cksum();
        bytes.extend(header.as_bytes());
        bytes.extend(*data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

const FILE: EntryType = EntryType::Regular;

fn set_modified(path: &Path, time: SystemTime) {
    File::options()
        .append(true)
        .open(path)
        .unwrap()
        .set_modified(time)
        .unwrap();
}

#[test]
fn truncated_tars_are_found_wherever_they_are_cut() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[2], Compression::None);
    let tar = fs::read(folder.path().join("latents-000000.tar")).unwrap();
    let content = tar.len() - 1024;
    for length in (0..content).step_by(97).chain([512, 1024, content]) {
        let error = read_error(&tar[..length], Limits::default());
        assert!(
            matches!(error, Error::TruncatedShard { .. }),
            "cut at {length}: {error}"
        );
    }
}

#[test]
fn truncated_and_damaged_zstd_streams_are_named() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[20], Compression::Zstd(3));
    let whole = fs::read(folder.path().join("latents-000000.tar.zst")).unwrap();
    let read = |bytes: Vec<u8>| {
        let mut reader = ShardReader::new(Cursor::new(bytes), "shard.tar.zst", Limits::default()).unwrap();
        reader.find_map(Result::err).unwrap()
    };
    let cut = read(whole[..whole.len() / 2].to_vec());
    assert!(matches!(cut, Error::TruncatedShard { .. }), "{cut}");
    let mut damaged = whole;
    let last = damaged.len() - 1;
    damaged[last] ^= 0x10;
    let error = read(damaged);
    assert!(matches!(error, Error::InvalidCompression { .. }), "{error}");
}

#[test]
fn a_flipped_bit_is_found_by_its_hash() {
    for compression in [Compression::None, Compression::Zstd(1)] {
        let folder = tempfile::tempdir().unwrap();
        let index = write(folder.path(), &[8, 8], compression);
        let path = folder.path().join(&index.shards[1].name);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
        set_modified(&path, modified);
        let report = verify(folder.path(), Limits::default(), |_| ControlFlow::Continue(())).unwrap();
        assert!(
            report.faults.iter().any(|fault| fault.contains("SHA-256")),
            "{:?}",
            report.faults
        );
        if compression != Compression::None {
            let error = load_error(folder.path());
            assert!(matches!(error, Error::HashMismatch { .. }), "{error}");
        }
    }
}

/// The error of a data set whose third sample is made by `build`.
fn error_of_sample(build: impl Fn(Sample) -> Sample) -> Error {
    let folder = tempfile::tempdir().unwrap();
    write_samples(
        folder.path(),
        (0..4).map(|i| if i == 2 { build(Sample::new("odd")) } else { sample(i) }),
    );
    let error = load_error(folder.path());
    assert!(
        error.to_string().contains("latents-000000.tar, key odd, byte "),
        "{error}"
    );
    error
}

#[test]
fn missing_members_and_wrong_arrays_are_named() {
    let moments = sample(0).members[0].data.clone();
    let replaced = |from: &[u8], to: &[u8]| {
        let place = moments.windows(from.len()).position(|window| window == from).unwrap();
        let mut bytes = moments.clone();
        bytes[place..place + to.len()].copy_from_slice(to);
        bytes
    };
    let with_moments = |bytes: Vec<u8>| error_of_sample(|s| s.with_class(1).with_member("moments.npy", bytes.clone()));

    let error = error_of_sample(|s| s.with_class(1));
    assert!(
        matches!(&error, Error::MissingMember { member, .. } if member == "moments.npy"),
        "{error}"
    );
    let error = error_of_sample(|s| s.with_member("moments.npy", moments.clone()));
    assert!(
        matches!(&error, Error::MissingMember { member, .. } if member == "cls"),
        "{error}"
    );
    let error = error_of_sample(|s| s.with_class(10).with_member("moments.npy", moments.clone()));
    assert!(
        matches!(
            error,
            Error::ClassOutOfRange {
                found: 10,
                classes: 10,
                ..
            }
        ),
        "{error}"
    );
    let error = error_of_sample(|s| s.with_member("cls", "cat").with_member("moments.npy", moments.clone()));
    assert!(matches!(error, Error::InvalidClass { .. }), "{error}");
    let error = error_of_sample(|s| {
        s.with_class(1)
            .with_array("moments.npy", &[0.0; 12], &[4, 3], Dtype::F32)
            .unwrap()
    });
    assert!(matches!(error, Error::WrongShape { .. }), "{error}");
    let error = with_moments(b"x".to_vec());
    assert!(matches!(error, Error::InvalidArray { .. }), "{error}");
    let error = with_moments(replaced(b"<f4", b"<i4"));
    assert!(matches!(error, Error::WrongDtype { .. }), "{error}");
    let error = with_moments(replaced(b"False", b"True "));
    assert!(matches!(error, Error::FortranOrder { .. }), "{error}");
}

#[test]
fn skipping_counts_and_leaves_out_only_the_faulty() {
    let folder = tempfile::tempdir().unwrap();
    write_samples(
        folder.path(),
        (0..8).map(|i| {
            if i == 5 {
                Sample::new("odd").with_class(0)
            } else {
                sample(i)
            }
        }),
    );
    let dataset = Arc::new(Dataset::open(folder.path(), options()).unwrap());
    let config = LoaderConfig {
        on_error: OnError::Skip,
        ..config()
    };
    let mut loader = Loader::new(dataset, &config, LoaderState::default()).unwrap();
    let batches: Vec<_> = loader.by_ref().map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(|batch| batch.len()).sum::<usize>(), 7);
    assert!(batches.iter().all(|batch| batch.latents.len() == batch.len() * 24));
    assert_eq!(
        (
            batches.iter().map(|batch| batch.skipped).sum::<u64>(),
            loader.stats().skipped
        ),
        (1, 1)
    );
}

#[test]
fn a_data_set_of_which_nothing_can_be_read_is_an_error_also_when_errors_are_skipped() {
    for epochs in [Some(1), None] {
        let folder = tempfile::tempdir().unwrap();
        write_samples(folder.path(), (0..9).map(|i| Sample::new(format!("{i}")).with_class(0)));
        let dataset = Arc::new(Dataset::open(folder.path(), options()).unwrap());
        let config = LoaderConfig {
            on_error: OnError::Skip,
            epochs,
            ..config()
        };
        let mut loader = Loader::new(dataset, &config, LoaderState::default()).unwrap();
        let error = loader.next_batch().unwrap_err();
        assert!(matches!(error, Error::NothingReadable { samples: 9 }), "{error}");
        assert!(loader.next_batch().unwrap().is_none());
    }
}

#[test]
fn duplicate_keys_are_found_in_a_shard_and_over_shards() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(&folder.path().join("a.tar"), Compression::None).unwrap();
    writer.write(&sample(1)).unwrap();
    writer.write(&sample(2)).unwrap();
    assert!(matches!(writer.write(&sample(1)), Err(Error::DuplicateKey { .. })));
    let again = raw_tar(&[("a.cls", FILE, b"1"), ("b.cls", FILE, b"1"), ("a.txt", FILE, b"")]);
    assert!(matches!(
        read_error(&again, Limits::default()),
        Error::DuplicateKey { .. }
    ));
    let twice = raw_tar(&[("a.cls", FILE, b"1"), ("a.cls", FILE, b"2")]);
    assert!(matches!(
        read_error(&twice, Limits::default()),
        Error::DuplicateKey { .. }
    ));

    let folder = tempfile::tempdir().unwrap();
    let writer = DatasetWriter::create(folder.path(), plan(Compression::None)).unwrap();
    write_shard(&writer, 0, 0..4);
    write_shard(&writer, 1, 3..6);
    writer.finish(2).unwrap();
    let report = verify(folder.path(), Limits::default(), |_| ControlFlow::Continue(())).unwrap();
    assert!(
        report.faults.len() == 1 && report.faults[0].contains("also in an earlier shard"),
        "{:?}",
        report.faults
    );
}

#[test]
fn indices_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let json = write(folder.path(), &[4, 4], Compression::None).to_json();
    let parse = |text: String| Index::from_bytes(text.as_bytes(), "index.json").unwrap_err();
    let version = parse(json.replace("\"version\": 1", "\"version\": 2"));
    assert!(
        matches!(
            version,
            Error::IndexVersion {
                found: 2,
                supported: 1,
                ..
            }
        ),
        "{version}"
    );
    for (from, to) in [
        ("\"samples\": 8", "\"samples\": 9"),
        ("latents-000001.tar", "../latents-000001.tar"),
        ("latents-000001.tar", "latents-000000.tar"),
        ("deepflow-shards", "other"),
        ("\"index\": 3", "\"index\": 4"),
    ] {
        assert!(json.contains(from), "{from}");
        let error = parse(json.replacen(from, to, 1));
        assert!(matches!(error, Error::InvalidIndex { .. }), "{from} -> {to}: {error}");
    }

    fs::rename(
        folder.path().join("latents-000001.tar"),
        folder.path().join("other-000001.tar"),
    )
    .unwrap();
    let error = load_error(folder.path());
    assert!(
        matches!(&error, Error::ShardMissing { shard, .. } if shard == "latents-000001.tar"),
        "{error}"
    );
    let faults = verify(folder.path(), Limits::default(), |_| ControlFlow::Continue(()))
        .unwrap()
        .faults
        .join("\n");
    assert!(
        faults.contains("other-000001.tar") && faults.contains("latents-000001.tar is missing"),
        "{faults}"
    );
}

#[test]
fn an_index_older_than_its_shards_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let index = write(folder.path(), &[4, 4], Compression::None);
    let path = folder.path().join(&index.shards[0].name);
    let original = fs::read(&path).unwrap();

    File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(&[0; 512])
        .unwrap();
    let error = load_error(folder.path());
    assert!(matches!(error, Error::ShardChanged { what: "size", .. }), "{error}");

    // Of the same size but newer than the index: the content decides.
    let mut changed = original.clone();
    changed[600] ^= 1;
    for (bytes, sound) in [(changed, false), (original, true)] {
        fs::write(&path, bytes).unwrap();
        set_modified(&path, SystemTime::now() + Duration::from_secs(60));
        match Dataset::open(folder.path(), options()) {
            Ok(_) => assert!(sound),
            Err(error) => assert!(
                !sound && matches!(error, Error::ShardChanged { what: "SHA-256", .. }),
                "{error}"
            ),
        }
    }

    // Other programs may write the digits in capitals.
    let mut index = Index::load(folder.path()).unwrap();
    for shard in &mut index.shards {
        shard.sha256.make_ascii_uppercase();
    }
    fs::write(folder.path().join(INDEX_FILE), index.to_json()).unwrap();
    set_modified(&path, SystemTime::now() + Duration::from_secs(60));
    assert!(Dataset::open(folder.path(), options()).is_ok());
}

#[test]
fn names_that_leave_the_folder_and_links_are_refused() {
    for name in ["../a.cls", "/etc/a.cls", "a/../../b.cls", "a/..\\b.cls"] {
        let error = read_error(&raw_tar(&[(name, FILE, b"1")]), Limits::default());
        assert!(matches!(error, Error::UnsafeMemberName { .. }), "{name}: {error}");
    }
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Fifo,
        EntryType::Char,
        EntryType::GNUSparse,
    ] {
        let error = read_error(&raw_tar(&[("a.cls", kind, b"")]), Limits::default());
        assert!(matches!(error, Error::UnsafeMemberKind { .. }), "{kind:?}: {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(&folder.path().join("a.tar"), Compression::None).unwrap();
    for key in ["../a", "/a", "a.b", ""] {
        let error = writer.write(&Sample::new(key).with_class(1)).unwrap_err();
        assert!(matches!(error, Error::InvalidSample { .. }), "{key}: {error}");
    }
}

#[test]
fn bombs_and_huge_claims_meet_the_limits() {
    let limits = Limits {
        shard_bytes: 1 << 20,
        memory_bytes: 1 << 20,
        member_bytes: 1 << 16,
        name_bytes: 1000,
        members: 3,
    };
    let tar = raw_tar(&[("a.bin", FILE, &vec![0; 64 << 20])]);
    assert!(matches!(read_error(&tar, limits), Error::LimitExceeded { .. }));

    // 64 MiB of zeros in a few kilobytes.
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("bomb.tar.zst"),
        zstd::encode_all(tar.as_slice(), 1).unwrap(),
    )
    .unwrap();
    let limits_of_bomb = Limits {
        shard_bytes: 1 << 20,
        ..Limits::default()
    };
    let opened = Dataset::open(
        folder.path(),
        OpenOptions {
            limits: limits_of_bomb,
            ..options()
        },
    );
    assert!(matches!(opened.err(), Some(Error::LimitExceeded { .. })));

    // An index does not make it safe: what is held in memory has a limit of its own.
    for compression in [Compression::None, Compression::Zstd(1)] {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &[20], compression);
        let limits = Limits {
            memory_bytes: 10_000,
            ..Limits::default()
        };
        let dataset = Dataset::open(folder.path(), OpenOptions { limits, ..options() }).unwrap();
        let block = LoaderConfig {
            shuffle: Shuffle::Block { samples: 8 },
            ..config()
        };
        let mut loader = Loader::new(Arc::new(dataset), &block, LoaderState::default()).unwrap();
        let error = loader.next_batch().unwrap_err();
        assert!(
            matches!(&error, Error::LimitExceeded { limit: 10_000, .. }),
            "{compression:?}: {error}"
        );
    }

    let mut claim = raw_tar(&[("a.bin", FILE, b"1")]);
    let mut header = tar::Header::from_byte_slice(&claim[..512]).clone();
    header.set_size(u64::MAX / 2);
    header.set_cksum();
    claim[..512].copy_from_slice(header.as_bytes());
    assert!(matches!(
        read_error(&claim, Limits::default()),
        Error::LimitExceeded { .. }
    ));

    let long = vec![b'a'; 2000];
    let name = raw_tar(&[("././@LongLink", EntryType::GNULongName, &long), ("a.bin", FILE, b"1")]);
    assert!(matches!(read_error(&name, limits), Error::LimitExceeded { .. }));
    let many = ["a.1", "a.2", "a.3", "a.4"].map(|name| (name, FILE, b"".as_slice()));
    assert!(matches!(
        read_error(&raw_tar(&many), limits),
        Error::LimitExceeded { .. }
    ));
}

#[test]
fn a_damaged_offset_table_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[8], Compression::None);
    let path = folder.path().join("latents-000000.tar.offsets");
    let table = fs::read(&path).unwrap();
    for place in (0..table.len()).step_by(13) {
        let mut damaged = table.clone();
        damaged[place] ^= 0x40;
        assert!(
            matches!(
                OffsetTable::from_bytes(&damaged, "t"),
                Err(Error::InvalidOffsetTable { .. })
            ),
            "byte {place}"
        );
    }
    fs::write(&path, &table[..table.len() / 2]).unwrap();
    let dataset = Arc::new(Dataset::open(folder.path(), options()).unwrap());
    assert_eq!(
        Loader::new(dataset, &config(), LoaderState::default())
            .unwrap()
            .map(Result::unwrap)
            .count(),
        2
    );
    assert_eq!(
        OffsetTable::from_bytes(&fs::read(&path).unwrap(), "t").unwrap().len(),
        8
    );
}

fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                fs::read(&path).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_plan_without_a_shard_gives_way_unless_somebody_works_by_it() {
    let folder = tempfile::tempdir().unwrap();
    let begin = |compression| DatasetWriter::create(folder.path(), plan(compression));
    let other_run = |result: Result<DatasetWriter, Error>| matches!(result, Err(Error::OtherRun { .. }));
    let working = begin(Compression::None).unwrap();
    assert!(other_run(begin(Compression::Zstd(3))));
    // The same plan may be worked by any number of processes.
    drop((begin(Compression::None).unwrap(), working));

    let writer = begin(Compression::Zstd(3)).unwrap();
    write_shard(&writer, 1, 5..10);
    drop(writer);
    assert!(other_run(begin(Compression::None)));
    let writer = begin(Compression::Zstd(3)).unwrap();
    write_shard(&writer, 0, 0..5);
    assert_eq!(writer.finish(2).unwrap().samples, 10);
}

#[test]
fn a_run_that_was_killed_redoes_only_what_is_incomplete_and_gives_the_same_bytes() {
    for compression in [Compression::None, Compression::Zstd(3)] {
        let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(whole.path(), &[5, 5, 5], compression);
        let writer = DatasetWriter::create(killed.path(), plan(compression)).unwrap();
        write_shard(&writer, 2, 10..15);
        write_shard(&writer, 0, 0..5);
        fs::write(killed.path().join(format!(".{}.partial", writer.shard_name(1))), "half").unwrap();
        assert!(matches!(writer.finish(3), Err(Error::ShardMissing { .. })));
        // A shard that was damaged after it was finished counts as incomplete.
        let path = killed.path().join(writer.shard_name(2));
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();

        let writer = DatasetWriter::create(killed.path(), plan(compression)).unwrap();
        let complete: Vec<bool> = (0..3).map(|i| writer.is_complete(i).unwrap()).collect();
        assert_eq!(complete, [true, false, false]);
        write_shard(&writer, 1, 5..10);
        write_shard(&writer, 2, 10..15);
        writer.finish(3).unwrap();
        assert!(
            content(whole.path()) == content(killed.path()),
            "{compression:?}: the folders differ"
        );
        assert!(verify(killed.path(), Limits::default(), |_| ControlFlow::Continue(()))
            .unwrap()
            .is_sound());

        let error = DatasetWriter::create(killed.path(), plan(Compression::Zstd(9))).unwrap_err();
        assert!(
            matches!(&error, Error::OtherRun { field, .. } if field.starts_with("compression")),
            "{error}"
        );
    }
}
