//! From a strided view of a storage to a dense tensor.

use super::objects::StorageReference;
use ::safetensors::Dtype;

/// Most dimensions any tensor of the networks has is 4; the limit keeps hostile files small in memory.
pub(super) const MAX_DIMENSIONS: usize = 8;

/// A tensor of a torch file before its numbers are read.
#[derive(Debug, Clone, Copy)]
pub struct TensorReference {
    pub(super) storage: StorageReference,
    pub(super) offset: usize,
    rank: usize,
    sizes: [usize; MAX_DIMENSIONS],
    strides: [usize; MAX_DIMENSIONS],
}

impl TensorReference {
    /// `None` when the view does not lie inside its storage, or shows more elements than the storage has.
    pub(super) fn new(storage: StorageReference, offset: usize, shape: &[usize], stride: &[usize]) -> Option<Self> {
        if shape.len() != stride.len() || shape.len() > MAX_DIMENSIONS {
            return None;
        }
        let mut elements = 1usize;
        let mut last = offset;
        for (&size, &step) in shape.iter().zip(stride) {
            elements = elements.checked_mul(size)?;
            last = last.checked_add(size.saturating_sub(1).checked_mul(step)?)?;
        }
        if elements > storage.elements || (elements > 0 && last >= storage.elements) {
            return None;
        }
        let mut view = Self {
            storage,
            offset,
            rank: shape.len(),
            sizes: [0; 8],
            strides: [0; 8],
        };
        view.sizes[..shape.len()].copy_from_slice(shape);
        view.strides[..shape.len()].copy_from_slice(stride);
        Some(view)
    }

    /// Sizes of the dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.sizes[..self.rank]
    }

    /// Number format in the file.
    pub fn dtype(&self) -> Dtype {
        self.storage.dtype
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// Copies the view's elements out of the bytes of its whole storage, row-major.
    pub(super) fn gather(&self, storage: &[u8]) -> Vec<u8> {
        let width = self.storage.dtype.bitsize() / 8;
        let shape = self.shape();
        if self.elements() == 0 {
            return Vec::new();
        }
        let first = self.storage.view_offset + self.offset;
        let mut contiguous = 1;
        let is_contiguous = shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == contiguous;
            contiguous *= size;
            fits
        });
        if is_contiguous {
            return storage[first * width..(first + self.elements()) * width].to_vec();
        }
        let mut out = Vec::with_capacity(self.elements() * width);
        let mut index = [0usize; MAX_DIMENSIONS];
        for _ in 0..self.elements() {
            let position = first + index.iter().zip(&self.strides).map(|(i, s)| i * s).sum::<usize>();
            out.extend_from_slice(&storage[position * width..(position + 1) * width]);
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        out
    }
}

/// The numbers of a tensor, row-major, little-endian.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorData {
    /// Number format of `bytes`.
    pub dtype: Dtype,
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
    /// `elements · width` bytes.
    pub bytes: Vec<u8>,
}

impl TensorData {
    /// A tensor of f32 numbers; `values` has as many as `shape` says.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len());
        Self {
            dtype: Dtype::F32,
            shape,
            bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }

    /// The numbers as f32, whatever float or integer format they are stored in; `None` for formats that are not numbers.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        fn each<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes
                .chunks_exact(N)
                .map(|chunk| {
                    let mut number = [0; N];
                    number.copy_from_slice(chunk);
                    convert(number)
                })
                .collect()
        }
        let bytes = &self.bytes;
        Some(match self.dtype {
            Dtype::F32 => each(bytes, f32::from_le_bytes),
            Dtype::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
            Dtype::F16 => each(bytes, |b| half::f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => each(bytes, |b| half::bf16::from_le_bytes(b).to_f32()),
            Dtype::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
            Dtype::I32 => each(bytes, |b| i32::from_le_bytes(b) as f32),
            Dtype::I16 => each(bytes, |b| i16::from_le_bytes(b) as f32),
            Dtype::I8 => each(bytes, |b| i8::from_le_bytes(b) as f32),
            Dtype::U8 | Dtype::BOOL => each(bytes, |[b]| f32::from(b)),
            _ => return None,
        })
    }
}
