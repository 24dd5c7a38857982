//! Pictures in: sources, decoding, centre crop, and the codecs from pictures to latents.
//!
//! [`sources`] lists and reads pictures wherever they are; [`picture`] turns the bytes of a file into pixels and a square,
//! and pixels into a PNG; [`codec`] turns batches of squares into latents and back.
//!
//! ```
//! use deepflow_preprocess::codec::{Codec, IdentityCodec};
//! use deepflow_preprocess::picture::{centre_crop, decode, write_png, Colour, DecodeOptions, Pixels, PngCompression};
//!
//! let file = write_png(&Pixels::filled(40, 30, Colour::Rgb, [200, 10, 30]), PngCompression::Fast)?;
//! let picture = centre_crop(decode(&file, &DecodeOptions::default())?.pixels, 16);
//! let codec = IdentityCodec::new(16, Colour::Rgb);
//! let moments = codec.encode(&[picture.clone()])?;
//! assert_eq!(codec.decode(&moments.mean)?, [picture]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod codec;
pub mod picture;
pub mod sources;
