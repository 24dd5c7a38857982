//! The decode stage: shards of latents to pictures.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    deepflow::cli::run_stage::<deepflow::decode::DecodeArgs>("deepflow-decode")
}
