//! The transform as a safetensors file: tensors `mean` (P), `directions` (C, P), `scales` (C), settings as metadata.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use deepflow_datasets::{hex, write_atomically};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use super::{check_size, identity_of, PcaCodec, PcaError, PcaOptions};
use crate::picture::Colour;

/// The one metadata entry; a single one, because the order of several is not fixed in the file.
const METADATA: &str = "pca";

#[derive(serde::Serialize, serde::Deserialize)]
struct Settings {
    patch: usize,
    channels: usize,
    floor: f64,
    size: usize,
    colour: Colour,
}

impl PcaCodec {
    /// The SHA-256 of the file [`save`](Self::save) writes, as lower-case hexadecimal.
    pub(super) fn sha256(&self) -> Result<String, PcaError> {
        Ok(hex(&Sha256::digest(self.to_bytes(Path::new("pca.safetensors"))?)))
    }

    /// Writes the codec to `path`, at once or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), PcaError> {
        Ok(write_atomically(path, &self.to_bytes(path)?)?)
    }

    /// Reads a codec that [`save`](Self::save) wrote, for square pictures of side `size`.
    ///
    /// # Errors
    /// When the file cannot be read, is not such a file, or `size` is not a multiple of its patch.
    pub fn load(path: &Path, size: usize) -> Result<Self, PcaError> {
        let bytes = fs::read(path).map_err(|error| PcaError::Io {
            path: path.to_owned(),
            action: "read",
            reason: error.to_string(),
        })?;
        let wrong = |what: &str, found: String, expected: &str| PcaError::File {
            path: path.to_owned(),
            what: what.into(),
            found,
            expected: expected.into(),
        };
        let (_, header) = SafeTensors::read_metadata(&bytes)
            .map_err(|error| wrong("the file", error.to_string(), "a safetensors file"))?;
        let settings = header.metadata().as_ref().and_then(|metadata| metadata.get(METADATA));
        let settings = settings.ok_or_else(|| wrong("metadata \"pca\"", "none".into(), "the codec's settings"))?;
        let settings: Settings = serde_json::from_str(settings)
            .map_err(|error| wrong("metadata \"pca\"", error.to_string(), "the codec's settings"))?;
        let Settings {
            patch,
            channels,
            floor,
            colour,
            ..
        } = settings;
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|error| wrong("the file", error.to_string(), "a safetensors file"))?;
        let read = |name: &str, shape: &[usize]| {
            let tensor = tensors
                .tensor(name)
                .map_err(|_| wrong(name, "no such tensor".into(), "one"))?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
                let found = format!("{:?} {:?}", tensor.dtype(), tensor.shape());
                return Err(wrong(name, found, &format!("F32 {shape:?}")));
            }
            Ok(tensor
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect())
        };
        let elements = patch * patch * colour.channels();
        let (mean, directions) = (read("mean", &[elements])?, read("directions", &[channels, elements])?);
        let scales = read("scales", &[channels])?;
        check_size(size, patch)?;
        let options = PcaOptions { patch, channels, floor };
        let identity = identity_of(options, colour, size / patch, hex(&Sha256::digest(&bytes)));
        Ok(Self {
            identity,
            options,
            mean,
            directions,
            scales,
        })
    }

    fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, PcaError> {
        let failed = |reason: String| PcaError::Io {
            path: path.to_owned(),
            action: "serialize",
            reason,
        };
        let PcaOptions { patch, channels, floor } = self.options;
        let size = self.identity.picture_size();
        let settings = Settings {
            patch,
            channels,
            floor,
            size,
            colour: self.identity.colour,
        };
        let settings = serde_json::to_string(&settings).map_err(|error| failed(error.to_string()))?;
        let bytes_of = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let data = [&self.mean, &self.directions, &self.scales].map(|values| bytes_of(values));
        let names = ["mean", "directions", "scales"];
        let shapes = [vec![self.mean.len()], vec![channels, self.mean.len()], vec![channels]];
        let mut views = Vec::new();
        for ((name, shape), data) in names.into_iter().zip(shapes).zip(&data) {
            let view = TensorView::new(Dtype::F32, shape, data).map_err(|error| failed(error.to_string()))?;
            views.push((name, view));
        }
        let metadata = HashMap::from([(METADATA.to_owned(), settings)]);
        safetensors::serialize(views, Some(metadata)).map_err(|error| failed(error.to_string()))
    }
}
