//! Where the time of a training step goes: every CPU operator, forward and backward, at the sizes of DeepFlow-B/2-2T with
//! batch 4, beside the rate of one large product in the same run.
//!
//! `cargo bench -p deepflow-model --bench operators`: best of several rounds. An argument after `--` sets the threads.

#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Instant;

use deepflow_model::ops::cpu::attention::{Attention, Projection};
use deepflow_model::ops::cpu::gemm::{gemm, kernel_name, Epilogue, MatrixMut, MatrixRef};
use deepflow_model::ops::cpu::layer_norm::LayerNorm;
use deepflow_model::ops::cpu::linear::LinearShape;
use deepflow_model::ops::cpu::optimizer::{adamw, square_sum, Update};
use deepflow_model::ops::cpu::residual::{gated_residual, gated_residual_backward};
use deepflow_model::ops::cpu::Activation;
use deepflow_model::ops::AdamWStep;

const BATCH: usize = 4;
const TOKENS: usize = 256;
const ROWS: usize = BATCH * TOKENS;
const WIDTH: usize = 768;
const HEADS: usize = 12;
const BLOCKS: usize = 12;
/// `acceleration_width`
const ACCELERATION: usize = 2048;
const PARAMETERS: usize = 166_201_392;
const ROUNDS: usize = 9;
/// Rows and columns of the product whose rate is the measure of the others.
const PEAK_SIZE: usize = 1536;

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

/// One operator of the step.
struct Row {
    name: String,
    /// How often a step runs it.
    count: usize,
    forward: f64,
    backward: f64,
    /// Operations of the forward pass; the backward pass has twice as many.
    work: f64,
}

impl Row {
    /// Milliseconds of a step.
    fn total(&self) -> f64 {
        self.count as f64 * (self.forward + self.backward)
    }

    fn print(&self, step: f64, peak: f64) {
        let rate = |milliseconds: f64, work: f64| {
            if work == 0.0 {
                return String::new();
            }
            let rate = 1e-6 * work / milliseconds;
            format!("{rate:.0} ({:.0} %)", 100.0 * rate / peak)
        };
        println!(
            "| {} | {} | {:.2} | {} | {:.2} | {} | {:.1} % |",
            self.name,
            self.count,
            self.forward,
            rate(self.forward, self.work),
            self.backward,
            rate(self.backward, 2.0 * self.work),
            100.0 * self.total() / step
        );
    }
}

/// GFLOP/s of a large square product.
fn peak() -> f64 {
    let n = PEAK_SIZE;
    let (a, b, mut c) = (values(n * n), values(n * n), vec![0.0; n * n]);
    let milliseconds = best(|| {
        let (a, b) = (MatrixRef::row_major(&a, n, n), MatrixRef::row_major(&b, n, n));
        gemm(a, b, MatrixMut::row_major(&mut c, n, n), false, Epilogue::None);
    });
    2e-6 * (n * n * n) as f64 / milliseconds
}

fn linear(name: &str, count: usize, rows: usize, (inputs, outputs): (usize, usize), activation: Activation) -> Row {
    let shape = LinearShape { rows, inputs, outputs };
    let (x, weight, bias, dy) = (
        values(rows * inputs),
        values(inputs * outputs),
        values(outputs),
        values(rows * outputs),
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
    Row {
        name: format!("{name}, {inputs} → {outputs}"),
        count,
        forward,
        backward,
        work: 2.0 * (rows * inputs * outputs) as f64,
    }
}

fn attention() -> Row {
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
    Row {
        name: "attention of self and across spaces".into(),
        count: BLOCKS + 1,
        forward,
        backward,
        work: 4.0 * (ROWS * TOKENS * WIDTH) as f64,
    }
}

fn modulated_layer_norm() -> Row {
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
    // The norm in front of a linear layer is computed again for the weight's gradient.
    let backward = best(|| {
        black_box(norm.forward(&x));
        black_box(norm.backward(&x, &dy, &mut dx));
    });
    Row {
        name: "modulated and affine norms".into(),
        count: 2 * BLOCKS + 7,
        forward,
        backward,
        work: 0.0,
    }
}

fn residual() -> Row {
    let (x, y, gate) = (values(ROWS * WIDTH), values(ROWS * WIDTH), values(BATCH * WIDTH));
    let mut dy = vec![0.0; y.len()];
    let forward = best(|| {
        black_box(gated_residual(&x, &gate, &y, WIDTH));
    });
    let backward = best(|| {
        black_box(gated_residual_backward(&x, &gate, &y, WIDTH, &mut dy));
    });
    Row {
        name: "gated residuals".into(),
        count: 2 * BLOCKS,
        forward,
        backward,
        work: 0.0,
    }
}

fn update() -> Row {
    let len = PARAMETERS / BLOCKS;
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
        black_box(square_sum([gradient.as_slice()]));
    });
    let update = best(|| {
        let update = Update {
            parameter: &mut parameter,
            first_moment: &mut first,
            second_moment: &mut second,
            ema: &mut ema,
            gradient: &gradient,
        };
        adamw(vec![update], &step);
    });
    Row {
        name: "norm of the gradient; AdamW with average".into(),
        count: BLOCKS,
        forward: norm,
        backward: update,
        work: 0.0,
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse::<usize>().ok());
    if let Some(threads) = threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let (identity, gelu, silu) = (Activation::Identity, Activation::GeluTanh, Activation::Silu);
    let peak = peak();
    let rows = [
        linear("qkv", BLOCKS, ROWS, (WIDTH, 3 * WIDTH), identity),
        linear("proj", BLOCKS, ROWS, (WIDTH, WIDTH), identity),
        linear("fc1", BLOCKS, ROWS, (WIDTH, 4 * WIDTH), identity),
        linear("fc2 of tanh-GELU", BLOCKS, ROWS, (4 * WIDTH, WIDTH), gelu),
        linear("modulation", BLOCKS, BATCH, (WIDTH, 6 * WIDTH), identity),
        linear("acc_mlp.0", 1, ROWS, (WIDTH, ACCELERATION), identity),
        linear("acc_mlp.2 of SiLU", 1, ROWS, (ACCELERATION, 2 * ACCELERATION), silu),
        linear("acc_mlp.4 of SiLU", 1, ROWS, (2 * ACCELERATION, ACCELERATION), silu),
        linear("acc_mlp.6 of SiLU", 1, ROWS, (ACCELERATION, WIDTH), silu),
        linear("acc_norm.mlp.fc1", 1, ROWS, (2 * WIDTH, 2 * WIDTH), identity),
        linear("acc_norm.mlp.fc2 of tanh-GELU", 1, ROWS, (2 * WIDTH, WIDTH), gelu),
        linear("q and out_proj across spaces", 2, ROWS, (WIDTH, WIDTH), identity),
        linear("kv across spaces", 1, ROWS, (WIDTH, 2 * WIDTH), identity),
        attention(),
        modulated_layer_norm(),
        residual(),
        update(),
    ];
    let step: f64 = rows.iter().map(Row::total).sum();
    println!(
        "{} kernel, {} threads; a product of {PEAK_SIZE}³: {peak:.0} GFLOP/s, the measure of the percentages\n",
        kernel_name(),
        rayon::current_num_threads()
    );
    println!("| operator | times | forward ms | GFLOP/s | backward ms | GFLOP/s | of the step |");
    println!("|----------|------:|-----------:|--------:|------------:|--------:|------------:|");
    for row in &rows {
        row.print(step, peak);
    }
    println!("\nall of them: {:.2} s a step", step / 1e3);
    Ok(())
}
