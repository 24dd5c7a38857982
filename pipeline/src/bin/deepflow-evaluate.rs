//! `deepflow evaluate` as a program of its own.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    deepflow::cli::run_stage::<deepflow::evaluate::EvaluateArgs>("deepflow-evaluate")
}
