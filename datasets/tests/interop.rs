//! Shards of others are read, and others read these shards.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use common::{open, sample, write};
use deepflow_datasets::{
    Compression, Dataset, Limits, Loader, LoaderConfig, LoaderState, OpenOptions, Posterior, Sample, ShardReader,
    ShardWriter, Shuffle,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The shards that the Python webdataset package wrote.
fn golden() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = std::env::var_os("DEEPFLOW_GOLDEN_DIR")
        .map_or(fixtures, PathBuf::from)
        .join("webdataset");
    let mut shards: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    shards.retain(|path| path.extension().is_some_and(|extension| extension == "tar"));
    shards.sort();
    assert!(!shards.is_empty(), "no shards in {}", folder.display());
    shards
}

/// The interpreter, if it has the modules.
fn python(modules: &str) -> Option<Command> {
    let python = std::env::var("DEEPFLOW_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python)
        .args(["-c", &format!("import {modules}")])
        .stderr(Stdio::null())
        .status();
    if has.is_ok_and(|status| status.success()) {
        return Some(Command::new(python));
    }
    eprintln!("SKIPPED: {python} lacks one of {modules}; set DEEPFLOW_PYTHON");
    None
}

#[test]
fn shards_of_the_python_package_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for shard in golden() {
        for sample in ShardReader::open(&shard, Limits::default()).unwrap() {
            let sample = sample.unwrap();
            assert!(sample.key.contains('/') && sample.member("json").is_some());
            let moments = sample.array("moments.npy", "golden").unwrap().unwrap();
            assert_eq!(moments.data.len(), moments.shape.iter().product::<usize>());
            let class = sample.class("golden").unwrap().unwrap();
            expected.push((
                sample.key.clone(),
                class,
                moments.data[..moments.data.len() / 2].to_vec(),
            ));
        }
        fs::copy(&shard, folder.path().join(shard.file_name().unwrap())).unwrap();
    }
    // The folder has neither index nor tables: the first run scans it and keeps what it found.
    let table = folder.path().join("latents-000000.tar.offsets");
    for table_exists in [false, true] {
        assert_eq!(table.exists(), table_exists);
        let config = LoaderConfig {
            batch_size: expected.len(),
            shuffle: Shuffle::None,
            posterior: Posterior::Mean,
            ..LoaderConfig::default()
        };
        let mut loader = Loader::new(open(folder.path()), &config, LoaderState::default()).unwrap();
        let batch = loader.next_batch().unwrap().unwrap();
        for (row, (key, class, mean)) in expected.iter().enumerate() {
            assert_eq!(
                (&batch.keys[row], batch.classes[row], batch.latent(row)),
                (key, *class, mean.as_slice())
            );
        }
    }
}

#[test]
fn tables_that_cannot_be_written_beside_the_shard_are_kept_in_the_cache_folder() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::copy(&golden()[0], folder.path().join("a.tar")).unwrap();
    // A folder in its place cannot be replaced by the table, not even by root.
    fs::create_dir(folder.path().join("a.tar.offsets")).unwrap();
    let tables = cache.path().join("tables");
    let options = OpenOptions {
        table_cache: Some(tables.clone()),
        ..OpenOptions::default()
    };
    let first = Dataset::open(folder.path(), options.clone()).unwrap().len();
    let kept = || {
        fs::read_dir(&tables)
            .unwrap()
            .filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|e| e == "offsets"))
            .count()
    };
    assert_eq!(kept(), 1);
    assert_eq!(Dataset::open(folder.path(), options).unwrap().len(), first);
}

#[test]
fn python_webdataset_reads_our_shards() {
    let Some(mut python) = python("webdataset, numpy") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[4, 3], Compression::None);
    let long_key = format!("{}/{}", "long".repeat(60), "n".repeat(120));
    let mut long = ShardWriter::create(&folder.path().join("latents-000002.tar"), Compression::None).unwrap();
    long.write(&Sample {
        key: long_key.clone(),
        ..sample(7)
    })
    .unwrap();
    long.finish().unwrap();
    let script = r#"
import sys, webdataset, numpy
urls = [f"{sys.argv[1]}/latents-{i:06d}.tar" for i in range(3)]
for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
    m, f = sample["moments.npy"], sample["features.npy"]
    assert m.dtype == numpy.float32 and m.shape == (4, 3, 4) and (m[2:] == 0.5).all(), (m.dtype, m.shape)
    assert f.dtype == numpy.float16 and f.shape == (2, 3)
    assert (sample["moments_flip.npy"] == -m).all() and sample["json"]["number"] == m[0, 0, 0] == f[0, 0]
    print(sample["__key__"], sample["cls"], m[0, 0, 0])
"#;
    let output = python.args(["-c", script]).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut expected: Vec<String> = (0..7).map(|i| format!("folder/{i:05} {} {i}.0", i % 10)).collect();
    expected.push(format!("{long_key} 7 7.0"));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().lines().collect::<Vec<_>>(),
        expected
    );
}

#[test]
fn long_names_of_gnu_and_pax_and_npy_of_all_kinds_are_read() {
    let Some(mut python) = python("numpy") else { return };
    let folder = tempfile::tempdir().unwrap();
    let script = r#"
import io, sys, tarfile, numpy
for name, kind in [("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)]:
    with tarfile.open(f"{sys.argv[1]}/{name}.tar", "w", format=kind) as tar:
        folder = tarfile.TarInfo("folder"); folder.type = tarfile.DIRTYPE; tar.addfile(folder)
        for i, (dtype, version) in enumerate([("f2", (1, 0)), ("f4", (2, 0)), ("f8", (3, 0))]):
            array = numpy.arange(24, dtype="<" + dtype).reshape(2, 3, 4) + numpy.array(i, dtype="<" + dtype)
            out = io.BytesIO(); numpy.lib.format.write_array(out, array, version=version)
            key = f"{name}-" + "ü" * 60 + "/" + "k" * 90 + str(i)
            for extension, data in [("moments.npy", out.getvalue()), ("cls", str(i).encode())]:
                info = tarfile.TarInfo(f"{key}.{extension}"); info.size = len(data); info.mtime = 1.5
                tar.addfile(info, io.BytesIO(data))
"#;
    assert!(python
        .args(["-c", script])
        .arg(folder.path())
        .status()
        .unwrap()
        .success());
    for name in ["gnu", "pax"] {
        let path = folder.path().join(format!("{name}.tar"));
        let samples: Vec<_> = ShardReader::open(&path, Limits::default())
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(samples.len(), 3);
        for (i, sample) in samples.iter().enumerate() {
            assert_eq!(sample.key, format!("{name}-{}/{}{i}", "ü".repeat(60), "k".repeat(90)));
            let array = sample.array("moments.npy", name).unwrap().unwrap();
            assert_eq!(array.shape, [2, 3, 4]);
            assert!(array
                .data
                .iter()
                .enumerate()
                .all(|(place, &value)| value == (place + i) as f32));
        }
    }
    let dataset = open(folder.path());
    assert_eq!((dataset.len(), dataset.latent_shape()), (6, [1, 3, 4]));
}
