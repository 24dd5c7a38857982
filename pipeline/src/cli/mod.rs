//! The command line: one definition of every stage's arguments, used by `deepflow STAGE` and by `deepflow-STAGE`.

mod outcome;

use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser};

use deepflow_model::ops::memory;

use crate::interrupt::Interrupt;
use crate::progress::LogWriter;
use crate::umbrella::Umbrella;

pub use outcome::{Outcome, UsageError};

/// A stage: its arguments are its command line, and running it is all there is to it.
pub trait Stage: Args {
    /// Does the work; results go to files and stdout, progress and log lines to stderr.
    ///
    /// # Errors
    /// One line of context per level; [`UsageError`] anywhere in the chain makes the exit code 2,
    /// [`crate::interrupt::Interrupted`] makes it 130.
    fn run(self, interrupt: &Interrupt) -> anyhow::Result<()>;
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct LogArgs {
    /// Say more: -v for details, -vv for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet", help_heading = "Messages")]
    verbose: u8,
    /// Say only what went wrong
    #[arg(short, long, global = true, help_heading = "Messages")]
    quiet: bool,
}

#[derive(Parser)]
#[command(version)]
struct Program<S: Args> {
    #[command(flatten)]
    stage: S,
    #[command(flatten)]
    log: LogArgs,
}

/// The body of a stage's own binary: parse, run, one line and an exit code.
#[must_use]
pub fn run_stage<S: Stage>(name: &'static str) -> ExitCode {
    let matches = Program::<S>::command().name(name).bin_name(name).get_matches();
    match Program::<S>::from_arg_matches(&matches) {
        Ok(program) => run(program.log, |interrupt| program.stage.run(interrupt)),
        Err(error) => error.exit(),
    }
}

/// Runs a stage as its command line would, inside this process.
///
/// # Errors
/// The stage's, or [`UsageError`] for arguments that it does not have.
pub fn run_arguments<S: Stage>(name: &'static str, arguments: &[&str], interrupt: &Interrupt) -> anyhow::Result<()> {
    let line = std::iter::once(name).chain(arguments.iter().copied());
    let program = Program::<S>::try_parse_from(line).map_err(|error| UsageError(error.to_string()))?;
    program.stage.run(interrupt)
}

/// The body of `deepflow`.
#[must_use]
pub fn run_umbrella() -> ExitCode {
    let umbrella = Umbrella::parse();
    run(umbrella.log, |interrupt| umbrella.run(interrupt))
}

fn run(log: LogArgs, work: impl FnOnce(&Interrupt) -> anyhow::Result<()>) -> ExitCode {
    start_log(log);
    memory::keep_freed_memory();
    memory::use_small_pages();
    let result = Interrupt::from_signals()
        .map_err(anyhow::Error::from)
        .and_then(|interrupt| work(&interrupt));
    Outcome::of(result).report()
}

/// Log lines to stderr. `RUST_LOG` overrides the flags, with tracing-subscriber's own syntax.
fn start_log(log: LogArgs) {
    let level = match (log.quiet, log.verbose) {
        (true, _) => "error",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    let ours =
        format!("warn,deepflow={level},deepflow_datasets={level},deepflow_model={level},deepflow_preprocess={level}");
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(if log.quiet { "error" } else { &ours }));
    // Fails only when the process has a subscriber already, which then gets the lines.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| LogWriter)
        .without_time()
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .try_init();
}
