//! From the bytes of a sample to one row of a batch.

use super::{LoaderConfig, Posterior};
use crate::dataset::{MemberRef, SampleRef};
use crate::npy::{read_elements, read_elements_inlined};
use crate::random::{vectorized, Purpose, Stream, VectorWork};
use crate::{Dtype, Error, Result, FEATURES, LATENT, MOMENTS, MOMENTS_FLIP};

/// Numbers that are converted at a time, on the stack.
const CHUNK: usize = 512;

/// Decodes the samples of one thread.
pub(super) struct Decoder {
    seed: u64,
    flip: bool,
    posterior: Posterior,
    scale: f32,
    classes: Option<u32>,
    latent_shape: [usize; 3],
    /// The header last seen for each kind of array: the headers of a data set are all alike.
    latent_header: Option<KnownHeader>,
    feature_header: Option<KnownHeader>,
}

struct KnownHeader {
    bytes: Vec<u8>,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Decoder {
    pub(super) fn new(config: &LoaderConfig, scale: f64, classes: Option<u32>, latent_shape: [usize; 3]) -> Self {
        Self {
            seed: config.seed,
            flip: config.flip,
            posterior: config.posterior,
            scale: scale as f32,
            classes,
            latent_shape,
            latent_header: None,
            feature_header: None,
        }
    }

    /// The sample's class.
    pub(super) fn class(&self, sample: SampleRef<'_>) -> Result<u32> {
        let class = sample.class()?;
        match self.classes {
            Some(classes) if class >= classes => Err(Error::ClassOutOfRange {
                place: sample.place(sample.offset()),
                found: class,
                classes,
            }),
            _ => Ok(class),
        }
    }

    /// Writes the scaled latent (C, S, S), drawn for its place in the epoch.
    pub(super) fn latent(&mut self, sample: SampleRef<'_>, epoch: u32, position: u64, out: &mut [f32]) -> Result<()> {
        let mirrored = self.flip && Stream::new(self.seed, Purpose::Flip, epoch, position).uniform(0) < 0.5;
        let moments = match if mirrored { sample.member(MOMENTS_FLIP)? } else { None } {
            Some(flipped) => Some(flipped),
            None => sample.member(MOMENTS)?,
        };
        let (member, parts) = match moments {
            Some(moments) => (moments, 2),
            None => (sample.member(LATENT)?.ok_or_else(|| sample.missing(MOMENTS))?, 1),
        };
        let [channels, height, width] = self.latent_shape;
        let (dtype, raw) = elements(
            &mut self.latent_header,
            sample,
            member,
            &[parts * channels, height, width],
        )?;
        let scale = self.scale;
        if parts == 1 {
            read_elements(dtype, raw, out);
            out.iter_mut().for_each(|value| *value *= scale);
            return Ok(());
        }
        let (mean, deviation) = raw.split_at(raw.len() / 2);
        match self.posterior {
            Posterior::Mean => {
                read_elements(dtype, mean, out);
                out.iter_mut().for_each(|value| *value *= scale);
            }
            Posterior::Sample => {
                let stream = Stream::new(self.seed, Purpose::Posterior, epoch, position);
                vectorized(SamplePosterior {
                    dtype,
                    mean,
                    deviation,
                    stream,
                    scale,
                    out,
                });
            }
        }
        Ok(())
    }

    /// Appends the sample's features (T, Z) and gives their shape.
    pub(super) fn features(
        &mut self,
        sample: SampleRef<'_>,
        out: &mut Vec<f32>,
        shape: Option<[usize; 2]>,
    ) -> Result<[usize; 2]> {
        let member = sample.required(FEATURES)?;
        let expected = match shape {
            Some(shape) => shape,
            None => match sample.array_header(member)?.shape[..] {
                [tokens, width] => [tokens, width],
                ref found => {
                    return Err(Error::WrongShape {
                        place: sample.place(member.offset),
                        member: FEATURES.to_owned(),
                        found: found.to_vec(),
                        expected: vec![0, 0],
                    })
                }
            },
        };
        let (dtype, raw) = elements(&mut self.feature_header, sample, member, &expected)?;
        let filled = out.len();
        out.resize(filled + raw.len() / dtype.bytes(), 0.0);
        read_elements(dtype, raw, &mut out[filled..]);
        Ok(expected)
    }
}

/// The elements of an array of the expected shape.
fn elements<'a>(
    known: &mut Option<KnownHeader>,
    sample: SampleRef<'_>,
    member: MemberRef<'a>,
    expected: &[usize],
) -> Result<(Dtype, &'a [u8])> {
    if let Some(header) = known {
        if let Some(raw) = member.bytes.strip_prefix(header.bytes.as_slice()) {
            if header.shape == expected && raw.len() == expected.iter().product::<usize>() * header.dtype.bytes() {
                return Ok((header.dtype, raw));
            }
        }
    }
    let header = sample.array_header(member)?;
    if header.shape != expected {
        return Err(Error::WrongShape {
            place: sample.place(member.offset),
            member: member.extension.to_owned(),
            found: header.shape,
            expected: expected.to_vec(),
        });
    }
    let (bytes, raw) = member.bytes.split_at(header.data_offset);
    *known = Some(KnownHeader {
        bytes: bytes.to_vec(),
        dtype: header.dtype,
        shape: header.shape,
    });
    Ok((header.dtype, raw))
}

/// `(mean + std·normal)·scale`.
struct SamplePosterior<'a> {
    dtype: Dtype,
    mean: &'a [u8],
    deviation: &'a [u8],
    stream: Stream,
    scale: f32,
    out: &'a mut [f32],
}

impl VectorWork for SamplePosterior<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self {
            dtype,
            mean,
            deviation,
            stream,
            scale,
            out,
        } = self;
        stream.fill_normal_inlined(out);
        let bytes = CHUNK * dtype.bytes();
        let parts = out
            .chunks_mut(CHUNK)
            .zip(mean.chunks(bytes))
            .zip(deviation.chunks(bytes));
        for ((out, mean), deviation) in parts {
            let (mut means, mut deviations) = ([0.0; CHUNK], [0.0; CHUNK]);
            read_elements_inlined(dtype, mean, &mut means);
            read_elements_inlined(dtype, deviation, &mut deviations);
            for ((value, mean), deviation) in out.iter_mut().zip(&means).zip(&deviations) {
                *value = (mean + deviation * *value) * scale;
            }
        }
    }
}
