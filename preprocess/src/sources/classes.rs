//! From the labels that sources have to numbered classes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use deepflow_datasets::Class;

use super::{Label, Listing, SourceError};

/// More classes than this in a data set without names are a mistake in the labels.
const MOST_CLASSES: u32 = 1 << 20;

/// The classes of a listing and the class number of every picture. Named classes are numbered in the order of their names,
/// numbered ones keep their numbers, pictures without any are one class.
pub(super) fn assign(
    path: &Path,
    listing: &Listing,
    class_names: Option<&Path>,
) -> Result<(Vec<Class>, Vec<u32>), SourceError> {
    let known = class_names.map(read_names).transpose()?.unwrap_or_default();
    let found: BTreeSet<&Label> = listing.pictures.iter().map(|picture| &picture.class).collect();
    if found.len() > 1 && found.contains(&Label::None) {
        let name = listing.pictures.iter().find(|picture| picture.class == Label::None);
        let name = name.map(|picture| picture.name.clone()).unwrap_or_default();
        return Err(SourceError::MissingClass {
            path: path.to_owned(),
            name,
        });
    }
    for class in &listing.folders {
        if !found.contains(&Label::Folder(class.clone())) {
            return Err(SourceError::EmptyClass {
                path: path.to_owned(),
                class: class.clone(),
            });
        }
    }
    let numbered = found.iter().any(|label| matches!(label, Label::Number(_)));
    let named = found.iter().any(|label| matches!(label, Label::Folder(_)));
    if numbered && named {
        return Err(SourceError::Labels {
            path: path.to_owned(),
            found: "classes with numbers and classes with names".into(),
            expected: "one kind".into(),
        });
    }
    let names = if numbered {
        numbered_names(path, &found, &known)?
    } else {
        sorted_names(&found, &known)
    };
    let numbers: BTreeMap<&str, u32> = names
        .iter()
        .zip(0..)
        .map(|(name, number)| (name.as_str(), number))
        .collect();
    let number_of = |label: &Label| match label {
        Label::None => 0,
        Label::Number(number) => *number,
        Label::Folder(name) => numbers.get(name.as_str()).copied().unwrap_or(0),
    };
    let assigned = listing
        .pictures
        .iter()
        .map(|picture| number_of(&picture.class))
        .collect();
    let label_of = |name: &str| {
        known
            .iter()
            .find(|(known, _)| known == name)
            .and_then(|(_, label)| label.clone())
    };
    let classes = names.into_iter().zip(0..).map(|(name, index)| Class {
        index,
        label: label_of(&name),
        name,
    });
    Ok((classes.collect(), assigned))
}

/// Names in order. A file of names counts for all its classes, so that a part of a data set numbers them like the whole.
fn sorted_names(found: &BTreeSet<&Label>, known: &[(String, Option<String>)]) -> Vec<String> {
    let mut names: BTreeSet<String> = found
        .iter()
        .map(|label| match label {
            Label::Folder(name) => name.clone(),
            _ => "all".to_owned(),
        })
        .collect();
    if names.iter().all(|name| known.iter().any(|(known, _)| known == name)) {
        names.extend(known.iter().map(|(name, _)| name.clone()));
    }
    names.into_iter().collect()
}

fn numbered_names(
    path: &Path,
    found: &BTreeSet<&Label>,
    known: &[(String, Option<String>)],
) -> Result<Vec<String>, SourceError> {
    let largest = found
        .iter()
        .filter_map(|label| {
            if let Label::Number(number) = label {
                Some(*number)
            } else {
                None
            }
        })
        .max();
    let largest = largest.unwrap_or(0);
    let limit = if known.is_empty() {
        MOST_CLASSES
    } else {
        known.len() as u32
    };
    if largest >= limit {
        return Err(SourceError::InvalidClass {
            path: path.to_owned(),
            name: "the largest class".into(),
            found: largest.to_string(),
            expected: format!("below {limit}"),
        });
    }
    if known.is_empty() {
        return Ok((0..=largest).map(|number| number.to_string()).collect());
    }
    Ok(known.iter().map(|(name, _)| name.clone()).collect())
}

/// `FOLDER what people call it` lines.
fn read_names(path: &Path) -> Result<Vec<(String, Option<String>)>, SourceError> {
    let text = std::fs::read_to_string(path).map_err(SourceError::io(path, "read"))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines
        .map(|line| match line.split_once(char::is_whitespace) {
            Some((name, label)) => (name.to_owned(), Some(label.trim().to_owned())),
            None => (line.to_owned(), None),
        })
        .collect())
}
