//! Encoding and decoding with an AutoencoderKL in a diffusers folder, through the stages' own programs.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use deepflow_datasets::Index;
use deepflow_preprocess::picture::{decode, write_png, Colour, DecodeOptions, Pixels, PngCompression};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

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

/// The network's numbers depend on it, on a GPU; folders that do not say it were made with the default.
#[test]
fn another_precision_is_another_run() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let refused = |command: &mut Command, expected: &str| {
        let output = command.args(["--set", "codec.tf32=false"]).assert().code(1);
        let stderr = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
        assert!(stderr.contains(expected), "{stderr}");
    };
    write_pictures(&at("pictures/one"));
    let encode = || {
        let mut command = encode(&at("pictures"), &at("latents"));
        set_weights(&mut command, &weights());
        command
    };
    encode().assert().success();
    let settings = Index::load(&at("latents")).unwrap().codec.settings;
    assert!(!settings.contains_key("precision") && !settings.contains_key("tf32"));
    encode().assert().success();
    refused(
        &mut encode(),
        "codec.settings.tf32 was absent when these shards were begun, now it is false",
    );

    let decode = || decode_shards(&at("latents"), &at("decoded"), &weights());
    decode().assert().success();
    let other = "the folder holds another run (tf32 is true, this run has false)";
    refused(&mut decode(), other);
    let record = at("decoded/decode.json");
    let mut earlier: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    for field in ["precision", "tf32"] {
        assert!(earlier.as_object_mut().unwrap().remove(field).is_some());
    }
    fs::write(&record, earlier.to_string()).unwrap();
    decode().assert().success();
    refused(&mut decode(), other);
}

/// The autoencoder of [`weights`] with eight latent channels instead of four; the tensors that this changes are zero.
fn write_weights_of_eight_channels(folder: &Path) {
    fs::create_dir(folder).unwrap();
    let config = fs::read_to_string(weights().join("config.json")).unwrap();
    let config = config.replace("\"latent_channels\": 4", "\"latent_channels\": 8");
    assert!(config.contains(": 8"));
    fs::write(folder.join("config.json"), config).unwrap();
    let file = "diffusion_pytorch_model.safetensors";
    let bytes = fs::read(weights().join(file)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let zeros = vec![0; 1 << 20];
    let changed = tensors.iter().map(|(name, tensor)| {
        let mut shape = tensor.shape().to_vec();
        let (outputs, inputs) = match name.rsplit_once('.').unwrap().0 {
            "encoder.conv_out" => (2, 1),
            "quant_conv" | "post_quant_conv" => (2, 2),
            "decoder.conv_in" => (1, 2),
            _ => (1, 1),
        };
        if outputs * inputs == 1 {
            return (name, tensor);
        }
        shape[0] *= outputs;
        if let Some(channels) = shape.get_mut(1) {
            *channels *= inputs;
        }
        let bytes = 4 * shape.iter().product::<usize>();
        (name, TensorView::new(Dtype::F32, shape, &zeros[..bytes]).unwrap())
    });
    fs::write(folder.join(file), safetensors::serialize(changed, None).unwrap()).unwrap();
}

#[test]
fn weights_for_latents_of_another_shape_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_pictures(&at("pictures/one"));
    let mut command = encode(&at("pictures"), &at("latents"));
    set_weights(&mut command, &weights());
    command.assert().success();

    write_weights_of_eight_channels(&at("eight"));
    let output = decode_shards(&at("latents"), &at("decoded"), &at("eight"))
        .assert()
        .code(1)
        .get_output()
        .clone();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("codec autoencoder-kl: makes latents of shape [8, 16, 16]"),
        "{stderr}"
    );
    assert!(stderr.contains("hold [4, 16, 16]"), "{stderr}");
    assert!(!at("decoded").exists());
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

#[test]
fn benchmarks_run_the_stages_and_say_where_their_time_goes() {
    for what in ["encode", "decode"] {
        let weights = format!("codec.weights={}", weights().display());
        let size = format!("codec.size={SIZE}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_deepflow"));
        command.args([
            "bench",
            what,
            "--steps",
            "3",
            "--batch",
            "2",
            "--threads",
            "1",
            "--json",
        ]);
        for setting in ["codec.kind=autoencoder-kl", &weights, &size] {
            command.args(["--set", setting]);
        }
        let output = command.assert().success().get_output().stdout.clone();
        let lines = String::from_utf8(output).unwrap();
        assert_eq!(lines.lines().count(), 1, "{lines}");
        let line: serde_json::Value = serde_json::from_str(&lines).unwrap();
        let number = |value: &serde_json::Value| value.as_f64().unwrap();
        assert_eq!(line["what"], what);
        assert_eq!((&line["config"], &line["device"]), (&"defaults".into(), &"cpu".into()));
        assert_eq!((&line["batch"], &line["threads"]), (&2.into(), &1.into()));
        assert!(number(&line["parameters"]) > 1e4);
        let (median, rate) = (number(&line["median_s"]), number(&line["items_per_s"]));
        assert!(median > 0.0 && (rate * median - 2.0).abs() < 1e-9, "{line}");
        let time = &line["time"];
        let codec = ["codec_s", "codec_waits_s", "codec_blocked_s"].map(|part| number(&time[part]));
        assert!(
            codec[0] > 0.0 && number(&time["write_s"]) > 0.0 && number(&time["read_s"]) > 0.0,
            "{time}"
        );
        assert!(codec.iter().sum::<f64>() <= number(&time["total_s"]), "{time}");
    }
    let refused = Command::new(env!("CARGO_BIN_EXE_deepflow"))
        .args(["bench", "encode", "--device", "cuda"])
        .assert()
        .code(2);
    let stderr = String::from_utf8(refused.get_output().stderr.clone()).unwrap();
    assert!(
        stderr.contains("--device cuda:0: codec pca runs on the cpu"),
        "{stderr}"
    );
}
