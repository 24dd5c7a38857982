//! Keys of samples from paths of pictures.

use std::collections::HashSet;

/// A key for each path: the path without its extension, in the characters a shard's member may have, without dots in its
/// last part (where the key would end), and made unique with a number where two paths differ in nothing else.
pub(super) fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut taken = HashSet::new();
    names
        .map(|name| {
            let key = key_of(name);
            let mut candidate = key.clone();
            let mut number = 1;
            while !taken.insert(candidate.clone()) {
                number += 1;
                candidate = format!("{key}-{number}");
            }
            candidate
        })
        .collect()
}

fn key_of(name: &str) -> String {
    let stem = match name.rfind('.') {
        Some(dot) if dot > name.rfind('/').map_or(0, |slash| slash + 1) => &name[..dot],
        _ => name,
    };
    let parts = stem
        .split('/')
        .filter(|part| !part.is_empty() && *part != "." && *part != "..");
    let clean = |part: &str| {
        let forbidden = |c: char| matches!(c, '.' | '\\' | ':') || c.is_control();
        part.chars()
            .map(|c| if forbidden(c) { '_' } else { c })
            .collect::<String>()
    };
    let mut key = parts.map(clean).collect::<Vec<_>>().join("/");
    // WebDataset reserves base names that begin with two underscores.
    let base = key.rfind('/').map_or(0, |slash| slash + 1);
    if key[base..].starts_with("__") || key.is_empty() {
        key.insert_str(base, "picture");
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_unique_and_without_dots() {
        let names = [
            "a/b.v2.jpg",
            "a/b_v2.png",
            "a/b.v2.png",
            "c.jpg",
            "../x/.jpg",
            "y/__z.png",
        ];
        assert_eq!(
            unique(names.into_iter()),
            ["a/b_v2", "a/b_v2-2", "a/b_v2-3", "c", "x/_jpg", "y/picture__z"]
        );
    }
}
