//! The encode stage: pictures to shards of latents.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    deepflow::cli::run_stage::<deepflow::encode::EncodeArgs>("deepflow-encode")
}
