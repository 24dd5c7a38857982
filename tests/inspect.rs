//! `deepflow inspect` as its users run it: summaries, forward passes from file to file, conversions.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use support::{program, stderr, Workshop};

const FORWARD_TOLERANCE: f64 = 2e-5;

/// The folder of golden numbers: that of DEEPFLOW_GOLDEN_DIR, or the project's own.
fn golden() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/golden");
    std::env::var_os("DEEPFLOW_GOLDEN_DIR").map_or(own, PathBuf::from)
}

fn golden_files(wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = entries
        .filter(|path| wanted(&path.file_name().unwrap().to_string_lossy()))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "none in {}", golden().display());
    found
}

fn inspect(arguments: &[&str]) -> Output {
    program("deepflow").arg("inspect").args(arguments).output().unwrap()
}

fn done(arguments: &[&str]) -> String {
    let output = inspect(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// `[model]` with the keys of the pipeline spec, from the names the golden files use.
fn model_section(golden: &Value) -> String {
    let keys = [
        ("width", "dim"),
        ("depth", "depth"),
        ("heads", "heads"),
        ("patch", "patch"),
        ("latent_channels", "chans"),
        ("latent_size", "size"),
        ("classes", "classes"),
        ("branch_ends", "branch_ends"),
        ("mlp_ratio", "mlp_ratio"),
        ("acceleration_width", "acc_hidden"),
        ("class_dropout", "class_dropout"),
        ("qk_norm", "qk_norm"),
        ("legacy_scaling", "legacy_scaling"),
        ("alignment_width", "align"),
        ("projector_width", "proj_hidden"),
    ];
    let mut text = String::from("[model]\n");
    for (key, name) in keys {
        if !golden[name].is_null() {
            text += &format!("{key} = {}\n", golden[name]);
        }
    }
    text
}

fn write(path: &Path, tensors: &BTreeMap<String, TensorView<'_>>) {
    fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

fn numbers(view: &TensorView<'_>) -> Vec<f32> {
    view.data()
        .as_chunks()
        .0
        .iter()
        .map(|&bytes| f32::from_le_bytes(bytes))
        .collect()
}

#[test]
fn forward_gives_the_golden_outputs_from_file_to_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let text = |name: &str| at(name).display().to_string();
    let is_case =
        |name: &str| (name.starts_with("deepflow_") || name.starts_with("sit_")) && name.ends_with(".safetensors");
    for case in golden_files(is_case) {
        let bytes = fs::read(&case).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata: &HashMap<String, String> = header.metadata().as_ref().unwrap();
        let config: Value = serde_json::from_str(&metadata["config"]).unwrap();
        fs::write(at("model.toml"), model_section(&config)).unwrap();
        let below = |prefix: &str| -> BTreeMap<String, TensorView<'_>> {
            let named = file.tensors().into_iter();
            named
                .filter_map(|(name, view)| Some((name.strip_prefix(prefix)?.to_owned(), view)))
                .collect()
        };
        write(&at("weights.safetensors"), &below("param."));
        let mut inputs = below("in.");
        inputs.retain(|name, _| ["x", "y"].contains(&name.as_str()) || name.starts_with('t') && name != "target");
        write(&at("input.safetensors"), &inputs);
        let arguments = [
            "forward",
            "--config",
            &text("model.toml"),
            "--weights",
            &text("weights.safetensors"),
            "--input",
            &text("input.safetensors"),
            "--output",
            &text("output.safetensors"),
        ];
        done(&arguments);
        let bytes = fs::read(at("output.safetensors")).unwrap();
        let outputs = SafeTensors::deserialize(&bytes).unwrap();
        let expected = below("out.");
        assert_eq!(outputs.len(), expected.len(), "{}", case.display());
        for (name, expected) in expected {
            let found = outputs.tensor(&name).unwrap();
            assert_eq!(found.shape(), expected.shape(), "{name}");
            let errors = numbers(&found).into_iter().zip(numbers(&expected));
            let worst = errors.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
            assert!(worst <= FORWARD_TOLERANCE, "{} {name}: off by {worst}", case.display());
        }

        // Inputs that do not fit name the tensor and what was expected.
        inputs.remove("t0");
        write(&at("input.safetensors"), &inputs);
        let output = inspect(&arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).contains("input.safetensors: found no tensor t0"),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn labels_that_are_no_class_are_refused() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", "--data @latents --out @run --steps 7");
    let floats = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|value| value.to_le_bytes()).collect() };
    let (latent, time) = (floats(&[0.5; 64]), floats(&[0.5]));
    let texts = [
        "run/config.toml",
        "run/checkpoints/step-0000007/ema.safetensors",
        "in",
        "out",
    ];
    let [config, weights, input, output] = texts.map(|name| workshop.text(name));
    let arguments = ["forward", "--config", &config, "--weights", &weights];
    let arguments = [&arguments[..], &["--input", &input, "--output", &output]].concat();
    for (label, refused) in [
        (2.0, None),
        (-1.0, Some("-1")),
        (2.5, Some("2.5")),
        (f32::NAN, Some("NaN")),
    ] {
        let label = floats(&[label]);
        let tensor = |shape: &[usize], bytes| TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
        let mut tensors = BTreeMap::from([("x".to_owned(), tensor(&[1, 1, 8, 8], &latent))]);
        tensors.insert("y".to_owned(), tensor(&[1], &label));
        for name in ["t0", "t1"] {
            tensors.insert(name.to_owned(), tensor(&[1], &time));
        }
        write(Path::new(&input), &tensors);
        let said = inspect(&arguments);
        let Some(label) = refused else {
            assert!(said.status.success(), "{}", stderr(&said));
            continue;
        };
        assert_eq!(said.status.code(), Some(1), "{label}");
        let expected = format!("in: tensor y holds the label {label}, expected whole numbers of at least 0");
        assert!(stderr(&said).contains(&expected), "{}", stderr(&said));
    }
}

#[test]
fn every_golden_checkpoint_converts_and_is_sampled_from() {
    let workshop = Workshop::new();
    for checkpoint in golden_files(|name| name.ends_with(".pt")) {
        let checkpoint = checkpoint.display().to_string();
        for set in ["ema", "model"] {
            let converted = workshop.text(&format!("{set}.safetensors"));
            let said = done(&["convert", &checkpoint, &converted, "--weights", set]);
            assert!(said.contains(&format!("torch checkpoint, `{set}` weights")), "{said}");
        }
        let sample = |settings: &[&str]| {
            let arguments = [
                "--checkpoint",
                &workshop.text("ema.safetensors"),
                "--per-class",
                "1",
                "--classes",
                "0,1",
            ];
            let quick = ["--set", "sample.steps=3", "--set", "codec.kind=identity"];
            let mut command = program("deepflow-sample");
            command.args(arguments).args(["--out", &workshop.text("samples")]);
            command.args(quick).args(settings).output().unwrap()
        };
        // The weights do not show their heads, so nothing is made up.
        let output = sample(&[]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(
            stderr(&output).contains("give --set model.heads=N"),
            "{}",
            stderr(&output)
        );
        let output = sample(&["--set", "model.heads=4"]);
        assert!(output.status.success(), "{}", stderr(&output));
        fs::remove_dir_all(workshop.path("samples")).unwrap();
    }
}

#[test]
fn a_hostile_file_is_refused_in_one_line_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.safetensors");
    let hostile = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/torch/hostile_zip.pt");
    let output = inspect(&["convert", &hostile.display().to_string(), &out.display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("hostile_zip.pt") && said.contains("posix.system"),
        "{said}"
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_run_is_exported_to_torch_and_comes_back() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", "--data @latents --out @run --steps 7");
    let [torch, back] = ["run.pt", "back.safetensors"].map(|name| workshop.text(name));
    let said = done(&["convert", &workshop.text("run"), &torch]);
    assert!(said.contains("step 7"), "{said}");
    done(&["convert", &torch, &back, "--heads", "2"]);
    let load = |path: &Path| -> BTreeMap<String, Vec<u8>> {
        let bytes = fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        file.tensors()
            .into_iter()
            .map(|(name, view)| (name, view.data().to_vec()))
            .collect()
    };
    let ema = load(&workshop.path("run/checkpoints/step-0000007/ema.safetensors"));
    assert!(load(Path::new(&back)) == ema);
}

/// From inside a run, where nothing of its path is said, and from a folder that no run is above.
#[test]
fn checkpoints_are_sampled_from_wherever_they_lie() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", "--data @latents --out @run --steps 7");
    let sampled = |name: &str| support::files(&workshop.path(name), &["tar"]);
    let settings = "--per-class 2 --set sample.sampler=euler --set sample.steps=2";
    workshop.done("sample", &format!("--checkpoint @run --out @whole {settings}"));

    let mut inside = workshop.stage("sample", &format!("--checkpoint step-0000007 --out @inside {settings}"));
    let output = inside.current_dir(workshop.path("run/checkpoints")).output().unwrap();
    let said = stderr(&output);
    assert!(output.status.success() && !said.contains("loss.path"), "{said}");
    support::assert_same(&sampled("inside"), &sampled("whole"));

    done(&["convert", &workshop.text("run"), &workshop.text("run.pt")]);
    done(&[
        "convert",
        &workshop.text("run.pt"),
        &workshop.text("converted"),
        "--heads",
        "2",
    ]);
    let from_folder = format!("--checkpoint @converted --out @folder {settings} --set sample.shard_samples=8");
    workshop.done("sample", &from_folder);
    let from_file = from_folder
        .replace("converted", "converted/ema.safetensors")
        .replace("@folder", "@file");
    let output = workshop.stage("sample", &from_file).output().unwrap();
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    // Else a network that was trained on another path would be sampled wrong without a word.
    let taken = "loss.path = \"linear\", codec.kind = \"identity\" and codec.size = 8 are those of --config and --set";
    let lines: Vec<_> = said.lines().filter(|line| line.contains("ema.safetensors")).collect();
    assert!(lines.len() == 1 && lines[0].contains(taken), "{said}");
    support::assert_same(&sampled("folder"), &sampled("file"));
}

#[test]
fn the_summary_is_a_table_by_part_with_operations_and_memory() {
    let preset = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/deepflow-xl-2-3t.toml");
    let preset = preset.display().to_string();
    let table = done(&["summary", "--config", &preset, "--batch", "32"]);
    for part in [
        "pos_embed",
        "x_embedder",
        "t_embedder",
        "dt_embedder",
        "y_embedder",
        "blocks",
        "df_blocks",
        "final_layer",
        "final_acc_layer",
        "parameters",
        "one evaluation",
        "a training step",
        "weights, gradients, moments, average",
        "activations at batch 32",
        "training at batch 32",
        "sampling by [sample]",
    ] {
        assert!(table.lines().any(|line| line.starts_with(part)), "{part} in\n{table}");
    }
    assert!(table.contains("681,559,344"), "{table}");
    let summary: Value = serde_json::from_str(&done(&["summary", "--config", &preset, "--json"])).unwrap();
    let parts = summary["parts"].as_array().unwrap().iter();
    let sum: u64 = parts.map(|part| part[1].as_u64().unwrap()).sum();
    assert_eq!((sum, summary["parameters"].as_u64()), (681_559_344, Some(681_559_344)));
}

#[test]
fn a_summary_of_no_sample_is_refused() {
    let output = inspect(&["summary", "--batch", "0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("invalid value '0' for '--batch"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn numbers_that_do_not_fit_are_refused_with_key_and_rule() {
    for (settings, expected) in [
        (
            vec!["model.heads=7"],
            "`model.heads` is 7: must divide model.width = 768",
        ),
        (
            vec!["model.width=770", "model.heads=10"],
            "`model.width` is 770: must be a multiple of 4",
        ),
        (
            vec!["model.branch_ends=[12]"],
            "`model.branch_ends` is [12]: each must lie in 1..=11",
        ),
        (
            vec!["model.branch_ends=[0]"],
            "`model.branch_ends` is [0]: each must lie in 1..=11",
        ),
        (
            vec!["model.branch_ends=[8,4]"],
            "`model.branch_ends` is [8, 4]: must be increasing",
        ),
        (
            vec!["model.branch_ends=[4,4]"],
            "`model.branch_ends` is [4, 4]: must be increasing",
        ),
        (
            vec!["model.latent_size=33"],
            "`model.latent_size` is 33: must be a multiple of model.patch = 2",
        ),
        (vec!["model.depth=0"], "`model.depth` is 0: must be at least 1"),
        (
            vec!["model.classes=99999999999"],
            "`model.classes` is 99999999999: must be at most",
        ),
        (
            vec!["model.class_dropout=1.0"],
            "`model.class_dropout` is 1: must be at least 0 and below 1",
        ),
        (
            vec!["loss.branch_weights=[1,1,1]"],
            "`loss.branch_weights` has 3 values, expected one for each of the 2 branches of the model",
        ),
        (
            vec!["sample.branch_times=[0]"],
            "`sample.branch_times` has 1 values, expected one for each of the 2 branches of the model",
        ),
        (
            vec!["train.max_bad_steps=0"],
            "`train.max_bad_steps` is 0, expected at least 1",
        ),
    ] {
        let mut arguments = vec!["summary"];
        for setting in &settings {
            arguments.extend(["--set", setting]);
        }
        let output = inspect(&arguments);
        assert_eq!(output.status.code(), Some(2), "{settings:?}");
        let said = stderr(&output);
        assert!(said.starts_with("error: --set: ") && said.contains(expected), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
