//! Whole branches on the tape. The gradients of what flows inside them never reach the store: they are written once,
//! not cleared and added to, and each is freed as soon as the next one is known.

use dfdx::prelude::{Cpu, CpuError, Gradients, HasShape, Tape};

use super::access::{contiguous, contiguous_vector, matrix, taken, Values};
use super::modulation::{accumulate_chunk, chunk};
use super::normalization::ModulatedNorm;
use crate::ops::branches;
use crate::ops::cpu::attention::{Attention, Projection};
use crate::ops::cpu::linear::LinearShape;
use crate::ops::cpu::residual::{gated_residual, gated_residual_backward_in_place};
use crate::ops::cpu::Activation;
use crate::ops::{AttentionWeights, GatedModulation, LinearMap, Matrix, Modulation, Vector};

type M = Matrix<f32, Cpu>;

/// A linear layer for matrices of `rows` rows, with the activation of its input.
struct Layer {
    weight: M,
    bias: Vector<f32, Cpu>,
    shape: LinearShape,
    activation: Activation,
}

impl Layer {
    fn new<T: Tape<f32, Cpu>>(
        tape: &mut T,
        map: &LinearMap<f32, Cpu>,
        rows: usize,
        activation: Activation,
    ) -> Result<Self, CpuError> {
        let (outputs, inputs) = *map.weight.shape();
        Ok(Self {
            weight: contiguous(tape, &map.weight)?,
            bias: contiguous_vector(tape, &map.bias)?,
            shape: LinearShape { rows, inputs, outputs },
            activation,
        })
    }

    fn forward(&self, x: &[f32]) -> Vec<f32> {
        self.forward_rows(x, self.shape.rows)
    }

    /// [`forward`](Self::forward) of another number of rows.
    fn forward_rows(&self, x: &[f32], rows: usize) -> Vec<f32> {
        let Self { weight, bias, .. } = self;
        let shape = LinearShape { rows, ..self.shape };
        shape.forward(x, self.activation, weight.values(), bias.values())
    }

    /// Adds the gradients of weight and bias and gives that of the input.
    fn backward(&self, gradients: &mut Gradients<f32, Cpu>, dy: &[f32], x: &[f32]) -> Result<Vec<f32>, CpuError> {
        let weight = self.weight.values();
        self.backward_beside(gradients, dy, x, || {
            self.shape.input_gradient(dy, x, self.activation, weight)
        })
    }

    /// Adds the gradients of weight and bias while `of_input` finds that of the input.
    fn backward_beside<R: Send>(
        &self,
        gradients: &mut Gradients<f32, Cpu>,
        dy: &[f32],
        x: &[f32],
        of_input: impl FnOnce() -> R + Send,
    ) -> Result<R, CpuError> {
        let (mut dweight, mut dbias) = (taken(gradients, &self.weight)?, taken(gradients, &self.bias)?);
        let parameters = (&mut dweight[..], &mut dbias[..]);
        let found = self
            .shape
            .accumulate_beside((dy, x), self.activation, parameters, of_input);
        **gradients.get_or_alloc_mut(&self.weight)? = dweight;
        **gradients.get_or_alloc_mut(&self.bias)? = dbias;
        Ok(found)
    }
}

/// The gate at the end of a branch.
struct Gate {
    modulation: M,
    chunk: usize,
    values: Vec<f32>,
    width: usize,
}

impl Gate {
    fn new(modulation: &M, chunk_index: usize, width: usize) -> Self {
        Self {
            values: chunk(modulation, chunk_index, width),
            modulation: modulation.clone(),
            chunk: chunk_index,
            width,
        }
    }

    fn forward(&self, x: &[f32], y: &[f32]) -> Vec<f32> {
        gated_residual(x, &self.values, y, self.width)
    }

    /// Adds the gradients of `x` and of the gate and gives that of `y`.
    fn backward(
        &self,
        gradients: &mut Gradients<f32, Cpu>,
        mut dout: Vec<f32>,
        x: &M,
        y: &[f32],
    ) -> Result<Vec<f32>, CpuError> {
        let dx = gradients.get_or_alloc_mut(x)?;
        let dgate = gated_residual_backward_in_place(&mut dout, &self.values, y, self.width, dx);
        let dmodulation = gradients.get_or_alloc_mut(&self.modulation)?;
        accumulate_chunk(dmodulation, &self.modulation, self.chunk, &dgate, self.width);
        Ok(dout)
    }
}

/// A linear layer behind a modulated norm, which the backward pass computes again instead of keeping it.
struct NormalizedLayer {
    norm: ModulatedNorm,
    layer: Layer,
}

impl NormalizedLayer {
    fn forward(&self, x: &M) -> Vec<f32> {
        self.layer.forward(&self.norm.forward(x))
    }

    fn backward(&self, gradients: &mut Gradients<f32, Cpu>, dy: Vec<f32>, x: &M) -> Result<(), CpuError> {
        let normalized = self.norm.forward(x);
        let dnormalized = self.layer.backward(gradients, &dy, &normalized)?;
        drop((dy, normalized));
        self.norm.backward(gradients, x, &dnormalized)
    }
}

/// Norm, linear layer, tanh-GELU, linear layer.
struct ModulatedMlp {
    fc1: NormalizedLayer,
    fc2: Layer,
}

impl ModulatedMlp {
    fn new<T: Tape<f32, Cpu>>(
        tape: &mut T,
        x: &M,
        modulation: &M,
        parts: Modulation,
        [fc1, fc2]: [&LinearMap<f32, Cpu>; 2],
    ) -> Result<Self, CpuError> {
        let rows = x.shape().0;
        Ok(Self {
            fc1: NormalizedLayer {
                norm: ModulatedNorm::new(x, modulation.clone(), parts),
                layer: Layer::new(tape, fc1, rows, Activation::Identity)?,
            },
            fc2: Layer::new(tape, fc2, rows, Activation::GeluTanh)?,
        })
    }

    fn backward(
        &self,
        gradients: &mut Gradients<f32, Cpu>,
        dy: Vec<f32>,
        x: &M,
        hidden: Vec<f32>,
    ) -> Result<(), CpuError> {
        let dhidden = self.fc2.backward(gradients, &dy, &hidden)?;
        drop((dy, hidden));
        self.fc1.backward(gradients, dhidden, x)
    }
}

/// Values that the backward pass will read: none where there is no tape.
fn kept<T: Tape<f32, Cpu>>(values: Vec<f32>) -> Vec<f32> {
    if T::OWNS_TAPE {
        values
    } else {
        Vec::new()
    }
}

/// `fc2(gelu_tanh(fc1(LN(x)·(1 + scale) + shift)))`; only `x` and the hidden values are kept.
pub(super) fn modulated_mlp<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    x: &M,
    modulation: &M,
    parts: Modulation,
    layers: [&LinearMap<f32, Cpu>; 2],
) -> Result<M, CpuError> {
    let (x, modulation) = (contiguous(tape, x)?, contiguous(tape, modulation)?);
    let mlp = ModulatedMlp::new(tape, &x, &modulation, parts, layers)?;
    let hidden = mlp.fc1.forward(&x);
    let y = matrix(device, mlp.fc2.forward(&hidden), (x.shape().0, mlp.fc2.shape.outputs))?;
    let y_ghost = y.ghost();
    tape.add_backward_op(move |gradients| {
        let dy = std::mem::take(&mut **gradients.get_or_alloc_mut(&y_ghost)?);
        mlp.backward(gradients, dy, &x, hidden)
    });
    Ok(y)
}

/// `x + gate·fc2(gelu_tanh(fc1(LN(x)·(1 + scale) + shift)))`.
pub(super) fn mlp_branch<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    x: &M,
    modulation: &M,
    parts: GatedModulation,
    layers: [&LinearMap<f32, Cpu>; 2],
) -> Result<M, CpuError> {
    let (x, modulation) = (contiguous(tape, x)?, contiguous(tape, modulation)?);
    let mlp = ModulatedMlp::new(tape, &x, &modulation, parts.norm, layers)?;
    let gate = Gate::new(&modulation, parts.gate, x.shape().1);
    if !T::OWNS_TAPE {
        let y = through_all(&[&mlp.fc1.layer, &mlp.fc2], &mlp.fc1.norm.forward(&x));
        return matrix(device, gate.forward(x.values(), &y), *x.shape());
    }
    let hidden = mlp.fc1.forward(&x);
    let y = mlp.fc2.forward(&hidden);
    let out = matrix(device, gate.forward(x.values(), &y), *x.shape())?;
    let out_ghost = out.ghost();
    tape.add_backward_op(move |gradients| {
        let dout = std::mem::take(&mut **gradients.get_or_alloc_mut(&out_ghost)?);
        let dy = gate.backward(gradients, dout, &x, &y)?;
        drop(y);
        mlp.backward(gradients, dy, &x, hidden)
    });
    Ok(out)
}

/// `x + gate·proj(attention(qkv(LN(x)·(1 + scale) + shift)))`.
pub(super) fn attention_branch<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    x: &M,
    modulation: &M,
    parts: GatedModulation,
    weights: &AttentionWeights<f32, Cpu>,
) -> Result<M, CpuError> {
    if weights.head_norms.is_some() {
        return branches::attention_branch(device, tape, x, modulation, parts, weights);
    }
    let (x, modulation) = (contiguous(tape, x)?, contiguous(tape, modulation)?);
    let (rows, width) = *x.shape();
    let (batch, heads) = (modulation.shape().0, weights.heads);
    let packed = NormalizedLayer {
        norm: ModulatedNorm::new(&x, modulation.clone(), parts.norm),
        layer: Layer::new(tape, &weights.qkv, rows, Activation::Identity)?,
    };
    let proj = Layer::new(tape, &weights.proj, rows, Activation::Identity)?;
    let gate = Gate::new(&modulation, parts.gate, width);
    let attention = Attention {
        batch,
        queries: rows / batch,
        keys: rows / batch,
        heads,
        head_width: width / heads,
    };

    let qkv = packed.forward(&x);
    let part = |index| Projection {
        values: &qkv,
        stride: 3 * width,
        offset: index * width,
    };
    let (mixed, normalizers) = attention.forward(part(0), part(1), part(2));
    let qkv = kept::<T>(qkv);
    let y = proj.forward(&mixed);
    let mixed = kept::<T>(mixed);
    let out = matrix(device, gate.forward(x.values(), &y), (rows, width))?;
    let out_ghost = out.ghost();
    tape.add_backward_op(move |gradients| {
        let dout = std::mem::take(&mut **gradients.get_or_alloc_mut(&out_ghost)?);
        let dy = gate.backward(gradients, dout, &x, &y)?;
        drop(y);
        let dmixed = proj.backward(gradients, &dy, &mixed)?;
        drop(dy);
        let dqkv = attention.self_gradient(&qkv, &mixed, &normalizers, &dmixed);
        drop((qkv, mixed, normalizers, dmixed));
        packed.backward(gradients, dqkv, &x)
    });
    Ok(out)
}

/// Rows that go through several layers together where nothing is kept for a backward pass: what lies between the layers, the
/// widest matrices of the network, stays small whatever the batch. Packing the weights again for every 512 rows takes 1 % of
/// a forward pass.
pub(crate) const ROWS_TOGETHER: usize = 512;

/// The result of layers after one another.
fn through_all(layers: &[&Layer], x: &[f32]) -> Vec<f32> {
    let (Some(first), Some(last)) = (layers.first(), layers.last()) else {
        return x.to_vec();
    };
    let mut y = Vec::with_capacity(last.shape.rows * last.shape.outputs);
    for x in x.chunks(ROWS_TOGETHER * first.shape.inputs) {
        let rows = x.len() / first.shape.inputs;
        let (first, others) = (first.forward_rows(x, rows), &layers[1..]);
        y.extend(others.iter().fold(first, |x, layer| layer.forward_rows(&x, rows)));
    }
    y
}

/// Linear layers with SiLU between them; the input of every layer is kept.
pub(super) fn silu_layers<T: Tape<f32, Cpu>>(
    device: &Cpu,
    tape: &mut T,
    x: &M,
    layers: &[LinearMap<f32, Cpu>],
) -> Result<M, CpuError> {
    let x = contiguous(tape, x)?;
    let rows = x.shape().0;
    let activation = |index| {
        if index == 0 {
            Activation::Identity
        } else {
            Activation::Silu
        }
    };
    let layers = layers
        .iter()
        .enumerate()
        .map(|(index, map)| Layer::new(tape, map, rows, activation(index)))
        .collect::<Result<Vec<_>, _>>()?;
    let (Some(first), Some(last)) = (layers.first(), layers.last()) else {
        return Ok(x);
    };
    let shape = (rows, last.shape.outputs);
    if !T::OWNS_TAPE {
        let y = through_all(&layers.iter().collect::<Vec<_>>(), x.values());
        return matrix(device, y, shape);
    }
    let mut inputs = Vec::with_capacity(layers.len() - 1);
    let mut result = first.forward(x.values());
    for layer in &layers[1..] {
        let next = layer.forward(&result);
        inputs.push(std::mem::replace(&mut result, next));
    }
    let y = matrix(device, result, shape)?;
    let y_ghost = y.ghost();
    tape.add_backward_op(move |gradients| {
        let mut dy = std::mem::take(&mut **gradients.get_or_alloc_mut(&y_ghost)?);
        while let (Some(input), Some(layer)) = (inputs.pop(), layers.get(inputs.len() + 1)) {
            dy = layer.backward(gradients, &dy, &input)?;
        }
        let first = &layers[0];
        let (shape, activation, weight) = (first.shape, first.activation, first.weight.values());
        let mut dx = taken(gradients, &x)?;
        first.backward_beside(gradients, &dy, x.values(), || {
            shape.accumulate_input_gradient(&dy, x.values(), activation, weight, &mut dx);
        })?;
        **gradients.get_or_alloc_mut(&x)? = dx;
        Ok(())
    });
    Ok(y)
}
