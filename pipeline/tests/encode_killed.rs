//! The real encode program, killed at several moments, goes on to the bytes of a run that was left alone.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use deepflow_preprocess::picture::{write_png, Colour, Pixels, PngCompression};

fn command(pictures: &Path, out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deepflow-encode"));
    command
        .arg("--pictures")
        .arg(pictures)
        .arg("--out")
        .arg(out)
        .args(["--quiet", "--keep-pictures"]);
    for setting in [
        "codec.size=64",
        "output.shard_samples=9",
        "output.half=true",
        "codec.fit_images=40",
    ] {
        command.args(["--set", setting]);
    }
    command.stdout(Stdio::null());
    command
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file());
    entries
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into(),
                fs::read(path).unwrap(),
            )
        })
        .collect()
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let (pictures, whole, killed) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    for index in 0..400_usize {
        let data = (0..90 * 80 * 3).map(|i| ((i * (index + 3)) % 251) as u8).collect();
        let pixels = Pixels::new(90, 80, Colour::Rgb, data).unwrap();
        let class = pictures.path().join(format!("class-{}", index % 3));
        fs::create_dir_all(&class).unwrap();
        fs::write(
            class.join(format!("{index:03}.png")),
            write_png(&pixels, PngCompression::Fast).unwrap(),
        )
        .unwrap();
    }
    assert!(command(pictures.path(), whole.path()).status().unwrap().success());
    let mut kills = 0;
    for milliseconds in [5, 20, 35, 50, 80, 110, 140] {
        let mut child = command(pictures.path(), killed.path()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        if child.wait().unwrap().code().is_none() {
            kills += 1;
        }
    }
    assert!(kills > 0, "every run ended before it could be killed");
    assert!(command(pictures.path(), killed.path()).status().unwrap().success());
    let (found, mut expected) = (files(killed.path()), files(whole.path()));
    expected.retain(|name, _| name != "config.toml");
    assert!(expected.contains_key("index.json") && expected.contains_key("codec.safetensors"));
    for (name, bytes) in &expected {
        assert!(found.get(name) == Some(bytes), "{name} differs");
    }
}
