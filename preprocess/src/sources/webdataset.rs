//! WebDataset shards of pictures: `KEY.jpg` beside `KEY.cls` or `KEY.json`.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use super::archive::{read_range, Member};
use super::{is_picture, Ignored, Label, Listed, Listing, Place, SourceError};

/// The fields of `KEY.json` that hold a class, the first of them that is there.
const CLASS_FIELDS: [&str; 4] = ["cls", "label", "class", "class_index"];

/// Whether members come as samples: a class or metadata beside a picture.
pub(super) fn is_one(members: &[Member]) -> bool {
    let annotated = members
        .iter()
        .any(|member| matches!(split(&member.name).1, "cls" | "json"));
    annotated && members.iter().any(|member| is_picture(&member.name))
}

/// Adds the samples of one shard; of several pictures with one key the first counts.
pub(super) fn append(
    path: &Path,
    file: &File,
    members: &[Member],
    place: impl Fn(&Member) -> Place,
    listing: &mut Listing,
) -> Result<(), SourceError> {
    let mut classes: HashMap<&str, Label> = HashMap::new();
    for member in members {
        let (key, extension) = split(&member.name);
        if matches!(extension, "cls" | "json") {
            let bytes = read_range(file, member.offset, member.bytes).map_err(SourceError::io(path, "read"))?;
            let found = if extension == "cls" {
                class_of_text(&bytes)
            } else {
                class_of_json(&bytes)
            };
            match found {
                // A `.cls` member speaks louder than a field of the metadata.
                Some(class) if extension == "cls" => drop(classes.insert(key, class)),
                Some(class) => drop(classes.entry(key).or_insert(class)),
                None if extension == "cls" => {
                    return Err(SourceError::InvalidClass {
                        path: path.to_owned(),
                        name: member.name.clone(),
                        found: String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned(),
                        expected: "a decimal number or a name".into(),
                    })
                }
                None => {}
            }
        }
    }
    let mut last = None;
    for member in members.iter().filter(|member| is_picture(&member.name)) {
        let (key, _) = split(&member.name);
        if last != Some(key) {
            let class = classes.get(key).cloned().unwrap_or(Label::None);
            listing.pictures.push(Listed {
                name: member.name.clone(),
                class,
                place: place(member),
            });
        } else {
            listing.ignored.push(Ignored {
                name: member.name.clone(),
                reason: Ignored::SECOND,
            });
        }
        last = Some(key);
    }
    Ok(())
}

/// The key is the path up to the first dot of its last part.
fn split(name: &str) -> (&str, &str) {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[base..].find('.') {
        Some(dot) => (&name[..base + dot], &name[base + dot + 1..]),
        None => (name, ""),
    }
}

fn class_of_text(bytes: &[u8]) -> Option<Label> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    label_of(text)
}

fn class_of_json(bytes: &[u8]) -> Option<Label> {
    let json: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    match CLASS_FIELDS.iter().find_map(|&field| json.get(field))? {
        serde_json::Value::Number(number) => number.as_u64().and_then(|n| u32::try_from(n).ok()).map(Label::Number),
        serde_json::Value::String(text) => label_of(text),
        _ => None,
    }
}

/// A number, or the name of a class.
pub(super) fn label_of(text: &str) -> Option<Label> {
    if text.is_empty() || text.len() > 200 || text.chars().any(char::is_control) {
        return None;
    }
    Some(
        text.parse()
            .map_or_else(|_| Label::Folder(text.to_owned()), Label::Number),
    )
}
