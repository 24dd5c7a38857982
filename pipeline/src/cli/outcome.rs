//! Errors end here: one line on stderr and an exit code (pipeline spec, "Errors").

use std::io::{self, Write};
use std::process::ExitCode;

use deepflow_model::ModelError;

use crate::config::ConfigError;
use crate::interrupt::Interrupted;
use crate::rank::RankError;

/// The command line asks for something that cannot be meant; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Done,
    /// Exit code 1, with the line to show.
    Failed(String),
    /// Exit code 2, with the line to show.
    Misused(String),
    /// Exit code 130, after saving, with the line to show.
    Interrupted(String),
}

impl Outcome {
    /// Sorts a result into its exit code, and puts the whole chain of causes on one line.
    #[must_use]
    pub fn of(result: anyhow::Result<()>) -> Self {
        let Err(error) = result else { return Self::Done };
        let line = one_line(&error);
        if error.chain().any(|cause| cause.is::<Interrupted>()) {
            Self::Interrupted(line)
        } else if error.chain().any(is_misuse) {
            Self::Misused(line)
        } else {
            Self::Failed(line)
        }
    }

    /// Prints the line, if any, and gives the process's exit code.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        let (label, line, code) = match self {
            Self::Done => return ExitCode::SUCCESS,
            Self::Failed(line) => ("error: ", line, 1),
            Self::Misused(line) => ("error: ", line, 2),
            Self::Interrupted(line) => ("", line, 130),
        };
        // A closed stderr leaves nobody to tell.
        let _ = writeln!(io::stderr(), "{label}{line}");
        ExitCode::from(code)
    }
}

/// Whether the command line or the configuration is to blame.
fn is_misuse(cause: &(dyn std::error::Error + 'static)) -> bool {
    let refused_by_the_network = matches!(cause.downcast_ref(), Some(ModelError::Config(_)));
    refused_by_the_network || cause.is::<UsageError>() || cause.is::<ConfigError>() || cause.is::<RankError>()
}

/// The chain of causes, outermost first; a cause that its parent already quotes is not said twice.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::{anyhow, Context};

    use super::*;

    #[test]
    fn causes_become_one_line() {
        let error = anyhow!("No space left\non device").context("/out/a.tar");
        assert_eq!(
            Outcome::of(Err(error)),
            Outcome::Failed("/out/a.tar: No space left on device".to_owned())
        );
    }

    #[test]
    fn codes_come_from_the_chain() {
        assert_eq!(Outcome::of(Ok(())), Outcome::Done);
        let interrupted = Err(Interrupted).context("training");
        assert!(matches!(Outcome::of(interrupted), Outcome::Interrupted(_)));
        let misused = Err(UsageError("no --data".to_owned())).context("train");
        assert!(matches!(Outcome::of(misused), Outcome::Misused(_)));
        let refused = ModelError::Config(deepflow_model::ConfigError {
            key: "model.heads",
            found: "1".to_owned(),
            rule: "too wide".to_owned(),
        });
        assert!(matches!(Outcome::of(Err(refused.into())), Outcome::Misused(_)));
    }
}
