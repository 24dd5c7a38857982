//! `deepflow inspect shards` on folders that are whole, damaged in several places, or without an index.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::fs;
use std::process::Output;
use support::{program, stderr, Workshop};

fn inspect(workshop: &Workshop, more: &[&str]) -> Output {
    let mut command = program("deepflow");
    command
        .args(["inspect", "shards", &workshop.text("latents")])
        .args(more);
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_whole_folder_is_counted() {
    let workshop = Workshop::new();
    workshop.encode();
    let output = inspect(&workshop, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = text(&output);
    assert!(text.contains("64 samples in 4 shards"), "{text}");
    assert!(text.contains("all as the index says"), "{text}");
    assert!(text.contains("moments.npy              64 samples"), "{text}");

    let found: Value = serde_json::from_slice(&inspect(&workshop, &["--json"]).stdout).unwrap();
    assert_eq!((&found["samples"], &found["shards"]), (&64.into(), &4.into()));
    assert_eq!(found["codec"]["name"], "identity");
    assert_eq!(found["faults"].as_array().unwrap().len(), 0);
}

#[test]
fn every_fault_is_listed_and_the_exit_code_says_that_there_are_some() {
    let workshop = Workshop::new();
    workshop.encode();
    let shard = |number: usize| workshop.path(&format!("latents/latents-{number:06}.tar"));
    let mut flipped = fs::read(shard(0)).unwrap();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    fs::write(shard(0), flipped).unwrap();
    let whole = fs::read(shard(1)).unwrap();
    fs::write(shard(1), &whole[..whole.len() / 2]).unwrap();
    fs::remove_file(shard(2)).unwrap();

    let output = inspect(&workshop, &[]);
    assert_eq!(output.status.code(), Some(1));
    let listed = text(&output);
    for number in 0..3 {
        let name = format!("latents-{number:06}.tar");
        let of_shard = |line: &&str| line.starts_with("fault: ") && line.contains(&name);
        assert!(listed.lines().any(|line| of_shard(&line)), "{name} in {listed}");
    }
    assert!(!listed.contains("latents-000003.tar"), "{listed}");
    let error = stderr(&output);
    let errors: Vec<&str> = error.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{error}");
    assert!(
        errors[0].contains("latents-000000.tar") && errors[0].contains("more faults"),
        "{error}"
    );

    let found: Value = serde_json::from_slice(&inspect(&workshop, &["--json"]).stdout).unwrap();
    assert!(found["faults"].as_array().unwrap().len() >= 3, "{found}");
}

#[test]
fn shards_without_an_index_are_checked_for_what_they_hold() {
    let workshop = Workshop::new();
    workshop.encode();
    fs::remove_file(workshop.path("latents/index.json")).unwrap();
    let output = inspect(&workshop, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(text(&output).contains("no index, no faults"), "{}", text(&output));
}
