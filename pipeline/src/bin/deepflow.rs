//! The umbrella binary: every stage as a subcommand.
fn main() {}
