//! The stages on a GPU, in single and in mixed precision: whole programs with `--device cuda` on the emulated device of
//! scripts/emulated-gpu, or on a card where `DEEPFLOW_CUDA_TESTS=card` asks for it.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use deepflow_datasets::{Limits, ShardReader, LATENT, MOMENTS};
use deepflow_preprocess::picture::{decode, write_png, Colour, DecodeOptions, Pixels, PngCompression};
use serde_json::Value;
use support::{assert_same, files, program, stderr, Workshop};

/// Where the programs find a driver: the folder of the emulated one, or none for a card's. `None` (said on stderr) where
/// there is neither.
fn gpu() -> Option<&'static Option<PathBuf>> {
    static GPU: OnceLock<Option<Option<PathBuf>>> = OnceLock::new();
    GPU.get_or_init(|| {
        if std::env::var_os("DEEPFLOW_CUDA_TESTS").is_some_and(|tests| tests == "card") {
            return Some(None);
        }
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        if Command::new(compiler).arg("--version").output().is_err() {
            eprintln!("SKIPPED: no C++ compiler (CXX, c++) to build the CUDA emulation with");
            return None;
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("emulated-gpu-{}", std::process::id()));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/emulated-gpu");
        let output = Command::new(script).arg(&folder).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        Some(Some(folder))
    })
    .as_ref()
}

fn run(mut command: Command) -> Output {
    if let Some(Some(folder)) = gpu() {
        command.env("LD_LIBRARY_PATH", folder);
    }
    command.output().unwrap()
}

#[track_caller]
fn done(workshop: &Workshop, stage: &str, arguments: &str) {
    let output = run(workshop.stage(stage, arguments));
    assert!(output.status.success(), "{stage} {arguments}: {}", stderr(&output));
}

fn metrics(workshop: &Workshop, run: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(workshop.path(run).join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
fn assert_near(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    assert!(!found.is_empty());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= tolerance,
            "value {i} is {found}, expected {expected}"
        );
    }
}

/// No sheets: they are the same code as the sampling below.
const TRAIN: &str = "--data @latents --set train.sample_every=0 --set train.checkpoint_every=5";

#[test]
fn training_on_a_gpu_goes_the_way_of_the_processor() {
    if gpu().is_none() {
        return;
    }
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", &format!("{TRAIN} --steps 10 --device cpu --out @cpu"));
    let exact = "--set train.tf32=false";
    done(
        &workshop,
        "train",
        &format!("{TRAIN} --steps 10 --device cuda --out @single {exact}"),
    );
    done(
        &workshop,
        "train",
        &format!("{TRAIN} --steps 10 --device cuda --out @mixed --set train.precision=mixed"),
    );
    let losses = |run: &str| -> Vec<f64> {
        let lines = metrics(&workshop, run);
        lines
            .iter()
            .map(|line| line["loss"]["total"].as_f64().unwrap())
            .collect()
    };
    assert_eq!(losses("cpu").len(), 2);
    assert_near(&losses("single"), &losses("cpu"), 1e-4);
    assert_near(&losses("mixed"), &losses("cpu"), 2e-2);
    for line in metrics(&workshop, "single") {
        assert_eq!(
            (line.get("loss_scale"), &line["skipped_steps"]),
            (None, &Value::from(0))
        );
        assert!(line["seconds"]["backward"].as_f64().unwrap() > 0.0, "{line}");
    }
    for line in metrics(&workshop, "mixed") {
        assert!(line["loss_scale"].as_f64().unwrap() >= 1.0, "{line}");
        assert!(line["skipped_steps"].is_u64(), "{line}");
    }
}

/// A run of ten steps, and one of five that goes on to ten.
#[test]
fn a_run_on_a_gpu_goes_on_exactly() {
    if gpu().is_none() {
        return;
    }
    let workshop = Workshop::new();
    workshop.encode();
    for precision in ["f32", "mixed"] {
        let train = format!("{TRAIN} --device cuda --set train.precision={precision}");
        done(
            &workshop,
            "train",
            &format!("{train} --steps 10 --out @{precision}-whole"),
        );
        done(
            &workshop,
            "train",
            &format!("{train} --steps 5 --out @{precision}-parts"),
        );
        done(
            &workshop,
            "train",
            &format!("{train} --steps 10 --out @{precision}-parts"),
        );
        let checkpoint = |run: &str| {
            let folder = workshop.path(&format!("{precision}-{run}/checkpoints/step-0000010"));
            files(&folder, &[".safetensors", ".json"])
        };
        assert_eq!(checkpoint("whole").len(), 4);
        assert_same(&checkpoint("whole"), &checkpoint("parts"));
        let state = String::from_utf8(checkpoint("whole")["state.json"].clone()).unwrap();
        assert_eq!(state.contains("loss_scale"), precision == "mixed", "{state}");
    }
}

#[test]
fn samples_of_a_gpu_are_those_of_the_processor() {
    if gpu().is_none() {
        return;
    }
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", &format!("{TRAIN} --steps 10 --device cpu --out @run"));
    let sample = "--checkpoint @run --per-class 2 --set sample.guidance=1.5";
    workshop.done("sample", &format!("{sample} --device cpu --out @cpu"));
    done(
        &workshop,
        "sample",
        &format!("{sample} --device cuda --set sample.tf32=false --out @single"),
    );
    done(
        &workshop,
        "sample",
        &format!("{sample} --device cuda --set sample.precision=mixed --out @mixed"),
    );
    let latents = |folder: &str| -> Vec<f64> {
        let shard = workshop.path(folder).join("latents-000000.tar");
        let samples = ShardReader::open(&shard, Limits::default()).unwrap();
        samples
            .flat_map(|sample| sample.unwrap().array(LATENT, "").unwrap().unwrap().data)
            .map(f64::from)
            .collect()
    };
    assert_near(&latents("single"), &latents("cpu"), 1e-4);
    assert_near(&latents("mixed"), &latents("cpu"), 2e-2);
}

const SIDE: usize = 32;

/// Three colour pictures, and a small random autoencoder for them.
fn settings_of_an_autoencoder(workshop: &Workshop) -> String {
    let folder = workshop.path("photographs/one");
    std::fs::create_dir_all(&folder).unwrap();
    for number in 0..3u8 {
        let bytes = (0..SIDE * SIDE * 3).map(|place| (place * (37 + usize::from(number)) % 251) as u8);
        let picture = Pixels::new(SIDE, SIDE, Colour::Rgb, bytes.collect()).unwrap();
        let png = write_png(&picture, PngCompression::Fast).unwrap();
        std::fs::write(folder.join(format!("{number}.png")), png).unwrap();
    }
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/golden/vae_two_level");
    format!(
        "--set codec.kind=autoencoder-kl --set codec.size={SIDE} --set codec.weights={}",
        weights.display()
    )
}

/// Pictures to latents and back, on both, in both precisions.
#[test]
fn an_autoencoder_on_a_gpu_makes_the_latents_and_pictures_of_the_processor() {
    if gpu().is_none() {
        return;
    }
    let workshop = Workshop::new();
    let codec = settings_of_an_autoencoder(&workshop);
    let exact = "--device cuda --set codec.tf32=false";
    let mixed = "--device cuda --set codec.precision=mixed";
    for (name, device) in [("cpu", "--device cpu"), ("single", exact), ("mixed", mixed)] {
        let encode = format!("{codec} --pictures @photographs --out @latents-{name} {device}");
        done(&workshop, "encode", &encode);
        // The same latents for all.
        let decode = format!("{codec} --shards @latents-cpu --out @pictures-{name} {device}");
        done(&workshop, "decode", &decode);
    }
    let moments = |name: &str| -> Vec<f64> {
        let shard = workshop.path(&format!("latents-{name}/latents-000000.tar"));
        let samples = ShardReader::open(&shard, Limits::default()).unwrap();
        samples
            .flat_map(|sample| sample.unwrap().array(MOMENTS, "").unwrap().unwrap().data)
            .map(f64::from)
            .collect()
    };
    let pixels = |name: &str| -> Vec<f64> {
        let folder = workshop.path(&format!("pictures-{name}/one"));
        let pictures = files(&folder, &[".png"]);
        assert_eq!(pictures.len(), 3, "{name}");
        let decoded = pictures
            .values()
            .map(|png| decode(png, &DecodeOptions::default()).unwrap().pixels);
        decoded
            .flat_map(|pixels| pixels.data().to_vec())
            .map(f64::from)
            .collect()
    };
    assert_near(&moments("single"), &moments("cpu"), 1e-4);
    assert_near(&moments("mixed"), &moments("cpu"), 2e-2);
    assert_near(&pixels("single"), &pixels("cpu"), 1.0);
    assert_near(&pixels("mixed"), &pixels("cpu"), 6.0);
}

#[test]
fn the_bench_measures_the_autoencoder_on_a_gpu() {
    if gpu().is_none() {
        return;
    }
    let workshop = Workshop::new();
    let codec = settings_of_an_autoencoder(&workshop);
    for (what, precision) in [("decode", "f32"), ("decode", "mixed"), ("encode", "f32")] {
        let mut bench = program("deepflow");
        bench.args(["bench", what, "--json", "--kernels", "--steps", "2", "--device", "cuda"]);
        bench.args(codec.split_whitespace());
        bench.args(["--set", &format!("codec.precision={precision}")]);
        let output = run(bench);
        assert!(output.status.success(), "{}", stderr(&output));
        let line: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&line["device"], &line["batch"]), (&"cuda:0".into(), &4.into()));
        assert!(line["median_s"].as_f64().unwrap() > 0.0);
        let half = if precision == "f32" { "f32" } else { "f16" };
        let kernels = line["gpu"]["kernels"].as_array().unwrap();
        for name in ["product", "gather_windows", "channel_moments", "softmax_rows"] {
            let name = format!("{name}_{half}");
            let kernel = kernels.iter().find(|kernel| kernel["name"] == name.as_str());
            assert!(
                kernel.is_some_and(|kernel| kernel["bytes"].as_u64().unwrap() > 0),
                "{name}: {kernels:?}"
            );
        }
    }
}

#[test]
fn codecs_without_a_network_stay_on_the_processor() {
    let Some(Some(_)) = gpu() else { return };
    let workshop = Workshop::new();
    workshop.encode();
    for (stage, arguments) in [
        ("encode", "--pictures @t10k-images-idx3-ubyte --grey --out @again"),
        ("decode", "--shards @latents --out @pictures"),
    ] {
        let output = run(workshop.stage(stage, &format!("{arguments} --device cuda")));
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("error: --device cuda:0: codec "), "{said}");
        assert!(said.contains(" runs on the cpu"), "{said}");
    }
    // Of itself a GPU is not taken for them.
    done(&workshop, "decode", "--shards @latents --out @pictures");
}

#[test]
fn what_the_gpu_does_not_have_is_a_wrong_command_line() {
    let Some(Some(_)) = gpu() else { return };
    let workshop = Workshop::new();
    workshop.encode();
    for (arguments, reason) in [
        ("--device cuda:1", "--device cuda:1: the driver sees 1 device(s)"),
        (
            "--device cuda --set model.width=264 --set model.heads=2",
            "model.heads = 2: makes heads of 132 columns",
        ),
    ] {
        let output = run(workshop.stage("train", &format!("--data @latents --out @run {arguments}")));
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.lines()
                .any(|line| line.starts_with("error: ") && line.contains(reason)),
            "{said}"
        );
    }
}

#[test]
fn the_bench_measures_steps_on_a_gpu() {
    if gpu().is_none() {
        return;
    }
    let workshop = Workshop::new();
    for (what, key) in [("train", "train.precision"), ("forward", "sample.precision")] {
        for precision in ["f32", "mixed"] {
            let mut bench = program("deepflow");
            bench
                .args([
                    "bench",
                    what,
                    "--json",
                    "--kernels",
                    "--steps",
                    "1",
                    "--batch",
                    "2",
                    "--device",
                    "cuda",
                ])
                .args([
                    "--config",
                    &workshop.text("tiny.toml"),
                    "--set",
                    &format!("{key}={precision}"),
                ]);
            let output = run(bench);
            assert!(output.status.success(), "{}", stderr(&output));
            let line: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!((&line["what"], &line["device"]), (&what.into(), &"cuda:0".into()));
            assert!(line["median_s"].as_f64().unwrap() > 0.0);
            let gpu = &line["gpu"];
            assert!(gpu["peak_bytes"].as_u64().unwrap() > 0 && gpu["profiled_step_s"].as_f64().unwrap() > 0.0);
            let product = format!("product_{}", if precision == "f32" { "f32" } else { "f16" });
            let kernels = gpu["kernels"].as_array().unwrap();
            let products = kernels
                .iter()
                .find(|kernel| kernel["name"] == product.as_str())
                .unwrap();
            assert!(
                products["flops"].as_u64().unwrap() > products["bytes"].as_u64().unwrap() / 4,
                "{products}"
            );
            assert!(
                kernels.iter().all(|kernel| kernel["seconds"].as_f64().unwrap() > 0.0),
                "{kernels:?}"
            );
        }
    }
}
