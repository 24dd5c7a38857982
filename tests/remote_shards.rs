//! Training from shards on another machine: the same bytes as from a disk, whatever the network does.
#![allow(clippy::unwrap_used)]

mod support;

#[path = "../datasets/tests/common/server.rs"]
mod server;

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use server::{Behaviour, Server};
use support::{assert_same, files, stderr, Workshop};

const BLOCKS: &str = "--set data.shuffle=block --set data.block_samples=32";

fn last_checkpoint(workshop: &Workshop, run: &str) -> std::collections::BTreeMap<String, Vec<u8>> {
    let folder = workshop.path(run).join("checkpoints/step-0000040");
    files(&folder, &[".safetensors", ".json"])
}

#[test]
fn training_from_a_server_that_refuses_and_drops_gives_the_same_bytes_as_training_from_a_disk() {
    let workshop = Workshop::new();
    for (latents, compression) in [("plain", ""), ("zstd", "--set output.zstd=3")] {
        workshop.done(
            "encode",
            &format!("--pictures @t10k-images-idx3-ubyte --grey --out @{latents} {compression}"),
        );
        workshop.done("train", &format!("--data @{latents} --out @{latents}-disk {BLOCKS}"));
        let server = Server::start(&workshop.path(latents), |_, request| match request % 3 {
            0 => Behaviour::Refuse,
            1 => Behaviour::Drop,
            _ => Behaviour::Serve,
        });
        let train = |steps: u64| {
            format!(
                "--data {} --out @{latents}-remote --steps {steps} {BLOCKS} --set data.cache=@cache",
                server.url()
            )
            .replace("=@cache", &format!("={}", workshop.text("cache")))
        };
        // In two parts, so that the second continues in the middle of an epoch.
        workshop.done("train", &train(21));
        workshop.done("train", &train(40));
        let disk = last_checkpoint(&workshop, &format!("{latents}-disk"));
        assert_same(&disk, &last_checkpoint(&workshop, &format!("{latents}-remote")));
        assert!(!files(&workshop.path("cache"), &[".shard"]).is_empty());
    }
}

#[test]
fn a_run_does_not_continue_in_another_order() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", "--data @latents --out @run --steps 7");
    let server = Server::start(&workshop.path("latents"), |_, _| Behaviour::Serve);
    let line = workshop.refused("train", &format!("--data {} --out @run --steps 14", server.url()), 1);
    assert!(
        line.contains(
            "visits its samples in global order, these shards would be visited in block (8192 samples) order"
        ),
        "{line}"
    );
}

#[test]
fn addresses_without_shards_are_named() {
    let workshop = Workshop::new();
    std::fs::create_dir(workshop.path("empty")).unwrap();
    let server = Server::start(&workshop.path("empty"), |_, _| Behaviour::Serve);
    let line = workshop.refused("train", &format!("--data {} --out @run", server.url()), 1);
    assert!(line.contains(&server.url()) && line.contains("no index.json"), "{line}");
    let line = workshop.refused("train", "--data gopher://host/latents --out @run", 1);
    assert!(line.contains("gopher://host/latents"), "{line}");
    assert!(!workshop.path("run").exists());
}

#[cfg(unix)]
#[test]
fn a_run_that_waits_for_a_stalled_server_stops_at_a_signal() {
    let workshop = Workshop::new();
    workshop.encode();
    let server = Server::start(&workshop.path("latents"), |name, _| {
        if name.contains(".tar") {
            Behaviour::Stall
        } else {
            Behaviour::Serve
        }
    });
    let mut command = workshop.stage("train", &format!("--data {} --out @run", server.url()));
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    while !workshop.path("run").join("data.json").exists() {
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(Duration::from_millis(200));
    let mut kill = std::process::Command::new("kill");
    assert!(kill.args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let began = std::time::Instant::now();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn the_benchmark_of_the_loader_prints_one_line() {
    for settings in ["", "--set output.zstd=1"] {
        let mut command = support::program("deepflow");
        command.args(["bench", "loader", "--batch", "32", "--steps", "4", "--json"]);
        command.args("--set model.latent_size=8 --set model.classes=10".split_whitespace());
        let output = command.args(settings.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&line["what"], &line["batch"]), (&"loader".into(), &32.into()));
        assert!(
            line["items_per_s"].as_f64().unwrap() > 0.0 && line["median_s"].as_f64().unwrap() > 0.0,
            "{line}"
        );
        assert_eq!((&line["parameters"], &line["device"]), (&0.into(), &"cpu".into()));
    }
}
