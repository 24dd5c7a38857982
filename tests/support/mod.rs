//! What the whole-program tests share: tiny pictures, a tiny network, and running the real binaries.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A network that trains in milliseconds on 8×8 grey pictures.
pub const TINY: &str = r#"
[model]
width = 16
depth = 2
heads = 2
patch = 2
latent_channels = 1
latent_size = 8
classes = 3
branch_ends = [1]
acceleration_width = 16

[codec]
kind = "identity"
size = 8

[train]
steps = 40
batch = 8
accumulation = 2
learning_rate = 1e-3
log_every = 5
checkpoint_every = 7
keep_last = 0
sample_every = 20
sample_count = 4

[sample]
sampler = "euler"
steps = 4
batch = 4
shard_samples = 8

[output]
shard_samples = 16
"#;

/// A command of one of the binaries; `deepflow` takes the stage as its first argument.
pub fn program(name: &str) -> Command {
    let path = match name {
        "deepflow" => env!("CARGO_BIN_EXE_deepflow"),
        "deepflow-encode" => env!("CARGO_BIN_EXE_deepflow-encode"),
        "deepflow-train" => env!("CARGO_BIN_EXE_deepflow-train"),
        "deepflow-sample" => env!("CARGO_BIN_EXE_deepflow-sample"),
        "deepflow-decode" => env!("CARGO_BIN_EXE_deepflow-decode"),
        "deepflow-evaluate" => env!("CARGO_BIN_EXE_deepflow-evaluate"),
        other => panic!("no binary {other}"),
    };
    let mut command = Command::new(path);
    let launchers = [
        "RANK",
        "WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "SLURM_PROCID",
        "SLURM_NTASKS",
    ];
    for variable in launchers.into_iter().chain(["RUST_LOG"]) {
        command.env_remove(variable);
    }
    command
}

/// A folder with pictures, a configuration and what the stages make of them.
pub struct Workshop {
    folder: tempfile::TempDir,
}

impl Workshop {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tiny.toml"), TINY).unwrap();
        let workshop = Self { folder };
        workshop.write_pictures("t10k-images-idx3-ubyte", 64);
        workshop
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// IDX files of `count` pictures in three classes.
    pub fn write_pictures(&self, name: &str, count: u32) {
        let mut pictures = [
            [0, 0, 8, 3],
            count.to_be_bytes(),
            8u32.to_be_bytes(),
            8u32.to_be_bytes(),
        ]
        .concat();
        pictures.extend((0..count * 64).map(|place| (place * 37 % 251) as u8));
        let mut labels = [[0, 0, 8, 1], count.to_be_bytes()].concat();
        labels.extend((0..count).map(|picture| (picture % 3) as u8));
        fs::write(self.path(name), pictures).unwrap();
        fs::write(self.path(&name.replace("images-idx3", "labels-idx1")), labels).unwrap();
    }

    /// A stage's own binary with the tiny configuration. Words that begin with `@` are names in this workshop.
    pub fn stage(&self, stage: &str, arguments: &str) -> Command {
        let mut command = program(&format!("deepflow-{stage}"));
        command.args(["--config", &self.text("tiny.toml")]);
        for word in arguments.split_whitespace() {
            match word.strip_prefix('@') {
                Some(name) => command.arg(self.text(name)),
                None => command.arg(word),
            };
        }
        command
    }

    /// Runs a stage that has to end well.
    pub fn done(&self, stage: &str, arguments: &str) {
        let output = self.stage(stage, arguments).output().unwrap();
        assert!(output.status.success(), "{stage} {arguments}: {}", stderr(&output));
    }

    /// Runs a stage that has to fail with `code` and one line; gives the line with this workshop's path taken out.
    pub fn refused(&self, stage: &str, arguments: &str, code: i32) -> String {
        let output = self.stage(stage, arguments).output().unwrap();
        let line = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{stage} {arguments}: {line}");
        let errors: Vec<&str> = line.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "one line of error expected: {line}");
        assert!(!line.contains("panicked"), "{line}");
        errors[0].replace(&format!("{}/", self.folder.path().display()), "")
    }

    pub fn encode(&self) {
        self.done("encode", "--pictures @t10k-images-idx3-ubyte --grey --out @latents");
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The bytes of all files below a folder whose names end so, by their path below it.
pub fn files(folder: &Path, endings: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(inner) = folders.pop() {
        for entry in fs::read_dir(&inner).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Panics at the first file that differs.
pub fn assert_same(one: &BTreeMap<String, Vec<u8>>, other: &BTreeMap<String, Vec<u8>>) {
    assert!(!one.is_empty(), "nothing to compare");
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(one), names(other));
    for (name, bytes) in one {
        assert!(bytes == &other[name], "{name} differs");
    }
}
