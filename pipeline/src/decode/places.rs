//! Where the pictures of a sample go, and what is kept while the work is not done.

use std::path::{Path, PathBuf};

use deepflow_datasets::Index;

use crate::config::OutputFormat;
use crate::files::{make_folder, remove_folder, sync_folder, write_atomically};

/// What was decoded into a folder, from what: in the root of every output folder.
pub(crate) const RECORD_FILE: &str = "decode.json";
/// The contact sheet, in the root of an output folder.
pub(crate) const SHEET_FILE: &str = "contact-sheet.png";
/// Up to this many samples, class folders need no further folders below them.
const FLAT_UP_TO: u64 = 10_000;

/// The layout of an output folder.
pub(super) struct Places {
    out: PathBuf,
    format: OutputFormat,
    flat: bool,
    /// Names of the shards, endings and all: `a.tar` and `a.tar.zst` may lie in one folder.
    shards: Vec<String>,
    /// Folder names of the classes, by index.
    classes: Vec<String>,
}

impl Places {
    pub(super) fn new(out: &Path, format: OutputFormat, index: &Index) -> Self {
        Self {
            out: out.to_owned(),
            format,
            flat: index.samples <= FLAT_UP_TO,
            shards: index.shards.iter().map(|shard| shard.name.clone()).collect(),
            classes: index.classes.iter().map(|class| file_name(&class.name)).collect(),
        }
    }

    /// What was decoded here, from what.
    pub(super) fn record(&self) -> PathBuf {
        self.out.join(RECORD_FILE)
    }

    /// The PNG file of a sample: `CLASS/KEY.png`, in large sets `CLASS/SHARD/KEY.png`, so that no folder gets more files
    /// than a shard has samples or than a small set has in all. Until it is packed, `.work/shards/SHARD.tar/KEY.png`.
    pub(super) fn picture(&self, shard: usize, class: Option<u32>, key: &str) -> PathBuf {
        let mut path = if self.format == OutputFormat::Folders {
            let folder = self.out.join(self.class_folder(class));
            if self.flat {
                folder
            } else {
                folder.join(without_ending(&self.shards[shard]))
            }
        } else {
            self.shard_work(shard)
        };
        path.push(format!("{}.png", file_name(key)));
        path
    }

    /// The name of the folder of a class.
    fn class_folder(&self, class: Option<u32>) -> String {
        match class {
            None => "unlabelled".to_owned(),
            Some(class) => self
                .classes
                .get(class as usize)
                .cloned()
                .unwrap_or_else(|| format!("{class:04}")),
        }
    }

    /// The tar that holds the pictures of a shard.
    pub(super) fn tar(&self, shard: usize) -> PathBuf {
        self.out.join(format!("images-{shard:06}.tar"))
    }

    /// The one array of all pictures.
    pub(super) fn npz(&self) -> PathBuf {
        self.out.join("samples.npz")
    }

    /// The contact sheet.
    pub(super) fn sheet(&self) -> PathBuf {
        self.out.join(SHEET_FILE)
    }

    /// A tile of the contact sheet, kept until all tiles are there.
    pub(super) fn sheet_tile(&self, row: usize, column: usize) -> PathBuf {
        self.work().join("sheet").join(format!("{row:03}-{column:03}.png"))
    }

    /// Pictures of a shard that are not packed yet.
    pub(super) fn shard_work(&self, shard: usize) -> PathBuf {
        self.work().join("shards").join(&self.shards[shard])
    }

    /// Whether a shard was finished, by this process or another.
    pub(super) fn is_done(&self, shard: usize) -> bool {
        self.done(shard).exists()
    }

    /// Marks a shard as finished: everything of it is on the disk.
    pub(super) fn mark_done(&self, shard: usize) -> anyhow::Result<()> {
        sync_folder(&self.out)?;
        make_folder(&self.out.join(".done"))?;
        write_atomically(&self.done(shard), b"")
    }

    /// Removes what was only kept while the work was not done.
    pub(super) fn remove_work(&self) -> anyhow::Result<()> {
        remove_folder(&self.work())
    }

    fn work(&self) -> PathBuf {
        self.out.join(".work")
    }

    fn done(&self, shard: usize) -> PathBuf {
        self.out.join(".done").join(&self.shards[shard])
    }
}

/// The name of a shard without `.tar` or `.tar.zst`.
fn without_ending(shard: &str) -> &str {
    let tar = shard.strip_suffix(".tar.zst").or_else(|| shard.strip_suffix(".tar"));
    tar.unwrap_or(shard)
}

/// A key or class name as one part of a path, different for every name: `+` for a slash, and what would otherwise divide the
/// name, hide it or leave the folder as in an address, `%3A` for a colon.
fn file_name(name: &str) -> String {
    let escaped = |(place, letter): (usize, char)| match letter {
        '/' => "+".to_owned(),
        '\\' | ':' | '%' | '+' => percent_encoded(letter),
        '.' if place == 0 => percent_encoded(letter),
        letter if letter.is_control() => percent_encoded(letter),
        letter => letter.to_string(),
    };
    name.char_indices().map(escaped).collect()
}

fn percent_encoded(letter: char) -> String {
    letter.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_folder() {
        assert_eq!(file_name("n01440764_18.é-2"), "n01440764_18.é-2");
        assert_eq!(file_name("n01440764/n01440764_18"), "n01440764+n01440764_18");
        assert_eq!(file_name("../../etc/passwd"), "%2E.+..+etc+passwd");
        assert_eq!(file_name("/absolute"), "+absolute");
        assert_eq!(file_name(".hidden"), "%2Ehidden");
        assert_eq!(file_name("a+b"), "a%2Bb");
        assert_eq!(file_name("100%\n\u{85}"), "100%25%0A%C2%85");
    }
}
