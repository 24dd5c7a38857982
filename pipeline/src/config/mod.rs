//! One configuration for all stages: raw TOML in, typed and checked values out, every default in one place.
//!
//! Files hold the sections `[model] [data] [train] [loss] [sample] [codec] [output]`; what a file leaves out has the
//! default of the section's type. `--set section.key=value` overrides a file, and [`Config::save`] writes the whole
//! resolved configuration beside a stage's output.

mod document;
mod reference;
mod sections;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use deepflow_model::NetworkConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use document::{Document, Hint, KnownKeys, Origin};
pub use reference::{long_help, ALL_KEYS};
pub use sections::{
    CodecConfig, CodecKind, DataConfig, LastBatch, LossConfig, OnError, OutputConfig, OutputFormat, Path as FlowPath,
    Precision, SampleConfig, Sampler, Schedule, Shuffle, StartWith, TrainConfig, TrainingTimes,
};

/// Everything the stages can be told, by section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The network.
    pub model: NetworkConfig,
    /// Where latents come from, and in which order.
    pub data: DataConfig,
    /// The optimiser and the run.
    pub train: TrainConfig,
    /// What is minimised.
    pub loss: LossConfig,
    /// How pictures are generated.
    pub sample: SampleConfig,
    /// How pictures become latents and back.
    pub codec: CodecConfig,
    /// What the stages write.
    pub output: OutputConfig,
}

/// A configuration that cannot be meant; exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not TOML.
    #[error("{origin}: {message}")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What the TOML parser said.
        message: String,
    },
    /// A value where a section is expected.
    #[error("{origin}: `{path}` is a value, expected a section [{path}]")]
    NotATable {
        /// Where.
        origin: Origin,
        /// Its name.
        path: String,
    },
    /// There is no such section.
    #[error("{origin}: unknown section [{section}]{hint}")]
    UnknownSection {
        /// Where.
        origin: Origin,
        /// Its name.
        section: String,
        /// The nearest that exists.
        hint: Hint,
    },
    /// There is no such key.
    #[error("{origin}: unknown key `{key}`{hint}")]
    UnknownKey {
        /// Where.
        origin: Origin,
        /// Section and name.
        key: String,
        /// The nearest that exists.
        hint: Hint,
    },
    /// `--set` with something else than `section.key=value`.
    #[error("--set {setting}: expected section.key=value, such as train.steps=1000")]
    SettingForm {
        /// What was given.
        setting: String,
    },
    /// A value of another type than the key's.
    #[error("{origin}: `{key}`: {message}")]
    Type {
        /// Where.
        origin: Origin,
        /// Section and name.
        key: String,
        /// What was found and expected.
        message: String,
    },
    /// A value outside its range, or values that do not fit each other.
    #[error("{origin}: `{key}` {rule}")]
    Rule {
        /// Where.
        origin: Origin,
        /// Section and name.
        key: String,
        /// What was found and the rule it breaks.
        rule: String,
    },
}

/// A value that breaks a rule: the key, what was found, and the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// `section.key`.
    pub key: String,
    /// Such as `is 0, expected at least 1`.
    pub rule: String,
}

impl Violation {
    /// `key` breaks `rule`.
    pub fn new(key: impl Into<String>, rule: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            rule: rule.into(),
        }
    }
}

/// `--config FILE --set section.key=value`, the same for every stage.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ConfigArgs {
    /// Configuration file (TOML); configs/ holds commented ones [default: the built-in defaults]
    #[arg(short, long, value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// Overrides one key of the configuration, such as --set train.steps=1000; can be given many times
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", help_heading = "Configuration")]
    pub settings: Vec<String>,
}

impl ConfigArgs {
    /// Defaults, then the file, then `--set`, then `flags` (a stage's own flags that stand for keys).
    ///
    /// # Errors
    /// At the first key that does not exist or value that does not fit.
    pub fn load(&self, flags: &[(&str, Option<toml::Value>)]) -> Result<Config, ConfigError> {
        self.load_over(&Config::default(), flags)
    }

    /// As [`ConfigArgs::load`], with other values than the defaults underneath.
    ///
    /// # Errors
    /// At the first key that does not exist or value that does not fit.
    pub fn load_over(&self, base: &Config, flags: &[(&str, Option<toml::Value>)]) -> Result<Config, ConfigError> {
        let mut document = Document::new(Config::known_keys(), base.to_table());
        if let Some(path) = &self.config {
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.clone(),
                source,
            })?;
            document.overlay_file(path, &text)?;
        }
        for setting in &self.settings {
            document.overlay_setting(setting)?;
        }
        for (key, value) in flags {
            if let Some(value) = value {
                document.overlay_value(key, value.clone())?;
            }
        }
        Config::from_document(&document)
    }
}

impl Config {
    /// The file a stage writes beside its output.
    pub const FILE_NAME: &'static str = "config.toml";

    /// Reads a file that [`Config::save`] or a person wrote.
    ///
    /// # Errors
    /// As [`ConfigArgs::load`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        ConfigArgs {
            config: Some(path.to_owned()),
            settings: Vec::new(),
        }
        .load(&[])
    }

    /// The resolved configuration as TOML, every key written out.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.to_table()).unwrap_or_default()
    }

    /// Writes the resolved configuration to `folder/config.toml`, whole or not at all.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn save(&self, folder: &Path) -> anyhow::Result<()> {
        crate::files::write_atomically(&folder.join(Self::FILE_NAME), self.to_toml().as_bytes())
    }

    /// The first `section.key` on which the two differ, among those not in `ignored`, with both values.
    #[must_use]
    pub fn difference(&self, other: &Self, ignored: &[&str]) -> Option<(String, String, String)> {
        first_difference("", &self.to_json(), &other.to_json(), ignored)
    }

    fn to_table(&self) -> toml::Table {
        toml::Table::try_from(self).unwrap_or_default()
    }

    fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Every table with its names, those without a value included.
    #[must_use]
    pub fn known_keys() -> KnownKeys {
        fn collect(path: &str, value: &Value, known: &mut KnownKeys) {
            let Value::Object(names) = value else { return };
            known.insert(path.to_owned(), names.keys().cloned().collect());
            for (name, value) in names {
                collect(
                    &if path.is_empty() {
                        name.clone()
                    } else {
                        format!("{path}.{name}")
                    },
                    value,
                    known,
                );
            }
        }
        let mut every_key = Self::default();
        // The one key that is not written when it is absent.
        every_key.model.alignment_width = Some(1);
        let mut known = KnownKeys::new();
        collect("", &every_key.to_json(), &mut known);
        known
    }

    fn from_document(document: &Document) -> Result<Self, ConfigError> {
        let values = toml::Value::Table(document.table().clone());
        let config: Self = serde_path_to_error::deserialize(values).map_err(|error| {
            let key = error.path().to_string();
            let message = in_plain_words(&error.into_inner().to_string(), &key);
            ConfigError::Type {
                origin: document.origin(&key),
                key,
                message,
            }
        })?;
        config.check().map_err(|Violation { key, rule }| {
            let origin = document.origin(&key);
            ConfigError::Rule { origin, key, rule }
        })?;
        Ok(config)
    }
}

/// The first name below `path` on which two values differ, among those not in `ignored`, with both values.
pub fn first_difference(path: &str, here: &Value, there: &Value, ignored: &[&str]) -> Option<(String, String, String)> {
    if here == there || ignored.contains(&path) {
        return None;
    }
    let (Value::Object(ours), Value::Object(theirs)) = (here, there) else {
        return Some((path.to_owned(), here.to_string(), there.to_string()));
    };
    let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    names.into_iter().find_map(|name| {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        let (here, there) = (
            ours.get(name).unwrap_or(&Value::Null),
            theirs.get(name).unwrap_or(&Value::Null),
        );
        first_difference(&path, here, there, ignored)
    })
}

/// What the deserialiser says, without the names of Rust's types and without the key, which the message begins with.
fn in_plain_words(message: &str, key: &str) -> String {
    let line = message.trim().replace('\n', " ");
    let line = line.trim_end_matches(&format!(" in `{key}`"));
    let Some((found, expected)) = line.rsplit_once(", expected ") else {
        return line.to_owned();
    };
    let expected = match expected {
        "usize" | "u64" | "u32" => "a whole number of at least 0",
        "i32" | "i64" => "a whole number",
        "f64" => "a number",
        "a boolean" => "true or false",
        other => other,
    };
    format!("{found}, expected {expected}")
}

#[cfg(test)]
mod tests;
