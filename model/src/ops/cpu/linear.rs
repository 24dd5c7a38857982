//! Linear layers `y = activation(x)·weightᵀ + bias`, and their gradients.

use super::activation::Activation;
use super::gemm::{gemm, Epilogue, MatrixMut, MatrixRef, Operand};
use super::parallel::unwritten;
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
        let mut y = unwritten(rows * outputs);
        gemm(
            Operand::activated(MatrixRef::row_major(x, rows, inputs), activation),
            MatrixRef::row_major(weight, outputs, inputs).transposed(),
            MatrixMut::row_major(&mut y, rows, outputs),
            false,
            Epilogue::Bias {
                bias,
                activation: Activation::Identity,
            },
        );
        y
    }

    /// `dx += activation'(x) · (dy·weight)`. `dx` is (rows, inputs), `dy` (rows, outputs).
    pub fn accumulate_input_gradient(
        self,
        dy: &[f32],
        x: &[f32],
        activation: Activation,
        weight: &[f32],
        dx: &mut [f32],
    ) {
        let Self { rows, inputs, outputs } = self;
        let dy = MatrixRef::row_major(dy, rows, outputs);
        let weight = MatrixRef::row_major(weight, outputs, inputs);
        if activation == Activation::Identity {
            gemm(dy, weight, MatrixMut::row_major(dx, rows, inputs), true, Epilogue::None);
            return;
        }
        // The derivative belongs to this product alone, not to what is in `dx` already.
        let mut product = unwritten(rows * inputs);
        let epilogue = Epilogue::ActivationGradient { activation, input: x };
        gemm(
            dy,
            weight,
            MatrixMut::row_major(&mut product, rows, inputs),
            false,
            epilogue,
        );
        super::rows::accumulate(dx, &product);
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
