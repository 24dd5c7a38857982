//! What is done to a block of the product while it is still in the cache.

use super::matrix::MatrixRef;
use crate::ops::cpu::activation::Activation;

/// The last step of a product, applied to every value once its sum is complete.
#[derive(Clone, Copy, Debug, Default)]
pub enum Epilogue<'a> {
    /// Nothing more.
    #[default]
    None,
    /// `activation(c + bias[column])`.
    Bias {
        /// One value for each column.
        bias: &'a [f32],
        /// Applied after adding; [`Activation::Identity`] for a plain linear layer.
        activation: Activation,
    },
    /// `c · activation'(input)`: the gradient of a linear layer's input continued through the activation before it.
    ActivationGradient {
        /// The activation to differentiate.
        activation: Activation,
        /// Its input, of the product's size, rows without gaps.
        input: &'a [f32],
    },
}

impl Epilogue<'_> {
    /// # Panics
    /// When an operand does not have the product's size.
    pub(super) fn check(&self, rows: usize, columns: usize) {
        match self {
            Self::None => {}
            Self::Bias { bias, .. } => {
                assert_eq!(bias.len(), columns, "a bias has one value for each column");
            }
            Self::ActivationGradient { input, .. } => {
                assert_eq!(
                    input.len(),
                    rows * columns,
                    "an activation's input has the product's size"
                );
            }
        }
    }

    /// Finishes the part of row `row` that begins at `column`; the whole product has `columns` columns.
    pub(super) fn apply(&self, values: &mut [f32], row: usize, column: usize, columns: usize) {
        match self {
            Self::None => {}
            Self::Bias { bias, activation } => {
                for (value, bias) in values.iter_mut().zip(&bias[column..]) {
                    *value += bias;
                }
                activation.apply(values);
            }
            Self::ActivationGradient { activation, input } => {
                let start = row * columns + column;
                activation.multiply_derivative(values, &input[start..start + values.len()]);
            }
        }
    }
}

/// A factor of a product: a matrix, and a function applied to each of its values as it is packed.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    pub(super) matrix: MatrixRef<'a>,
    pub(super) activation: Activation,
}

impl<'a> Operand<'a> {
    /// `activation(matrix)`, which never exists as a whole in memory.
    pub fn activated(matrix: MatrixRef<'a>, activation: Activation) -> Self {
        Self { matrix, activation }
    }

    pub(super) fn transposed(self) -> Self {
        Self {
            matrix: self.matrix.transposed(),
            ..self
        }
    }
}

impl<'a> From<MatrixRef<'a>> for Operand<'a> {
    fn from(matrix: MatrixRef<'a>) -> Self {
        Self {
            matrix,
            activation: Activation::Identity,
        }
    }
}
