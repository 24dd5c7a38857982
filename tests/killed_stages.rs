//! Stages killed at random moments, or stopped by a signal, end with the same bytes as stages that nobody disturbed.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use support::{assert_same, files, Workshop};

const KILLS: u64 = 6;

/// Runs a command that has to end well, and says how long it took.
fn run_undisturbed(mut command: Command) -> Duration {
    let start = Instant::now();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", support::stderr(&output));
    start.elapsed()
}

/// Kills the command (SIGKILL) after ever longer random times up to `longest`, then lets it end.
fn run_with_kills(mut command: impl FnMut() -> Command, longest: Duration) {
    let mut killed = 0;
    // The moments differ from run to run on purpose: the result may not depend on them.
    let mut random = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    for kill in 1..=KILLS {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let share = f64::from(random >> 8) / f64::from(1 << 24) * kill as f64 / KILLS as f64;
        let mut child = command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(longest.mul_f64(share));
        // A child that was faster than its kill has done its work, which is no less a test of doing it again.
        let _ = child.kill();
        killed += u32::from(child.wait().unwrap().code().is_none());
    }
    assert!(killed > 0, "every run ended before it was killed");
    run_undisturbed(command());
}

#[test]
fn encoding() {
    let workshop = Workshop::new();
    workshop.write_pictures("many-images-idx3-ubyte", 4000);
    let encode = |out: &str| {
        workshop.stage(
            "encode",
            &format!("--pictures @many-images-idx3-ubyte --grey --out @{out}"),
        )
    };
    let longest = run_undisturbed(encode("whole"));
    run_with_kills(|| encode("killed"), longest);
    let shards = |name: &str| files(&workshop.path(name), &[".tar", "index.json"]);
    assert!(shards("whole").len() > 100);
    assert_same(&shards("whole"), &shards("killed"));
}

#[test]
fn training() {
    let workshop = Workshop::new();
    workshop.encode();
    let train = |out: &str| workshop.stage("train", &format!("--data @latents --out @{out}"));
    let longest = run_undisturbed(train("whole"));
    run_with_kills(|| train("killed"), longest);
    let last = |name: &str| {
        files(
            &workshop.path(name).join("checkpoints/step-0000040"),
            &[".safetensors", ".json"],
        )
    };
    assert_eq!(last("whole").len(), 4);
    assert_same(&last("whole"), &last("killed"));
    let steps = |name: &str| {
        let text = std::fs::read_to_string(workshop.path(name).join("metrics.jsonl")).unwrap();
        let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64();
        text.lines().map(step).collect::<Vec<_>>()
    };
    assert_eq!(steps("killed").last(), Some(&Some(40)));
    assert!(steps("killed").is_sorted());
}

#[test]
fn sampling() {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", "--data @latents --out @run --steps 7");
    let sample = |out: &str| workshop.stage("sample", &format!("--checkpoint @run --out @{out} --per-class 40"));
    let longest = run_undisturbed(sample("whole"));
    run_with_kills(|| sample("killed"), longest);
    let shards = |name: &str| files(&workshop.path(name), &[".tar", "index.json"]);
    assert_same(&shards("whole"), &shards("killed"));
}

#[test]
fn decoding() {
    let workshop = Workshop::new();
    workshop.write_pictures("many-images-idx3-ubyte", 2000);
    workshop.done("encode", "--pictures @many-images-idx3-ubyte --grey --out @latents");
    for format in ["folders", "tar", "npz"] {
        let decode = |out: &str| {
            workshop.stage(
                "decode",
                &format!("--shards @latents --out @{out}-{format} --set output.format={format}"),
            )
        };
        let longest = run_undisturbed(decode("whole"));
        run_with_kills(|| decode("killed"), longest);
        let endings = [".png", ".tar", ".npz", ".json", ".toml"];
        let all = |name: &str| files(&workshop.path(&format!("{name}-{format}")), &endings);
        assert!(all("whole").contains_key("contact-sheet.png"));
        assert_same(&all("whole"), &all("killed"));
    }
}

#[cfg(unix)]
#[test]
fn a_signal_saves_and_exits_with_130_and_the_same_command_continues() {
    let workshop = Workshop::new();
    workshop.encode();
    let train = |out: &str| {
        workshop.stage(
            "train",
            &format!("--data @latents --out @{out} --set train.checkpoint_every=1000"),
        )
    };
    assert!(train("whole").output().unwrap().status.success());
    for signal in ["-INT", "-TERM"] {
        let out = format!("stopped{signal}");
        let mut child = train(&out).stderr(Stdio::null()).spawn().unwrap();
        // Not before the program listens: the run directory tells.
        while !workshop.path(&out).join("metrics.jsonl").exists() {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status()
            .unwrap()
            .success());
        let status = child.wait().unwrap();
        let finished = status.success();
        assert!(finished || status.code() == Some(130), "{status}");
        assert!(train(&out).output().unwrap().status.success());
        let last = |name: &str| {
            files(
                &workshop.path(name).join("checkpoints/step-0000040"),
                &[".safetensors", ".json"],
            )
        };
        assert_same(&last("whole"), &last(&out));
    }
}
