//! A sample: consecutive members of a tar that share a key.

use crate::npy::{self, Array, Dtype};
use crate::{Error, Place, Result};
use serde::Serialize;

/// The posterior's mean and standard deviation, (2C, S, S), unscaled.
pub const MOMENTS: &str = "moments.npy";
/// The same of the mirrored picture.
pub const MOMENTS_FLIP: &str = "moments_flip.npy";
/// A generated latent, (C, S, S).
pub const LATENT: &str = "latent.npy";
/// The class index in decimal digits.
pub const CLASS: &str = "cls";
/// Free metadata.
pub const METADATA: &str = "json";
/// Alignment targets, (T, Z).
pub const FEATURES: &str = "features.npy";

/// One file of a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What follows the key's dot, for example `moments.npy`.
    pub extension: String,
    /// The content.
    pub data: Vec<u8>,
    /// Where the content begins in the (decompressed) shard; 0 before it is written.
    pub offset: u64,
}

/// A key and its members, in the order they are stored.
///
/// ```
/// use deepflow_datasets::{Dtype, Sample};
///
/// let sample = Sample::new("n01440764/0001")
///     .with_array("moments.npy", &[0.0; 32], &[8, 2, 2], Dtype::F16)?
///     .with_class(3)
///     .with_metadata(&serde_json::json!({"source": "0001.jpg"}))?;
/// assert_eq!(sample.class("memory")?, Some(3));
/// # Ok::<(), deepflow_datasets::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The path up to the first dot of its last part.
    pub key: String,
    /// The files.
    pub members: Vec<Member>,
}

impl Sample {
    /// A sample without members.
    pub fn new(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            members: Vec::new(),
        }
    }

    /// Adds a member of any kind.
    pub fn with_member(mut self, extension: impl Into<String>, data: impl Into<Vec<u8>>) -> Self {
        self.members.push(Member {
            extension: extension.into(),
            data: data.into(),
            offset: 0,
        });
        self
    }

    /// Adds the class index.
    pub fn with_class(self, class: u32) -> Self {
        self.with_member(CLASS, class.to_string())
    }

    /// Adds an array; narrowing to f16 rounds to nearest even.
    ///
    /// # Errors
    /// `shape` does not hold `data.len()` elements.
    pub fn with_array(self, extension: &str, data: &[f32], shape: &[usize], dtype: Dtype) -> Result<Self> {
        match npy::to_npy(data, shape, dtype) {
            Ok(bytes) => Ok(self.with_member(extension, bytes)),
            Err(error) => Err(Error::InvalidSample {
                key: self.key,
                reason: format!("{extension}: {error}"),
            }),
        }
    }

    /// Adds free metadata as JSON.
    ///
    /// # Errors
    /// The value has no JSON form (for example, a map whose keys are not strings).
    pub fn with_metadata(self, metadata: &impl Serialize) -> Result<Self> {
        match serde_json::to_vec(metadata) {
            Ok(bytes) => Ok(self.with_member(METADATA, bytes)),
            Err(error) => Err(Error::InvalidSample {
                key: self.key,
                reason: format!("json: {error}"),
            }),
        }
    }

    /// The content of a member.
    pub fn member(&self, extension: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.extension == extension)
    }

    /// The class, if the sample has one. `shard` is named in the error.
    ///
    /// # Errors
    /// [`Error::InvalidClass`] if the member is not a decimal number.
    pub fn class(&self, shard: &str) -> Result<Option<u32>> {
        self.member(CLASS)
            .map(|member| {
                parse_class(&member.data).ok_or_else(|| invalid_class(&member.data, shard, &self.key, member.offset))
            })
            .transpose()
    }

    /// An array as f32, if the sample has it. `shard` is named in the error.
    ///
    /// # Errors
    /// [`Error::InvalidArray`], [`Error::FortranOrder`] or [`Error::WrongDtype`].
    pub fn array(&self, extension: &str, shard: &str) -> Result<Option<Array>> {
        self.member(extension)
            .map(|member| {
                let place = || Place::new(shard, &self.key, member.offset);
                Array::from_npy(&member.data).map_err(|error| array_error(error, place(), extension))
            })
            .transpose()
    }
}

/// A decimal number, with the white space around it that editors leave.
pub(crate) fn parse_class(bytes: &[u8]) -> Option<u32> {
    std::str::from_utf8(bytes.trim_ascii()).ok()?.parse().ok()
}

pub(crate) fn invalid_class(bytes: &[u8], shard: &str, key: &str, offset: u64) -> Error {
    let found = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
    Error::InvalidClass {
        place: Place::new(shard, key, offset),
        found,
    }
}

pub(crate) fn array_error(error: npy::NpyError, place: Place, member: &str) -> Error {
    let member = member.to_owned();
    match error {
        npy::NpyError::Invalid(reason) => Error::InvalidArray { place, member, reason },
        npy::NpyError::FortranOrder => Error::FortranOrder { place, member },
        npy::NpyError::Dtype(found) => Error::WrongDtype {
            place,
            member,
            found,
            expected: "<f2, <f4 or <f8".into(),
        },
    }
}
