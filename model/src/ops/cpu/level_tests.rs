//! The loops that are compiled once for each instruction set, against each other: a CPU runs only its best ones by itself.
#![allow(clippy::unwrap_used)]

use super::attention::{Attention, Projection};
use super::layer_norm::LayerNorm;
use super::loss::ScaledDifference;
use super::optimizer::{adamw, square_sum, Update};
use super::residual::{gated_residual, gated_residual_backward, gated_residual_backward_in_place};
use super::rows::{accumulate_column_sums, add};
use super::simd::{at_level, levels, Level};
use super::Activation;
use crate::ops::AdamWStep;

/// Rounding of a few dozen operations, fused or not, on values of about one.
const TOLERANCE: f32 = 2e-5;

/// Columns that are no whole number of vectors.
const COLUMNS: usize = 77;
const ROWS: usize = 12;

/// Values between -1 and 1, neighbours far apart.
fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 1237 + seed * 104_729 + 13) % 2003) as f32 / 1001.0 - 1.0)
        .collect()
}

type Results = Vec<(&'static str, Vec<f32>)>;

fn activations(results: &mut Results) {
    let x: Vec<f32> = values(ROWS * COLUMNS, 1).iter().map(|x| 4.0 * x).collect();
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let mut gradient = values(x.len(), 2);
        activation.backward(&mut gradient, &x);
        results.extend([("activation", activation.forward(&x)), ("its gradient", gradient)]);
    }
}

fn norms(results: &mut Results) {
    let (x, dy) = (values(ROWS * COLUMNS, 3), values(ROWS * COLUMNS, 4));
    let (factor, offset) = (values(3 * COLUMNS, 5), values(3 * COLUMNS, 6));
    let norm = LayerNorm {
        columns: COLUMNS,
        rows_per_group: ROWS / 3,
        factor: &factor,
        offset: &offset,
        epsilon: 1e-6,
    };
    let mut dx = values(x.len(), 7);
    let gradients = norm.backward(&x, &dy, &mut dx);
    results.extend([
        ("norm", norm.forward(&x)),
        ("its input's gradient", dx),
        ("its factor's gradient", gradients.factor),
        ("its offset's gradient", gradients.offset),
    ]);
}

fn residuals(results: &mut Results) {
    let (x, y, gate) = (
        values(ROWS * COLUMNS, 8),
        values(ROWS * COLUMNS, 9),
        values(3 * COLUMNS, 10),
    );
    let (mut dy, mut dx, mut dout) = (values(x.len(), 11), values(x.len(), 12), x.clone());
    let dgate = gated_residual_backward(&x, &gate, &y, COLUMNS, &mut dy);
    let in_place = gated_residual_backward_in_place(&mut dout, &gate, &y, COLUMNS, &mut dx);
    let mut sums = values(COLUMNS, 13);
    accumulate_column_sums(&x, &mut sums);
    results.extend([
        ("gated residual", gated_residual(&x, &gate, &y, COLUMNS)),
        ("its gate's gradient", dgate),
        ("its update's gradient", dy),
        ("its gate's gradient in place", in_place),
        ("its update's gradient in place", dout),
        ("its input's gradient", dx),
        ("column sums", sums),
        ("sum", add(&x, &y)),
    ]);
}

fn attention(results: &mut Results) {
    let attention = Attention {
        batch: 2,
        queries: 19,
        keys: 19,
        heads: 2,
        head_width: 13,
    };
    let width = 26;
    let qkv = values(2 * 19 * 3 * width, 14);
    let part = |index| Projection {
        values: &qkv,
        stride: 3 * width,
        offset: index * width,
    };
    let (out, normalizers) = attention.forward(part(0), part(1), part(2));
    let dqkv = attention.self_gradient(&qkv, &out, &normalizers, &values(out.len(), 15));
    results.extend([
        ("attention", out),
        ("its normalisers", normalizers),
        ("its gradient", dqkv),
    ]);
}

fn update(results: &mut Results) {
    let mut state: Vec<Vec<f32>> = (16..20).map(|seed| values(COLUMNS, seed)).collect();
    state[2].iter_mut().for_each(|v| *v = v.abs());
    let gradient = values(COLUMNS, 20);
    let [parameter, first_moment, second_moment, ema] = &mut state[..] else {
        unreachable!("four vectors")
    };
    let update = Update {
        parameter,
        first_moment,
        second_moment,
        ema,
        gradient: &gradient,
    };
    let step = AdamWStep {
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step: 3,
        gradient_scale: 0.7,
        ema_decay: 0.9,
    };
    adamw(vec![update], &step);
    results.extend(state.into_iter().map(|values| ("update", values)));
    let squares = square_sum([&gradient[..]]) as f32;
    let error = ScaledDifference { factors: &[0.5] }.mean_square(&gradient, &values(COLUMNS, 21)) as f32;
    results.push(("norm and error", vec![squares, error]));
}

fn results() -> Results {
    let mut results = Results::new();
    for part in [activations, norms, residuals, attention, update] {
        part(&mut results);
    }
    results
}

#[test]
fn every_instruction_set_gives_the_same_within_rounding() {
    let mut levels = levels().into_iter();
    let best = at_level(levels.next().unwrap(), results);
    for level in levels {
        for ((what, expected), (_, found)) in best.iter().zip(at_level(level, results)) {
            for (index, (expected, found)) in expected.iter().zip(&found).enumerate() {
                let error = (expected - found).abs() / expected.abs().max(1.0);
                assert!(
                    error <= TOLERANCE,
                    "{level:?}, {what}: value {index} is {found}, not {expected}"
                );
            }
            if level != Level::Portable {
                assert!(
                    *expected == found,
                    "{level:?}, {what}: other bits, with the same operations"
                );
            }
        }
    }
}
