//! `deepflow-train`: the folder of a run.

mod run_directory;

pub use run_directory::{checkpoints, find_checkpoint, RunDirectory};
