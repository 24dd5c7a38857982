//! The encode stage on small folders: the same bytes whatever the threads, batches, ranks and interruptions.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use deepflow::config::Precision;
use deepflow::encode::{dry_run, encode, CodecChoice, EncodeOptions, EncodeReport, PcaSource};
use deepflow::interrupt::{Interrupt, Interrupted};
use deepflow::rank::Rank;
use deepflow::share::Share;
use deepflow_datasets::{Compression, Dtype, Index, Limits, ShardReader, MOMENTS, MOMENTS_FLIP};
use deepflow_preprocess::codec::PcaOptions;
use deepflow_preprocess::picture::{write_png, Colour, DecodeOptions, Fit, Pixels, PngCompression};
use deepflow_preprocess::sources::SourceOptions;

/// 23 textured pictures of two classes and two files that are none.
fn pictures() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for index in 0..23_usize {
        let (width, height) = (16 + index % 5, 16 + index % 7);
        let data = (0..width * height * 3)
            .map(|i| ((i * (index + 3)) % 251) as u8)
            .collect();
        let pixels = Pixels::new(width, height, Colour::Rgb, data).unwrap();
        let class = folder.path().join(["cats", "dogs"][index % 2]);
        fs::create_dir_all(&class).unwrap();
        fs::write(
            class.join(format!("{index:02}.png")),
            write_png(&pixels, PngCompression::Fast).unwrap(),
        )
        .unwrap();
    }
    fs::write(folder.path().join("dogs/03a.jpg"), b"no picture").unwrap();
    fs::write(folder.path().join("cats/10a.png"), b"").unwrap();
    folder
}

fn options(pictures: &Path, out: &Path) -> EncodeOptions {
    EncodeOptions {
        pictures: pictures.to_owned(),
        source_options: SourceOptions::default(),
        limit: None,
        shuffle: Some(1),
        out: out.to_owned(),
        name: "latents".into(),
        shard_samples: 7,
        compression: Compression::None,
        dtype: Dtype::F32,
        codec: CodecChoice::Pca(PcaSource::Fit {
            options: PcaOptions::default(),
            pictures: 10,
        }),
        precision: Precision::F32,
        tf32: true,
        size: 16,
        decode: DecodeOptions::default(),
        fit: Fit::Crop,
        mirror: true,
        keep_pictures: true,
        batch: Some(4),
        threads: Some(3),
        share: Share::WHOLE,
    }
}

fn shards(range: std::ops::Range<usize>) -> Share {
    Share {
        range: Some(range),
        rank: Rank::ALONE,
    }
}

fn run(options: &EncodeOptions) -> EncodeReport {
    encode(options, &Interrupt::default()).unwrap()
}

fn error(options: &EncodeOptions) -> String {
    let message = format!("{:#}", encode(options, &Interrupt::default()).unwrap_err());
    assert!(!message.contains('\n'), "{message}");
    message
}

/// Every file of a folder but those of its subfolders.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file());
    entries
        .map(|path| (path.file_name().unwrap().into(), fs::read(path).unwrap()))
        .collect()
}

#[test]
fn shards_hold_every_usable_picture_in_order() {
    let (pictures, out) = (pictures(), tempfile::tempdir().unwrap());
    let report = run(&options(pictures.path(), out.path()));
    assert!(report.complete);
    assert_eq!((report.encoded, report.skipped, report.shards), (23, 2, 4));
    let skipped = fs::read_to_string(out.path().join("skipped.jsonl")).unwrap();
    assert!(
        skipped.contains("10a.png") && skipped.contains("the file is empty"),
        "{skipped}"
    );
    assert!(
        skipped.contains("03a.jpg") && skipped.contains("not a JPEG, PNG or WebP"),
        "{skipped}"
    );

    let index = Index::load(out.path()).unwrap();
    assert_eq!(index.samples, 23);
    assert_eq!(index.codec.latent_shape, [8, 4, 4]);
    assert_eq!(
        index
            .classes
            .iter()
            .map(|class| class.name.as_str())
            .collect::<Vec<_>>(),
        ["cats", "dogs"]
    );
    let mut keys = Vec::new();
    for shard in &index.shards {
        for sample in ShardReader::open(&out.path().join(&shard.name), Limits::default()).unwrap() {
            let sample = sample.unwrap();
            assert_eq!(sample.array(MOMENTS, "shard").unwrap().unwrap().shape, [16, 4, 4]);
            assert_eq!(sample.array(MOMENTS_FLIP, "shard").unwrap().unwrap().shape, [16, 4, 4]);
            assert!(sample.member("png").is_some());
            let class = if sample.key.starts_with("cats/") { 0 } else { 1 };
            assert_eq!(sample.class("shard").unwrap(), Some(class));
            keys.push(sample.key);
        }
    }
    assert!(!keys.is_sorted(), "classes are mixed");
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 23);
}

/// Each beside the picture's own, whatever batch it was encoded in: the latents of pixels, mirrored, are the pixels' mirrored.
#[test]
fn mirrored_moments_are_those_of_the_mirrored_picture() {
    let (pictures, out) = (pictures(), tempfile::tempdir().unwrap());
    run(&EncodeOptions {
        codec: CodecChoice::Identity,
        ..options(pictures.path(), out.path())
    });
    let mut compared = 0;
    for shard in Index::load(out.path()).unwrap().shards {
        for sample in ShardReader::open(&out.path().join(&shard.name), Limits::default()).unwrap() {
            let sample = sample.unwrap();
            let rows = |name: &str| -> Vec<Vec<f32>> {
                let array = sample.array(name, "shard").unwrap().unwrap();
                array.data.chunks_exact(16).map(<[f32]>::to_vec).collect()
            };
            let mut turned = rows(MOMENTS_FLIP);
            turned.iter_mut().for_each(|row| row.reverse());
            assert_eq!(turned, rows(MOMENTS), "{}", sample.key);
            assert_ne!(rows(MOMENTS_FLIP), rows(MOMENTS), "{}", sample.key);
            compared += 1;
        }
    }
    assert_eq!(compared, 23);
}

#[test]
fn threads_batches_and_ranks_do_not_show() {
    let pictures = pictures();
    let (alone, single, shared) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    run(&options(pictures.path(), alone.path()));
    run(&EncodeOptions {
        batch: Some(1),
        threads: Some(1),
        ..options(pictures.path(), single.path())
    });
    assert_eq!(files(single.path()), files(alone.path()));
    for rank in [2, 0, 1] {
        let report = run(&EncodeOptions {
            share: Share {
                range: None,
                rank: Rank { rank, world: 3 },
            },
            ..options(pictures.path(), shared.path())
        });
        assert_eq!(report.complete, rank == 1);
    }
    assert_eq!(files(shared.path()), files(alone.path()));
}

#[test]
fn what_is_damaged_or_missing_is_redone_to_the_same_bytes() {
    let (pictures, out) = (pictures(), tempfile::tempdir().unwrap());
    run(&options(pictures.path(), out.path()));
    let before = files(out.path());
    let report = run(&options(pictures.path(), out.path()));
    assert_eq!((report.encoded, report.shards_found), (0, 4));
    fs::remove_file(out.path().join("latents-000002.tar")).unwrap();
    fs::remove_file(out.path().join("index.json")).unwrap();
    let damaged = out.path().join("latents-000001.tar");
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[700] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let report = run(&options(pictures.path(), out.path()));
    assert_eq!(report.shards_found, 2);
    assert_eq!(files(out.path()), before);
}

#[test]
fn an_interrupted_run_leaves_no_partial_shard_and_goes_on() {
    let (pictures, whole, out) = (pictures(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(&options(pictures.path(), whole.path()));
    run(&EncodeOptions {
        share: shards(1..2),
        ..options(pictures.path(), out.path())
    });
    let interrupt = Interrupt::default();
    interrupt.request();
    let stopped = encode(&options(pictures.path(), out.path()), &interrupt).unwrap_err();
    assert!(stopped.chain().any(|cause| cause.is::<Interrupted>()), "{stopped:#}");
    let shards = files(out.path())
        .into_keys()
        .filter(|name| name.extension().is_some_and(|e| e == "tar"))
        .count();
    assert_eq!(shards, 1);
    run(&options(pictures.path(), out.path()));
    assert_eq!(files(out.path()), files(whole.path()));
}

#[test]
fn another_run_in_the_folder_is_refused() {
    let (pictures, out) = (pictures(), tempfile::tempdir().unwrap());
    run(&options(pictures.path(), out.path()));
    let before = files(out.path());
    let with = |change: fn(&mut EncodeOptions)| {
        let mut changed = options(pictures.path(), out.path());
        change(&mut changed);
        error(&changed)
    };
    assert!(with(|options| options.mirror = false).contains("codec.settings.mirror was true"));
    assert!(with(|options| options.dtype = Dtype::F16).contains("codec.dtype"));
    assert!(with(|options| options.codec = CodecChoice::Identity).contains("codec.latent_shape"));
    let channels = PcaOptions {
        channels: 3,
        ..PcaOptions::default()
    };
    let mut changed = options(pictures.path(), out.path());
    changed.codec = CodecChoice::Pca(PcaSource::Fit {
        options: channels,
        pictures: 10,
    });
    assert!(error(&changed).contains("the folder holds another run"));
    assert_eq!(files(out.path()), before);
}

/// Such as a run leaves that was killed before its first shard: its pictures may have been others.
#[test]
fn a_transform_that_nothing_was_encoded_with_is_fitted_again() {
    let (pictures, others) = (pictures(), pictures());
    for entry in fs::read_dir(others.path().join("cats")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    fs::copy(pictures.path().join("dogs/01.png"), others.path().join("cats/01.png")).unwrap();
    let [clean, out, other] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    run(&options(pictures.path(), clean.path()));
    run(&options(others.path(), other.path()));
    let transform = |folder: &Path| folder.join("codec.safetensors");
    assert_ne!(
        fs::read(transform(clean.path())).unwrap(),
        fs::read(transform(other.path())).unwrap()
    );
    fs::copy(transform(other.path()), transform(out.path())).unwrap();
    run(&options(pictures.path(), out.path()));
    assert_eq!(files(out.path()), files(clean.path()));
}

/// The codec that was fitted is kept, so that without a word the new setting would count for nothing.
#[test]
fn a_codec_fitted_to_another_number_of_pictures_is_another_run() {
    let (pictures, out) = (pictures(), tempfile::tempdir().unwrap());
    let fitted_to = |count| EncodeOptions {
        codec: CodecChoice::Pca(PcaSource::Fit {
            options: PcaOptions::default(),
            pictures: count,
        }),
        ..options(pictures.path(), out.path())
    };
    run(&fitted_to(10));
    let message = error(&fitted_to(11));
    assert!(
        message.contains("codec.settings.fit_images was 10 when these shards were begun, now it is 11"),
        "{message}"
    );
    run(&fitted_to(10));
}

/// A training run compares what the index says, so re-encoded shards of the same bytes must say the same.
#[test]
fn a_codec_that_is_no_network_records_no_precision() {
    let (pictures, out, again) = (pictures(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let with_precision = |out: &Path| EncodeOptions {
        precision: Precision::Mixed,
        tf32: false,
        ..options(pictures.path(), out)
    };
    run(&options(pictures.path(), out.path()));
    run(&with_precision(again.path()));
    assert_eq!(files(again.path()), files(out.path()));
    assert_eq!(run(&with_precision(out.path())).shards_found, 4);
    let settings = Index::load(out.path()).unwrap().codec.settings;
    assert_eq!(
        settings.into_keys().collect::<Vec<_>>(),
        [
            "background",
            "colour",
            "factor",
            "fit",
            "fit_images",
            "keep_pictures",
            "mirror",
            "shard_samples",
            "shift_factor",
            "sources_sha256"
        ]
    );
}

#[test]
fn a_source_without_one_usable_picture_fails_with_the_reason() {
    let (pictures, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(pictures.path().join("a.jpg"), b"nothing").unwrap();
    let identity = EncodeOptions {
        codec: CodecChoice::Identity,
        ..options(pictures.path(), out.path())
    };
    let message = error(&identity);
    assert!(
        message.starts_with("none of the 1 pictures could be used; the first: "),
        "{message}"
    );
    assert!(message.contains("a.jpg: not a JPEG, PNG or WebP picture"), "{message}");
    assert!(!out.path().join("index.json").exists());
    assert!(error(&options(pictures.path(), out.path())).contains("to fit codec pca to"));
    assert!(dry_run(&identity).is_err());
}

#[test]
fn a_dry_run_counts_and_writes_nothing() {
    let pictures = pictures();
    let out = pictures.path().with_extension("out");
    let plan = dry_run(&options(pictures.path(), &out)).unwrap();
    assert_eq!(
        (plan.pictures, plan.classes, plan.shards, plan.latent_shape),
        (25, 2, 4, [8, 4, 4])
    );
    assert!(plan.seconds > 0.0 && plan.bytes > 0);
    assert!(!out.exists());
    let real = tempfile::tempdir().unwrap();
    run(&options(pictures.path(), real.path()));
    let bytes: u64 = Index::load(real.path())
        .unwrap()
        .shards
        .iter()
        .map(|shard| shard.bytes)
        .sum();
    let estimate = plan.bytes as f64 / bytes as f64;
    assert!(
        (0.8..1.2).contains(&estimate),
        "{} estimated, {bytes} written",
        plan.bytes
    );
}

#[test]
fn sizes_that_the_codec_cannot_do_are_named() {
    let (pictures, out) = (pictures(), tempfile::tempdir().unwrap());
    let message = error(&EncodeOptions {
        size: 18,
        ..options(pictures.path(), out.path())
    });
    assert!(
        message.contains("the picture size is 18, expected a multiple of the patch side 4"),
        "{message}"
    );
    let range = error(&EncodeOptions {
        share: shards(3..9),
        ..options(pictures.path(), out.path())
    });
    assert!(
        range.contains("--shard-range 3..9") && range.contains("4 shards"),
        "{range}"
    );
}
