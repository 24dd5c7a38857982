//! The train stage alone; `deepflow train` is the same.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    deepflow::cli::run_stage::<deepflow::train::TrainArgs>("deepflow-train")
}
