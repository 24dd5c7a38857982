//! Every key with its meaning and its default: the commented file that `deepflow inspect config` prints, and the lists in
//! `--help` that are taken from it.

/// `configs/all-keys.toml`. A test holds it to the defaults of [`Config`](super::Config).
pub const ALL_KEYS: &str = include_str!("../../../configs/all-keys.toml");

/// Examples and, below them, the keys that a stage reads with their defaults, one a line. `read` names them, or whole
/// sections.
#[must_use]
pub fn long_help(examples: &str, read: &[&str]) -> String {
    let is_read = |key: &Key<'_>| {
        let section = key.section.split('.').next().unwrap_or(key.section);
        read.contains(&section) || read.contains(&format!("{}.{}", key.section, key.name).as_str())
    };
    let keys: String = keys(ALL_KEYS)
        .filter(is_read)
        .map(|key| match key.default {
            Some(value) => format!("  {}.{} = {value}\n", key.section, key.name),
            None => format!("  {}.{} (no default)\n", key.section, key.name),
        })
        .collect();
    format!(
        "{examples}\n\nKeys of the configuration that this stage reads, with their defaults (`deepflow inspect config` says \
         what they mean):\n{}",
        keys.trim_end()
    )
}

struct Key<'a> {
    section: &'a str,
    name: &'a str,
    /// Keys without a default are commented out.
    default: Option<&'a str>,
}

fn keys(text: &str) -> impl Iterator<Item = Key<'_>> {
    let is_name = |name: &str| {
        !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let mut section = "";
    text.lines().filter_map(move |line| {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
            return None;
        }
        let commented_out = line.strip_prefix("# ");
        let (name, value) = commented_out.unwrap_or(line).split_once(" = ")?;
        is_name(name).then_some(Key {
            section,
            name,
            default: commented_out.is_none().then_some(value),
        })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::super::{Config, Document};
    use super::*;

    #[test]
    fn the_file_holds_every_key_with_its_default() {
        let mut document = Document::new(Config::known_keys(), toml::Table::new());
        document.overlay_file("all-keys.toml".as_ref(), ALL_KEYS).unwrap();
        assert_eq!(Config::from_document(&document).unwrap(), Config::default());

        let listed: BTreeSet<String> = keys(ALL_KEYS)
            .map(|key| format!("{}.{}", key.section, key.name))
            .collect();
        let known = Config::known_keys();
        let sections: BTreeSet<&String> = known.keys().collect();
        let keys = known.iter().filter(|(section, _)| !section.is_empty());
        let existing: BTreeSet<String> = keys
            .flat_map(|(section, names)| names.iter().map(move |name| format!("{section}.{name}")))
            .filter(|key| !sections.contains(key))
            .collect();
        assert_eq!(listed, existing);
    }

    #[test]
    fn every_key_is_explained_above_it() {
        let lines: Vec<&str> = ALL_KEYS.lines().collect();
        for pair in lines
            .windows(2)
            .filter(|pair| pair[1].contains(" = ") && !pair[1].starts_with('#'))
        {
            let explained = pair[0].starts_with("# ") || pair[0] == "relative_tolerance = 1e-3";
            assert!(explained, "{:?} has no comment", pair[1]);
        }
    }

    #[test]
    fn help_lists_the_keys_of_its_sections() {
        let help = long_help("Example:\n  run", &["codec", "output"]);
        assert!(
            help.starts_with("Example:\n  run\n\nKeys of the configuration"),
            "{help}"
        );
        assert!(
            help.contains("\n  codec.kind = \"pca\"\n  codec.size = 256\n  codec.weights (no default)\n"),
            "{help}"
        );
        assert!(
            !help.contains("train.") && help.ends_with("output.sheet_columns = 10"),
            "{help}"
        );
        let help = long_help("", &["codec.weights", "output.format"]);
        assert!(
            help.ends_with(":\n  codec.weights (no default)\n  output.format = \"folders\""),
            "{help}"
        );
        assert!(long_help("", &["model"]).contains("  model.vera.acceleration = true\n"));
    }
}
