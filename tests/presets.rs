//! Every file of configs/ is a configuration, and the published ones have the published number of parameters.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Parameters with `pos_embed`.
const PARAMETERS: [(&str, u64); 11] = [
    ("deepflow-b-2-2t", 166_201_392),
    ("deepflow-l-2-2t", 506_908_720),
    ("deepflow-l-2-3t", 433_438_768),
    ("deepflow-xl-2-3t", 681_559_344),
    ("deepflow-xl-2-3t-512", 682_444_080),
    ("deepflow-xl-2-4t", 822_587_952),
    ("laptop", 5_992_008),
    ("sit-s-2", 34_348_848),
    ("sit-b-2", 135_642_672),
    ("sit-l-2", 467_040_304),
    ("sit-xl-2", 686_363_952),
];

fn presets() -> BTreeMap<String, PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs");
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path))
        .collect()
}

/// What `deepflow inspect summary` counts.
fn parameters(path: &Path) -> u64 {
    let output = Command::new(env!("CARGO_BIN_EXE_deepflow"))
        .args(["inspect", "summary", "--json", "--config"])
        .arg(path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    summary["parameters"].as_u64().unwrap()
}

#[test]
fn every_preset_is_a_configuration_and_begins_with_a_comment() {
    for (name, path) in presets() {
        assert!(parameters(&path) > 0, "{name}");
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("# "), "{name}");
    }
}

#[test]
fn published_presets_have_the_published_number_of_parameters() {
    let presets = presets();
    for (name, expected) in PARAMETERS {
        let path = &presets[name];
        assert_eq!(parameters(path), expected, "{name}");
        // The comment at the top says it as well.
        let digits: String = std::fs::read_to_string(path).unwrap().replace(',', "");
        assert!(digits.contains(&expected.to_string()), "{name}");
    }
}
