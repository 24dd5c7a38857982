//! Encoding and decoding with an AutoencoderKL in a diffusers folder, through the stages' own programs.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use deepflow_datasets::Index;
use deepflow_preprocess::picture::{decode, write_png, Colour, DecodeOptions, Pixels, PngCompression};

const SIZE: usize = 32;

/// A small random autoencoder of two levels in diffusers' own format: factor 2.
fn weights() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/golden/vae_two_level")
}

fn write_pictures(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for i in 0..3_u8 {
        let picture = Pixels::filled(SIZE + 5, SIZE, Colour::Rgb, [40 * i, 255 - 60 * i, 7]);
        fs::write(
            folder.join(format!("{i}.png")),
            write_png(&picture, PngCompression::Fast).unwrap(),
        )
        .unwrap();
    }
}

fn encode(pictures: &Path, out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deepflow-encode"));
    command
        .args([
            "--set",
            "codec.kind=autoencoder-kl",
            "--set",
            &format!("codec.size={SIZE}"),
        ])
        .arg("--pictures")
        .arg(pictures)
        .arg("--out")
        .arg(out);
    command
}

fn set_weights(command: &mut Command, weights: &Path) {
    command.arg("--set").arg(format!("codec.weights={}", weights.display()));
}

fn decode_shards(shards: &Path, out: &Path, weights: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deepflow-decode"));
    command
        .arg("--shards")
        .arg(shards)
        .arg("--out")
        .arg(out)
        .arg("--weights")
        .arg(weights);
    command
}

#[test]
fn pictures_go_through_the_autoencoder_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_pictures(&at("pictures/one"));
    let mut command = encode(&at("pictures"), &at("latents"));
    set_weights(&mut command, &weights());
    command.assert().success();

    let index = Index::load(&at("latents")).unwrap();
    assert_eq!(index.samples, 3);
    assert_eq!(index.codec.name, "autoencoder-kl");
    assert_eq!(index.codec.latent_shape[1..], [SIZE / 2, SIZE / 2]);
    assert_eq!(index.codec.weights_sha256.as_deref().map(str::len), Some(64));

    decode_shards(&at("latents"), &at("decoded"), &weights())
        .assert()
        .success();
    let decoded: Vec<_> = fs::read_dir(at("decoded/one")).unwrap().collect();
    assert_eq!(decoded.len(), 3);
    let png = fs::read(decoded[0].as_ref().unwrap().path()).unwrap();
    let pixels = decode(&png, &DecodeOptions::default()).unwrap().pixels;
    assert_eq!((pixels.width(), pixels.height()), (SIZE, SIZE));
}

#[test]
fn missing_weights_are_asked_for_and_other_weights_are_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_pictures(&at("pictures/one"));
    let output = encode(&at("pictures"), &at("latents"))
        .assert()
        .code(2)
        .get_output()
        .clone();
    assert!(String::from_utf8(output.stderr).unwrap().contains("codec.weights"));

    let mut command = encode(&at("pictures"), &at("latents"));
    set_weights(&mut command, &weights());
    command.assert().success();

    fs::create_dir(at("other")).unwrap();
    let file = "diffusion_pytorch_model.safetensors";
    let mut bytes = fs::read(weights().join(file)).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(at("other").join(file), bytes).unwrap();
    fs::copy(weights().join("config.json"), at("other/config.json")).unwrap();
    let output = decode_shards(&at("latents"), &at("decoded"), &at("other"))
        .assert()
        .success()
        .get_output()
        .clone();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("not the ones"), "{stderr}");
}
