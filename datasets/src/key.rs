//! Keys and member names: how WebDataset divides a path, and which paths are refused.

/// Divides a member's path into key and extension as the Python webdataset package does: at the first dot of the last
/// part, the extension in lower case. `None` for names that belong to no sample: without a dot, or beginning with one.
pub(crate) fn split(path: &str) -> Option<(&str, String)> {
    let base = path.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + path[base..].find('.')?;
    (dot > base).then(|| (&path[..dot], path[dot + 1..].to_ascii_lowercase()))
}

/// Why a path from a shard is not accepted, if it is not.
pub(crate) fn refusal(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        Some("it is empty")
    } else if path.starts_with('/') || path.starts_with('\\') || path.as_bytes().get(1) == Some(&b':') {
        Some("it is absolute")
    } else if path.split(['/', '\\']).any(|part| part == "..") {
        Some("it leaves the folder")
    } else if path.chars().any(char::is_control) {
        Some("it holds control characters")
    } else {
        None
    }
}

/// Why a key cannot be written so that every reader finds it again, if it cannot.
pub(crate) fn unwritable(key: &str) -> Option<&'static str> {
    if let Some(reason) = refusal(key) {
        return Some(reason);
    }
    let base = key.rsplit('/').next().unwrap_or(key);
    if key.contains('\\') {
        Some("the key holds a backslash")
    } else if key.split('/').any(|part| part.is_empty() || part == ".") {
        Some("the key has an empty part")
    } else if base.contains('.') {
        Some("the last part of the key holds a dot, where the extension would begin")
    } else if base.starts_with("__") {
        Some("the last part of the key begins with two underscores, which WebDataset reserves")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_end_at_the_first_dot_of_the_last_part() {
        assert_eq!(split("a.b/c.moments.npy"), Some(("a.b/c", "moments.npy".to_owned())));
        assert_eq!(split("c.CLS"), Some(("c", "cls".to_owned())));
        assert_eq!(split("folder/name"), None);
        assert_eq!(split("folder/.hidden"), None);
    }

    #[test]
    fn paths_that_leave_the_folder_are_refused() {
        for path in [
            "",
            "/etc/passwd",
            "../a.cls",
            "a/../../b.cls",
            "a/..",
            "C:\\a.cls",
            "\\\\host\\a",
            "a\0b",
            "a\nb",
        ] {
            assert!(refusal(path).is_some(), "{path:?}");
        }
        assert_eq!(refusal("./a/b..c/d.cls"), None);
    }

    #[test]
    fn keys_that_readers_would_divide_elsewhere_are_not_written() {
        for key in ["a.b", "a//b", "./a", "a/", "__meta", ""] {
            assert!(unwritable(key).is_some(), "{key:?}");
        }
        assert_eq!(unwritable("n01.x/b"), None);
    }
}
