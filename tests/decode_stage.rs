//! The decode stage, run as its own program: every format, continuation, shared work, and what it refuses.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use assert_cmd::Command;
use deepflow::interrupt::Interrupt;
use deepflow_datasets::{
    Class, Codec, Compression, DatasetPlan, DatasetWriter, Dtype, Index, Limits, Sample, ShardReader,
};
use deepflow_preprocess::codec::IdentityCodec;
use deepflow_preprocess::picture::{decode, Colour, DecodeOptions};

const SIDE: usize = 4;
const SAMPLES_A_SHARD: usize = 3;

/// Latents of the identity codec for pictures of side `side`, in two classes.
fn plan(side: usize) -> DatasetPlan {
    let codec = Codec {
        name: "identity".into(),
        weights_sha256: None,
        scale_factor: 1.0,
        latent_shape: [3, side, side],
        dtype: Dtype::F32,
        resolution: side,
        settings: BTreeMap::new(),
    };
    let class = |index, name: &str| Class {
        index,
        name: name.into(),
        label: None,
    };
    DatasetPlan {
        name: "samples".into(),
        compression: Compression::None,
        codec,
        classes: vec![class(0, "even"), class(1, "odd")],
    }
}

/// Sample `i` is a plain picture of the colour (i, 2i, 3i), of class i % 2.
fn write_latents(folder: &Path, samples: usize) {
    let all: Vec<Sample> = (0..samples).map(|i| latent(&format!("{i:08}"), i)).collect();
    write_shards(folder, plan(SIDE), &all.chunks(SAMPLES_A_SHARD).collect::<Vec<_>>());
}

fn write_shards(folder: &Path, plan: DatasetPlan, shards: &[&[Sample]]) {
    let writer = DatasetWriter::create(folder, plan).unwrap();
    for (shard, samples) in shards.iter().enumerate() {
        let mut tar = writer.begin_shard(shard).unwrap();
        for sample in *samples {
            tar.write(sample).unwrap();
        }
        tar.finish().unwrap();
    }
    writer.finish(shards.len()).unwrap();
}

fn latent(key: &str, i: usize) -> Sample {
    let values: Vec<f32> = colour(i)
        .iter()
        .flat_map(|&byte| vec![f32::from(byte) / 127.5 - 1.0; SIDE * SIDE])
        .collect();
    let sample = Sample::new(key).with_array("latent.npy", &values, &[3, SIDE, SIDE], Dtype::F32);
    sample.unwrap().with_class(i as u32 % 2)
}

fn colour(i: usize) -> [u8; 3] {
    [i as u8, 2 * i as u8, 3 * i as u8]
}

fn decode_command(latents: &Path, out: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deepflow-decode"));
    command
        .arg("--shards")
        .arg(latents)
        .arg("--out")
        .arg(out)
        .args(arguments);
    command
}

fn error_line(command: &mut Command, code: i32) -> String {
    let output = command.assert().code(code).get_output().stderr.clone();
    let text = String::from_utf8(output).unwrap();
    let errors: Vec<_> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "one line: {text}");
    errors[0].to_owned()
}

fn first_pixel(png: &[u8]) -> [u8; 3] {
    let pixels = decode(png, &DecodeOptions::default()).unwrap().pixels;
    assert_eq!((pixels.width(), pixels.height()), (SIDE, SIDE));
    pixels.data()[..3].try_into().unwrap()
}

/// Every file below a folder and its content.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in walkdir::WalkDir::new(folder) {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            let name = entry
                .path()
                .strip_prefix(folder)
                .unwrap()
                .to_string_lossy()
                .into_owned();
            found.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    found
}

#[test]
fn pictures_land_in_class_folders_with_a_sheet() {
    let folder = tempfile::tempdir().unwrap();
    let (latents, out) = (folder.path().join("latents"), folder.path().join("out"));
    write_latents(&latents, 8);
    decode_command(&latents, &out, &[]).assert().success();
    for i in 0..8 {
        let class = if i % 2 == 0 { "even" } else { "odd" };
        let png = fs::read(out.join(class).join(format!("{i:08}.png"))).unwrap();
        assert_eq!(first_pixel(&png), colour(i));
    }
    let sheet = decode(
        &fs::read(out.join("contact-sheet.png")).unwrap(),
        &DecodeOptions::default(),
    )
    .unwrap();
    // Two rows of four tiles with a gap of two pixels around each.
    assert_eq!(
        (sheet.pixels.width(), sheet.pixels.height()),
        (4 * (SIDE + 2) + 2, 2 * (SIDE + 2) + 2)
    );
}

#[test]
fn tars_hold_pictures_and_classes_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (latents, out) = (folder.path().join("latents"), folder.path().join("out"));
    write_latents(&latents, 5);
    decode_command(&latents, &out, &["--set", "output.format=tar"])
        .assert()
        .success();
    let mut i = 0;
    for shard in 0..2 {
        for sample in ShardReader::open(&out.join(format!("images-{shard:06}.tar")), Limits::default()).unwrap() {
            let sample = sample.unwrap();
            assert_eq!(sample.key, format!("{i:08}"));
            assert_eq!(sample.class("").unwrap(), Some(i as u32 % 2));
            assert_eq!(first_pixel(&sample.member("png").unwrap().data), colour(i));
            i += 1;
        }
    }
    assert_eq!(i, 5);
}

#[test]
fn npz_is_the_array_the_adm_evaluator_reads() {
    let folder = tempfile::tempdir().unwrap();
    let (latents, out) = (folder.path().join("latents"), folder.path().join("out"));
    write_latents(&latents, 7);
    decode_command(&latents, &out, &["--set", "output.format=npz"])
        .assert()
        .success();
    let mut archive = zip::ZipArchive::new(fs::File::open(out.join("samples.npz")).unwrap()).unwrap();
    let mut bytes = Vec::new();
    archive.by_name("arr_0.npy").unwrap().read_to_end(&mut bytes).unwrap();
    let array = npyz::NpyFile::new(bytes.as_slice()).unwrap();
    assert_eq!(array.shape(), [7, SIDE as u64, SIDE as u64, 3]);
    assert_eq!(array.order(), npyz::Order::C);
    let values = array.into_vec::<u8>().unwrap();
    for (i, picture) in values.chunks_exact(SIDE * SIDE * 3).enumerate() {
        assert!(picture.chunks_exact(3).all(|pixel| pixel == colour(i)));
    }
    assert!(!out.join(".work").exists());
}

#[test]
fn shared_and_continued_work_gives_the_same_files() {
    for format in ["folders", "tar", "npz"] {
        let folder = tempfile::tempdir().unwrap();
        let latents = folder.path().join("latents");
        write_latents(&latents, 11);
        let format = format!("output.format={format}");
        let whole = folder.path().join("whole");
        decode_command(&latents, &whole, &["--set", &format]).assert().success();

        let shared = folder.path().join("shared");
        for rank in ["1", "0", "2"] {
            decode_command(&latents, &shared, &["--set", &format, "--rank", rank, "--world", "3"])
                .assert()
                .success();
        }
        assert_eq!(files(&whole), files(&shared), "{format}");

        // A killed run leaves some pictures and no mark: as if only part of the second shard had been written.
        let continued = folder.path().join("continued");
        decode_command(&latents, &continued, &["--set", &format, "--shard-range", "0..2"])
            .assert()
            .success();
        fs::remove_file(continued.join(".done/samples-000001.tar")).unwrap();
        if format.ends_with("folders") {
            fs::remove_file(continued.join("even/00000004.png")).unwrap();
        }
        decode_command(&latents, &continued, &["--set", &format])
            .assert()
            .success();
        assert_eq!(files(&whole), files(&continued), "{format}");
    }
}

/// encode leaves such shards where none of a shard's sources could be read.
#[test]
fn a_shard_without_samples_stops_no_format() {
    for format in ["folders", "tar", "npz"] {
        let folder = tempfile::tempdir().unwrap();
        let (latents, out) = (folder.path().join("latents"), folder.path().join("out"));
        write_shards(&latents, plan(SIDE), &[&[latent("a", 1)], &[], &[latent("b", 2)]]);
        let format = format!("output.format={format}");
        decode_command(&latents, &out, &["--set", &format]).assert().success();
        assert!(!out.join(".work").exists(), "{format}");
        if format.ends_with("tar") {
            let empty = ShardReader::open(&out.join("images-000001.tar"), Limits::default()).unwrap();
            assert_eq!(empty.count(), 0);
        }
    }
}

/// One would be taken for the other, which is then never decoded.
#[test]
fn keys_and_shards_of_similar_names_are_told_apart() {
    let keys = ["cat/big_1", "cat_big/1", "cat_big_1", "cat+big_1", "cat:big_1"];
    let samples: Vec<Sample> = (0..).zip(keys).map(|(i, key)| latent(key, 2 * i)).collect();
    let mut dotted = plan(SIDE);
    dotted.name = "latents.of.cats".into();
    for format in ["folders", "tar"] {
        let folder = tempfile::tempdir().unwrap();
        let (latents, out) = (folder.path().join("latents"), folder.path().join("out"));
        write_shards(&latents, dotted.clone(), &[&samples[..3], &samples[3..]]);
        let format = format!("output.format={format}");
        decode_command(&latents, &out, &["--set", &format]).assert().success();
        let mut found: Vec<[u8; 3]> = if format.ends_with("tar") {
            let tars = [0, 1].map(|shard| out.join(format!("images-{shard:06}.tar")));
            let open = |tar: &std::path::PathBuf| ShardReader::open(tar, Limits::default()).unwrap();
            let pictures = tars.iter().flat_map(open).map(Result::unwrap);
            pictures
                .map(|sample| first_pixel(&sample.member("png").unwrap().data))
                .collect()
        } else {
            files(&out.join("even")).values().map(|png| first_pixel(png)).collect()
        };
        found.sort_unstable();
        assert_eq!(found, [0, 2, 4, 6, 8].map(colour), "{format}");
    }
}

/// The sheet's tiles lie among the work, too.
#[test]
fn shards_named_like_each_other_and_like_the_sheet_are_told_apart() {
    for format in ["folders", "tar", "npz"] {
        let folder = tempfile::tempdir().unwrap();
        let (latents, out) = (folder.path().join("latents"), folder.path().join("out"));
        write_latents(&latents, 2 * SAMPLES_A_SHARD);
        let mut index = Index::load(&latents).unwrap();
        for (shard, name) in index.shards.iter_mut().zip(["sheet.tar", "sheet.tar.zst"]) {
            fs::rename(latents.join(&shard.name), latents.join(name)).unwrap();
            shard.name = name.into();
        }
        fs::write(latents.join("index.json"), index.to_json()).unwrap();
        let format = format!("output.format={format}");
        let report = decode_command(&latents, &out, &["--set", &format]).assert().success();
        let said = String::from_utf8_lossy(&report.get_output().stdout).into_owned();
        assert!(said.contains("6 pictures"), "{format}: {said}");
        assert!(out.join("contact-sheet.png").exists(), "{format}");
        for shard in (0..2).filter(|_| format.ends_with("tar")) {
            let tar = ShardReader::open(&out.join(format!("images-{shard:06}.tar")), Limits::default()).unwrap();
            assert_eq!(tar.count(), SAMPLES_A_SHARD);
        }
    }
}

/// In a process of its own, whose memory is measured after a few latents and after a shard of 10,000.
#[cfg(target_os = "linux")]
#[test]
fn a_shard_of_ten_thousand_latents_takes_no_more_memory_than_a_few() {
    const CHILD: &str = "DEEPFLOW_TEST_MEASURE_MEMORY";
    if let Some(folder) = std::env::var_os(CHILD) {
        let folder = Path::new(&folder);
        for (name, samples) in [("few", 500), ("many", 10_000)] {
            write_large_latents(&folder.join(name), samples);
            let options = deepflow::decode::DecodeOptions {
                shards: folder.join(name),
                out: folder.join("pictures").join(name),
                format: deepflow::config::OutputFormat::Folders,
                compression: deepflow_preprocess::picture::PngCompression::Fast,
                sheet_columns: 4,
                batch: Some(16),
                precision: deepflow::config::Precision::F32,
                tf32: true,
                share: deepflow::share::Share::WHOLE,
            };
            let codec = IdentityCodec::new(LARGE_SIDE, Colour::Rgb);
            let report = deepflow::decode::decode(&options, &codec, &Interrupt::default()).unwrap();
            assert_eq!((report.decoded, report.complete), (samples, true));
            let status = fs::read_to_string("/proc/self/status").unwrap();
            println!("{}", status.lines().find(|line| line.starts_with("VmHWM:")).unwrap());
        }
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_shard_of_ten_thousand_latents_takes_no_more_memory_than_a_few",
            "--nocapture",
        ])
        .env(CHILD, folder.path())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success(),
        "{output}{}",
        String::from_utf8_lossy(&child.stderr)
    );
    let kilobytes: Vec<u64> = output
        .lines()
        .filter_map(|line| line.strip_prefix("VmHWM:"))
        .map(|line| line.trim().trim_end_matches(" kB").parse().unwrap())
        .collect();
    let [few, many] = kilobytes[..] else { panic!("{output}") };
    let latents = 10_000 * LARGE_SIDE as u64 * LARGE_SIDE as u64 * 3 * 4 / 1024;
    assert!(
        many < few + latents / 10,
        "{few} KiB after 500 latents, {many} KiB after 10,000, which are {latents} KiB"
    );
}

/// Killed (SIGKILL) after ever longer random times, then stopped by SIGINT, then left alone.
#[cfg(unix)]
#[test]
fn a_killed_or_interrupted_run_goes_on_to_the_same_files() {
    use std::process::{Command as Program, Stdio};
    use std::thread::sleep;
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    let folder = tempfile::tempdir().unwrap();
    let latents = folder.path().join("latents");
    write_large_latents(&latents, 800);
    // The moments differ from run to run on purpose: the result may not depend on them.
    let mut random = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    for format in ["folders", "npz"] {
        let (whole, out) = (
            folder.path().join(format),
            folder.path().join(format!("{format}-killed")),
        );
        let format = format!("output.format={format}");
        let start = |out: &Path| {
            let mut program = Program::new(env!("CARGO_BIN_EXE_deepflow-decode"));
            program.arg("--shards").arg(&latents).arg("--out").arg(out);
            program
                .args(["--set", &format])
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            program.spawn().unwrap()
        };
        assert!(start(&whole).wait().unwrap().success());
        for kill in 1..=5 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mut child = start(&out);
            sleep(Duration::from_millis(u64::from(kill * (random >> 27))));
            // A child that was faster than its kill has done its work, which is no less a test of doing it again.
            let _ = child.kill();
            child.wait().unwrap();
        }
        let mut child = start(&out);
        sleep(Duration::from_millis(30));
        let interrupted = Program::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(interrupted.is_ok());
        let status = child.wait().unwrap();
        // Without a code it was too early for the program to listen.
        assert!(matches!(status.code(), Some(0 | 130) | None), "{status}");
        assert!(start(&out).wait().unwrap().success());
        let mut found = files(&out);
        // Small files that were being written when the kill came keep their temporary names.
        found.retain(|name, _| !name.ends_with(".partial"));
        assert!(files(&whole) == found, "{format}");
    }
}

const LARGE_SIDE: usize = 32;

/// One shard of `samples` latents of the identity codec.
fn write_large_latents(folder: &Path, samples: usize) {
    let writer = DatasetWriter::create(folder, plan(LARGE_SIDE)).unwrap();
    let mut tar = writer.begin_shard(0).unwrap();
    for i in 0..samples {
        let latent: Vec<f32> = (0..3 * LARGE_SIDE * LARGE_SIDE)
            .map(|place| ((place * (i + 1)) % 251) as f32 / 125.0 - 1.0)
            .collect();
        let sample = Sample::new(format!("{i:08}"))
            .with_array("latent.npy", &latent, &[3, LARGE_SIDE, LARGE_SIDE], Dtype::F32)
            .unwrap()
            .with_class(i as u32 % 2);
        tar.write(&sample).unwrap();
    }
    tar.finish().unwrap();
    writer.finish(1).unwrap();
}

#[test]
fn a_folder_of_another_run_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (latents, other, out) = (
        folder.path().join("a"),
        folder.path().join("b"),
        folder.path().join("out"),
    );
    write_latents(&latents, 2);
    write_latents(&other, 3);
    decode_command(&latents, &out, &[]).assert().success();
    let before = files(&out);
    let line = error_line(&mut decode_command(&other, &out, &[]), 1);
    assert!(line.contains("another run") && line.contains("index_sha256"), "{line}");
    assert_eq!(files(&out), before);

    fs::create_dir(folder.path().join("holiday")).unwrap();
    fs::write(folder.path().join("holiday/beach.jpg"), "sun").unwrap();
    let line = error_line(&mut decode_command(&latents, &folder.path().join("holiday"), &[]), 1);
    assert!(line.contains("holiday") && line.contains("did not write"), "{line}");
}

#[test]
fn a_truncated_shard_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (latents, out) = (folder.path().join("latents"), folder.path().join("out"));
    write_latents(&latents, 3);
    let shard = latents.join("samples-000000.tar");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    let line = error_line(&mut decode_command(&latents, &out, &[]), 1);
    assert!(line.contains("samples-000000.tar"), "{line}");
    assert!(!out.join(".done/samples-000000.tar").exists());
}

#[test]
fn latents_of_another_shape_are_named_with_shard_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let (latents, out) = (folder.path().join("latents"), folder.path().join("out"));
    write_latents(&latents, 2);
    let mut tar =
        deepflow_datasets::ShardWriter::create(&latents.join("samples-000000.tar"), Compression::None).unwrap();
    let sample = Sample::new("00000000").with_array("latent.npy", &[0.0; 12], &[3, 2, 2], Dtype::F32);
    tar.write(&sample.unwrap().with_class(0)).unwrap();
    tar.finish().unwrap();
    let line = error_line(&mut decode_command(&latents, &out, &[]), 1);
    for part in ["samples-000000.tar", "00000000", "[3, 2, 2]", "[3, 4, 4]"] {
        assert!(line.contains(part), "{part} in {line}");
    }
}
