//! `deepflow inspect branches` on networks of which one knows what it must find.
#![allow(clippy::unwrap_used)]

mod support;

use deepflow_datasets::{Index, Limits, ShardReader, MOMENTS};
use serde_json::Value;
use support::{program, stderr, Workshop};

fn inspect(workshop: &Workshop, arguments: &str) -> std::process::Output {
    let words = arguments.split_whitespace().map(|word| match word.strip_prefix('@') {
        Some(name) => workshop.text(name),
        None => word.to_owned(),
    });
    let mut command = program("deepflow");
    command.args(["inspect", "branches"]).args(words).output().unwrap()
}

fn report(workshop: &Workshop, arguments: &str) -> Value {
    let output = inspect(workshop, &format!("{arguments} --json"));
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Mean square of the latents, which are the means of the moments.
fn latent_power(workshop: &Workshop) -> f64 {
    let folder = workshop.path("latents");
    let index = Index::load(&folder).unwrap();
    let mut squares = Vec::new();
    for record in &index.shards {
        for sample in ShardReader::open(&folder.join(&record.name), Limits::default()).unwrap() {
            let moments = sample.unwrap().array(MOMENTS, &record.name).unwrap().unwrap();
            let mean = &moments.data[..moments.data.len() / 2];
            squares.extend(mean.iter().map(|&value| f64::from(value).powi(2)));
        }
    }
    squares.iter().sum::<f64>() / squares.len() as f64
}

#[test]
fn an_untrained_network_predicts_nothing_and_its_blocks_change_nothing() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done(
        "train",
        "--data @latents --out @run --steps 1 --set train.learning_rate=0.0",
    );
    let found = report(&workshop, "--checkpoint @run --data @latents");
    assert_eq!(found["samples"], 64);
    // Both heads give zeros, so what is left is the power of `noise - data`.
    let losses = found["velocity_loss"].as_array().unwrap();
    assert_eq!(losses.len(), 2);
    assert_eq!(losses[0], losses[1]);
    let expected = 1.0 + latent_power(&workshop);
    let loss = losses[0].as_f64().unwrap();
    assert!((loss - expected).abs() < 0.1 * expected, "{loss} {expected}");
    // Block 2 hands on what VeRA gave it; VeRA starts from the patch tokens, not from block 1.
    let features = found["features"].as_array().unwrap();
    let places: Vec<&str> = features.iter().map(|place| place["after"].as_str().unwrap()).collect();
    assert_eq!(places, ["block 1", "vera 1"]);
    assert_eq!(features[1]["distance"], 0.0);
    assert!((features[1]["cosine"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    assert!(features[0]["distance"].as_f64().unwrap() > 0.1);
    assert!(features[0]["cosine"].as_f64().unwrap() < 0.99);

    workshop.done(
        "train",
        "--data @latents --out @sit --steps 1 --set train.learning_rate=0.0 --set model.branch_ends=[]",
    );
    let sit = report(&workshop, "--checkpoint @sit --data @latents --blocks 1");
    assert_eq!(sit["velocity_loss"].as_array().unwrap().len(), 1);
    assert_eq!(sit["velocity_loss"][0], losses[1]);
    assert_eq!(sit["features"][0]["after"], "block 1");
    assert_eq!(sit["features"][0]["distance"], 0.0);
}

#[test]
fn numbers_depend_on_the_samples_and_the_seed_alone() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done(
        "train",
        "--data @latents --out @run --set train.learning_rate=1e-2 --set train.ema_decay=0.9",
    );
    let whole = report(&workshop, "--checkpoint @run --data @latents --threads 1");
    assert_eq!(
        report(&workshop, "--checkpoint @run --data @latents --threads 2"),
        whole
    );
    let first = report(&workshop, "--checkpoint @run --data @latents --samples 9");
    assert_eq!(first["samples"], 9);
    assert_ne!(first["velocity_loss"], whole["velocity_loss"]);
    let other = report(&workshop, "--checkpoint @run --data @latents --seed 1");
    assert_ne!(other["velocity_loss"], whole["velocity_loss"]);
    // Forty steps have taught both branches something.
    workshop.done(
        "train",
        "--data @latents --out @new --steps 1 --set train.learning_rate=0.0",
    );
    let untrained = report(&workshop, "--checkpoint @new --data @latents");
    for branch in 0..2 {
        let loss = |report: &Value| report["velocity_loss"][branch].as_f64().unwrap();
        assert!(loss(&whole) < 0.9 * loss(&untrained), "{whole} {untrained}");
    }

    let wrong = |arguments: &str, code: i32, expected: &str| {
        let output = inspect(&workshop, arguments);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    };
    wrong(
        "--checkpoint @run --data @latents --blocks 2",
        2,
        "--blocks 2, expected 1 to 1",
    );
    wrong("--checkpoint @run --data @none", 1, "none");
    let half = "--pictures @t10k-images-idx3-ubyte --grey --out @larger --set codec.size=16 --fit pad";
    workshop.done("encode", half);
    wrong(
        "--checkpoint @run --data @larger",
        1,
        "larger: holds latents of shape [1, 16, 16], the network was trained on [1, 8, 8]",
    );
}
