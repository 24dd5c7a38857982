//! The classifier: an MLP on standardised latents, made of the operators and the optimiser that train DeepFlow.

use anyhow::{ensure, Context};
use deepflow_datasets::random::{Purpose, Stream};
use deepflow_model::ops::{AdamWStep, Matrix, Operators, ParameterState, Vector};
use dfdx::prelude::{
    Backward, Cpu, Gradients, HasShape, NoneTape, OwnedTape, PutTape, ReshapeTo, SplitTape, SumTo, Tape, Tensor,
    TensorFromVec, TryMul, ZerosTensor,
};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// Widths of the hidden layers; the last is the feature vector.
const HIDDEN: [usize; 3] = [512, 512, 64];
const METADATA_KEY: &str = "classifier";

/// What is known about a classifier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassifierFacts {
    /// Channels, rows, columns of the latents it takes.
    pub latent_shape: [usize; 3],
    /// Number of classes.
    pub classes: usize,
    /// Share of held-out samples it is right on.
    pub held_out_accuracy: f64,
    /// Samples it was trained on.
    pub training_samples: usize,
    /// Steps it was trained for.
    pub steps: u64,
}

impl ClassifierFacts {
    /// Inputs and outputs of every layer.
    fn layers(&self) -> impl Iterator<Item = (usize, usize)> {
        let outputs = HIDDEN.into_iter().chain([self.classes]);
        let mut inputs = self.latent_shape.iter().product();
        outputs.map(move |outputs| (std::mem::replace(&mut inputs, outputs), outputs))
    }

    /// Refuses what no classifier can be.
    fn check(&self) -> anyhow::Result<()> {
        let shape = self.latent_shape;
        ensure!(self.classes > 0, "classes is 0, expected at least 1");
        ensure!(
            !shape.contains(&0),
            "latent_shape is {shape:?}, expected numbers of at least 1"
        );
        let values = shape
            .iter()
            .try_fold(1_usize, |product, &side| product.checked_mul(side));
        ensure!(
            values.is_some(),
            "latent_shape is {shape:?}, expected fewer numbers than memory holds"
        );
        Ok(())
    }
}

/// A trained (or to be trained) classifier.
pub struct Classifier {
    /// What is known about it.
    pub facts: ClassifierFacts,
    device: Cpu,
    /// Subtracted from, and then multiplied into, every channel.
    mean: Vec<f32>,
    scale: Vec<f32>,
    layers: Vec<Layer>,
}

struct Layer {
    inputs: usize,
    outputs: usize,
    weight: Trained,
    bias: Trained,
}

/// A parameter with AdamW's moments and its moving average.
struct Trained {
    values: Vector<f32, Cpu>,
    first_moment: Vector<f32, Cpu>,
    second_moment: Vector<f32, Cpu>,
    ema: Vector<f32, Cpu>,
}

impl Trained {
    fn new(device: &Cpu, values: Vec<f32>) -> Self {
        let shape = (values.len(),);
        let values = device.tensor_from_vec(values, shape);
        Self {
            ema: values.clone(),
            values,
            first_moment: device.zeros_like(&shape),
            second_moment: device.zeros_like(&shape),
        }
    }
}

/// What the classifier says about a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Feature vectors, one after the other.
    pub features: Vec<f32>,
    /// The most likely class of each.
    pub classes: Vec<usize>,
}

impl Classifier {
    /// An untrained classifier; `values` are training latents that say how to standardise.
    pub(super) fn new(facts: ClassifierFacts, values: &[f32], seed: u64) -> Self {
        let device = Cpu::default();
        let (mean, scale) = channel_statistics(facts.latent_shape, values);
        let layers = facts
            .layers()
            .enumerate()
            .map(|(index, (inputs, outputs))| {
                let mut weight = vec![0f32; outputs * inputs];
                Stream::new(seed, Purpose::Initialization, 0, index as u64).fill_uniform(&mut weight);
                let bound = (6.0 / (inputs + outputs) as f32).sqrt();
                weight
                    .iter_mut()
                    .for_each(|value| *value = (2.0 * *value - 1.0) * bound);
                Layer {
                    inputs,
                    outputs,
                    weight: Trained::new(&device, weight),
                    bias: Trained::new(&device, vec![0.0; outputs]),
                }
            })
            .collect();
        Self {
            facts,
            device,
            mean,
            scale,
            layers,
        }
    }

    /// Numbers in a feature vector.
    pub fn feature_width(&self) -> usize {
        HIDDEN[HIDDEN.len() - 1]
    }

    /// Features and classes of a batch of latents, with the averaged weights.
    ///
    /// # Errors
    /// Memory is short.
    pub fn look(&self, latents: &[f32]) -> anyhow::Result<Seen> {
        let input = self.standardised(latents);
        let (features, logits) = self.forward(&mut NoneTape, &input, |parameter| &parameter.ema)?;
        let classes = logits.as_vec().chunks_exact(self.facts.classes).map(largest).collect();
        Ok(Seen {
            features: features.as_vec(),
            classes,
        })
    }

    /// One AdamW step on a batch; gives the mean cross-entropy.
    pub(super) fn train_step(&mut self, latents: &[f32], classes: &[usize], step: &AdamWStep) -> anyhow::Result<f64> {
        let input = self.standardised(latents);
        let mut tape = OwnedTape::<f32, Cpu>::default();
        let (_, logits) = self.forward(&mut tape, &input, |parameter| &parameter.values)?;
        let (loss, slope) = cross_entropy(&logits.as_vec(), classes, self.facts.classes);
        // The slope of the cross-entropy is known; a product with it carries it into dfdx's backward pass.
        let slope: Matrix<f32, Cpu> = self.device.tensor_from_vec(slope, *logits.shape());
        let seed: Tensor<(), f32, Cpu, _> = logits
            .put_tape(tape)
            .try_mul(slope)
            .map_err(failed)?
            .try_sum()
            .map_err(failed)?;
        let mut gradients = seed.try_backward().map_err(failed)?;
        for layer in &mut self.layers {
            for parameter in [&mut layer.weight, &mut layer.bias] {
                update(&self.device, &mut gradients, parameter, step)?;
            }
        }
        Ok(loss)
    }

    fn forward<T: Tape<f32, Cpu>>(
        &self,
        tape: &mut T,
        input: &Matrix<f32, Cpu>,
        which: impl Fn(&Trained) -> &Vector<f32, Cpu>,
    ) -> anyhow::Result<(Matrix<f32, Cpu>, Matrix<f32, Cpu>)> {
        let mut x = input.clone();
        let (last, hidden) = self.layers.split_last().context("a classifier without layers")?;
        for layer in hidden {
            let weight = layer.matrix(tape, &which(&layer.weight).clone())?;
            let hidden = self
                .device
                .linear(tape, &x, &weight, which(&layer.bias))
                .map_err(failed)?;
            x = self.device.gelu_tanh(tape, &hidden).map_err(failed)?;
        }
        let weight = last.matrix(tape, &which(&last.weight).clone())?;
        let logits = self
            .device
            .linear(tape, &x, &weight, which(&last.bias))
            .map_err(failed)?;
        Ok((x, logits))
    }

    fn standardised(&self, latents: &[f32]) -> Matrix<f32, Cpu> {
        let width: usize = self.facts.latent_shape.iter().product();
        let pixels = self.facts.latent_shape[1] * self.facts.latent_shape[2];
        let channels = self.mean.len();
        let values = latents.iter().enumerate().map(|(index, value)| {
            let channel = index / pixels % channels;
            (value - self.mean[channel]) * self.scale[channel]
        });
        self.device
            .tensor_from_vec(values.collect(), (latents.len() / width, width))
    }

    /// Writes the averaged weights and the facts.
    ///
    /// # Errors
    /// The disk is full.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let bytes = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|value| value.to_le_bytes()).collect() };
        let mut buffers = vec![
            ("mean".to_owned(), vec![self.mean.len()], bytes(&self.mean)),
            ("scale".to_owned(), vec![self.scale.len()], bytes(&self.scale)),
        ];
        for (index, layer) in self.layers.iter().enumerate() {
            let weight = bytes(&layer.weight.ema.as_vec());
            buffers.push((
                format!("layers.{index}.weight"),
                vec![layer.outputs, layer.inputs],
                weight,
            ));
            buffers.push((
                format!("layers.{index}.bias"),
                vec![layer.outputs],
                bytes(&layer.bias.ema.as_vec()),
            ));
        }
        let views = buffers
            .iter()
            .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let metadata = HashMap::from([(METADATA_KEY.to_owned(), serde_json::to_string(&self.facts)?)]);
        crate::files::write_atomically(path, &safetensors::serialize(views, Some(metadata))?)
    }

    /// Reads what [`Classifier::save`] wrote.
    ///
    /// # Errors
    /// The file is another one.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).with_context(|| name.clone())?;
        let other = || format!("{name}: not a classifier that `deepflow-evaluate fit-features` wrote");
        let (_, header) = SafeTensors::read_metadata(&bytes).with_context(other)?;
        let facts = header
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(METADATA_KEY))
            .with_context(other)?;
        let facts: ClassifierFacts = serde_json::from_str(facts).with_context(other)?;
        let tensors = SafeTensors::deserialize(&bytes).with_context(other)?;
        // Anybody may have written the facts: nothing is made of them but what the tensors bear out.
        facts.check().with_context(|| name.clone())?;
        let read = |tensor: &str, shape: &[usize]| -> anyhow::Result<Vec<f32>> {
            let view = tensors
                .tensor(tensor)
                .with_context(|| format!("{name}: tensor {tensor}"))?;
            ensure!(
                view.dtype() == Dtype::F32 && view.shape() == shape,
                "{name}: tensor {tensor} has shape {:?} of {:?}, expected {shape:?} of F32",
                view.shape(),
                view.dtype()
            );
            let (chunks, _) = view.data().as_chunks::<4>();
            Ok(chunks.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect())
        };
        let device = Cpu::default();
        let channels = [facts.latent_shape[0]];
        let (mean, scale) = (read("mean", &channels)?, read("scale", &channels)?);
        let layer = |(index, (inputs, outputs)): (usize, (usize, usize))| -> anyhow::Result<Layer> {
            let weight = read(&format!("layers.{index}.weight"), &[outputs, inputs])?;
            let bias = read(&format!("layers.{index}.bias"), &[outputs])?;
            Ok(Layer {
                inputs,
                outputs,
                weight: Trained::new(&device, weight),
                bias: Trained::new(&device, bias),
            })
        };
        let layers = facts.layers().enumerate().map(layer).collect::<anyhow::Result<_>>()?;
        Ok(Self {
            facts,
            device,
            mean,
            scale,
            layers,
        })
    }
}

impl Layer {
    fn matrix<T: Tape<f32, Cpu>>(&self, tape: &mut T, flat: &Vector<f32, Cpu>) -> anyhow::Result<Matrix<f32, Cpu>> {
        let taped = flat.clone().put_tape(std::mem::take(tape));
        let shaped = taped.try_reshape_like(&(self.outputs, self.inputs)).map_err(failed)?;
        let (matrix, filled) = shaped.split_tape();
        *tape = filled;
        Ok(matrix)
    }
}

fn update(
    device: &Cpu,
    gradients: &mut Gradients<f32, Cpu>,
    parameter: &mut Trained,
    step: &AdamWStep,
) -> anyhow::Result<()> {
    let state = ParameterState {
        parameter: &mut parameter.values,
        first_moment: &mut parameter.first_moment,
        second_moment: &mut parameter.second_moment,
        ema: &mut parameter.ema,
    };
    device.adamw(gradients, state, step).map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("the classifier failed: {error}")
}

/// Mean over the batch of `-ln p(class)`, and its slope for every logit.
fn cross_entropy(logits: &[f32], classes: &[usize], count: usize) -> (f64, Vec<f32>) {
    let mut loss = 0.0;
    let mut slope = Vec::with_capacity(logits.len());
    let share = 1.0 / classes.len() as f64;
    for (row, &class) in logits.chunks_exact(count).zip(classes) {
        let probabilities = crate::evaluate::metrics::softmax(row);
        loss -= share * probabilities[class].max(f64::MIN_POSITIVE).ln();
        slope.extend(probabilities.iter().enumerate().map(|(index, p)| {
            let target = if index == class { 1.0 } else { 0.0 };
            ((p - target) * share) as f32
        }));
    }
    (loss, slope)
}

fn largest(logits: &[f32]) -> usize {
    let better = |(best, value): (usize, f32), (index, &logit): (usize, &f32)| {
        if logit > value {
            (index, logit)
        } else {
            (best, value)
        }
    };
    logits.iter().enumerate().fold((0, f32::NEG_INFINITY), better).0
}

/// Mean and inverse deviation of every channel.
fn channel_statistics([channels, rows, columns]: [usize; 3], values: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let pixels = rows * columns;
    let statistics = (0..channels).map(|channel| {
        let planes = values.chunks_exact(pixels).skip(channel).step_by(channels);
        let count = (values.len() / channels).max(1) as f64;
        let sum: f64 = planes.clone().flatten().map(|&value| f64::from(value)).sum();
        let mean = sum / count;
        let variance = planes
            .flatten()
            .map(|&value| (f64::from(value) - mean).powi(2))
            .sum::<f64>()
            / count;
        (mean as f32, (1.0 / variance.sqrt().max(1e-6)) as f32)
    });
    statistics.unzip()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Facts are text that anybody may have written: nothing is made of them before the tensors agree.
    #[test]
    fn facts_that_the_tensors_do_not_bear_out_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("judge.safetensors");
        let facts = ClassifierFacts {
            latent_shape: [2, 1, 1],
            classes: 3,
            held_out_accuracy: 0.5,
            training_samples: 10,
            steps: 1,
        };
        let mut network = Classifier::new(facts.clone(), &[0.0; 4], 0);
        network.save(&path).unwrap();
        assert_eq!(Classifier::load(&path).unwrap().facts, facts);
        for (latent_shape, classes, expected) in [
            ([2, 1, 1], 0, "classes is 0, expected at least 1"),
            (
                [2, 0, 1],
                3,
                "latent_shape is [2, 0, 1], expected numbers of at least 1",
            ),
            ([2, usize::MAX, 2], 3, "expected fewer numbers than memory holds"),
            ([3, 1, 1], 3, "tensor mean has shape [2] of F32, expected [3] of F32"),
            (
                [2, 9, 1],
                3,
                "tensor layers.0.weight has shape [512, 2] of F32, expected [512, 18]",
            ),
            (
                [2, 1, 1],
                usize::MAX,
                "tensor layers.3.weight has shape [3, 64] of F32, expected [18446744073709551615, 64]",
            ),
        ] {
            network.facts = ClassifierFacts {
                latent_shape,
                classes,
                ..facts.clone()
            };
            network.save(&path).unwrap();
            let error = format!("{:#}", Classifier::load(&path).err().unwrap());
            assert!(
                error.contains("judge.safetensors: ") && error.contains(expected),
                "{error}"
            );
        }
    }
}
