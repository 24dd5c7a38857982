//! Several processes at the same time share a stage's work: nothing twice, nothing missing, and the bytes of one process.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use support::{assert_same, files, stderr, Workshop};

const WORLD: usize = 3;
/// Rank and world as the launchers say them: torchrun, Open MPI, Slurm.
const LAUNCHERS: [[&str; 2]; 3] = [
    ["RANK", "WORLD_SIZE"],
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"],
    ["SLURM_PROCID", "SLURM_NTASKS"],
];

/// A stage that is given its work and the folder it writes to.
struct Stage {
    name: &'static str,
    arguments: &'static str,
    shards: usize,
    /// The files that are one shard's each.
    shard: fn(&str, usize) -> bool,
    /// What is compared.
    endings: &'static [&'static str],
}

fn is_tar(file: &str, shard: usize) -> bool {
    file == format!("latents-{shard:06}.tar")
}

/// Pictures of a small set lie in class folders, so the mark that a shard is done stands for its pictures.
fn is_mark(file: &str, shard: usize) -> bool {
    file == format!(".done/latents-{shard:06}.tar")
}

const STAGES: [Stage; 3] = [
    Stage {
        name: "encode",
        arguments: "--pictures @t10k-images-idx3-ubyte --grey",
        shards: 4,
        shard: is_tar,
        endings: &[".tar", "index.json", "skipped.jsonl"],
    },
    Stage {
        name: "sample",
        arguments: "--checkpoint @run --per-class 12",
        shards: 5,
        shard: is_tar,
        endings: &[".tar", "index.json"],
    },
    Stage {
        name: "decode",
        arguments: "--shards @latents",
        shards: 4,
        shard: is_mark,
        endings: &[".png"],
    },
];

impl Stage {
    fn command(&self, workshop: &Workshop, out: &str) -> Command {
        workshop.stage(self.name, &format!("{} --out @{out}", self.arguments))
    }

    /// Which shards a folder has.
    fn shards_in(&self, folder: &Path) -> Vec<usize> {
        let found = files(folder, &[""]);
        (0..self.shards)
            .filter(|&shard| found.keys().any(|file| (self.shard)(file, shard)))
            .collect()
    }
}

fn workshop() -> Workshop {
    let workshop = Workshop::new();
    workshop.encode();
    workshop.done("train", "--data @latents --out @run --steps 7");
    workshop
}

fn run(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

fn start(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn processes_of_every_launcher_at_the_same_time_make_what_one_makes() {
    let workshop = workshop();
    for stage in &STAGES {
        let whole = format!("{}-whole", stage.name);
        run(stage.command(&workshop, &whole));
        let expected = files(&workshop.path(&whole), stage.endings);
        for [rank_variable, world_variable] in LAUNCHERS {
            let out = format!("{}-{rank_variable}", stage.name);
            let children: Vec<Child> = (0..WORLD)
                .map(|rank| {
                    let mut command = stage.command(&workshop, &out);
                    command
                        .env(rank_variable, rank.to_string())
                        .env(world_variable, WORLD.to_string());
                    start(command)
                })
                .collect();
            for child in children {
                let output = child.wait_with_output().unwrap();
                assert!(output.status.success(), "{out}: {}", stderr(&output));
            }
            assert_same(&expected, &files(&workshop.path(&out), stage.endings));
            let left = files(&workshop.path(&out), &[".partial"]);
            assert!(left.is_empty(), "{out}: {:?}", left.keys());
        }
    }
}

#[test]
fn a_rank_alone_writes_its_shards_and_no_others() {
    let workshop = workshop();
    for stage in &STAGES {
        for rank in 0..WORLD {
            let out = format!("{}-{rank}", stage.name);
            let mut command = stage.command(&workshop, &out);
            command.args(["--rank", &rank.to_string(), "--world", &WORLD.to_string()]);
            run(command);
            let expected: Vec<usize> = (0..stage.shards).filter(|shard| shard % WORLD == rank).collect();
            assert_eq!(stage.shards_in(&workshop.path(&out)), expected, "{out}");
            assert!(!workshop.path(&out).join("index.json").exists());
        }
    }
}

#[test]
fn ranges_of_shards_add_up_and_one_that_was_there_is_not_made_again() {
    let workshop = workshop();
    for stage in &STAGES {
        let (whole, parts) = (format!("{}-whole", stage.name), format!("{}-parts", stage.name));
        run(stage.command(&workshop, &whole));
        let range = |range: String| {
            let mut command = stage.command(&workshop, &parts);
            command.args(["--shard-range", &range]);
            command
        };
        run(range("1..3".to_owned()));
        assert_eq!(stage.shards_in(&workshop.path(&parts)), [1, 2]);
        let file = |shard: usize| {
            let folder = workshop.path(&parts);
            let name = files(&folder, &[""])
                .into_keys()
                .find(|file| (stage.shard)(file, shard));
            std::fs::metadata(folder.join(name.unwrap()))
                .unwrap()
                .modified()
                .unwrap()
        };
        let before = file(2);
        run(range(format!("2..{}", stage.shards)));
        assert_eq!(file(2), before);
        run(range("0..1".to_owned()));
        let compared = |name: &str| files(&workshop.path(name), stage.endings);
        assert_same(&compared(&whole), &compared(&parts));
        let refused = range(format!("0..{}", stage.shards + 1)).output().unwrap();
        let line = stderr(&refused);
        assert_eq!(refused.status.code(), Some(2), "{line}");
        assert!(line.contains("--shard-range") && line.contains("shards"), "{line}");
    }
}
