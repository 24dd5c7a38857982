//! Every fused operator against its plain version in f64 (values within 1e-5, gradients within 5e-5), and the plain version's
//! gradients against finite differences.

#![allow(clippy::unwrap_used)]

use dfdx::prelude::*;
use proptest::prelude::{prop, prop_assert, proptest, ProptestConfig, Strategy};
use proptest::test_runner::TestCaseError;

use super::super::plain::record::record;
use super::ROWS_TOGETHER;
use crate::ops::{
    plain, AdamWStep, AffineNorm, AttentionWeights, GatedModulation, LinearMap, Matrix, Modulation, Operators,
    ParameterState, Scalar, Vector,
};

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

/// Fixed values between -1 and 1 that look random. Neighbours lie far apart: a norm divides by the deviation of a row, and
/// the rounding of f32 would be all that is left of a row of two nearly equal values.
fn pattern(len: usize, seed: usize) -> Vec<f64> {
    (0..len)
        .map(|i| ((i * 1237 + seed * 104_729 + 13) % 2003) as f64 / 1001.0 - 1.0)
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
        // A row of a few values amplifies the rounding of f32 by one over their deviation.
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
fn linear_map<E: Dtype>(weight: &Matrix<E, Cpu>, bias: &Matrix<E, Cpu>) -> LinearMap<E, Cpu>
where
    Cpu: Device<E>,
{
    LinearMap {
        weight: weight.clone(),
        bias: vector(bias),
    }
}

/// The plain operators of a branch, one after the other.
fn plain_mlp<E: Dtype, T: Tape<E, Cpu>>(
    t: &mut T,
    i: &[Matrix<E, Cpu>],
    parts: Modulation,
) -> Result<Matrix<E, Cpu>, CpuError>
where
    Cpu: Device<E>,
{
    let normalized = plain::modulated_layer_norm(t, &i[0], &i[1], parts)?;
    let hidden = plain::linear(t, &normalized, &i[2], &vector(&i[3]))?;
    let hidden = plain::gelu_tanh(t, &hidden)?;
    plain::linear(t, &hidden, &i[4], &vector(&i[5]))
}

const GATED: GatedModulation = GatedModulation { norm: PARTS, gate: 1 };

agrees!(
    modulated_mlp,
    |s| [
        (s.rows(), s.width()),
        (s.batch, 3 * s.width()),
        (s.other, s.width()),
        (1, s.other),
        (s.tokens, s.other),
        (1, s.tokens)
    ],
    |t, i| {
        let layers = [&linear_map(&i[2], &i[3]), &linear_map(&i[4], &i[5])];
        device().modulated_mlp(t, &i[0], &i[1], PARTS, layers)
    },
    plain_mlp(t, i, PARTS)
);
agrees!(
    mlp_branch,
    |s| [
        (s.rows(), s.width()),
        (s.batch, 3 * s.width()),
        (s.other, s.width()),
        (1, s.other),
        (s.width(), s.other),
        (1, s.width())
    ],
    |t, i| {
        let layers = [&linear_map(&i[2], &i[3]), &linear_map(&i[4], &i[5])];
        device().mlp_branch(t, &i[0], &i[1], GATED, layers)
    },
    {
        let update = plain_mlp(t, i, PARTS)?;
        plain::gated_residual(t, &i[0], &i[1], 1, &update)
    }
);
// The last input only carries the sizes.
agrees!(
    attention_branch,
    |s| [
        (s.rows(), s.width()),
        (s.batch, 3 * s.width()),
        (3 * s.width(), s.width()),
        (1, 3 * s.width()),
        (s.width(), s.width()),
        (1, s.width()),
        (1, s.heads)
    ],
    |t, i| {
        let weights = AttentionWeights {
            qkv: linear_map(&i[2], &i[3]),
            head_norms: None,
            proj: linear_map(&i[4], &i[5]),
            heads: i[6].shape().1,
        };
        device().attention_branch(t, &i[0], &i[1], GATED, &weights)
    },
    {
        let normalized = plain::modulated_layer_norm(t, &i[0], &i[1], PARTS)?;
        let qkv = plain::linear(t, &normalized, &i[2], &vector(&i[3]))?;
        let mixed = plain::self_attention(t, &qkv, i[1].shape().0, i[6].shape().1)?;
        let update = plain::linear(t, &mixed, &i[4], &vector(&i[5]))?;
        plain::gated_residual(t, &i[0], &i[1], 1, &update)
    }
);
agrees!(
    silu_layers,
    |s| [
        (s.rows(), s.width()),
        (s.other, s.width()),
        (1, s.other),
        (s.tokens, s.other),
        (1, s.tokens),
        (s.heads, s.tokens),
        (1, s.heads)
    ],
    |t, i| {
        let layers = [1, 3, 5].map(|layer| linear_map(&i[layer], &i[layer + 1]));
        device().silu_layers(t, &i[0], &layers)
    },
    {
        let hidden = plain::linear(t, &i[0], &i[1], &vector(&i[2]))?;
        let hidden = plain::silu(t, &hidden)?;
        let hidden = plain::linear(t, &hidden, &i[3], &vector(&i[4]))?;
        let hidden = plain::silu(t, &hidden)?;
        plain::linear(t, &hidden, &i[5], &vector(&i[6]))
    }
);

/// Without a tape, rows go through the layers of an MLP in parts.
#[test]
fn parts_of_rows_give_the_same_bits() {
    let (rows, width, hidden) = (ROWS_TOGETHER * 2 + 76, 6, 11);
    let row = |len| constant::<f32>((1, len));
    let layers = [
        linear_map(&constant((hidden, width)), &row(hidden)),
        linear_map(&constant((width, hidden)), &row(width)),
    ];
    let (x, modulation) = (constant((rows, width)), constant((rows / 5, 3 * width)));
    let (none, mut tape) = (&mut NoneTape, OwnedTape::default());
    let device = device();
    let in_parts = device.silu_layers(none, &x, &layers).unwrap();
    let whole = device.silu_layers(&mut tape, &x, &layers).unwrap();
    assert_eq!(in_parts.as_vec(), whole.as_vec());
    let both = [&layers[0], &layers[1]];
    let in_parts = device.mlp_branch(none, &x, &modulation, GATED, both).unwrap();
    let whole = device.mlp_branch(&mut tape, &x, &modulation, GATED, both).unwrap();
    assert_eq!(in_parts.as_vec(), whole.as_vec());
}

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

/// Parameter, first moment, second moment and moving average.
type State<E> = [Vector<E, Cpu>; 4];

/// The global norm's square and all parameters after `steps` clipped updates.
fn updated<E: Dtype>(
    sizes: &[usize],
    steps: u64,
    write: impl Fn(&mut Gradients<E, Cpu>, &Vector<E, Cpu>, Vec<f64>),
    square_sum: impl Fn(&mut Gradients<E, Cpu>, &[&Vector<E, Cpu>]) -> Result<f64, CpuError>,
    adamw: impl Fn(&mut Gradients<E, Cpu>, Vec<ParameterState<'_, E, Cpu>>, &AdamWStep) -> Result<(), CpuError>,
) -> (f64, Vec<State<E>>)
where
    Cpu: Device<E>,
{
    let tensor = |values: Vec<f64>| -> Vector<E, Cpu> {
        let values: Vec<E> = values.into_iter().map(|x| E::from_f64(x).unwrap()).collect();
        let len = values.len();
        device().tensor_from_vec(values, (len,))
    };
    let mut states: Vec<State<E>> = sizes
        .iter()
        .enumerate()
        .map(|(index, &size)| {
            let squares = pattern(size, index + 20).into_iter().map(|x| 0.1 * x * x).collect();
            [
                tensor(pattern(size, index)),
                tensor(pattern(size, index + 10)),
                tensor(squares),
                tensor(pattern(size, index + 30)),
            ]
        })
        .collect();
    let mut squares = 0.0;
    for step in 1..=steps {
        let mut gradients = Gradients::leaky();
        for (index, state) in states.iter().enumerate() {
            let values = pattern(state[0].shape().0, index + 40 + step as usize);
            write(&mut gradients, &state[0], values);
        }
        let parameters: Vec<_> = states.iter().map(|state| &state[0]).collect();
        squares = square_sum(&mut gradients, &parameters).unwrap();
        let rates = AdamWStep {
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            weight_decay: 0.1,
            step,
            gradient_scale: (1.0 / (squares.sqrt() + 1e-6)).min(1.0),
            ema_decay: 0.9,
        };
        let of_all = states
            .iter_mut()
            .map(|[parameter, first_moment, second_moment, ema]| ParameterState {
                parameter,
                first_moment,
                second_moment,
                ema,
            })
            .collect();
        adamw(&mut gradients, of_all, &rates).unwrap();
    }
    (squares, states)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    /// Many small parameters beside one that is cut into tasks.
    #[test]
    fn one_pass_over_all_parameters(mut sizes in prop::collection::vec(1usize..70, 0..9), large in 16_000usize..70_000) {
        sizes.push(large);
        let (found_squares, found) = updated::<f32>(
            &sizes,
            3,
            |gradients, of, values| {
                let slot = gradients.get_or_alloc_mut(of).unwrap();
                slot.iter_mut().zip(values).for_each(|(slot, value)| *slot = value as f32);
            },
            |gradients, parameters| device().global_square_sum(gradients, parameters),
            |gradients, states, step| device().adamw_of_all(gradients, states, step),
        );
        let (squares, expected) = updated::<f64>(
            &sizes,
            3,
            |gradients, of, values| gradients.get_or_alloc_mut(of).unwrap().copy_from_slice(&values),
            |gradients, parameters| {
                let of_one = |parameter: &&Vector<f64, Cpu>| plain::gradient_square_sum(&device(), gradients, parameter);
                parameters.iter().map(of_one).sum()
            },
            |gradients, states, step| states.into_iter().try_for_each(|state| plain::adamw(gradients, state, step)),
        );
        prop_assert!((found_squares - squares).abs() <= 1e-6 * squares, "{found_squares}, not {squares}");
        for (found, expected) in found.iter().zip(&expected) {
            for (part, (found, expected)) in found.iter().zip(expected).enumerate() {
                let found: Vec<f64> = found.as_vec().into_iter().map(f64::from).collect();
                check_close(&format!("part {part}"), &found, &expected.as_vec(), 1e-5)?;
            }
        }
    }
}
