//! Our matrix product beside the crates `gemm` and `matrixmultiply`, in turn, on the products of the networks.
//!
//! `cargo bench -p deepflow-model --bench gemm`: GFLOP/s of the best of several rounds. An argument after `--` sets the
//! threads (for `matrixmultiply` the environment variable `MATMUL_NUM_THREADS`).

#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Instant;

use deepflow_model::ops::cpu::gemm::{self, Epilogue, MatrixMut, MatrixRef};

/// Time given to a product and contender, in seconds.
const BUDGET: f64 = 0.25;

/// Which product of a linear layer: its forward pass, the gradient of its input, or of its weight.
#[derive(Clone, Copy)]
enum Pass {
    /// `x·weightᵀ`
    Forward,
    /// `dy·weight`
    InputGradient,
    /// `dyᵀ·x`
    WeightGradient,
}

/// `c (m,n) = a (m,k) · b (k,n)`, with the strides (row, column) of both factors.
struct Product {
    m: usize,
    n: usize,
    k: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    a_strides: (usize, usize),
    b_strides: (usize, usize),
    c: Vec<f32>,
}

impl Product {
    fn of_layer(rows: usize, inputs: usize, outputs: usize, pass: Pass) -> Self {
        let (x, dy) = (values(rows * inputs), values(rows * outputs));
        let weight = values(outputs * inputs);
        let (m, n, k, a, b, a_strides, b_strides) = match pass {
            Pass::Forward => (rows, outputs, inputs, x, weight, (inputs, 1), (1, inputs)),
            Pass::InputGradient => (rows, inputs, outputs, dy, weight, (outputs, 1), (inputs, 1)),
            Pass::WeightGradient => (outputs, inputs, rows, dy, x, (1, outputs), (inputs, 1)),
        };
        Self {
            c: vec![0.0; m * n],
            m,
            n,
            k,
            a,
            b,
            a_strides,
            b_strides,
        }
    }

    fn ours(&mut self) {
        let view = |data, rows, columns, (row_stride, _): (usize, usize)| {
            if row_stride == 1 {
                MatrixRef::row_major(data, columns, rows).transposed()
            } else {
                MatrixRef::row_major(data, rows, columns)
            }
        };
        gemm::gemm(
            view(&self.a, self.m, self.k, self.a_strides),
            view(&self.b, self.k, self.n, self.b_strides),
            MatrixMut::row_major(&mut self.c, self.m, self.n),
            false,
            Epilogue::None,
        );
    }

    fn gemm_crate(&mut self) {
        let ((a_row, a_column), (b_row, b_column)) = (self.a_strides, self.b_strides);
        // SAFETY: the vectors hold the matrices that sizes and strides describe.
        unsafe {
            ::gemm::gemm(
                self.m,
                self.n,
                self.k,
                self.c.as_mut_ptr(),
                1,
                self.n as isize,
                false,
                self.a.as_ptr(),
                a_column as isize,
                a_row as isize,
                self.b.as_ptr(),
                b_column as isize,
                b_row as isize,
                0.0,
                1.0,
                false,
                false,
                false,
                ::gemm::Parallelism::Rayon(0),
            );
        }
    }

    fn matrixmultiply(&mut self) {
        let ((a_row, a_column), (b_row, b_column)) = (self.a_strides, self.b_strides);
        // SAFETY: as above.
        unsafe {
            matrixmultiply::sgemm(
                self.m,
                self.k,
                self.n,
                1.0,
                self.a.as_ptr(),
                a_row as isize,
                a_column as isize,
                self.b.as_ptr(),
                b_row as isize,
                b_column as isize,
                0.0,
                self.c.as_mut_ptr(),
                self.n as isize,
                1,
            );
        }
    }

    /// GFLOP/s of ours, `gemm` and `matrixmultiply`.
    fn compare(&mut self) -> [f64; 3] {
        let contenders = [Self::ours, Self::gemm_crate, Self::matrixmultiply];
        let work = 2e-9 * (self.m * self.n * self.k) as f64;
        let rounds = (BUDGET * 80.0 / work).clamp(4.0, 400.0) as usize;
        let mut best = [f64::INFINITY; 3];
        for _ in 0..rounds {
            for (contender, best) in contenders.iter().zip(&mut best) {
                let started = Instant::now();
                contender(self);
                *best = best.min(started.elapsed().as_secs_f64());
                black_box(&self.c);
            }
        }
        best.map(|seconds| work / seconds)
    }
}

fn values(len: usize) -> Vec<f32> {
    (0..len)
        .map(|index| ((index * 7919) % 2003) as f32 / 1001.5 - 1.0)
        .collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse::<usize>().ok());
    if let Some(threads) = threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    // What, then rows of the batch, inputs and outputs.
    let layers = [
        ("B/2, qkv", 1024, 768, 2304),
        ("B/2, proj", 1024, 768, 768),
        ("B/2, fc1", 1024, 768, 3072),
        ("B/2, fc2", 1024, 3072, 768),
        ("B/2, acc_mlp.2", 1024, 2048, 4096),
        ("B/2, modulation", 4, 768, 4608),
        ("S/2, qkv", 1024, 384, 1152),
        ("S/2, fc2", 1024, 1536, 384),
        ("XL/2 batch 1, fc1", 256, 1152, 4608),
        ("XL/2 batch 1, fc2", 256, 4608, 1152),
        ("study, qkv", 1024, 128, 384),
        ("study, fc2", 1024, 512, 128),
        ("tiny, proj", 512, 128, 128),
    ];
    println!(
        "GFLOP/s with the {} kernel on {} threads\n",
        gemm::kernel_name(),
        rayon::current_num_threads()
    );
    println!("| product | m × n × k | ours | gemm | matrixmultiply | ours / best crate |");
    println!("|---------|-----------|-----:|-----:|---------------:|------------------:|");
    for (name, rows, inputs, outputs) in layers {
        let passes = [
            ("forward", Pass::Forward),
            ("input gradient", Pass::InputGradient),
            ("weight gradient", Pass::WeightGradient),
        ];
        for (pass_name, pass) in passes {
            let mut product = Product::of_layer(rows, inputs, outputs, pass);
            let [ours, gemm, matrixmultiply] = product.compare();
            println!(
                "| {name}, {pass_name} | {} × {} × {} | {ours:.0} | {gemm:.0} | {matrixmultiply:.0} | {:.2} |",
                product.m,
                product.n,
                product.k,
                ours / gemm.max(matrixmultiply)
            );
        }
    }
    Ok(())
}
