//! Writes the zip container that `torch.load` reads, also with `weights_only=True`.

use super::error::TorchFileError;
use super::opcodes::*;
use super::tensor::TensorData;
use ::safetensors::Dtype;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// torch aligns storages so that `mmap=True` can use them in place.
const STORAGE_ALIGNMENT: u16 = 64;
const FOLDER: &str = "archive";

/// A Python object that can be written.
#[derive(Debug, Clone, PartialEq)]
pub enum PythonObject {
    /// `None`
    None,
    /// `bool`
    Bool(bool),
    /// `int`
    Int(i64),
    /// `float`
    Float(f64),
    /// `str`
    Text(String),
    /// `list`
    List(Vec<PythonObject>),
    /// `tuple`
    Tuple(Vec<PythonObject>),
    /// `dict`, in this order
    Dict(Vec<(PythonObject, PythonObject)>),
    /// `argparse.Namespace`
    Namespace(Vec<(String, PythonObject)>),
    /// A tensor that was added with [`TorchWriter::tensor`].
    Tensor(WrittenTensor),
}

impl PythonObject {
    /// A `str`.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }
}

/// A tensor whose numbers are already in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenTensor {
    storage: usize,
    storage_type: &'static str,
    shape: Vec<usize>,
}

/// A torch file in the making: tensors one by one, then the object that refers to them.
pub struct TorchWriter {
    path: PathBuf,
    archive: ZipWriter<BufWriter<File>>,
    storages: usize,
}

impl TorchWriter {
    /// Creates the file.
    ///
    /// # Errors
    /// The path cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, TorchFileError> {
        let path = path.as_ref().to_owned();
        match File::create(&path) {
            Ok(file) => Ok(Self {
                archive: ZipWriter::new(BufWriter::new(file)),
                storages: 0,
                path,
            }),
            Err(source) => Err(TorchFileError::Io { path, source }),
        }
    }

    /// Writes a tensor's numbers now, so that only one tensor is in memory at a time.
    ///
    /// # Errors
    /// The disk is full, or torch has no storage for this number format.
    pub fn tensor(&mut self, tensor: &TensorData) -> Result<PythonObject, TorchFileError> {
        let storage = self.storages;
        let storage_type = storage_type(tensor.dtype).ok_or_else(|| TorchFileError::Storage {
            path: self.path.clone(),
            storage: storage.to_string(),
            problem: format!("torch has no storage for {:?}", tensor.dtype),
        })?;
        self.storages += 1;
        self.entry(&format!("data/{storage}"), &tensor.bytes)?;
        Ok(PythonObject::Tensor(WrittenTensor {
            storage,
            storage_type,
            shape: tensor.shape.clone(),
        }))
    }

    /// Writes the object and closes the file durably.
    ///
    /// # Errors
    /// The disk is full.
    pub fn finish(mut self, root: &PythonObject) -> Result<(), TorchFileError> {
        let mut pickle = vec![PROTO, 2];
        write_object(&mut pickle, root);
        pickle.push(STOP);
        self.entry("data.pkl", &pickle)?;
        self.entry("byteorder", b"little")?;
        self.entry("version", b"3\n")?;
        let Self { path, archive, .. } = self;
        let closed = archive.finish().map_err(io::Error::from).and_then(|buffer| {
            let file = buffer.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()
        });
        closed.map_err(|source| TorchFileError::Io { path, source })
    }

    fn entry(&mut self, name: &str, bytes: &[u8]) -> Result<(), TorchFileError> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(STORAGE_ALIGNMENT)
            .large_file(bytes.len() >= u32::MAX as usize);
        let started = self
            .archive
            .start_file(format!("{FOLDER}/{name}"), options)
            .map_err(io::Error::from);
        started
            .and_then(|()| self.archive.write_all(bytes))
            .map_err(|source| TorchFileError::Io {
                path: self.path.clone(),
                source,
            })
    }
}

fn storage_type(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::F32 => "FloatStorage",
        Dtype::F64 => "DoubleStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::BF16 => "BFloat16Storage",
        Dtype::I64 => "LongStorage",
        Dtype::I32 => "IntStorage",
        Dtype::I16 => "ShortStorage",
        Dtype::I8 => "CharStorage",
        Dtype::U8 => "ByteStorage",
        Dtype::BOOL => "BoolStorage",
        _ => return None,
    })
}

fn write_object(out: &mut Vec<u8>, object: &PythonObject) {
    match object {
        PythonObject::None => out.push(NONE),
        PythonObject::Bool(value) => out.push(if *value { NEWTRUE } else { NEWFALSE }),
        PythonObject::Int(value) => write_int(out, *value),
        PythonObject::Float(value) => {
            out.push(BINFLOAT);
            out.extend(value.to_be_bytes());
        }
        PythonObject::Text(text) => write_text(out, text),
        PythonObject::List(items) => {
            out.extend([EMPTY_LIST, MARK]);
            items.iter().for_each(|item| write_object(out, item));
            out.push(APPENDS);
        }
        PythonObject::Tuple(items) => {
            out.push(MARK);
            items.iter().for_each(|item| write_object(out, item));
            out.push(TUPLE);
        }
        PythonObject::Dict(pairs) => {
            out.extend([EMPTY_DICT, MARK]);
            for (key, value) in pairs {
                write_object(out, key);
                write_object(out, value);
            }
            out.push(SETITEMS);
        }
        PythonObject::Namespace(attributes) => {
            write_global(out, "argparse", "Namespace");
            out.extend([EMPTY_TUPLE, NEWOBJ, EMPTY_DICT, MARK]);
            for (name, value) in attributes {
                write_text(out, name);
                write_object(out, value);
            }
            out.extend([SETITEMS, BUILD]);
        }
        PythonObject::Tensor(tensor) => write_tensor(out, tensor),
    }
}

/// `_rebuild_tensor_v2(storage, 0, shape, stride, requires_grad=False, hooks=OrderedDict())`
fn write_tensor(out: &mut Vec<u8>, tensor: &WrittenTensor) {
    let elements: usize = tensor.shape.iter().product();
    write_global(out, "torch._utils", "_rebuild_tensor_v2");
    out.extend([MARK, MARK]);
    write_text(out, "storage");
    write_global(out, "torch", tensor.storage_type);
    write_text(out, &tensor.storage.to_string());
    write_text(out, "cpu");
    write_int(out, elements as i64);
    out.extend([TUPLE, BINPERSID]);
    write_int(out, 0);
    let mut strides = vec![1i64; tensor.shape.len()];
    for axis in (1..tensor.shape.len()).rev() {
        strides[axis - 1] = strides[axis] * tensor.shape[axis].max(1) as i64;
    }
    out.push(MARK);
    tensor.shape.iter().for_each(|&size| write_int(out, size as i64));
    out.extend([TUPLE, MARK]);
    strides.iter().for_each(|&stride| write_int(out, stride));
    out.extend([TUPLE, NEWFALSE]);
    write_global(out, "collections", "OrderedDict");
    out.extend([EMPTY_TUPLE, REDUCE, TUPLE, REDUCE]);
}

fn write_global(out: &mut Vec<u8>, module: &str, name: &str) {
    out.push(GLOBAL);
    out.extend(format!("{module}\n{name}\n").into_bytes());
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    out.push(BINUNICODE);
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn write_int(out: &mut Vec<u8>, value: i64) {
    match i32::try_from(value) {
        Ok(small) => {
            out.push(BININT);
            out.extend(small.to_le_bytes());
        }
        Err(_) => {
            out.extend([LONG1, 8]);
            out.extend(value.to_le_bytes());
        }
    }
}
