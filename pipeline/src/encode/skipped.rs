//! What went wrong with single sources: a list beside each shard while a run lasts, one list at its end.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use deepflow_preprocess::sources::Sources;
use serde::{Deserialize, Serialize};

use crate::files::{make_folder, write_atomically};

/// The list over all shards, a JSON object a line.
pub const SKIPPED_FILE: &str = "skipped.jsonl";
/// The lists of the single shards; they stay, so that a damaged shard can be redone later.
const FOLDER: &str = ".skipped";

/// A source that was left out, or used although its file is damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "action")]
pub enum Incident {
    /// Left out.
    Skipped {
        /// The key its sample would have had.
        key: String,
        /// Where it is.
        source: String,
        /// Why.
        reason: String,
    },
    /// Not looked at: nothing says that it is a picture of the data set.
    Ignored {
        /// Where it is.
        source: String,
        /// Why.
        reason: String,
    },
    /// Used: the damage does not touch the picture.
    Repaired {
        /// The key of its sample.
        key: String,
        /// Where it is.
        source: String,
    },
}

impl Incident {
    pub(super) fn is_skipped(&self) -> bool {
        matches!(self, Self::Skipped { .. })
    }

    /// What the listing of the sources passed over.
    pub(super) fn ignored(sources: &Sources) -> impl Iterator<Item = Self> + '_ {
        sources.ignored().iter().map(|file| Self::Ignored {
            source: file.name.clone(),
            reason: file.reason.to_owned(),
        })
    }
}

impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The system's errors name the file themselves.
            Self::Skipped { source, reason, .. } if reason.contains(source.as_str()) => write!(f, "{reason}"),
            Self::Skipped { source, reason, .. } | Self::Ignored { source, reason } => write!(f, "{source}: {reason}"),
            Self::Repaired { source, .. } => write!(f, "{source}: stray bytes between JPEG segments"),
        }
    }
}

fn path_of(out: &Path, name: &str, shard: usize) -> PathBuf {
    out.join(FOLDER).join(format!("{name}-{shard:06}.jsonl"))
}

/// Records what happened in a shard, before the shard itself is there.
pub(super) fn write_shard(out: &Path, name: &str, shard: usize, incidents: &[Incident]) -> anyhow::Result<()> {
    let path = path_of(out, name, shard);
    if incidents.is_empty() {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| path.display().to_string())
            }
            _ => Ok(()),
        };
    }
    make_folder(&out.join(FOLDER))?;
    write_atomically(&path, lines(incidents)?.as_bytes())
}

/// What happened in all shards, in order.
pub(super) fn read_all(out: &Path, name: &str, shards: usize) -> anyhow::Result<Vec<Incident>> {
    let mut all = Vec::new();
    for shard in 0..shards {
        let path = path_of(out, name, shard);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        for line in text.lines() {
            all.push(serde_json::from_str(line).with_context(|| path.display().to_string())?);
        }
    }
    Ok(all)
}

/// Writes the list over all shards, or removes an earlier one when there is nothing to list.
pub(super) fn write_list(out: &Path, incidents: &[Incident]) -> anyhow::Result<()> {
    let path = out.join(SKIPPED_FILE);
    if incidents.is_empty() && !path.exists() {
        return Ok(());
    }
    write_atomically(&path, lines(incidents)?.as_bytes())
}

fn lines(incidents: &[Incident]) -> anyhow::Result<String> {
    let mut text = String::new();
    for incident in incidents {
        text.push_str(&serde_json::to_string(incident)?);
        text.push('\n');
    }
    Ok(text)
}
