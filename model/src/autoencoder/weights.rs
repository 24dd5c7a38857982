//! Where the layers get their weights from: files, or a seed.

use std::collections::BTreeMap;

use deepflow_datasets::random::{Purpose, Stream};

use super::backend::Backend;
use super::files::WeightFiles;
use super::names::{canonical, FIRST_STAGE};
use super::AutoencoderError;
use crate::ops::conv::ConvolutionShape;

/// Problems that are spelled out; the rest is counted.
const PROBLEMS_NAMED: usize = 5;
/// Added to the variance by every GroupNorm of an AutoencoderKL.
const EPSILON: f64 = 1e-6;

/// Gives out tensors by their diffusers names and remembers what did not fit.
pub(super) struct Weights {
    source: Source,
    groups: usize,
    parameters: usize,
    problems: Vec<String>,
}

enum Source {
    Files {
        files: WeightFiles,
        tensors: BTreeMap<String, (String, usize)>,
    },
    Random {
        seed: u64,
        drawn: u64,
    },
}

impl Weights {
    pub(super) fn from_files(files: WeightFiles, levels: usize, groups: usize) -> Self {
        let mut tensors = BTreeMap::new();
        let mut problems = Vec::new();
        let names = files.names();
        let is_part = names.iter().any(|(name, _)| name.starts_with(FIRST_STAGE));
        for (name, file) in names {
            // A whole Stable Diffusion checkpoint holds networks and constants of many other names.
            if is_part && !name.starts_with(FIRST_STAGE) {
                continue;
            }
            let Some(canonical) = canonical(&name, levels) else {
                // What the autoencoder's own trainer keeps beside it.
                if !["loss.", "model_ema."].iter().any(|part| name.starts_with(part)) {
                    problems.push(format!("unexpected {name}"));
                }
                continue;
            };
            if let Some((other, _)) = tensors.insert(canonical, (name.clone(), file)) {
                problems.push(format!("{name} is {other} under another name"));
            }
        }
        Self {
            source: Source::Files { files, tensors },
            groups,
            parameters: 0,
            problems,
        }
    }

    pub(super) fn random(seed: u64, groups: usize) -> Self {
        Self {
            source: Source::Random { seed, drawn: 0 },
            groups,
            parameters: 0,
            problems: Vec::new(),
        }
    }

    /// A convolution of this shape with its bias.
    pub(super) fn convolution<B: Backend>(
        &mut self,
        backend: &B,
        name: &str,
        shape: ConvolutionShape,
    ) -> Result<B::Convolution, AutoencoderError> {
        let (height, width) = shape.kernel;
        let weight = self.tensor(
            &format!("{name}.weight"),
            &[shape.out_channels, shape.in_channels, height, width],
        )?;
        let bias = self.tensor(&format!("{name}.bias"), &[shape.out_channels])?;
        backend.convolution(shape, &weight, &bias)
    }

    pub(super) fn norm<B: Backend>(
        &mut self,
        backend: &B,
        name: &str,
        channels: usize,
    ) -> Result<B::Norm, AutoencoderError> {
        let mut weight = self.tensor(&format!("{name}.weight"), &[channels])?;
        let bias = self.tensor(&format!("{name}.bias"), &[channels])?;
        if matches!(self.source, Source::Random { .. }) {
            weight.iter_mut().for_each(|weight| *weight += 1.0);
        }
        backend.norm(self.groups, weight, bias, EPSILON)
    }

    /// Values given out so far.
    pub(super) fn parameters(&self) -> usize {
        self.parameters
    }

    /// A tensor's values; zeros when it does not fit, which [`Weights::finish`] reports.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, AutoencoderError> {
        let len: usize = shape.iter().product();
        self.parameters += len;
        match &mut self.source {
            Source::Random { seed, drawn } => {
                *drawn += 1;
                let mut values = vec![0.0; len];
                Stream::new(*seed, Purpose::Initialization, 0, *drawn).fill_uniform(&mut values);
                let fan_in: usize = if shape.len() > 1 {
                    shape[1..].iter().product()
                } else {
                    100
                };
                let bound = 1.0 / (fan_in as f32).sqrt();
                values
                    .iter_mut()
                    .for_each(|value| *value = (2.0 * *value - 1.0) * bound);
                Ok(values)
            }
            Source::Files { files, tensors } => {
                let Some((original, file)) = tensors.remove(name) else {
                    self.problems.push(format!("missing {name} {shape:?}"));
                    return Ok(vec![0.0; len]);
                };
                let tensor = files.read(&original, file)?;
                // A linear layer and a 1×1 convolution are the same thing in two shapes.
                let without_ones = |shape: &[usize]| match shape {
                    [rows, columns, 1, 1] => vec![*rows, *columns],
                    other => other.to_vec(),
                };
                if without_ones(&tensor.shape) != without_ones(shape) {
                    self.problems
                        .push(format!("{original} has shape {:?}, expected {shape:?}", tensor.shape));
                    return Ok(vec![0.0; len]);
                }
                let Some(values) = tensor.to_f32() else {
                    self.problems
                        .push(format!("{original} holds {:?} values, expected numbers", tensor.dtype));
                    return Ok(vec![0.0; len]);
                };
                Ok(values)
            }
        }
    }

    /// Checks that everything fitted and nothing is left over; returns the SHA-256 of the weights, empty for random ones.
    pub(super) fn finish(mut self) -> Result<String, AutoencoderError> {
        let Source::Files { files, tensors } = self.source else {
            return Ok(String::new());
        };
        let left_over = tensors.into_values().map(|(name, _)| format!("unexpected {name}"));
        self.problems.extend(left_over);
        if self.problems.is_empty() {
            return files.sha256();
        }
        let more = self.problems.len().saturating_sub(PROBLEMS_NAMED);
        self.problems.truncate(PROBLEMS_NAMED);
        let mut problems = self.problems.join("; ");
        if more > 0 {
            problems += &format!("; and {more} more");
        }
        Err(AutoencoderError::Misfit {
            path: files.path,
            problems,
        })
    }
}
