//! A file of labels beside pictures that are not divided into class folders, such as ImageNet's validation set.

use std::collections::HashMap;
use std::path::Path;

use super::webdataset::label_of;
use super::{Label, Listing, SourceError};

/// Gives every picture of `listing` the label that `path` has for it.
///
/// Lines are `LABEL` in the order of the file names, or `NAME LABEL` (blanks or a comma between; the name with or without
/// its extension; what follows the label is ignored, as in ImageNet's CSV). Labels are numbers from 0 or class names.
pub(super) fn apply(path: &Path, listing: &mut Listing) -> Result<(), SourceError> {
    let text = std::fs::read_to_string(path).map_err(SourceError::io(path, "read"))?;
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| {
            line.split(|c: char| c.is_whitespace() || c == ',')
                .filter(|part| !part.is_empty())
                .collect()
        })
        .filter(|parts: &Vec<&str>| !parts.is_empty())
        .collect();
    if lines.iter().all(|parts| parts.len() == 1) {
        by_order(path, &lines, listing)
    } else {
        by_name(path, &lines, listing)
    }?;
    listing.folders.clear();
    Ok(())
}

fn by_order(path: &Path, lines: &[Vec<&str>], listing: &mut Listing) -> Result<(), SourceError> {
    if lines.len() != listing.pictures.len() {
        return Err(SourceError::Labels {
            path: path.to_owned(),
            found: format!("{} labels", lines.len()),
            expected: format!("{}, one a picture in the order of their names", listing.pictures.len()),
        });
    }
    listing.pictures.sort_by(|a, b| a.name.cmp(&b.name));
    for (picture, parts) in listing.pictures.iter_mut().zip(lines) {
        picture.class = parse(path, &picture.name, parts[0])?;
    }
    Ok(())
}

fn by_name(path: &Path, lines: &[Vec<&str>], listing: &mut Listing) -> Result<(), SourceError> {
    let labels: HashMap<&str, &str> = lines
        .iter()
        .filter(|parts| parts.len() >= 2)
        .map(|parts| (stem(parts[0]), parts[1]))
        .collect();
    for picture in &mut listing.pictures {
        let label = labels.get(stem(&picture.name)).ok_or_else(|| SourceError::Labels {
            path: path.to_owned(),
            found: format!("no label for {}", picture.name),
            expected: "a line for every picture".into(),
        })?;
        picture.class = parse(path, &picture.name, label)?;
    }
    Ok(())
}

fn parse(path: &Path, name: &str, label: &str) -> Result<Label, SourceError> {
    label_of(label).ok_or_else(|| SourceError::InvalidClass {
        path: path.to_owned(),
        name: name.to_owned(),
        found: label.chars().take(40).collect(),
        expected: "a number or a class name".into(),
    })
}

/// The file name without folders and extension.
fn stem(name: &str) -> &str {
    let base = name.rsplit('/').next().unwrap_or(name);
    base.split_once('.').map_or(base, |(stem, _)| stem)
}
