//! The allow-list: every Python name a checkpoint may mention, and what takes its place here.

use ::safetensors::Dtype;

/// A Python function or type that this reader knows how to stand in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`: a view into a storage.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`: the tensor itself.
    RebuildParameter,
    /// `collections.OrderedDict`
    OrderedDict,
    /// `argparse.Namespace`
    Namespace,
    /// `torch.FloatStorage` and its siblings.
    Storage(Dtype),
    /// `torch.float32` and its siblings.
    TensorDtype,
    /// `torch.Size`
    Size,
    /// `torch.device`
    Device,
    /// `numpy.dtype`
    NumpyDtype,
    /// `numpy.core.multiarray.scalar`
    NumpyScalar,
    /// `_codecs.encode`: how protocol 2 spells bytes.
    Encode,
    /// `builtins.set` and `frozenset`
    Set,
}

impl Global {
    /// The stand-in for `module.name`; `None` when the name is not on the list.
    pub(super) fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("argparse", "Namespace") => Self::Namespace,
            ("torch", "Size") => Self::Size,
            ("torch", "device") => Self::Device,
            ("numpy", "dtype") => Self::NumpyDtype,
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Self::NumpyScalar,
            ("_codecs", "encode") => Self::Encode,
            ("builtins" | "__builtin__", "set" | "frozenset") => Self::Set,
            ("torch" | "torch.cuda", _) => match name.strip_suffix("Storage") {
                Some(kind) => Self::Storage(storage_dtype(kind)?),
                None if module == "torch" && DTYPE_NAMES.contains(&name) => Self::TensorDtype,
                None => return None,
            },
            _ => return None,
        })
    }
}

fn storage_dtype(kind: &str) -> Option<Dtype> {
    Some(match kind {
        "Float" => Dtype::F32,
        "Double" => Dtype::F64,
        "Half" => Dtype::F16,
        "BFloat16" => Dtype::BF16,
        "Long" => Dtype::I64,
        "Int" => Dtype::I32,
        "Short" => Dtype::I16,
        "Char" => Dtype::I8,
        "Byte" => Dtype::U8,
        "Bool" => Dtype::BOOL,
        _ => return None,
    })
}

const DTYPE_NAMES: [&str; 14] = [
    "float32", "float", "float64", "double", "float16", "half", "bfloat16", "int64", "long", "int32", "int16", "int8",
    "uint8", "bool",
];
