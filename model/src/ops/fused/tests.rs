//! Every fused operator against its plain version in f64 (values within 1e-5, gradients within 5e-5), and the plain version's
//! gradients against finite differences.

#![allow(clippy::unwrap_used)]

use dfdx::prelude::*;
use proptest::prelude::{prop_assert, proptest, ProptestConfig, Strategy};
use proptest::test_runner::TestCaseError;

use super::super::plain::record::record;
use crate::ops::{plain, AffineNorm, Matrix, Modulation, Operators, Scalar, Vector};

/// Sizes of the operands.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    tokens: usize,
    heads: usize,
    head_width: usize,
    other: usize,
}

impl Sizes {
    fn rows(&self) -> usize {
        self.batch * self.tokens
    }

    fn width(&self) -> usize {
        self.heads * self.head_width
    }
}

fn sizes() -> impl Strategy<Value = Sizes> {
    (1usize..4, 1usize..8, 1usize..4, 2usize..9, 1usize..12).prop_map(|(batch, tokens, heads, head_width, other)| {
        Sizes {
            batch,
            tokens,
            heads,
            head_width,
            other,
        }
    })
}

/// Value of an operator and the gradients of `Σ weight·value` with respect to every input.
type Evaluation = (Vec<f64>, Vec<Vec<f64>>);

/// Fixed values between -1 and 1 that look random.
fn pattern(len: usize, seed: usize) -> Vec<f64> {
    (0..len)
        .map(|i| ((i * 7919 + seed * 104_729 + 13) % 2003) as f64 / 1001.0 - 1.0)
        .collect()
}

fn evaluate<E: Dtype>(
    inputs: &[(Vec<f64>, (usize, usize))],
    operator: impl Fn(&mut OwnedTape<E, Cpu>, &[Matrix<E, Cpu>]) -> Result<Matrix<E, Cpu>, CpuError>,
) -> Evaluation
where
    Cpu: Device<E>,
{
    let device = Cpu::default();
    let convert = |values: &[f64]| values.iter().map(|&x| E::from_f64(x).unwrap()).collect::<Vec<E>>();
    let tensors: Vec<Matrix<E, Cpu>> = inputs
        .iter()
        .map(|(values, shape)| device.tensor_from_vec(convert(values), *shape))
        .collect();
    let mut tape = OwnedTape::default();
    let value = operator(&mut tape, &tensors).unwrap();
    let weight = device.tensor_from_vec(convert(&pattern(value.shape().num_elements(), 99)), *value.shape());
    let loss: Scalar<E, Cpu> = record(&mut tape, &value, |value| value.try_mul(weight)?.try_sum()).unwrap();
    let mut gradients = loss.put_tape(tape).try_backward().unwrap();
    let back = |values: Vec<E>| values.into_iter().map(|x| x.to_f64().unwrap()).collect::<Vec<f64>>();
    let found = tensors
        .iter()
        .map(|tensor| {
            gradients.get_or_alloc_mut(tensor).unwrap();
            back(gradients.get(tensor).as_vec())
        })
        .collect();
    (back(value.as_vec()), found)
}

fn check_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) -> Result<(), TestCaseError> {
    prop_assert!(
        found.len() == expected.len(),
        "{what}: {} values, not {}",
        found.len(),
        expected.len()
    );
    let scale = expected.iter().fold(1.0f64, |a, b| a.max(b.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        prop_assert!(
            error <= tolerance * scale,
            "{what}: value {index} is {found}, not {expected}"
        );
    }
    Ok(())
}

fn check(
    shapes: &[(usize, usize)],
    fused: impl Fn(&mut OwnedTape<f32, Cpu>, &[Matrix<f32, Cpu>]) -> Result<Matrix<f32, Cpu>, CpuError>,
    plain: impl Fn(&mut OwnedTape<f64, Cpu>, &[Matrix<f64, Cpu>]) -> Result<Matrix<f64, Cpu>, CpuError>,
) -> Result<(), TestCaseError> {
    let mut inputs: Vec<_> = shapes
        .iter()
        .enumerate()
        .map(|(seed, &shape)| (pattern(shape.0 * shape.1, seed), shape))
        .collect();
    let (value, gradients) = evaluate(&inputs, fused);
    let (expected, expected_gradients) = evaluate(&inputs, &plain);
    check_close("value", &value, &expected, 1e-5)?;
    for (input, (found, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
        // A row of a few nearly equal values amplifies the rounding of f32 by one over their deviation.
        check_close(&format!("gradient of input {input}"), found, expected, 5e-5)?;
    }
    // Finite differences of a few values of every input.
    let loss = |inputs: &[(Vec<f64>, (usize, usize))]| -> f64 {
        let (value, _) = evaluate(inputs, &plain);
        value
            .iter()
            .zip(pattern(value.len(), 99))
            .map(|(value, weight)| value * weight)
            .sum()
    };
    for input in 0..inputs.len() {
        let len = inputs[input].0.len();
        for index in [0, len / 3, len - 1] {
            let (step, original) = (1e-5, inputs[input].0[index]);
            inputs[input].0[index] = original + step;
            let above = loss(&inputs);
            inputs[input].0[index] = original - step;
            let below = loss(&inputs);
            inputs[input].0[index] = original;
            let (found, expected) = ((above - below) / (2.0 * step), expected_gradients[input][index]);
            let scale = expected.abs().max(1.0);
            prop_assert!(
                (found - expected).abs() < 2e-5 * scale,
                "finite difference of input {input}, value {index}: {found}, not {expected}"
            );
        }
    }
    Ok(())
}

/// A row as a vector.
fn vector<E: Dtype>(row: &Matrix<E, Cpu>) -> Vector<E, Cpu>
where
    Cpu: Device<E>,
{
    row.clone().reshape_like(&(row.shape().1,))
}

fn affine<E: Dtype>(weight: &Matrix<E, Cpu>, bias: &Matrix<E, Cpu>) -> AffineNorm<E, Cpu>
where
    Cpu: Device<E>,
{
    AffineNorm {
        weight: vector(weight),
        bias: vector(bias),
        epsilon: 1e-5,
    }
}

fn as_matrix<E: Dtype>(value: Scalar<E, Cpu>) -> Matrix<E, Cpu>
where
    Cpu: Device<E>,
{
    value.reshape_like(&(1, 1))
}

/// A matrix that is no input.
fn constant<E: Dtype>(shape: (usize, usize)) -> Matrix<E, Cpu>
where
    Cpu: Device<E>,
{
    let values = pattern(shape.0 * shape.1, 77)
        .into_iter()
        .map(|x| E::from_f64(x).unwrap())
        .collect();
    Cpu::default().tensor_from_vec(values, shape)
}

/// A property that compares the same expression with the fused and with the plain operators.
macro_rules! agrees {
    ($name:ident, |$s:ident| $shapes:expr, |$tape:ident, $i:ident| $fused:expr, $plain:expr) => {
        proptest! {
            #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
            #[test]
            fn $name($s in sizes()) {
                check(&$shapes, |$tape, $i| $fused, |$tape, $i| $plain)?;
            }
        }
    };
}

fn device() -> Cpu {
    Cpu::default()
}

agrees!(
    linear,
    |s| [(s.rows(), s.width()), (s.other, s.width()), (1, s.other)],
    |t, i| device().linear(t, &i[0], &i[1], &vector(&i[2])),
    plain::linear(t, &i[0], &i[1], &vector(&i[2]))
);
agrees!(
    linear_rows,
    |s| [(s.rows(), s.width()), (s.other + 5, s.width()), (1, s.other + 5)],
    |t, i| device().linear_rows(t, &i[0], &i[1], &vector(&i[2]), 2..i[1].shape().0 - 1),
    plain::linear_rows(t, &i[0], &i[1], &vector(&i[2]), 2..i[1].shape().0 - 1)
);
agrees!(
    gelu_linear,
    |s| [(s.rows(), s.width()), (s.other, s.width()), (1, s.other)],
    |t, i| device().gelu_linear(t, &i[0], &i[1], &vector(&i[2])),
    {
        let h = plain::gelu_tanh(t, &i[0])?;
        plain::linear(t, &h, &i[1], &vector(&i[2]))
    }
);
agrees!(
    silu_linear,
    |s| [(s.rows(), s.width()), (s.other, s.width()), (1, s.other)],
    |t, i| device().silu_linear(t, &i[0], &i[1], &vector(&i[2])),
    {
        let h = plain::silu(t, &i[0])?;
        plain::linear(t, &h, &i[1], &vector(&i[2]))
    }
);
agrees!(
    silu,
    |s| [(s.rows(), s.width())],
    |t, i| device().silu(t, &i[0]),
    plain::silu(t, &i[0])
);
agrees!(
    gelu_tanh,
    |s| [(s.rows(), s.width())],
    |t, i| device().gelu_tanh(t, &i[0]),
    plain::gelu_tanh(t, &i[0])
);
agrees!(
    add,
    |s| [(s.rows(), s.width()), (s.rows(), s.width())],
    |t, i| device().add(t, &i[0], &i[1]),
    plain::add(t, &i[0], &i[1])
);
agrees!(
    an_operand_used_twice,
    |s| [(s.rows(), s.width())],
    |t, i| {
        let y = device().silu(t, &i[0])?;
        let z = device().add(t, &y, &i[0])?;
        device().add(t, &z, &y)
    },
    {
        let y = plain::silu(t, &i[0])?;
        let z = plain::add(t, &y, &i[0])?;
        plain::add(t, &z, &y)
    }
);
agrees!(
    fused_and_plain_on_one_tape,
    |s| [(s.rows(), s.width())],
    |t, i| {
        let y = device().silu(t, &i[0])?;
        let z = plain::gelu_tanh(t, &y)?;
        device().add(t, &z, &y)
    },
    {
        let y = plain::silu(t, &i[0])?;
        let z = plain::gelu_tanh(t, &y)?;
        plain::add(t, &z, &y)
    }
);

const PARTS: Modulation = Modulation {
    shift: 2,
    scale: 0,
    scale_limit: Some(0.5),
    epsilon: 1e-6,
};

agrees!(
    modulated_layer_norm,
    |s| [(s.rows(), s.width()), (s.batch, 3 * s.width())],
    |t, i| device().modulated_layer_norm(t, &i[0], &i[1], PARTS),
    plain::modulated_layer_norm(t, &i[0], &i[1], PARTS)
);
agrees!(
    modulated_linear,
    |s| [
        (s.rows(), s.width()),
        (s.batch, 3 * s.width()),
        (s.other, s.width()),
        (1, s.other)
    ],
    |t, i| device().modulated_linear(t, &i[0], &i[1], PARTS, &i[2], &vector(&i[3])),
    {
        let normalized = plain::modulated_layer_norm(t, &i[0], &i[1], PARTS)?;
        plain::linear(t, &normalized, &i[2], &vector(&i[3]))
    }
);
agrees!(
    modulated_layer_norm_with_one_row_for_all,
    |s| [(s.rows(), s.width()), (1, 3 * s.width())],
    |t, i| device().modulated_layer_norm(t, &i[0], &i[1], PARTS),
    plain::modulated_layer_norm(t, &i[0], &i[1], PARTS)
);
agrees!(
    plain_layer_norm,
    |s| [(s.rows(), s.width())],
    |t, i| device().plain_layer_norm(t, &i[0], 1e-6),
    plain::plain_layer_norm(t, &i[0], 1e-6)
);
agrees!(
    layer_norm,
    |s| [(s.rows(), s.width()), (1, s.width()), (1, s.width())],
    |t, i| device().layer_norm(t, &i[0], &affine(&i[1], &i[2])),
    plain::layer_norm(t, &i[0], &affine(&i[1], &i[2]))
);
agrees!(
    query_key_norm,
    |s| [
        (s.rows(), 3 * s.width()),
        (1, s.head_width),
        (1, s.head_width),
        (1, s.head_width),
        (1, s.head_width)
    ],
    |t, i| {
        let heads = i[0].shape().1 / 3 / i[1].shape().1;
        device().query_key_norm(t, &i[0], heads, &affine(&i[1], &i[2]), &affine(&i[3], &i[4]))
    },
    {
        let heads = i[0].shape().1 / 3 / i[1].shape().1;
        plain::query_key_norm(t, &i[0], heads, &affine(&i[1], &i[2]), &affine(&i[3], &i[4]))
    }
);
agrees!(
    gated_residual,
    |s| [(s.rows(), s.width()), (s.batch, 4 * s.width()), (s.rows(), s.width())],
    |t, i| device().gated_residual(t, &i[0], &i[1], 1, &i[2]),
    plain::gated_residual(t, &i[0], &i[1], 1, &i[2])
);
// The last input only carries the sizes.
agrees!(
    self_attention,
    |s| [(s.rows(), 3 * s.width()), (s.batch, s.heads)],
    |t, i| {
        let (batch, heads) = *i[1].shape();
        device().self_attention(t, &i[0], batch, heads)
    },
    {
        let (batch, heads) = *i[1].shape();
        plain::self_attention(t, &i[0], batch, heads)
    }
);
agrees!(
    cross_attention,
    |s| [(s.rows(), s.width()), (s.rows(), 2 * s.width()), (s.batch, s.heads)],
    |t, i| {
        let (batch, heads) = *i[2].shape();
        device().cross_attention(t, &i[0], &i[1], batch, heads)
    },
    {
        let (batch, heads) = *i[2].shape();
        plain::cross_attention(t, &i[0], &i[1], batch, heads)
    }
);
agrees!(
    concat,
    |s| [(s.rows(), s.width()), (s.rows(), s.other)],
    |t, i| device().concat(t, &i[0], &i[1]),
    plain::concat(t, &i[0], &i[1])
);
agrees!(
    mean_squared_error,
    |s| [(s.rows(), s.width())],
    |t, i| {
        let target = constant(*i[0].shape());
        device().mean_squared_error(t, &i[0], &target).map(as_matrix)
    },
    {
        let target = constant(*i[0].shape());
        plain::mean_squared_error(t, &i[0], &target).map(as_matrix)
    }
);
agrees!(
    cosine_alignment_loss,
    |s| [(s.rows(), s.width())],
    |t, i| {
        let target = constant(*i[0].shape());
        device().cosine_alignment_loss(t, &i[0], &target).map(as_matrix)
    },
    {
        let target = constant(*i[0].shape());
        plain::cosine_alignment_loss(t, &i[0], &target).map(as_matrix)
    }
);
agrees!(
    embedding,
    |s| [(s.other + 1, s.width())],
    |t, i| {
        let last = i[0].shape().0 - 1;
        device().embedding(t, &i[0], &[last, 0, last])
    },
    {
        let last = i[0].shape().0 - 1;
        plain::embedding(t, &i[0], &[last, 0, last])
    }
);

agrees!(
    add_position,
    |s| [(s.rows(), s.width()), (s.tokens, 1)],
    |t, i| {
        let table = constant((i[1].shape().0, i[0].shape().1));
        device().add_position(t, &i[0], &table)
    },
    {
        let table = constant((i[1].shape().0, i[0].shape().1));
        plain::add_position(t, &i[0], &table)
    }
);
agrees!(
    acceleration_loss,
    |s| [(s.rows(), s.width()), (s.batch, 1)],
    |t, i| {
        let (times, other) = (pattern(i[1].shape().0, 5), constant(*i[0].shape()));
        device()
            .acceleration_loss(t, &other, &other, &i[0], &times)
            .map(as_matrix)
    },
    {
        let (times, other) = (pattern(i[1].shape().0, 5), constant(*i[0].shape()));
        plain::acceleration_loss(t, &other, &other, &i[0], &times).map(as_matrix)
    }
);
