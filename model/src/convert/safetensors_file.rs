//! A safetensors file whose tensors are read and written one at a time, so that a checkpoint never has to fit in memory
//! twice.

use super::error::ConvertError;
use crate::checkpoint::write_file_whole;
use crate::error::WeightsError;
use crate::torch_pickle::TensorData;
use crate::weights::{NetworkFacts, WeightSource};
use ::safetensors::tensor::{Metadata, TensorInfo};
use ::safetensors::Dtype;
use serde_json::{json, Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The format's own limit on its header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// An open safetensors file: its header is in memory, its tensors on disk.
pub struct SafetensorsFile {
    path: PathBuf,
    file: Mutex<File>,
    data_start: u64,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Whether a file is of this format, by what it starts with: behind the eight bytes of its length, the header is JSON.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn recognises(path: &Path) -> Result<bool, ConvertError> {
        let mut start = Vec::new();
        File::open(path)
            .and_then(|file| file.take(9).read_to_end(&mut start))
            .map_err(|source| ConvertError::Io {
                path: path.to_owned(),
                source,
            })?;
        Ok(start.get(8) == Some(&b'{'))
    }

    /// Reads the header.
    ///
    /// # Errors
    /// The file cannot be read, or its header does not describe it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ConvertError> {
        let path = path.as_ref().to_owned();
        let io_error = |source| ConvertError::Io {
            path: path.clone(),
            source,
        };
        let malformed = |problem: String| ConvertError::Safetensors {
            path: path.clone(),
            problem,
        };
        let mut file = File::open(&path).map_err(io_error)?;
        let length = file.metadata().map_err(io_error)?.len();
        let mut size = [0; 8];
        file.read_exact(&mut size)
            .map_err(|_| malformed(format!("{length} bytes, a header needs 8")))?;
        let header_bytes = u64::from_le_bytes(size);
        if header_bytes > MAX_HEADER_BYTES || header_bytes > length - 8 {
            return Err(malformed(format!(
                "a header of {header_bytes} bytes is announced, the file has {length}"
            )));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(io_error)?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|error| malformed(error.to_string()))?;
        let data_start = 8 + header_bytes;
        let data_bytes = header.data_len() as u64;
        if data_start + data_bytes != length {
            return Err(malformed(format!(
                "its header describes {} bytes, it has {length}",
                data_start + data_bytes
            )));
        }
        Ok(Self {
            file: Mutex::new(file),
            data_start,
            tensors: header
                .tensors()
                .into_iter()
                .map(|(name, info)| (name, info.clone()))
                .collect(),
            metadata: header.metadata().clone().unwrap_or_default().into_iter().collect(),
            path,
        })
    }

    /// Every tensor's name, number format and shape, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, Dtype, &[usize])> {
        self.tensors
            .iter()
            .map(|(name, info)| (name.as_str(), info.dtype, info.shape.as_slice()))
    }

    /// The header's free metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// The file has no such tensor or cannot be read.
    pub fn read(&self, name: &str) -> Result<TensorData, ConvertError> {
        let info = self
            .tensors
            .get(name)
            .ok_or_else(|| ConvertError::tensor(&self.path, name, "not in the file"))?;
        let mut bytes = vec![0; info.data_offsets.1 - info.data_offsets.0];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.data_start + info.data_offsets.0 as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|source| ConvertError::Io {
                path: self.path.clone(),
                source,
            })?;
        Ok(TensorData {
            dtype: info.dtype,
            shape: info.shape.clone(),
            bytes,
        })
    }
}

impl WeightSource for SafetensorsFile {
    fn describe(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
        let info = self.tensors.get(name)?;
        Some((info.dtype, info.shape.clone()))
    }

    fn read(&self, name: &str) -> Result<Cow<'_, [u8]>, WeightsError> {
        match Self::read(self, name) {
            Ok(data) => Ok(Cow::Owned(data.bytes)),
            Err(error) => Err(WeightsError::Unreadable {
                name: name.to_owned(),
                problem: error.to_string(),
            }),
        }
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// Read from our own metadata; what others wrote under that name says nothing of a network.
    fn facts(&self) -> NetworkFacts {
        let config = self.metadata.get("config");
        config
            .and_then(|config| serde_json::from_str(config).ok())
            .unwrap_or_default()
    }
}

/// Writes a safetensors file under a hidden temporary name and renames it when it is whole. `read` is called once per
/// tensor, in the order of the names.
pub(crate) fn write(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, (Dtype, Vec<usize>)>,
    mut read: impl FnMut(&str) -> Result<TensorData, ConvertError>,
) -> Result<(), ConvertError> {
    write_file_whole(path, |temporary| {
        let failed = |source| ConvertError::Io {
            path: temporary.to_owned(),
            source,
        };
        let mut out = BufWriter::new(File::create(temporary).map_err(failed)?);
        write_header(&mut out, metadata, tensors).map_err(failed)?;
        for name in tensors.keys() {
            out.write_all(&read(name)?.bytes).map_err(failed)?;
        }
        let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)
    })
}

/// The header by hand, because the crate writes its metadata in the order of a hash map: different bytes at every run.
fn write_header(
    out: &mut impl Write,
    metadata: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, (Dtype, Vec<usize>)>,
) -> io::Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!(metadata));
    let mut offset = 0;
    for (name, (dtype, shape)) in tensors {
        let end = offset + shape.iter().product::<usize>() * (dtype.bitsize() / 8);
        header.insert(
            name.clone(),
            json!({ "dtype": dtype, "shape": shape, "data_offsets": [offset, end] }),
        );
        offset = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(&text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What a killed conversion leaves must not be taken for somebody's file.
    #[test]
    fn a_file_that_is_being_written_is_hidden_and_one_that_failed_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        let names = || -> Vec<String> {
            let entries = std::fs::read_dir(folder.path()).unwrap();
            entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        };
        let tensors = BTreeMap::from([("a".to_owned(), (Dtype::F32, vec![1]))]);
        let number = |_: &str| {
            assert_eq!(names(), [".weights.safetensors.partial"]);
            Ok(TensorData {
                dtype: Dtype::F32,
                shape: vec![1],
                bytes: vec![0; 4],
            })
        };
        write(&path, &BTreeMap::new(), &tensors, number).unwrap();
        assert_eq!(names(), ["weights.safetensors"]);
        std::fs::remove_file(&path).unwrap();
        let fails = |name: &str| Err(ConvertError::tensor(&path, name, "not in the file"));
        write(&path, &BTreeMap::new(), &tensors, fails).unwrap_err();
        assert!(names().is_empty());
    }
}
