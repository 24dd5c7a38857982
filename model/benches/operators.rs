//! Where the time of a transformer block goes: every CPU operator, forward and backward, at the sizes of DeepFlow-B/2 with
//! batch 4.
//!
//! `cargo bench -p deepflow-model --bench operators`: best of several rounds. An argument after `--` sets the threads.

#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Instant;

use deepflow_model::ops::cpu::attention::{Attention, Projection};
use deepflow_model::ops::cpu::layer_norm::LayerNorm;
use deepflow_model::ops::cpu::linear::LinearShape;
use deepflow_model::ops::cpu::optimizer::{adamw, square_sum};
use deepflow_model::ops::cpu::residual::{gated_residual, gated_residual_backward};
use deepflow_model::ops::cpu::Activation;
use deepflow_model::ops::AdamWStep;

const BATCH: usize = 4;
const TOKENS: usize = 256;
const ROWS: usize = BATCH * TOKENS;
const WIDTH: usize = 768;
const HEADS: usize = 12;
const ROUNDS: usize = 15;

fn values(len: usize) -> Vec<f32> {
    (0..len)
        .map(|index| ((index * 7919) % 2003) as f32 / 1001.5 - 1.0)
        .collect()
}

/// Milliseconds of the best round.
fn best(mut operator: impl FnMut()) -> f64 {
    let round = |_| {
        let started = Instant::now();
        operator();
        started.elapsed().as_secs_f64() * 1e3
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}

/// Prints a row and returns its total.
fn row(name: &str, per_block: f64, forward: f64, backward: f64, work: f64) -> f64 {
    let rate = |time: f64, work: f64| {
        if work > 0.0 {
            format!("{:.0}", work / time)
        } else {
            String::new()
        }
    };
    println!(
        "| {name:32} | {per_block:3} | {forward:8.3} | {:>5} | {backward:8.3} | {:>5} |",
        rate(forward, work * 1e-6),
        rate(backward, 2e-6 * work)
    );
    per_block * (forward + backward)
}

fn linear(name: &str, inputs: usize, outputs: usize, activation: Activation) -> f64 {
    let shape = LinearShape {
        rows: ROWS,
        inputs,
        outputs,
    };
    let (x, weight, bias, dy) = (
        values(ROWS * inputs),
        values(inputs * outputs),
        values(outputs),
        values(ROWS * outputs),
    );
    let (mut dx, mut dweight, mut dbias) = (vec![0.0; x.len()], vec![0.0; weight.len()], vec![0.0; outputs]);
    let forward = best(|| {
        black_box(shape.forward(&x, activation, &weight, &bias));
    });
    let backward = best(|| {
        shape.accumulate_bias_gradient(&dy, &mut dbias);
        shape.accumulate_weight_gradient(&dy, &x, activation, &mut dweight);
        shape.accumulate_input_gradient(&dy, &x, activation, &weight, &mut dx);
    });
    row(name, 1.0, forward, backward, 2.0 * (ROWS * inputs * outputs) as f64)
}

fn attention() -> f64 {
    let head_width = WIDTH / HEADS;
    let attention = Attention {
        batch: BATCH,
        queries: TOKENS,
        keys: TOKENS,
        heads: HEADS,
        head_width,
    };
    let (qkv, dout) = (values(ROWS * 3 * WIDTH), values(ROWS * WIDTH));
    let part = |index| Projection {
        values: &qkv,
        stride: 3 * WIDTH,
        offset: index * WIDTH,
    };
    let (out, normalizers) = attention.forward(part(0), part(1), part(2));
    let mut dqkv = vec![0.0; qkv.len()];
    let forward = best(|| {
        black_box(attention.forward(part(0), part(1), part(2)));
    });
    let backward = best(|| attention.self_backward(&qkv, &out, &normalizers, &dout, &mut dqkv));
    row(
        "self_attention",
        1.0,
        forward,
        backward,
        4.0 * (ROWS * TOKENS * WIDTH) as f64,
    )
}

fn modulated_layer_norm() -> f64 {
    let (x, dy, factor) = (values(ROWS * WIDTH), values(ROWS * WIDTH), values(BATCH * WIDTH));
    let norm = LayerNorm {
        columns: WIDTH,
        rows_per_group: TOKENS,
        factor: &factor,
        offset: &factor,
        epsilon: 1e-6,
    };
    let mut dx = vec![0.0; x.len()];
    let forward = best(|| {
        black_box(norm.forward(&x));
    });
    let backward = best(|| {
        black_box(norm.backward(&x, &dy, &mut dx));
    });
    row("modulated_layer_norm", 2.0, forward, backward, 0.0)
}

fn residual() -> f64 {
    let (x, y, gate) = (values(ROWS * WIDTH), values(ROWS * WIDTH), values(BATCH * WIDTH));
    let mut dy = vec![0.0; y.len()];
    let forward = best(|| {
        black_box(gated_residual(&x, &gate, &y, WIDTH));
    });
    let backward = best(|| {
        black_box(gated_residual_backward(&x, &gate, &y, WIDTH, &mut dy));
    });
    row("gated_residual", 2.0, forward, backward, 0.0)
}

fn update() -> f64 {
    // The weights of one block.
    let len = 18 * WIDTH * WIDTH;
    let (gradient, mut parameter, mut ema) = (values(len), values(len), values(len));
    let (mut first, mut second) = (vec![0.0; len], vec![0.0; len]);
    let step = AdamWStep {
        learning_rate: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
        step: 1,
        gradient_scale: 1.0,
        ema_decay: 0.9999,
    };
    let norm = best(|| {
        black_box(square_sum(&gradient));
    });
    let update = best(|| adamw(&mut parameter, &mut first, &mut second, &mut ema, &gradient, &step));
    row("norm of gradients; AdamW with EMA", 1.0, norm, update, 0.0)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse::<usize>().ok());
    if let Some(threads) = threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    println!("milliseconds and GFLOP/s on {} threads\n", rayon::current_num_threads());
    println!("| operator                         | per block | forward | GFLOP/s | backward | GFLOP/s |");
    println!("|----------------------------------|----:|---------:|------:|---------:|------:|");
    let products = linear("qkv", WIDTH, 3 * WIDTH, Activation::Identity)
        + linear("proj", WIDTH, WIDTH, Activation::Identity)
        + linear("fc1", WIDTH, 4 * WIDTH, Activation::Identity)
        + linear("fc2 of tanh-GELU", 4 * WIDTH, WIDTH, Activation::GeluTanh);
    let attention = attention();
    let others = modulated_layer_norm() + residual();
    let update = update();
    let total = products + attention + others + update;
    let share = |part: f64| 100.0 * part / total;
    println!(
        "\none block's step: {total:.1} ms; linear {:.0} %, attention {:.0} %, norms and residuals {:.0} %, update {:.0} %",
        share(products),
        share(attention),
        share(others),
        share(update)
    );
    Ok(())
}
