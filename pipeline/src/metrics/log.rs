//! `metrics.jsonl`: one JSON object a line, each with its `step`.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

use crate::files::write_atomically;

/// The open log of a run.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
}

impl MetricsLog {
    /// Opens the log of a run that continues after `step`. Lines of later steps are dropped: a killed run had gone
    /// further than its last checkpoint, and will pass there again.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn continue_after(path: &Path, step: u64) -> anyhow::Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => {
                let kept: String = text.split_inclusive('\n').filter(|line| is_kept(line, step)).collect();
                if kept.len() != text.len() {
                    write_atomically(path, kept.as_bytes())?;
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| path.display().to_string())?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn write(&mut self, line: &impl Serialize) -> anyhow::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.file
            .write_all(text.as_bytes())
            .with_context(|| self.path.display().to_string())
    }
}

/// A whole line of a step up to `step`; what a kill left half-written goes.
fn is_kept(line: &str, step: u64) -> bool {
    let found = serde_json::from_str::<Value>(line)
        .ok()
        .and_then(|line| line.get("step").and_then(Value::as_u64));
    line.ends_with('\n') && found.is_some_and(|found| found <= step)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn continuing_drops_what_will_be_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"st").unwrap();
        let mut log = MetricsLog::continue_after(&path, 2).unwrap();
        log.write(&json!({"step": 3, "loss": 0.5})).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"step\":1}\n{\"step\":2}\n{\"loss\":0.5,\"step\":3}\n");
    }
}
