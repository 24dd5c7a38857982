//! The codec that does nothing but scale: for training on pixels.

use super::{check_latents, check_pictures, extend_planes, from_planes, Codec, CodecError, CodecIdentity, Moments};
use crate::picture::{Colour, Pixels};

/// Pixels scaled to [-1, 1] as latents, channel by channel; the standard deviations are 0.
#[derive(Clone, Debug)]
pub struct IdentityCodec {
    identity: CodecIdentity,
}

impl IdentityCodec {
    /// For square pictures of side `size`.
    #[must_use]
    pub fn new(size: usize, colour: Colour) -> Self {
        let identity = CodecIdentity {
            name: "identity".into(),
            weights_sha256: String::new(),
            scale_factor: 1.0,
            shift_factor: 0.0,
            latent_shape: [colour.channels(), size, size],
            factor: 1,
            colour,
        };
        Self { identity }
    }
}

impl Codec for IdentityCodec {
    fn identity(&self) -> &CodecIdentity {
        &self.identity
    }

    fn encode(&self, pictures: &[Pixels]) -> Result<Moments, CodecError> {
        check_pictures(&self.identity, pictures)?;
        let mut mean = Vec::with_capacity(pictures.len() * self.identity.latent_len());
        for picture in pictures {
            extend_planes(&mut mean, picture);
        }
        let std = vec![0.0; mean.len()];
        Ok(Moments { mean, std })
    }

    fn decode(&self, latents: &[f32]) -> Result<Vec<Pixels>, CodecError> {
        check_latents(&self.identity, latents)?;
        let [_, height, width] = self.identity.latent_shape;
        Ok(latents
            .chunks_exact(self.identity.latent_len())
            .filter_map(|latent| from_planes(latent, height, width, self.identity.colour))
            .collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::codec::to_signed;

    #[test]
    fn pictures_come_back_exactly() {
        for colour in [Colour::Grey, Colour::Rgb] {
            let codec = IdentityCodec::new(8, colour);
            let data = (0..64 * colour.channels()).map(|i| (i * 7) as u8).collect();
            let picture = Pixels::new(8, 8, colour, data).unwrap();
            let moments = codec.encode(&[picture.clone(), picture.mirrored()]).unwrap();
            assert_eq!(moments.mean[1], to_signed(picture.data()[colour.channels()]));
            assert_eq!(
                codec.decode(&moments.mean).unwrap(),
                [picture.clone(), picture.mirrored()]
            );
        }
    }

    #[test]
    fn other_sizes_are_refused() {
        let codec = IdentityCodec::new(8, Colour::Rgb);
        let error = codec.encode(&[Pixels::filled(8, 9, Colour::Rgb, [0; 3])]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "codec identity: a picture of 8×9 Rgb, expected 8×8 Rgb"
        );
        let error = codec.decode(&[0.0; 193]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "codec identity: 193 numbers, expected a multiple of 192 (latents of [3, 8, 8])"
        );
    }
}
