//! The train stage as its users meet it: the run directory, TensorBoard, bad batches, signals, kills, fine-tuning, alignment.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use deepflow_datasets::{Class, Codec, Compression, DatasetPlan, DatasetWriter, Dtype, Sample, FEATURES, MOMENTS};
use safetensors::SafeTensors;
use serde_json::Value;
use support::{assert_same, files, program, stderr, Workshop};

/// Lines of a `.jsonl` file.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn steps(lines: &[Value]) -> Vec<u64> {
    lines.iter().map(|line| line["step"].as_u64().unwrap()).collect()
}

/// The files of a checkpoint.
fn checkpoint(workshop: &Workshop, run: &str, step: u64) -> BTreeMap<String, Vec<u8>> {
    let folder = workshop.path(run).join(format!("checkpoints/step-{step:07}"));
    files(&folder, &[".safetensors", ".json"])
}

/// 64 samples of 1×8×8 in three classes, as another program could have written them; `change` may spoil one.
fn write_shards(workshop: &Workshop, name: &str, change: impl Fn(usize, &mut Vec<f32>, Sample) -> Sample) {
    let plan = DatasetPlan {
        name: "latents".into(),
        compression: Compression::None,
        codec: Codec {
            name: "identity".into(),
            weights_sha256: None,
            scale_factor: 1.0,
            latent_shape: [1, 8, 8],
            dtype: Dtype::F32,
            resolution: 8,
            settings: BTreeMap::new(),
        },
        classes: (0..3)
            .map(|index| Class {
                index,
                name: format!("class{index}"),
                label: None,
            })
            .collect(),
    };
    let writer = DatasetWriter::create(&workshop.path(name), plan).unwrap();
    let mut shard = writer.begin_shard(0).unwrap();
    for index in 0..64 {
        let mut moments: Vec<f32> = (0..64).map(|i| ((index * 64 + i) as f32 * 0.37).sin()).collect();
        moments.extend([0.0; 64]);
        let sample = change(index, &mut moments, Sample::new(format!("{index:04}")));
        let sample = sample.with_array(MOMENTS, &moments, &[2, 8, 8], Dtype::F32).unwrap();
        shard.write(&sample.with_class(index as u32 % 3)).unwrap();
    }
    shard.finish().unwrap();
    writer.finish(1).unwrap();
}

#[test]
fn a_run_directory_holds_what_others_script_against() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", "--data @latents --out @run");
    let run = workshop.path("run");

    let config: toml::Table = fs::read_to_string(run.join("config.toml")).unwrap().parse().unwrap();
    assert_eq!(config["train"]["steps"].as_integer(), Some(40));
    assert_eq!(config["train"]["weight_decay"].as_float(), Some(0.0));

    let metrics = lines(&run.join("metrics.jsonl"));
    assert_eq!(steps(&metrics), [5, 10, 15, 20, 25, 30, 35, 40]);
    for line in &metrics {
        for number in [
            "/loss/total",
            "/loss/velocity/0",
            "/loss/velocity/1",
            "/loss/acceleration",
            "/gradient_norm",
            "/learning_rate",
            "/images_per_s",
            "/seconds/data",
            "/seconds/forward",
            "/seconds/backward",
            "/seconds/update",
        ] {
            let value = line.pointer(number).and_then(Value::as_f64);
            assert!(value.is_some_and(|value| value > 0.0), "{number} in {line}");
        }
        assert_eq!(line["samples"].as_u64(), line["step"].as_u64().map(|step| 8 * step));
        assert_eq!(line["skipped_steps"], 0);
    }

    for step in [20, 40] {
        let picture = image::open(run.join(format!("samples/step-{step:07}.png"))).unwrap();
        // Four pictures of 8 by 8 with margins of 2.
        assert_eq!((picture.width(), picture.height()), (22, 22));
    }
    for step in [7, 14, 21, 28, 35, 40] {
        let names: Vec<String> = checkpoint(&workshop, "run", step).into_keys().collect();
        assert_eq!(
            names,
            [
                "ema.safetensors",
                "model.safetensors",
                "optimizer.safetensors",
                "state.json"
            ]
        );
    }
    assert_eq!(
        fs::read_to_string(run.join("checkpoints/latest")).unwrap(),
        "step-0000040\n"
    );
    let state = &checkpoint(&workshop, "run", 35)["state.json"];
    let state: Value = serde_json::from_slice(state).unwrap();
    assert_eq!(state["step"], 35);
    // The place in the data is the seed and two numbers, no buffers.
    assert_eq!(state["seed"], 0);
    let keys: Vec<&String> = state["data"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["consumed", "epoch"], "{state}");
}

/// Runs a script with the interpreter of DEEPFLOW_PYTHON; `None`, said aloud, when the modules are not there.
#[allow(clippy::print_stderr)]
fn python(modules: &str, script: &str, arguments: &[&Path]) -> Option<String> {
    let interpreter = std::env::var_os("DEEPFLOW_PYTHON").unwrap_or_else(|| "python3".into());
    let imports = Command::new(&interpreter)
        .args(["-c", &format!("import {modules}")])
        .output();
    if !imports.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "SKIPPED: {} has no {modules} (set DEEPFLOW_PYTHON)",
            interpreter.to_string_lossy()
        );
        return None;
    }
    let output = Command::new(interpreter)
        .arg("-c")
        .arg(script)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// The numbers of a run that was killed after its last checkpoint are there once, not twice.
#[test]
fn tensorboard_reads_what_metrics_say() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", "--data @latents --out @run");
    fs::remove_dir_all(workshop.path("run/checkpoints/step-0000040")).unwrap();
    workshop.done("train", "--data @latents --out @run");
    let script = "
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0, 'images': 0})
events.Reload()
scalars = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()['scalars']}
counts = {tag: len(events.Scalars(tag)) for tag in scalars}
assert all(count == len(scalars[tag]) for tag, count in counts.items()), counts
images = {tag: [[e.step, e.width, e.height, e.encoded_image_string[1:4].decode()] for e in events.Images(tag)]
          for tag in events.Tags()['images']}
print(json.dumps({'scalars': scalars, 'images': images}))
";
    let Some(read) = python("tensorboard", script, &[&workshop.path("run")]) else {
        return;
    };
    let read: Value = serde_json::from_str(&read).unwrap();
    let metrics = lines(&workshop.path("run/metrics.jsonl"));
    for (tag, pointer) in [
        ("loss/total", "/loss/total"),
        ("loss/velocity_0", "/loss/velocity/0"),
        ("loss/velocity_1", "/loss/velocity/1"),
        ("loss/acceleration", "/loss/acceleration"),
        ("loss/alignment", "/loss/alignment"),
        ("gradient_norm", "/gradient_norm"),
        ("learning_rate", "/learning_rate"),
        ("images_per_s", "/images_per_s"),
        ("seconds/data", "/seconds/data"),
        ("seconds/forward", "/seconds/forward"),
        ("seconds/backward", "/seconds/backward"),
        ("seconds/update", "/seconds/update"),
    ] {
        let found = read["scalars"][tag]
            .as_object()
            .unwrap_or_else(|| panic!("{tag} in {read}"));
        assert_eq!(found.len(), 8, "{tag}");
        for line in &metrics {
            let value = found[&line["step"].to_string()].as_f64().unwrap();
            let expected = line.pointer(pointer).unwrap().as_f64().unwrap();
            assert!(
                (value - expected).abs() <= 1e-6 * expected.abs(),
                "{tag}: {value} for {expected}"
            );
        }
    }
    assert_eq!(
        read["images"]["samples"],
        serde_json::json!([[20, 22, 22, "PNG"], [40, 22, 22, "PNG"]])
    );
}

/// The names in a checkpoint are those of the authors' code: up to numbers, all of them are in the golden checkpoint.
#[test]
fn python_loads_a_checkpoint_under_the_names_of_the_authors() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", "--data @latents --out @run --steps 7");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/golden/checkpoint_0000003.pt");
    let script = "
import re, sys, torch
from safetensors import safe_open
from safetensors.torch import load_file
golden, folder = sys.argv[1:]
theirs = torch.load(golden, weights_only=False)['ema']
kinds = lambda names: {re.sub(r'[.][0-9]+[.]', '.N.', name) for name in names}
for file in ['model', 'ema']:
    ours = load_file(f'{folder}/{file}.safetensors')
    unknown = kinds(ours) - kinds(theirs)
    assert not unknown, unknown
    missing = {kind for kind in kinds(theirs) - kinds(ours) if not re.search('projectors|[qk]_norm', kind)}
    assert not missing, missing
    assert all(tensor.dtype == torch.float32 for tensor in ours.values())
    with safe_open(f'{folder}/{file}.safetensors', 'pt') as opened:
        assert opened.metadata()['step'] == '7'
print(len(ours))
";
    let folder = workshop.path("run/checkpoints/step-0000007");
    if let Some(output) = python("torch, safetensors", script, &[&golden, &folder]) {
        assert!(output.trim().parse::<usize>().unwrap() > 50);
    }
}

#[test]
fn batches_that_are_not_finite_are_skipped_counted_and_named() {
    let workshop = Workshop::new();
    write_shards(&workshop, "spoilt", |index, moments, sample| {
        if index == 13 {
            moments[5] = f32::NAN;
        }
        sample
    });
    let train = |arguments: &str| {
        workshop
            .stage("train", &format!("--data @spoilt {arguments}"))
            .output()
            .unwrap()
    };
    let output = train("--out @run");
    assert!(output.status.success(), "{}", stderr(&output));
    let warnings = stderr(&output);
    let warnings: Vec<&str> = warnings.lines().filter(|line| line.contains("skipped")).collect();
    // Eight batches an epoch, one of which holds the sample: five epochs, five steps.
    assert_eq!(warnings.len(), 5, "{warnings:?}");
    assert!(
        warnings[0].contains("loss NaN") && warnings[0].contains("samples 00"),
        "{warnings:?}"
    );
    let bad = lines(&workshop.path("run/bad_steps.jsonl"));
    assert_eq!(bad.len(), 5);
    for line in &bad {
        let keys: Vec<&str> = line["keys"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(keys.len(), 8);
        assert!(keys.contains(&"0013"), "{keys:?}");
    }
    let metrics = lines(&workshop.path("run/metrics.jsonl"));
    assert_eq!(metrics.last().unwrap()["skipped_steps"], 5);
    assert!(metrics.last().unwrap()["loss"]["total"].is_f64());

    // One in a row is too many: the run ends with the keys in its line, and the last checkpoint can be used.
    let first_bad = bad[0]["step"].as_u64().unwrap();
    let output = train("--out @strict --set train.max_bad_steps=1 --set train.checkpoint_every=1");
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    let line = said.lines().last().unwrap();
    assert!(
        line.starts_with(&format!("error: step {first_bad}: loss NaN")),
        "{line}"
    );
    assert!(
        line.contains("stopped after 1 such steps in a row (train.max_bad_steps)"),
        "{line}"
    );
    let kept = fs::read_to_string(workshop.path("strict/checkpoints/latest"));
    if first_bad > 1 {
        assert_eq!(kept.unwrap(), format!("step-{:07}\n", first_bad - 1));
    }
}

#[test]
fn every_batch_bad_ends_the_run() {
    let workshop = Workshop::new();
    write_shards(&workshop, "spoilt", |_, moments, sample| {
        moments[0] = f32::INFINITY;
        sample
    });
    let line = workshop.refused("train", "--data @spoilt --out @run --set train.max_bad_steps=3", 1);
    assert!(
        line.starts_with("error: step 3: ") && line.contains("stopped after 3 such steps"),
        "{line}"
    );
}

/// Waits until `path` exists, or panics when the process ends before.
fn wait_for(path: &Path, child: &mut Child) {
    let start = Instant::now();
    while !path.exists() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before {} was there",
            path.display()
        );
        assert!(start.elapsed() < Duration::from_secs(60), "no {}", path.display());
        thread::sleep(Duration::from_millis(1));
    }
}

fn whole_after(workshop: &Workshop, run: &str, output: &Output) -> u64 {
    assert!(output.status.success(), "{}", stderr(output));
    let latest = fs::read_to_string(workshop.path(run).join("checkpoints/latest")).unwrap();
    latest.trim().strip_prefix("step-").unwrap().parse().unwrap()
}

/// 2n steps are n steps, SIGKILL, and the rest, bit for bit: at any checkpoint interval, with and without accumulation.
#[test]
fn a_killed_run_ends_with_the_bits_of_one_that_was_not() {
    let workshop = Workshop::new();
    workshop.encode();
    for accumulation in [1, 4] {
        let settings = |interval| {
            format!("--steps 60 --set train.accumulation={accumulation} --set train.checkpoint_every={interval}")
        };
        let whole = format!("whole{accumulation}");
        workshop.done("train", &format!("--data @latents --out @{whole} {}", settings(60)));
        for interval in [1, 7, 30] {
            let run = format!("killed{accumulation}-{interval}");
            let train = || {
                let mut command =
                    workshop.stage("train", &format!("--data @latents --out @{run} {}", settings(interval)));
                command.stdout(Stdio::null()).stderr(Stdio::null());
                command
            };
            let mut child = train().spawn().unwrap();
            let middle = 30 / interval * interval;
            wait_for(
                &workshop.path(&run).join(format!("checkpoints/step-{middle:07}")),
                &mut child,
            );
            child.kill().unwrap();
            child.wait().unwrap();
            let end = whole_after(&workshop, &run, &train().output().unwrap());
            assert_eq!(end, 60);
            assert_same(&checkpoint(&workshop, &whole, 60), &checkpoint(&workshop, &run, 60));
        }
    }
}

/// A run that cannot have ended by itself stops where the signal finds it, and continues to the same bits.
#[cfg(unix)]
#[test]
fn ctrl_c_and_sigterm_save_and_exit_with_130() {
    let workshop = Workshop::new();
    workshop.encode();
    let endless = "--set train.checkpoint_every=1000000 --set train.sample_every=0";
    for signal in ["-INT", "-TERM"] {
        let run = format!("stopped{signal}");
        let mut child = workshop
            .stage(
                "train",
                &format!("--data @latents --out @{run} --steps 10000000 {endless}"),
            )
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let metrics = workshop.path(&run).join("metrics.jsonl");
        wait_for(&metrics, &mut child);
        while fs::metadata(&metrics).unwrap().len() == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status();
        assert!(sent.unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
        assert!(stderr(&output).contains("interrupted: the same command continues from here"));

        let latest = fs::read_to_string(workshop.path(&run).join("checkpoints/latest")).unwrap();
        let stopped: u64 = latest.trim().strip_prefix("step-").unwrap().parse().unwrap();
        assert!(stopped >= 5);
        let end = stopped + 5;
        workshop.done(
            "train",
            &format!("--data @latents --out @{run} --steps {end} {endless}"),
        );
        let whole = format!("whole{signal}");
        workshop.done(
            "train",
            &format!("--data @latents --out @{whole} --steps {end} {endless}"),
        );
        assert_same(&checkpoint(&workshop, &whole, end), &checkpoint(&workshop, &run, end));
    }
}

fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let named = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (name, (view.shape().to_vec(), view.data().to_vec()))
    };
    file.tensors().into_iter().map(named).collect()
}

#[test]
fn fine_tuning_with_other_classes_and_another_resolution() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", "--data @latents --out @first --steps 7");
    workshop.done(
        "encode",
        "--pictures @t10k-images-idx3-ubyte --grey --out @large --set codec.size=16",
    );
    // A learning rate of 0 leaves the weights as they were taken over.
    let arguments = "--data @large --out @second --steps 1 --set model.classes=5 --set model.latent_size=16 \
                     --set codec.size=16 --set train.learning_rate=0 --set train.start_from=FIRST";
    let arguments = arguments.replace("FIRST", &workshop.text("first"));
    let output = workshop.stage("train", &arguments).output().unwrap();
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("its class table has 4 rows, this model 6: made anew"),
        "{said}"
    );
    assert!(
        said.contains("its position table has 16 tokens, this model 64: computed anew"),
        "{said}"
    );

    let first = tensors(&workshop.path("first/checkpoints/step-0000007/model.safetensors"));
    let second = tensors(&workshop.path("second/checkpoints/step-0000001/model.safetensors"));
    assert_eq!(second["y_embedder.embedding_table.weight"].0, [6, 16]);
    assert_eq!(second["pos_embed"].0, [1, 64, 16]);
    for (name, tensor) in &first {
        if name != "y_embedder.embedding_table.weight" && name != "pos_embed" {
            assert!(tensor == &second[name], "{name}");
        }
    }
    // A difference that is more than the tables: refused, with the tensor's name.
    let arguments = arguments.replace("@second", "@third") + " --set model.width=32";
    let line = workshop.refused("train", &arguments, 1);
    assert!(line.contains("model.safetensors: tensor"), "{line}");
    // Neither is another network whose tensors have the same shapes: refused, with the key.
    let line = workshop.refused("train", &arguments.replace("model.width=32", "model.heads=4"), 1);
    assert!(
        line.contains("model.safetensors: the weights are of a network with model.heads = 2, expected 4"),
        "{line}"
    );
}

/// Weights, average, moments and steps come from a checkpoint of another program; the data begin anew.
#[test]
fn training_goes_on_from_a_torch_checkpoint() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", "--data @latents --out @run --steps 7");
    for arguments in [["run", "run.pt"], ["run.pt", "step-0000007"]] {
        let arguments = arguments.map(|name| workshop.text(name));
        let output = program("deepflow")
            .args(["inspect", "convert"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let start = |from: &str| {
        let from = workshop.text(from);
        format!("--data @latents --set train.start_from={from} --set train.start_with=everything")
    };
    let goes_on = start("step-0000007");
    workshop.done("train", &format!("{goes_on} --out @longer --steps 14"));
    assert_eq!(steps(&lines(&workshop.path("longer/metrics.jsonl"))), [10, 14]);
    let state = &checkpoint(&workshop, "longer", 14)["state.json"];
    let state: Value = serde_json::from_slice(state).unwrap();
    assert_eq!((&state["step"], &state["updates"]), (&14.into(), &14.into()));
    assert_eq!(state["data"]["consumed"], 7 * 8, "{state}");

    // The same as from the run itself, and it continues as any other run does.
    let itself = start("run");
    workshop.done("train", &format!("{itself} --out @itself --steps 14"));
    for name in ["model.safetensors", "ema.safetensors", "optimizer.safetensors"] {
        let [a, b] =
            ["longer", "itself"].map(|run| tensors(&workshop.path(run).join("checkpoints/step-0000014").join(name)));
        assert!(a == b, "{name}");
    }
    workshop.done("train", &format!("{itself} --out @itself --steps 20"));
    assert_eq!(steps(&lines(&workshop.path("itself/metrics.jsonl"))), [10, 14, 15, 20]);

    let line = workshop.refused("train", &format!("{goes_on} --out @short --steps 7"), 2);
    assert!(
        line.contains("train.steps = 7: step-0000007 has 7 steps, expected more than it"),
        "{line}"
    );
    let weights = start("step-0000007/ema.safetensors");
    let line = workshop.refused("train", &format!("{weights} --out @short --steps 14"), 1);
    assert!(line.contains("ema.safetensors: found no checkpoint"), "{line}");
    fs::remove_file(workshop.path("step-0000007/optimizer.safetensors")).unwrap();
    let line = workshop.refused("train", &format!("{goes_on} --out @short --steps 14"), 1);
    assert!(
        line.contains("step-0000007/optimizer.safetensors: No such file"),
        "{line}"
    );
}

#[test]
fn alignment_from_shards_with_features() {
    let workshop = Workshop::new();
    let features: Vec<f32> = (0..16 * 6).map(|i| (i as f32 * 0.9).cos()).collect();
    write_shards(&workshop, "aligned", |_, _, sample| {
        sample.with_array(FEATURES, &features, &[16, 6], Dtype::F16).unwrap()
    });
    let aligning = "--set model.alignment_width=6 --set model.projector_width=24";
    workshop.done("train", &format!("--data @aligned --out @run {aligning}"));
    let metrics = lines(&workshop.path("run/metrics.jsonl"));
    let alignment = |line: &Value| line["loss"]["alignment"].as_f64().unwrap();
    let (first, last) = (alignment(&metrics[0]), alignment(metrics.last().unwrap()));
    assert!(
        (-1.0..1.0).contains(&first) && last < first - 0.1,
        "from {first} to {last}"
    );
    let names: Vec<String> = tensors(&workshop.path("run/checkpoints/step-0000040/ema.safetensors"))
        .into_keys()
        .collect();
    assert!(names.contains(&"projectors.0.4.weight".to_owned()));
    // Sampling has no use for projectors, and does not mind them.
    workshop.done("sample", "--checkpoint @run --out @samples --per-class 2");

    write_shards(&workshop, "plain", |_, _, sample| sample);
    let line = workshop.refused("train", &format!("--data @plain --out @none {aligning}"), 1);
    assert!(
        line.contains("features.npy") && line.contains("latents-000000.tar"),
        "{line}"
    );
    let other = "--set model.alignment_width=8 --set model.projector_width=24";
    let line = workshop.refused("train", &format!("--data @aligned --out @other {other}"), 1);
    assert!(
        line.contains(
            "aligned: features.npy of shape [16, 6], expected [16, 8]: the tokens of the model and \
                       model.alignment_width"
        ),
        "{line}"
    );
}

#[test]
fn only_the_last_and_the_round_checkpoints_stay() {
    let workshop = Workshop::new();
    workshop.encode();
    let retention = "--set train.checkpoint_every=5 --set train.keep_last=2 --set train.keep_every=15";
    workshop.done("train", &format!("--data @latents --out @run {retention}"));
    let folder = fs::read_dir(workshop.path("run/checkpoints")).unwrap();
    let mut names: Vec<String> = folder
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["latest", "step-0000015", "step-0000030", "step-0000035", "step-0000040"]
    );
}

#[test]
fn learning_rates_follow_their_schedule() {
    let workshop = Workshop::new();
    workshop.encode();
    let rates = |run: &str, schedule: &str| -> Vec<f64> {
        workshop.done(
            "train",
            &format!(
                "--data @latents --out @{run} --set train.learning_rate=1e-3 --set train.warmup_steps=10 \
                 --set train.schedule={schedule} --set train.final_learning_rate=1e-4"
            ),
        );
        let metrics = lines(&workshop.path(run).join("metrics.jsonl"));
        metrics
            .iter()
            .map(|line| line["learning_rate"].as_f64().unwrap())
            .collect()
    };
    assert_eq!(
        rates("constant", "constant"),
        [5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3]
    );
    let cosine = rates("cosine", "cosine");
    assert_eq!(cosine[..2], [5e-4, 1e-3]);
    assert!(cosine[1..].is_sorted_by(|before, after| before > after));
    assert!((cosine[7] - 1e-4).abs() < 1e-12, "{cosine:?}");
}
