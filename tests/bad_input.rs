//! Every way to get it wrong gives one clear line, the right exit code, and loses nothing.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::{files, stderr, Workshop};

#[test]
fn an_empty_folder() {
    let workshop = Workshop::new();
    fs::create_dir(workshop.path("empty")).unwrap();
    let line = workshop.refused("encode", "--pictures @empty --out @latents", 1);
    assert!(line.contains("empty"), "{line}");
    let line = workshop.refused("train", "--data @empty --out @run", 1);
    assert!(line.contains("empty"), "{line}");
    let line = workshop.refused("sample", "--checkpoint @empty --out @samples", 1);
    assert!(line.contains("empty: found no checkpoint"), "{line}");
    workshop.refused("decode", "--shards @empty --out @pictures", 1);
}

#[test]
fn an_unknown_key_suggests_the_nearest() {
    let workshop = Workshop::new();
    let mut text = fs::read_to_string(workshop.path("tiny.toml")).unwrap();
    text = text.replace("learning_rate", "learnin_rate");
    let line = 1 + text.lines().position(|line| line.starts_with("learnin_rate")).unwrap();
    fs::write(workshop.path("tiny.toml"), text).unwrap();
    let error = workshop.refused("train", "--data @latents --out @run", 2);
    let expected =
        format!("error: tiny.toml:{line}: unknown key `train.learnin_rate`; did you mean `train.learning_rate`?");
    assert_eq!(error, expected);
    assert!(!workshop.path("run").exists());
}

#[test]
fn flags_that_do_not_exist_and_values_out_of_range() {
    let workshop = Workshop::new();
    assert_eq!(
        workshop
            .stage("train", "--date @latents")
            .output()
            .unwrap()
            .status
            .code(),
        Some(2)
    );
    let line = workshop.refused("train", "--data @latents --out @run --set model.heads=3", 2);
    assert!(
        line.contains("`model.heads` is 3") && line.contains("model.width = 16"),
        "{line}"
    );
    let line = workshop.refused("train", "--out @run", 2);
    assert!(line.contains("give --data FOLDER"), "{line}");
    let line = workshop.refused(
        "sample",
        "--checkpoint @run --out @samples --rank 3 --world 2 --classes 9",
        1,
    );
    assert!(line.contains("run"), "{line}");
}

#[test]
fn broken_pictures_are_left_out_and_listed() {
    let workshop = Workshop::new();
    let folder = workshop.path("pictures");
    for class in ["cat", "dog"] {
        fs::create_dir_all(folder.join(class)).unwrap();
        let picture = image::RgbImage::from_fn(16, 12, |x, y| image::Rgb([x as u8 * 9, y as u8 * 9, 77]));
        picture.save(folder.join(class).join("good.png")).unwrap();
    }
    let good = fs::read(folder.join("cat/good.png")).unwrap();
    fs::write(folder.join("cat/truncated.png"), &good[..good.len() / 2]).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 0x10;
    fs::write(folder.join("cat/flipped.png"), flipped).unwrap();
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../preprocess/tests/fixtures/crop");
    fs::copy(format!("{fixtures}/truncated.jpg"), folder.join("dog/truncated.jpg")).unwrap();
    fs::write(folder.join("dog/animation.gif"), b"GIF89a").unwrap();
    fs::write(folder.join("dog/corrupt.jpg"), b"\xff\xd8\xff\xe0 this is no picture").unwrap();
    fs::write(folder.join("dog/empty.png"), b"").unwrap();
    workshop.done("encode", "--pictures @pictures --out @latents --set output.name=pets");
    let skipped = fs::read_to_string(workshop.path("latents/skipped.jsonl")).unwrap();
    for name in [
        "truncated.png",
        "flipped.png",
        "truncated.jpg",
        "corrupt.jpg",
        "empty.png",
        "animation.gif",
    ] {
        let lines = skipped.lines().filter(|line| line.contains(name));
        let reasons: Vec<&str> = lines.filter(|line| line.contains("\"reason\":\"")).collect();
        assert_eq!(reasons.len(), 1, "{name} in {skipped}");
    }
    assert_eq!(skipped.lines().count(), 6);
}

#[test]
fn no_pictures_and_classes_without_pictures() {
    let workshop = Workshop::new();
    let folder = workshop.path("pictures");
    fs::create_dir_all(folder.join("cat")).unwrap();
    let line = workshop.refused("encode", "--pictures @pictures --out @latents", 1);
    assert!(
        line.starts_with("error: pictures: no pictures found; expected JPEG"),
        "{line}"
    );

    image::RgbImage::new(16, 12).save(folder.join("cat/black.png")).unwrap();
    fs::create_dir(folder.join("dog")).unwrap();
    let line = workshop.refused("encode", "--pictures @pictures --out @latents", 1);
    assert!(
        line.starts_with("error: pictures: class folder \"dog\" has no pictures"),
        "{line}"
    );
    assert!(!workshop.path("latents").exists());
}

#[test]
fn zero_classes() {
    let workshop = Workshop::new();
    workshop.encode();
    let line = workshop.refused("train", "--data @latents --out @run --set model.classes=0", 2);
    assert_eq!(line, "error: --set: `model.classes` is 0: must be at least 1");
    assert!(!workshop.path("run").exists());
}

#[test]
fn a_checkpoint_that_does_not_fit_names_the_first_tensor_and_both_shapes() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", "--data @latents --out @run --steps 7");
    let line = workshop.refused("sample", "--checkpoint @run --out @samples --set model.width=32", 1);
    assert!(
        line.contains("tensor pos_embed has shape [1, 16, 16], the configuration needs [1, 16, 32]"),
        "{line}"
    );
}

#[test]
fn shards_of_another_codec_or_size() {
    let workshop = Workshop::new();
    workshop.encode();
    let line = workshop.refused("train", "--data @latents --out @run --set model.latent_channels=4", 1);
    let expected = "error: latents: holds latents of codec identity of shape [1, 8, 8], expected [4, 8, 8] by \
                    model.latent_channels and model.latent_size";
    assert_eq!(line, expected);
    let line = workshop.refused("train", "--data @latents --out @run --set model.classes=2", 1);
    assert!(
        line.contains("holds 3 classes, expected at most model.classes = 2"),
        "{line}"
    );
    assert!(!workshop.path("run").exists());

    // Of the same shape, but of another codec: neither a run nor a codec's weights may be mixed up with them.
    workshop.done("train", "--data @latents --out @run --steps 7");
    let patches = "--set codec.kind=pca --set codec.patch=1 --set codec.channels=1";
    workshop.done(
        "encode",
        &format!("--pictures @t10k-images-idx3-ubyte --grey --out @patches {patches}"),
    );
    let line = workshop.refused("train", "--data @patches --out @run --steps 14", 1);
    assert_eq!(
        line,
        "error: run: holds another run: codec.name of its shards is \"identity\", of these \"pca\""
    );
    fs::remove_file(workshop.path("patches/codec.safetensors")).unwrap();
    let line = workshop.refused("decode", "--shards @patches --out @pictures", 1);
    assert!(line.contains("patches") && line.contains("codec"), "{line}");
}

#[test]
fn an_output_folder_with_another_run() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", "--data @latents --out @run --steps 7");
    let before = files(&workshop.path("run"), &["json", "toml", "safetensors"]);
    let line = workshop.refused("train", "--data @latents --out @run --steps 7 --set train.batch=16", 1);
    assert!(
        line.contains("run: holds another run: its train.batch is 8, this one's is 16"),
        "{line}"
    );
    let line = workshop.refused("train", "--data @latents --out @latents", 1);
    assert!(line.contains("holds another run"), "{line}");
    support::assert_same(&before, &files(&workshop.path("run"), &["json", "toml", "safetensors"]));

    workshop.done("sample", "--checkpoint @run --out @samples --per-class 2");
    let line = workshop.refused("sample", "--checkpoint @run --out @samples --per-class 2 --seed 1", 1);
    assert!(line.contains("samples"), "{line}");
    assert!(
        line.contains("codec.settings.generator.settings.seed was 0 when these shards were begun, now it is 1"),
        "{line}"
    );
    // The same weights in another network, whose tensors have the same shapes.
    let heads = "--checkpoint @run --out @samples --per-class 2 --set model.heads=4";
    let line = workshop.refused("sample", heads, 1);
    assert!(
        line.contains("codec.settings.generator.model.heads was 2 when these shards were begun, now it is 4"),
        "{line}"
    );
    let encode = "--pictures @t10k-images-idx3-ubyte --grey --out @latents --set";
    let line = workshop.refused("encode", &format!("{encode} codec.size=4"), 1);
    assert!(line.contains("latent_shape"), "{line}");
    // What the codec of pixels does not depend on makes no other run.
    workshop.done("encode", &format!("{encode} codec.tf32=false"));
    workshop.done("decode", "--shards @latents --out @pictures");
    workshop.done("decode", "--shards @latents --out @pictures --set codec.tf32=false");
}

/// `| head` and the like: the work is done, only nobody reads of it.
#[test]
fn a_closed_standard_output() {
    let workshop = Workshop::new();
    // fit-features wants a hundred.
    workshop.write_pictures("t10k-images-idx3-ubyte", 128);
    workshop.encode();
    workshop.done("train", "--data @latents --out @run --steps 7");
    for (stage, arguments) in [
        ("encode", "--pictures @t10k-images-idx3-ubyte --grey --out @latents"),
        (
            "encode",
            "--pictures @t10k-images-idx3-ubyte --grey --out @latents --dry-run",
        ),
        ("sample", "--checkpoint @run --out @samples --per-class 2"),
        ("decode", "--shards @latents --out @pictures"),
        ("evaluate", "fit-features @latents @judge.safetensors --steps 2"),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = workshop.stage(stage, arguments);
        if stage == "evaluate" {
            command = support::program("deepflow-evaluate");
            let words = arguments.split(' ');
            command.args(words.map(|word| {
                word.strip_prefix('@')
                    .map_or(word.to_owned(), |name| workshop.text(name))
            }));
        }
        let output = command.stdout(writer).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{stage}: {said}");
        assert!(said.contains("error: ") && said.contains("Broken pipe"), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
    assert!(workshop.path("samples/index.json").is_file() && workshop.path("pictures/contact-sheet.png").is_file());
}

#[test]
fn an_output_folder_with_the_files_of_others() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", "--data @latents --out @run --steps 7");
    fs::create_dir(workshop.path("holiday")).unwrap();
    fs::write(workshop.path("holiday/beach.jpg"), "sand").unwrap();
    for (stage, arguments) in [
        ("encode", "--pictures @t10k-images-idx3-ubyte --grey"),
        ("train", "--data @latents"),
        ("sample", "--checkpoint @run"),
        ("decode", "--shards @latents"),
    ] {
        let line = workshop.refused(stage, &format!("{arguments} --out @holiday"), 1);
        assert!(line.starts_with("error: holiday: holds "), "{line}");
    }
    assert_eq!(fs::read_dir(workshop.path("holiday")).unwrap().count(), 1);
    // A file where a folder is expected.
    for (stage, arguments) in [
        ("encode", "--pictures @t10k-images-idx3-ubyte --grey"),
        ("train", "--data @latents"),
        ("sample", "--checkpoint @run"),
        ("decode", "--shards @latents"),
    ] {
        let line = workshop.refused(stage, &format!("{arguments} --out @tiny.toml"), 1);
        assert!(line.contains("tiny.toml"), "{line}");
    }
}

#[test]
fn a_start_that_came_to_nothing_may_be_mended() {
    let workshop = Workshop::new();
    workshop.encode();
    let line = workshop.refused("train", "--data @latents --out @run --set train.start_from=nowhere", 1);
    assert!(line.contains("nowhere"), "{line}");
    workshop.done("train", "--data @latents --out @run --steps 7");

    let sample = "--checkpoint @run --out @samples --per-class 2";
    let line = workshop.refused("sample", &format!("{sample} --classes 0,3"), 2);
    assert!(line.contains("--classes: 3, expected classes below 3"), "{line}");
    // Begun, and ended before its first shard.
    let line = workshop.refused("sample", &format!("{sample} --classes 0,2 --set model.width=32"), 1);
    assert!(line.contains("tensor pos_embed"), "{line}");
    workshop.done("sample", &format!("{sample} --classes 0,1"));
    let line = workshop.refused("sample", &format!("{sample} --classes 0,2"), 1);
    assert!(
        line.contains("holds") || line.contains("when these shards were begun"),
        "{line}"
    );
}

/// Said before anything is made, instead of being ended by the system.
#[test]
fn a_network_that_no_memory_holds() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", "--data @latents --out @run --steps 7");
    let huge = "--set model.width=32768 --set model.depth=200 --set model.heads=256";
    let line = workshop.refused("train", &format!("--data @latents --out @huge {huge}"), 1);
    assert!(
        line.starts_with("error: training needs ")
            && line.contains(" GiB for weights, gradients, moments and averaged weights alone, this machine has "),
        "{line}"
    );
    let line = workshop.refused("sample", &format!("--checkpoint @run --out @samples {huge}"), 1);
    assert!(
        line.starts_with("error: sampling needs ") && line.contains(" GiB for weights alone"),
        "{line}"
    );
    assert!(!workshop.path("huge").exists() && !workshop.path("samples").exists());
}

#[test]
fn a_range_of_shards_that_are_not_there() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", "--data @latents --out @run --steps 7");
    for (stage, arguments) in [
        ("encode", "--pictures @t10k-images-idx3-ubyte --grey --out @out"),
        ("sample", "--checkpoint @run --out @out"),
        ("decode", "--shards @latents --out @out"),
    ] {
        let line = workshop.refused(stage, &format!("{arguments} --shard-range 3..9"), 2);
        assert!(
            line.contains("--shard-range 3..9: ") && line.contains(" has 4 shards, expected a range within them"),
            "{line}"
        );
    }
}

/// Files may not grow beyond `kib`: every larger write fails as on a full disk.
#[cfg(unix)]
fn with_small_files(command: &std::process::Command, kib: u32) -> std::process::Output {
    // The trap keeps SIGXFSZ from ending the program, so that the write itself fails.
    after(&format!("trap '' XFSZ; ulimit -f {}", kib * 2), command)
}

/// The command in a shell that has done `preparation`.
#[cfg(unix)]
fn after(preparation: &str, command: &std::process::Command) -> std::process::Output {
    let mut line = vec![command.get_program().to_owned()];
    line.extend(command.get_args().map(ToOwned::to_owned));
    std::process::Command::new("bash")
        .args(["-c", &format!("{preparation}; exec \"$@\""), "bash"])
        .args(line)
        .output()
        .unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn more_threads_than_the_system_starts() {
    let workshop = Workshop::new();
    let encode = "--pictures @t10k-images-idx3-ubyte --grey --out @latents --threads 20000";
    // Room for the stacks of a few hundred threads.
    let output = after("ulimit -v 2000000", &workshop.stage("encode", encode));
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.starts_with("error: --threads is 20000, expected no more than the system starts: ")
            && said.lines().count() == 1,
        "{said}"
    );
}

#[cfg(unix)]
#[test]
fn no_space_left() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", "--data @latents --out @run --steps 7");
    let before = files(&workshop.path("run/checkpoints/step-0000007"), &[""]);

    let more = workshop.stage("train", "--data @latents --out @run --steps 14");
    let output = with_small_files(&more, 8);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("error: ") && stderr(&output).contains("step-0000014"),
        "{}",
        stderr(&output)
    );
    support::assert_same(&before, &files(&workshop.path("run/checkpoints/step-0000007"), &[""]));
    assert!(!workshop.path("run/checkpoints/step-0000014").exists());
    workshop.done("train", "--data @latents --out @run --steps 14");

    let encode = workshop.stage("encode", "--pictures @t10k-images-idx3-ubyte --grey --out @other");
    let output = with_small_files(&encode, 8);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(!workshop.path("other/index.json").exists());
    workshop.done("encode", "--pictures @t10k-images-idx3-ubyte --grey --out @other");
}
