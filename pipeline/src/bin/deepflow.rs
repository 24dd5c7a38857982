//! Every stage as a subcommand, and `demo`, `bench`, `inspect`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    deepflow::cli::run_umbrella()
}
