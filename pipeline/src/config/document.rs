//! From TOML text and `--set` to one checked table: unknown keys are refused where they stand, with the nearest key that exists.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::ConfigError;

/// Where a value came from, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A line of a file, counted from 1.
    File(PathBuf, usize),
    /// `--set`, or a flag that stands for a key.
    CommandLine,
    /// Not written anywhere by the user.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::CommandLine => f.write_str("--set"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// The names each table may hold, by the path of the table: `""` holds the sections, `"model"` the keys of `[model]`.
pub type KnownKeys = BTreeMap<String, Vec<String>>;

/// Values by section and key, each with where it was written.
#[derive(Debug)]
pub struct Document {
    known: KnownKeys,
    table: Table,
    origins: BTreeMap<String, Origin>,
}

impl Document {
    /// A document that holds the defaults.
    #[must_use]
    pub fn new(known: KnownKeys, defaults: Table) -> Self {
        Self {
            known,
            table: defaults,
            origins: BTreeMap::new(),
        }
    }

    /// Lays a file's values over what is there.
    ///
    /// # Errors
    /// When it is not TOML, or holds a section or key that does not exist.
    pub fn overlay_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let at = |offset: usize| Origin::File(path.to_owned(), line_of(text, offset));
        let syntax = |error: toml::de::Error| ConfigError::Syntax {
            origin: at(error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        };
        let spanned = DeTable::parse(text).map_err(syntax)?;
        self.check_table("", spanned.get_ref(), &at)?;
        overlay(&mut self.table, toml::from_str(text).map_err(syntax)?);
        Ok(())
    }

    /// Lays one `section.key=value` over what is there. A value that is not TOML is taken as text.
    ///
    /// # Errors
    /// When it has another form, or the key does not exist.
    pub fn overlay_setting(&mut self, setting: &str) -> Result<(), ConfigError> {
        let form = || ConfigError::SettingForm {
            setting: setting.to_owned(),
        };
        let (path, value) = setting.split_once('=').ok_or_else(form)?;
        if !path.contains('.') {
            return Err(form());
        }
        self.overlay_value(path.trim(), parse_value(value.trim()))
    }

    /// Lays one value over what is there.
    ///
    /// # Errors
    /// When the key does not exist.
    pub fn overlay_value(&mut self, path: &str, value: Value) -> Result<(), ConfigError> {
        let mut table = String::new();
        for name in path.split('.') {
            self.check_name(&table, name, &Origin::CommandLine)?;
            table = join(&table, name);
        }
        let nested = path.rsplit('.').fold(value, |value, name| {
            Value::Table(Table::from_iter([(name.to_owned(), value)]))
        });
        if let Value::Table(nested) = nested {
            overlay(&mut self.table, nested);
        }
        self.origins.insert(path.to_owned(), Origin::CommandLine);
        Ok(())
    }

    /// The merged values.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Where the value at `path` was written.
    #[must_use]
    pub fn origin(&self, path: &str) -> Origin {
        let mut path = path;
        loop {
            if let Some(origin) = self.origins.get(path) {
                return origin.clone();
            }
            // A value inside an array or a table was written where its key was.
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return Origin::Default,
            }
        }
    }

    fn check_table(
        &mut self,
        path: &str,
        table: &DeTable<'_>,
        at: &impl Fn(usize) -> Origin,
    ) -> Result<(), ConfigError> {
        for (name, value) in table {
            let origin = at(name.span().start);
            self.check_name(path, name.get_ref(), &origin)?;
            let inner = join(path, name.get_ref());
            match value.get_ref() {
                DeValue::Table(table) if self.known.contains_key(&inner) => self.check_table(&inner, table, at)?,
                _ if self.known.contains_key(&inner) => return Err(ConfigError::NotATable { origin, path: inner }),
                _ => drop(self.origins.insert(inner, origin)),
            }
        }
        Ok(())
    }

    fn check_name(&self, table: &str, name: &str, origin: &Origin) -> Result<(), ConfigError> {
        let names = self.known.get(table).map_or(&[][..], Vec::as_slice);
        if names.iter().any(|known| known == name) {
            return Ok(());
        }
        let nearest = || nearest(name, names.iter().map(String::as_str)).map(|near| join(table, near));
        let hint = Hint(self.holder_of(name).or_else(nearest));
        let (origin, path) = (origin.clone(), join(table, name));
        Err(if table.is_empty() {
            ConfigError::UnknownSection {
                origin,
                section: path,
                hint,
            }
        } else {
            ConfigError::UnknownKey {
                origin,
                key: path,
                hint,
            }
        })
    }

    /// The path of a key that exists somewhere under this name.
    fn holder_of(&self, name: &str) -> Option<String> {
        let (table, _) = self
            .known
            .iter()
            .find(|(_, names)| names.iter().any(|known| known == name))?;
        Some(join(table, name))
    }
}

fn join(table: &str, name: &str) -> String {
    if table.is_empty() {
        name.to_owned()
    } else {
        format!("{table}.{name}")
    }
}

fn overlay(target: &mut Table, values: Table) {
    for (name, value) in values {
        match (target.get_mut(&name), value) {
            (Some(Value::Table(inner)), Value::Table(values)) => overlay(inner, values),
            (_, value) => drop(target.insert(name, value)),
        }
    }
}

/// "did you mean …?", where something is near enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint(pub Option<String>);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .as_ref()
            .map_or(Ok(()), |hint| write!(f, "; did you mean `{hint}`?"))
    }
}

fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distances = candidates.map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate));
    let (distance, candidate) = distances.min()?;
    (distance <= 2.max(word.len() / 2)).then_some(candidate)
}

fn parse_value(text: &str) -> Value {
    let as_toml = toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"));
    as_toml.unwrap_or_else(|| Value::String(text.to_owned()))
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()
        .iter()
        .take(offset)
        .filter(|&&byte| byte == b'\n')
        .count()
        + 1
}
