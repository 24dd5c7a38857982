//! Encoding takes the same memory for few pictures and for many, fitting included.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use deepflow_preprocess::picture::{write_png, Colour, Pixels, PngCompression};

const SIDE: usize = 256;
/// Enough to fill everything between the threads.
const FEW: usize = 500;
const MANY: usize = 1500;

/// Far less than the pixels of the pictures that are more.
const ALLOWANCE: u64 = 24 << 20;

/// Peak memory of `deepflow-encode` on the pictures of a folder, all of which the transform is fitted to.
fn peak(pictures: &Path) -> u64 {
    let out = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_deepflow-encode"))
        .arg("--pictures")
        .arg(pictures)
        .arg("--out")
        .arg(out.path())
        .args(["--quiet", "--set", &format!("codec.size={SIDE}")])
        .args([
            "--set",
            &format!("codec.fit_images={MANY}"),
            "--set",
            "output.shard_samples=30",
        ])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let kilobytes = text.lines().find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse::<u64>()
                .ok()
        });
        peak = peak.max(kilobytes.unwrap_or(0) << 10);
        thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success() && peak > 0);
    assert!(out.path().join("index.json").exists());
    peak
}

#[test]
fn memory_does_not_grow_with_the_number_of_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let [few, many] = ["few", "many"].map(|name| folder.path().join(name));
    let data = (0..SIDE * SIDE * 3).map(|i| (i * i / 91 % 251) as u8).collect();
    let pixels = Pixels::new(SIDE, SIDE, Colour::Rgb, data).unwrap();
    let png = write_png(&pixels, PngCompression::Fast).unwrap();
    for (pictures, count) in [(&few, FEW), (&many, MANY)] {
        fs::create_dir(pictures).unwrap();
        for index in 0..count {
            fs::write(pictures.join(format!("{index:04}.png")), &png).unwrap();
        }
    }
    let (few, many) = (peak(&few), peak(&many));
    assert!(((MANY - FEW) * SIDE * SIDE * 3) as u64 > 4 * ALLOWANCE);
    assert!(
        many < few + ALLOWANCE,
        "{} MB for {FEW}, {} MB for {MANY}",
        few >> 20,
        many >> 20
    );
}
