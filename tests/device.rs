//! `--device` where there is no GPU: the same lines from a binary with CUDA in it and from one without.
#![allow(clippy::unwrap_used)]

mod support;

use support::{stderr, Workshop};

/// On a machine with a driver there is nothing to fall back from.
fn has_a_driver() -> bool {
    std::path::Path::new("/dev/nvidiactl").exists()
}

#[test]
fn a_gpu_that_is_not_there_is_a_wrong_command_line() {
    if has_a_driver() {
        return;
    }
    let workshop = Workshop::new();
    workshop.encode();
    let reason = if cfg!(feature = "cuda") {
        "no usable NVIDIA driver"
    } else {
        "this binary was built without the feature `cuda`"
    };
    for device in ["cuda", "cuda:3"] {
        let line = workshop.refused("train", &format!("--data @latents --out @run --device {device}"), 2);
        assert!(
            line.starts_with("error: --device cuda: ") && line.contains(reason),
            "{line}"
        );
    }
    assert!(!workshop.path("run").exists());
}

#[test]
fn auto_falls_back_to_the_processor() {
    if has_a_driver() {
        return;
    }
    let workshop = Workshop::new();
    workshop.encode();
    let output = workshop
        .stage("train", "--data @latents --out @run --steps 2 --device auto")
        .output()
        .unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(workshop.path("run/checkpoints/step-0000002").exists());
    let lines = said.lines().filter(|line| line.contains("running on the cpu")).count();
    assert_eq!(lines, usize::from(cfg!(feature = "cuda")), "{said}");
}

#[test]
fn mixed_precision_needs_a_gpu() {
    let workshop = Workshop::new();
    workshop.encode();
    let train = "--data @latents --out @run --steps 2 --device cpu";
    let line = workshop.refused("train", &format!("{train} --set train.precision=mixed"), 2);
    assert!(
        line.starts_with("error: `train.precision` is mixed, which needs a GPU"),
        "{line}"
    );
    assert!(!workshop.path("run").exists());
    workshop.done("train", train);
    let sample = "--checkpoint @run --out @samples --device cpu --set sample.precision=mixed";
    let line = workshop.refused("sample", sample, 2);
    assert!(line.starts_with("error: `sample.precision` is mixed"), "{line}");
}
