//! What a set of files holds, as one number: the key under which its statistics are kept.

use crate::files::sha256;
use deepflow_datasets::hex;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Hexadecimal SHA-256 over the names below `root` and the contents of files, in their order, and over `settings`:
/// everything else that decides what is made of them.
///
/// # Errors
/// A file cannot be read.
pub fn content_hash(root: &Path, files: &[PathBuf], settings: &[&str]) -> anyhow::Result<String> {
    let contents: Vec<String> = files
        .par_iter()
        .map(|file| sha256(file))
        .collect::<anyhow::Result<_>>()?;
    let mut hasher = Sha256::new();
    let mut add = |part: &[u8]| {
        hasher.update(part);
        hasher.update([0]);
    };
    settings.iter().for_each(|setting| add(setting.as_bytes()));
    for (file, content) in files.iter().zip(contents) {
        let name = file.strip_prefix(root).unwrap_or(file);
        add(name.as_os_str().as_encoded_bytes());
        add(content.as_bytes());
    }
    Ok(hex(&hasher.finalize()))
}
