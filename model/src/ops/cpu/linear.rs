//! Linear layers `y = activation(x)·weightᵀ + bias`, and their gradients.

use super::activation::Activation;
use super::gemm::{gemm, Epilogue, MatrixMut, MatrixRef, Operand};
use super::parallel::written;
use super::rows::accumulate_column_sums;

/// The sizes of a linear layer applied to a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// Rows of the input and the output.
    pub rows: usize,
    /// Width of the input.
    pub inputs: usize,
    /// Width of the output.
    pub outputs: usize,
}

impl LinearShape {
    /// `activation(x)·weightᵀ + bias`: x (rows, inputs), weight (outputs, inputs), bias (outputs) → (rows, outputs).
    ///
    /// The activated input never exists in memory.
    pub fn forward(self, x: &[f32], activation: Activation, weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let Self { rows, inputs, outputs } = self;
        let write = |y: &mut [_]| {
            gemm(
                Operand::activated(MatrixRef::row_major(x, rows, inputs), activation),
                MatrixRef::row_major(weight, outputs, inputs).transposed(),
                // SAFETY: the product is not added to what is there.
                unsafe { MatrixMut::unwritten(y, rows, outputs) },
                false,
                Epilogue::Bias {
                    bias,
                    activation: Activation::Identity,
                },
            );
        };
        // SAFETY: a product writes all of its matrix.
        unsafe { written(rows * outputs, write) }
    }

    /// `activation'(x) · (dy·weight)`: the gradient of the input, (rows, inputs), from `dy` (rows, outputs).
    pub fn input_gradient(self, dy: &[f32], x: &[f32], activation: Activation, weight: &[f32]) -> Vec<f32> {
        let Self { rows, inputs, outputs } = self;
        let epilogue = match activation {
            Activation::Identity => Epilogue::None,
            _ => Epilogue::ActivationGradient { activation, input: x },
        };
        let write = |dx: &mut [_]| {
            gemm(
                MatrixRef::row_major(dy, rows, outputs),
                MatrixRef::row_major(weight, outputs, inputs),
                // SAFETY: the product is not added to what is there.
                unsafe { MatrixMut::unwritten(dx, rows, inputs) },
                false,
                epilogue,
            );
        };
        // SAFETY: a product writes all of its matrix.
        unsafe { written(rows * inputs, write) }
    }

    /// Adds the [`input_gradient`](Self::input_gradient) to `dx`.
    pub fn accumulate_input_gradient(
        self,
        dy: &[f32],
        x: &[f32],
        activation: Activation,
        weight: &[f32],
        dx: &mut [f32],
    ) {
        let Self { rows, inputs, outputs } = self;
        if activation == Activation::Identity {
            gemm(
                MatrixRef::row_major(dy, rows, outputs),
                MatrixRef::row_major(weight, outputs, inputs),
                MatrixMut::row_major(dx, rows, inputs),
                true,
                Epilogue::None,
            );
        } else {
            // The derivative belongs to this product alone, not to what is in `dx` already.
            super::rows::accumulate(dx, &self.input_gradient(dy, x, activation, weight));
        }
    }

    /// Adds the gradients of weight and bias while `of_input` finds that of the input: side by side, the two products leave
    /// fewer threads waiting at their ends than one after the other.
    pub fn accumulate_beside<R: Send>(
        self,
        (dy, x): (&[f32], &[f32]),
        activation: Activation,
        (dweight, dbias): (&mut [f32], &mut [f32]),
        of_input: impl FnOnce() -> R + Send,
    ) -> R {
        let of_parameters = || {
            self.accumulate_weight_gradient(dy, x, activation, dweight);
            self.accumulate_bias_gradient(dy, dbias);
        };
        rayon::join(of_input, of_parameters).0
    }

    /// `dweight += dyᵀ·activation(x)`, (outputs, inputs).
    pub fn accumulate_weight_gradient(self, dy: &[f32], x: &[f32], activation: Activation, dweight: &mut [f32]) {
        let Self { rows, inputs, outputs } = self;
        gemm(
            MatrixRef::row_major(dy, rows, outputs).transposed(),
            Operand::activated(MatrixRef::row_major(x, rows, inputs), activation),
            MatrixMut::row_major(dweight, outputs, inputs),
            true,
            Epilogue::None,
        );
    }

    /// `dbias += Σ_rows dy`, (outputs).
    pub fn accumulate_bias_gradient(self, dy: &[f32], dbias: &mut [f32]) {
        accumulate_column_sums(dy, dbias);
    }
}
