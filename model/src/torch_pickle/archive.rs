//! The two containers around the pickle: a zip archive (PyTorch ≥ 1.6) and a plain stream (before).

use super::error::{PickleError, TorchFileError};
use super::machine;
use super::objects::{Object, ObjectId, Objects, Value};
use super::tensor::{TensorData, TensorReference};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use zip::{CompressionMethod, ZipArchive};

/// The number that opens a file of the old format, little-endian.
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const LEGACY_PROTOCOL: i64 = 1001;

/// An open torch file: its objects are in memory, the numbers of its tensors still on disk.
pub struct TorchFile {
    path: PathBuf,
    objects: Objects,
    root: ObjectId,
    storages: Storages,
}

enum Storages {
    Zip {
        archive: Mutex<ZipArchive<BufReader<File>>>,
        folder: String,
    },
    /// Byte offset and number of elements of every storage.
    Legacy {
        file: Mutex<File>,
        extents: BTreeMap<String, (u64, u64)>,
    },
}

impl TorchFile {
    /// Opens a file written by `torch.save` and interprets its pickle without executing anything.
    ///
    /// # Errors
    /// One line with the path when it is not such a file, is damaged, or asks for anything but plain data and tensors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TorchFileError> {
        let path = path.as_ref();
        let io_error = |source| TorchFileError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(io_error)?;
        let mut magic = Vec::new();
        (&mut file).take(4).read_to_end(&mut magic).map_err(io_error)?;
        file.seek(SeekFrom::Start(0)).map_err(io_error)?;
        match magic.as_slice() {
            b"PK\x03\x04" => Self::open_zip(path, file),
            [0x80, ..] => Self::open_legacy(path, file),
            [] => Err(container(path, "it is empty")),
            other => Err(container(
                path,
                format!("it starts with {other:02x?}, expected a zip archive or a pickle"),
            )),
        }
    }

    fn open_zip(path: &Path, file: File) -> Result<Self, TorchFileError> {
        let broken = |error: zip::result::ZipError| container(path, format!("damaged zip archive ({error})"));
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(broken)?;
        let pickle_name = archive
            .file_names()
            .filter_map(Result::ok)
            .find(|name| name == "data.pkl" || (name.ends_with("/data.pkl") && name.matches('/').count() == 1))
            .map(|name| name.into_owned())
            .ok_or_else(|| container(path, "a zip archive without data.pkl"))?;
        let folder = pickle_name.trim_end_matches("data.pkl").to_owned();
        if let Ok(order) = read_entry(&mut archive, &format!("{folder}byteorder")) {
            if order != b"little" {
                return Err(container(
                    path,
                    "it was written on a big-endian machine; save it again on a little-endian one",
                ));
            }
        }
        let pickle = read_entry(&mut archive, &pickle_name)
            .map_err(|problem| container(path, format!("data.pkl: {problem}")))?;
        let (objects, root) = machine::run(&mut pickle.as_slice()).map_err(|source| pickle_error(path, source))?;
        Ok(Self {
            path: path.to_owned(),
            objects,
            root,
            storages: Storages::Zip {
                archive: Mutex::new(archive),
                folder,
            },
        })
    }

    fn open_legacy(path: &Path, file: File) -> Result<Self, TorchFileError> {
        let length = file
            .metadata()
            .map_err(|source| TorchFileError::Io {
                path: path.to_owned(),
                source,
            })?
            .len();
        let mut reader = BufReader::new(file);
        let mut next = || machine::run(&mut reader).map_err(|source| pickle_error(path, source));
        let (magic, number) = next()?;
        if !matches!(magic.get(number), Object::BigInt(bytes) if bytes == &LEGACY_MAGIC) {
            return Err(container(
                path,
                "a pickle, but not one of torch.save (its first object is not torch's magic number)",
            ));
        }
        let (protocol, number) = next()?;
        if !matches!(protocol.get(number), Object::Int(LEGACY_PROTOCOL)) {
            return Err(container(
                path,
                format!("an old torch format of another protocol, expected {LEGACY_PROTOCOL}"),
            ));
        }
        let (system, number) = next()?;
        let system = Value {
            objects: &system,
            id: number,
        };
        if system.get("little_endian").and_then(|value| value.as_bool()) == Some(false) {
            return Err(container(
                path,
                "it was written on a big-endian machine; save it again on a little-endian one",
            ));
        }
        let (objects, root) = next()?;
        let (key_objects, keys) = next()?;
        let widths = storage_widths(&objects);
        let mut extents = BTreeMap::new();
        let keys = Value {
            objects: &key_objects,
            id: keys,
        };
        for key in keys.items().into_iter().flatten() {
            let key = key
                .as_str()
                .ok_or_else(|| container(path, "its list of storages holds something other than names"))?;
            let bad = |problem: String| storage_error(path, key, problem);
            let mut count = [0; 8];
            reader.read_exact(&mut count).map_err(|error| bad(error.to_string()))?;
            let elements = u64::from_le_bytes(count);
            let start = reader.stream_position().map_err(|error| bad(error.to_string()))?;
            let width = *widths
                .get(key)
                .ok_or_else(|| bad("no tensor says its number format".to_owned()))?;
            let end = elements
                .checked_mul(width)
                .and_then(|bytes| start.checked_add(bytes))
                .filter(|&end| end <= length);
            let end =
                end.ok_or_else(|| bad(format!("{elements} elements announced, the file ends at byte {length}")))?;
            reader
                .seek(SeekFrom::Start(end))
                .map_err(|error| bad(error.to_string()))?;
            extents.insert(key.to_owned(), (start, elements));
        }
        let storages = Storages::Legacy {
            file: Mutex::new(reader.into_inner()),
            extents,
        };
        Ok(Self {
            path: path.to_owned(),
            objects,
            root,
            storages,
        })
    }

    /// The object that was saved.
    pub fn root(&self) -> Value<'_> {
        Value {
            objects: &self.objects,
            id: self.root,
        }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the numbers of one tensor.
    ///
    /// # Errors
    /// The storage is missing, too short, compressed, or its checksum is wrong.
    pub fn read(&self, tensor: &TensorReference) -> Result<TensorData, TorchFileError> {
        let key = self.objects.text(tensor.storage.key).unwrap_or_default();
        let bad = |problem: String| storage_error(&self.path, key, problem);
        let width = tensor.dtype().bitsize() / 8;
        let needed = (tensor.storage.view_offset + tensor.storage.elements)
            .checked_mul(width)
            .ok_or_else(|| bad("its size overflows".to_owned()))?;
        let storage = match &self.storages {
            Storages::Zip { archive, folder } => {
                let mut archive = archive.lock().unwrap_or_else(PoisonError::into_inner);
                read_entry(&mut archive, &format!("{folder}data/{key}")).map_err(bad)?
            }
            Storages::Legacy { file, extents } => {
                let &(start, elements) = extents.get(key).ok_or_else(|| bad("not in the file".to_owned()))?;
                let length = elements as usize * width;
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(start))
                    .map_err(|error| bad(error.to_string()))?;
                let mut bytes = Vec::new();
                (&mut *file)
                    .take(length as u64)
                    .read_to_end(&mut bytes)
                    .map_err(|error| bad(error.to_string()))?;
                bytes
            }
        };
        if storage.len() < needed {
            return Err(bad(format!(
                "{} bytes in the file, its tensors need {needed}",
                storage.len()
            )));
        }
        Ok(TensorData {
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            bytes: tensor.gather(&storage),
        })
    }
}

/// Bytes per element of every storage that a tensor of the old format refers to.
fn storage_widths(objects: &Objects) -> BTreeMap<String, u64> {
    let storages = objects.arena.iter().filter_map(|object| match object {
        Object::Storage(storage) => Some((
            objects.text(storage.key)?.to_owned(),
            storage.dtype.bitsize() as u64 / 8,
        )),
        _ => None,
    });
    storages.collect()
}

/// Reads a whole entry; torch never compresses, so a compressed one is refused instead of unpacked without bound.
fn read_entry(archive: &mut ZipArchive<BufReader<File>>, name: &str) -> Result<Vec<u8>, String> {
    let mut entry = archive.by_name(name).map_err(|error| error.to_string())?;
    if entry.compression() != CompressionMethod::Stored {
        return Err(format!(
            "stored with {}; torch.save does not compress",
            entry.compression()
        ));
    }
    let mut bytes = Vec::new();
    // Reading to the end also checks the entry's CRC-32.
    entry
        .read_to_end(&mut bytes)
        .map_err(|error: io::Error| error.to_string())?;
    Ok(bytes)
}

fn container(path: &Path, problem: impl Into<String>) -> TorchFileError {
    TorchFileError::Container {
        path: path.to_owned(),
        problem: problem.into(),
    }
}

fn pickle_error(path: &Path, source: PickleError) -> TorchFileError {
    TorchFileError::Pickle {
        path: path.to_owned(),
        source,
    }
}

fn storage_error(path: &Path, key: &str, problem: impl Into<String>) -> TorchFileError {
    TorchFileError::Storage {
        path: path.to_owned(),
        storage: key.to_owned(),
        problem: problem.into(),
    }
}
