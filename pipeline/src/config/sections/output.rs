//! `[output]`: what the stages write.

use deepflow_datasets::{Compression, Dtype};
use serde::{Deserialize, Serialize};

use super::{at_least_one, Violation};

/// What `decode` writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputFormat {
    /// PNG files in class folders.
    #[default]
    Folders,
    /// One tar of PNG files.
    Tar,
    /// One `.npz` with `arr_0` uint8 (N, H, W, 3), as the ADM evaluator reads it.
    Npz,
}

/// `[output]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OutputConfig {
    /// First part of the names of shards.
    pub name: String,
    /// Samples in a shard.
    pub shard_samples: usize,
    /// Compresses shards with zstd at this level.
    pub zstd: Option<i32>,
    /// Writes moments and latents as f16 instead of f32.
    pub half: bool,
    /// Writes the moments of the mirrored picture too.
    pub mirror: bool,
    /// What `decode` writes.
    pub format: OutputFormat,
    /// Adds a contact sheet with this many columns; 0 makes none.
    pub sheet_columns: usize,
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self {
            name: "latents".to_owned(),
            shard_samples: 4096,
            zstd: None,
            half: false,
            mirror: false,
            format: OutputFormat::Folders,
            sheet_columns: 10,
        }
    }
}

impl OutputConfig {
    /// How shards are compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.zstd.map_or(Compression::None, Compression::Zstd)
    }

    /// What the numbers of moments and latents are written as.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        if self.half {
            Dtype::F16
        } else {
            Dtype::F32
        }
    }

    pub(super) fn check(&self) -> Result<(), Violation> {
        at_least_one("output.shard_samples", self.shard_samples)?;
        let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
        if self.name.is_empty() || !self.name.chars().all(plain) {
            let rule = format!("is {:?}, expected letters, digits, '-' and '_'", self.name);
            return Err(Violation::new("output.name", rule));
        }
        if self.zstd.is_some_and(|level| !(1..=22).contains(&level)) {
            return Err(Violation::new("output.zstd", "expected a level from 1 to 22"));
        }
        Ok(())
    }
}
