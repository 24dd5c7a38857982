//! `index.json`: what a folder of shards holds. Written last, so that a folder with an index is whole.

use crate::{files, Compression, Dtype, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The file's name.
pub const INDEX_FILE: &str = "index.json";
const FORMAT: &str = "deepflow-shards";
const VERSION: u64 = 1;

/// How the latents were made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Codec {
    /// The codec's name, for example `autoencoder-kl` or `pca`.
    pub name: String,
    /// SHA-256 of the codec's weights file, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_sha256: Option<String>,
    /// What latents are multiplied by before the network sees them; shards hold them unscaled.
    pub scale_factor: f64,
    /// (C, S, S) of one latent; moments have twice the channels.
    pub latent_shape: [usize; 3],
    /// The element type of the arrays.
    pub dtype: Dtype,
    /// Side of the cropped pictures in pixels.
    pub resolution: usize,
    /// Every other setting that decided the content.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, Value>,
}

/// A class of the data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    /// The number that samples carry.
    pub index: u32,
    /// The folder the pictures came from.
    pub name: String,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// A shard as it was when it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRecord {
    /// The file's name.
    pub name: String,
    /// The number of samples.
    pub samples: u64,
    /// The file's size.
    pub bytes: u64,
    /// The file's SHA-256, in hexadecimal.
    pub sha256: String,
    /// Whether the file is a zstd stream.
    pub compressed: bool,
}

/// The content of `index.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Index {
    format: String,
    version: u64,
    /// The name the shards begin with.
    pub name: String,
    /// How the shards are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// How the latents were made.
    pub codec: Codec,
    /// The classes, by index; empty for data without classes.
    #[serde(default)]
    pub classes: Vec<Class>,
    /// The number of samples of all shards.
    pub samples: u64,
    /// The shards in order.
    pub shards: Vec<ShardRecord>,
}

impl Index {
    pub(crate) fn new(
        name: String,
        compression: Compression,
        codec: Codec,
        classes: Vec<Class>,
        shards: Vec<ShardRecord>,
    ) -> Self {
        let samples = shards.iter().map(|shard| shard.samples).sum();
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            name,
            compression,
            codec,
            classes,
            samples,
            shards,
        }
    }

    /// Reads the index of a folder.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::InvalidIndex`] or [`Error::IndexVersion`].
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(INDEX_FILE);
        let bytes = fs::read(&path).map_err(Error::io(&path, "read"))?;
        Self::from_bytes(&bytes, &path.to_string_lossy())
    }

    /// Reads an index from memory; `path` names it in errors.
    ///
    /// # Errors
    /// [`Error::InvalidIndex`] or [`Error::IndexVersion`].
    pub fn from_bytes(bytes: &[u8], path: &str) -> Result<Self> {
        let invalid = |reason: String| Error::InvalidIndex {
            path: path.to_owned(),
            reason,
        };
        let value: Value = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        match value.get("format").and_then(Value::as_str) {
            Some(FORMAT) => {}
            Some(other) => return Err(invalid(format!("format is {other:?}, expected {FORMAT:?}"))),
            None => return Err(invalid(format!("no \"format\": {FORMAT:?}"))),
        }
        // The version decides what the rest may look like, so it is judged before the rest is read.
        match value.get("version").and_then(Value::as_u64) {
            Some(VERSION) => {}
            Some(found) => {
                return Err(Error::IndexVersion {
                    path: path.to_owned(),
                    found,
                    supported: VERSION,
                })
            }
            None => return Err(invalid("no version number".to_owned())),
        }
        let mut index: Self = serde_json::from_value(value).map_err(|error| invalid(error.to_string()))?;
        index.check().map_err(invalid)?;
        // Other programs may write the digits in capitals; whatever is compared with them is in small letters.
        index
            .shards
            .iter_mut()
            .for_each(|shard| shard.sha256.make_ascii_lowercase());
        Ok(index)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let mut counted = 0_u64;
        for shard in &self.shards {
            counted = counted
                .checked_add(shard.samples)
                .ok_or("more samples than can be counted")?;
            let name = &shard.name;
            if name.is_empty() || name.contains(['/', '\\', '\0']) || name == "." || name == ".." {
                return Err(format!("shard name {name:?} is not a file name"));
            }
            if shard.sha256.len() != 64 || !shard.sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(format!("SHA-256 of shard {name} is not 64 hexadecimal digits"));
            }
        }
        if counted != self.samples {
            return Err(format!("\"samples\" is {}, its shards have {counted}", self.samples));
        }
        let mut names: Vec<&str> = self.shards.iter().map(|shard| shard.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("shard {} is listed twice", pair[0]));
        }
        if let Some((place, class)) = self
            .classes
            .iter()
            .enumerate()
            .find(|(place, class)| class.index as usize != *place)
        {
            return Err(format!(
                "class {} stands at place {place}: classes count up from 0",
                class.index
            ));
        }
        if !self.codec.scale_factor.is_finite() || self.codec.latent_shape.contains(&0) {
            return Err("codec with a scale factor or latent shape that cannot be".to_owned());
        }
        Ok(())
    }

    /// The JSON text.
    pub fn to_json(&self) -> String {
        // The structure holds only what JSON can hold: string keys, finite numbers.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        files::write_atomically(&folder.join(INDEX_FILE), (self.to_json() + "\n").as_bytes())
    }
}
