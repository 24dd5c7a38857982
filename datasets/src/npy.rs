//! Arrays in NumPy's `.npy` format: little-endian floats of two, four or eight bytes in C order, versions 1 to 3.

use crate::random::{vectorized, VectorWork};
use half::f16;
use npyz::{DType, Endianness, NpyHeader, Order, TypeChar, WriterBuilder};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The longest header that is parsed, in bytes with all that precedes it; NumPy's own limit is 10,000 characters.
pub const LONGEST_HEADER: usize = 10_000;
/// The header's Python literal is a dictionary holding a tuple; what nests deeper is not an array of numbers.
const DEEPEST_NESTING: usize = 4;

/// The element type of an array on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Half precision, `<f2`.
    F16,
    /// Single precision, `<f4`.
    F32,
    /// Double precision, `<f8`.
    F64,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        })
    }
}

/// Why bytes are not an array this crate reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NpyError {
    /// Not the format, or a damaged header.
    #[error("{0}")]
    Invalid(String),
    /// Stored column by column.
    #[error("in Fortran order, expected C order")]
    FortranOrder,
    /// Not little-endian floats.
    #[error("dtype is {0}, expected <f2, <f4 or <f8")]
    Dtype(String),
}

/// What the header of a `.npy` file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrayHeader {
    /// The element type.
    pub dtype: Dtype,
    /// The extent of every axis.
    pub shape: Vec<usize>,
    /// Where the elements begin.
    pub data_offset: usize,
}

impl ArrayHeader {
    /// Reads the header and checks that the elements it promises are exactly what follows it.
    pub fn parse(bytes: &[u8]) -> Result<Self, NpyError> {
        let data_offset = check_header(bytes)?;
        let (head, data) = bytes.split_at(data_offset);
        let header = NpyHeader::from_reader(head).map_err(|error| NpyError::Invalid(error.to_string()))?;
        let dtype = dtype_of(&header.dtype())?;
        if header.order() != Order::C && header.shape().len() > 1 {
            return Err(NpyError::FortranOrder);
        }
        let too_large = || NpyError::Invalid(format!("shape {:?} holds more elements than memory", header.shape()));
        let shape = header
            .shape()
            .iter()
            .map(|&n| usize::try_from(n))
            .collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| too_large())?;
        let length = shape
            .iter()
            .try_fold(dtype.bytes(), |product, &n| product.checked_mul(n))
            .ok_or_else(too_large)?;
        if length != data.len() {
            return Err(NpyError::Invalid(format!(
                "{} bytes of elements, expected {length} for {dtype} of shape {shape:?}",
                data.len()
            )));
        }
        Ok(Self {
            dtype,
            shape,
            data_offset,
        })
    }
}

/// Checks the header of a `.npy` file of any element type as far as a parser of it needs, and gives its length: where the
/// elements begin. `beginning` holds the first [`LONGEST_HEADER`] bytes of the file, or all of a shorter one.
///
/// # Errors
/// It is no header, a longer one, or one that nests more deeply than that of an array of numbers.
pub fn check_header(beginning: &[u8]) -> Result<usize, NpyError> {
    let length = header_length(beginning)?;
    refuse_deep_nesting(&beginning[..length])?;
    Ok(length)
}

fn header_length(bytes: &[u8]) -> Result<usize, NpyError> {
    let invalid = |reason: &str| NpyError::Invalid(reason.to_owned());
    let Some((magic, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(invalid("shorter than a header"));
    };
    if &magic[..6] != b"\x93NUMPY" {
        return Err(invalid("no NUMPY magic at the beginning"));
    }
    let claimed = match (magic[6], rest) {
        (1, &[a, b, ..]) => 10 + usize::from(u16::from_le_bytes([a, b])),
        (2 | 3, &[a, b, c, d, ..]) => 12 + u32::from_le_bytes([a, b, c, d]) as usize,
        (1..=3, _) => return Err(invalid("shorter than a header")),
        (version, _) => return Err(NpyError::Invalid(format!("version {version}, expected 1, 2 or 3"))),
    };
    if claimed > LONGEST_HEADER || claimed > bytes.len() {
        return Err(NpyError::Invalid(format!(
            "header claims {claimed} bytes of {}",
            bytes.len()
        )));
    }
    Ok(claimed)
}

/// The literal's parser is recursive: a header of nothing but brackets would exhaust the stack.
fn refuse_deep_nesting(head: &[u8]) -> Result<(), NpyError> {
    let mut depth = 0_usize;
    for byte in head {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST_NESTING {
            return Err(NpyError::Invalid("header nests too deeply".to_owned()));
        }
    }
    Ok(())
}

fn dtype_of(dtype: &DType) -> Result<Dtype, NpyError> {
    if let DType::Plain(plain) = dtype {
        if plain.type_char() == TypeChar::Float && plain.endianness() == Endianness::Little {
            match plain.size_field() {
                2 => return Ok(Dtype::F16),
                4 => return Ok(Dtype::F32),
                8 => return Ok(Dtype::F64),
                _ => {}
            }
        }
    }
    Err(NpyError::Dtype(dtype.descr()))
}

/// An array in memory, single precision.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// The extent of every axis.
    pub shape: Vec<usize>,
    /// The elements in C order.
    pub data: Vec<f32>,
}

impl Array {
    /// Reads a whole `.npy` file; f16 widens exactly, f64 rounds to nearest.
    pub fn from_npy(bytes: &[u8]) -> Result<Self, NpyError> {
        let header = ArrayHeader::parse(bytes)?;
        let raw = &bytes[header.data_offset..];
        let mut data = vec![0.0; raw.len() / header.dtype.bytes()];
        read_elements(header.dtype, raw, &mut data);
        Ok(Self {
            shape: header.shape,
            data,
        })
    }
}

/// Converts little-endian elements to f32. `raw` holds exactly `out.len()` of them.
pub(crate) fn read_elements(dtype: Dtype, raw: &[u8], out: &mut [f32]) {
    vectorized(ReadElements { dtype, raw, out });
}

struct ReadElements<'a> {
    dtype: Dtype,
    raw: &'a [u8],
    out: &'a mut [f32],
}

impl VectorWork for ReadElements<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        read_elements_inlined(self.dtype, self.raw, self.out);
    }
}

/// The body of [`read_elements`], for callers that are vectorised already.
#[inline(always)]
pub(crate) fn read_elements_inlined(dtype: Dtype, raw: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F16 => {
            for (value, raw) in out.iter_mut().zip(raw.as_chunks::<2>().0) {
                *value = f16_bits_to_f32(u16::from_le_bytes(*raw));
            }
        }
        Dtype::F32 => {
            for (value, raw) in out.iter_mut().zip(raw.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*raw);
            }
        }
        Dtype::F64 => {
            for (value, raw) in out.iter_mut().zip(raw.as_chunks::<8>().0) {
                *value = f64::from_le_bytes(*raw) as f32;
            }
        }
    }
}

/// Widens half precision without a branch, so that the compiler makes vectors of it; equal to [`f16::to_f32`] except
/// that it keeps a signalling NaN signalling.
#[inline(always)]
fn f16_bits_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let sign = (bits & 0x8000) << 16;
    let magnitude = (bits & 0x7fff) << 13;
    // Read with f32's exponent bias the number is 2^-112 of its value, also when it is subnormal.
    let scaled = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    let infinite_or_nan = magnitude | 0x7f80_0000;
    f32::from_bits(
        sign | if magnitude >= 0x0f80_0000 {
            infinite_or_nan
        } else {
            scaled
        },
    )
}

/// Writes a `.npy` file (version 1) of `shape` and `dtype`; narrowing rounds to nearest even.
///
/// # Errors
/// The shape does not hold `data.len()` elements.
pub fn to_npy(data: &[f32], shape: &[usize], dtype: Dtype) -> Result<Vec<u8>, NpyError> {
    let length = shape.iter().try_fold(1_usize, |product, &n| product.checked_mul(n));
    if length != Some(data.len()) {
        return Err(NpyError::Invalid(format!(
            "{} elements do not fill shape {shape:?}",
            data.len()
        )));
    }
    let shape: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
    let mut bytes = Vec::with_capacity(128 + data.len() * dtype.bytes());
    let written = match dtype {
        Dtype::F16 => write(&mut bytes, &shape, data.iter().map(|&x| f16::from_f32(x))),
        Dtype::F32 => write(&mut bytes, &shape, data.iter().copied()),
        Dtype::F64 => write(&mut bytes, &shape, data.iter().map(|&x| f64::from(x))),
    };
    written.map_err(|error| NpyError::Invalid(error.to_string()))?;
    Ok(bytes)
}

fn write<T: npyz::AutoSerialize>(
    bytes: &mut Vec<u8>,
    shape: &[u64],
    elements: impl Iterator<Item = T>,
) -> std::io::Result<()> {
    let options = npyz::WriteOptions::new().default_dtype().shape(shape);
    let mut writer = options.writer(bytes).begin_nd()?;
    writer.extend(elements)?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_half_widens_as_the_half_crate_widens_it() {
        for bits in 0..=u16::MAX {
            let expected = f16::from_bits(bits).to_f32();
            let found = f16_bits_to_f32(bits);
            assert!(
                found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                "bits {bits:#06x}"
            );
        }
    }

    #[test]
    fn arrays_survive_writing_and_reading() {
        let data = [0.0, -1.5, 65504.0, 1.0e-7];
        for dtype in [Dtype::F16, Dtype::F32, Dtype::F64] {
            let bytes = to_npy(&data, &[2, 2], dtype).unwrap();
            assert_eq!((bytes.len() - 4 * dtype.bytes()) % 64, 0, "the elements are aligned");
            let array = Array::from_npy(&bytes).unwrap();
            assert_eq!(array.shape, [2, 2]);
            for (found, expected) in array.data.iter().zip(data) {
                let expected = if dtype == Dtype::F16 {
                    f16::from_f32(expected).to_f32()
                } else {
                    expected
                };
                assert_eq!(*found, expected);
            }
        }
    }

    fn with_header(version: u8, text: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY".to_vec();
        bytes.extend([version, 0]);
        if version == 1 {
            bytes.extend((text.len() as u16).to_le_bytes());
        } else {
            bytes.extend((text.len() as u32).to_le_bytes());
        }
        bytes.extend(text.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn versions_one_to_three_are_read() {
        for version in 1..=3 {
            let bytes = with_header(
                version,
                "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n",
                &[0, 0, 128, 63, 0, 0, 0, 64],
            );
            assert_eq!(Array::from_npy(&bytes).unwrap().data, [1.0, 2.0]);
        }
    }

    #[test]
    fn malformed_arrays_have_named_errors() {
        let case = |text: &str, data: &[u8]| Array::from_npy(&with_header(1, text, data)).unwrap_err();
        let fortran = case("{'descr': '<f4', 'fortran_order': True, 'shape': (1,1), }\n", &[0; 4]);
        assert_eq!(fortran, NpyError::FortranOrder);
        for descr in ["'>f4'", "'<i4'", "'|O'", "[('a', '<f4')]"] {
            let text = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}\n");
            assert!(matches!(case(&text, &[0; 4]), NpyError::Dtype(_)), "{descr}");
        }
        let short = case("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", &[0; 4]);
        assert!(short.to_string().contains("expected 8"), "{short}");
        let huge = case(
            "{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296,4294967296), }\n",
            &[0; 4],
        );
        assert!(huge.to_string().contains("more elements"), "{huge}");
        let nested = case(&"(".repeat(9000), &[]);
        assert!(nested.to_string().contains("nests"), "{nested}");
        let mut claim = with_header(2, "{}", &[]);
        claim[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Array::from_npy(&claim).unwrap_err().to_string().contains("claims"));
        assert!(Array::from_npy(b"\x93NUMPY\x09\0aaaa")
            .unwrap_err()
            .to_string()
            .contains("version 9"));
        assert!(Array::from_npy(b"").is_err() && Array::from_npy(b"NOTNUMPYATALL").is_err());
    }
}
