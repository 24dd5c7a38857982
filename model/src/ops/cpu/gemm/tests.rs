#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::driver::{multiply, Right};
use super::*;
use crate::ops::cpu::activation::Activation;

/// Values in [-1, 1) from a linear congruential generator.
fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

/// The product in f64, value by value.
#[allow(clippy::too_many_arguments)]
fn reference(
    a: &[f32],
    b: &[f32],
    c: &[f32],
    (m, n, k): (usize, usize, usize),
    (a_transposed, b_transposed): (bool, bool),
    accumulate: bool,
    input: Activation,
) -> Vec<f64> {
    let mut result = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            let mut sum = if accumulate { f64::from(c[i * n + j]) } else { 0.0 };
            for l in 0..k {
                let a = if a_transposed { a[l * m + i] } else { a[i * k + l] };
                let b = if b_transposed { b[j * k + l] } else { b[l * n + j] };
                sum += activate(input, f64::from(a)) * f64::from(b);
            }
            result[i * n + j] = sum;
        }
    }
    result
}

fn view(data: &[f32], rows: usize, columns: usize, transposed: bool) -> MatrixRef<'_> {
    if transposed {
        MatrixRef::row_major(data, columns, rows).transposed()
    } else {
        MatrixRef::row_major(data, rows, columns)
    }
}

fn assert_close(found: &[f32], expected: &[f64], k: usize, what: &str) {
    // Rounding of a random walk of `k` steps; a misplaced value would be off by a tenth and more.
    let tolerance = 3e-6 * (k as f64).sqrt() + 2e-6;
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs();
        assert!(error <= tolerance, "{what}: value {index} is {found}, not {expected}");
    }
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0usize..70,
        2 => prop::sample::select(vec![1, 8, 16, 47, 48, 49, 97, 127, 128, 129, 191, 193]),
        1 => prop::sample::select(vec![255, 256, 257, 389, 513]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_kernel_agrees_with_the_definition(
        m in size(), n in size(), k in size(),
        a_transposed: bool, b_transposed: bool, accumulate: bool, seed in 0u64..1000,
    ) {
        let (a, b, c) = (values(m * k, seed), values(k * n, seed + 1), values(m * n, seed + 2));
        let transposed = (a_transposed, b_transposed);
        for input in [Activation::Identity, Activation::GeluTanh] {
            let expected = reference(&a, &b, &c, (m, n, k), transposed, accumulate, input);
            let left = Operand::activated(view(&a, m, k, a_transposed), input);
            let right = view(&b, k, n, b_transposed);
            for kernel in Kernel::available() {
                let mut found = c.clone();
                let target = MatrixMut::row_major(&mut found, m, n);
                multiply(kernel, left, Right::Matrix(right.into()), target, accumulate, Epilogue::None, Threads::All);
                assert_close(&found, &expected, k, kernel.name);

                let packed = PackedMatrix::for_kernel(right.into(), kernel, Threads::All, Scratch::owned);
                let mut again = c.clone();
                let target = MatrixMut::row_major(&mut again, m, n);
                multiply(kernel, left, Right::Packed(packed.panels()), target, accumulate, Epilogue::None, Threads::All);
                prop_assert_eq!(&found, &again, "packing ahead changed the result of {}", kernel.name);
            }
        }
    }

    #[test]
    fn epilogues_follow_the_complete_sum(
        m in size(), n in 1usize..100, k in size(), accumulate: bool, seed in 0u64..1000,
    ) {
        let (a, b, c) = (values(m * k, seed), values(k * n, seed + 1), values(m * n, seed + 2));
        let (bias, input) = (values(n, seed + 3), values(m * n, seed + 4));
        let sum = reference(&a, &b, &c, (m, n, k), (false, false), accumulate, Activation::Identity);
        for activation in [Activation::Identity, Activation::Silu, Activation::GeluTanh] {
            let mut found = c.clone();
            let (left, right) = (view(&a, m, k, false), view(&b, k, n, false));
            let target = MatrixMut::row_major(&mut found, m, n);
            gemm(left, right, target, accumulate, Epilogue::Bias { bias: &bias, activation });
            let expected: Vec<f64> = (0..m * n)
                .map(|i| activate(activation, sum[i] + f64::from(bias[i % n])))
                .collect();
            assert_close(&found, &expected, k, "bias and activation");

            let mut found = c.clone();
            let target = MatrixMut::row_major(&mut found, m, n);
            gemm(left, right, target, accumulate, Epilogue::ActivationGradient { activation, input: &input });
            let expected: Vec<f64> = (0..m * n)
                .map(|i| {
                    let (x, h) = (f64::from(input[i]), 1e-5);
                    let slope = (activate(activation, x + h) - activate(activation, x - h)) / (2.0 * h);
                    sum[i] * slope
                })
                .collect();
            assert_close(&found, &expected, k, "activation gradient");
        }
    }
}

#[test]
fn strided_views_touch_nothing_between_their_rows() {
    let (m, n, k) = (13, 21, 300);
    let wide = values(m * (k + 5), 1);
    let b = values(k * n, 2);
    let narrow: Vec<f32> = wide
        .chunks(k + 5)
        .flat_map(|row| row[2..2 + k].iter().copied())
        .collect();
    let expected = reference(&narrow, &b, &[], (m, n, k), (false, false), false, Activation::Identity);
    let mut c = vec![7.0; m * (n + 3)];
    let left = MatrixRef::with_row_stride(&wide[2..], m, k, k + 5);
    let target = MatrixMut::with_row_stride(&mut c, m, n, n + 3);
    gemm(left, MatrixRef::row_major(&b, k, n), target, false, Epilogue::None);
    for (row, expected) in c.chunks(n + 3).zip(expected.chunks(n)) {
        assert_close(&row[..n], expected, k, "strided");
        assert_eq!(row[n..], [7.0; 3]);
    }
}

/// The same values with the rows `stride` apart.
fn spread(values: &[f32], columns: usize, stride: usize) -> Vec<f32> {
    let mut wide = vec![9.0; values.len() / columns * stride];
    for (wide, row) in wide.chunks_mut(stride).zip(values.chunks(columns)) {
        wide[..columns].copy_from_slice(row);
    }
    wide
}

#[test]
fn factors_that_are_packed_and_factors_that_stay_give_the_same_bits() {
    // Rows this far apart are packed, neighbouring ones are read where they lie.
    const STRIDE: usize = 2048;
    for (m, n, k) in [(70, 96, 300), (8, 48, 256), (33, 32, 257), (1, 16, 1), (129, 400, 20)] {
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        for (a_transposed, b_transposed) in [(false, false), (true, false), (false, true), (true, true)] {
            let (a_columns, b_columns) = (if a_transposed { m } else { k }, if b_transposed { k } else { n });
            let (far_a, far_b) = (spread(&a, a_columns, STRIDE), spread(&b, b_columns, STRIDE));
            let far = |data, rows, columns, transposed: bool| {
                if transposed {
                    MatrixRef::with_row_stride(data, columns, rows, STRIDE).transposed()
                } else {
                    MatrixRef::with_row_stride(data, rows, columns, STRIDE)
                }
            };
            let lefts = [view(&a, m, k, a_transposed), far(&far_a, m, k, a_transposed)];
            let rights = [view(&b, k, n, b_transposed), far(&far_b, k, n, b_transposed)];
            for kernel in Kernel::available() {
                let results = lefts
                    .iter()
                    .flat_map(|left| rights.iter().map(move |right| (*left, *right)));
                let mut results = results.map(|(left, right)| {
                    let mut c = vec![0.0; m * n];
                    let target = MatrixMut::row_major(&mut c, m, n);
                    let right = Right::Matrix(right.into());
                    multiply(kernel, left.into(), right, target, false, Epilogue::None, Threads::All);
                    c
                });
                let first = results.next().unwrap();
                let expected = reference(
                    &a,
                    &b,
                    &[],
                    (m, n, k),
                    (a_transposed, b_transposed),
                    false,
                    Activation::Identity,
                );
                assert_close(&first, &expected, k, kernel.name);
                assert!(results.all(|other| other == first), "{m}x{n}x{k} with {}", kernel.name);
            }
        }
    }
}

fn product(m: usize, n: usize, k: usize) -> Vec<f32> {
    let (a, b) = (values(m * k, 3), values(k * n, 4));
    let mut c = vec![0.0; m * n];
    let target = MatrixMut::row_major(&mut c, m, n);
    gemm(
        view(&a, m, k, true),
        view(&b, k, n, true),
        target,
        false,
        Epilogue::None,
    );
    c
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for (m, n, k) in [(1, 1000, 700), (131, 257, 1031), (1000, 96, 300), (400, 500, 9000)] {
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let alone = pool(1).install(|| product(m, n, k));
        for threads in [2, 3, 8] {
            let together = pool(threads).install(|| product(m, n, k));
            assert!(alone == together, "{m}x{n}x{k} differs with {threads} threads");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    let (n, k) = (200, 777);
    let (a, b) = (values(300 * k, 5), values(k * n, 6));
    let rows = |m: usize| {
        let mut c = vec![0.0; m * n];
        let target = MatrixMut::row_major(&mut c, m, n);
        gemm(
            view(&a, m, k, false),
            view(&b, k, n, true),
            target,
            false,
            Epilogue::None,
        );
        c
    };
    let all = rows(300);
    for m in [1, 2, 7, 8, 9, 150] {
        assert!(all[..m * n] == rows(m), "{m} rows differ from the first of 300");
    }
}

#[test]
fn nested_and_concurrent_calls_finish_and_agree() {
    let expected = product(200, 300, 400);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                pool.install(|| {
                    (0..12).into_par_iter().for_each(|_| {
                        let (left, right) = rayon::join(|| product(200, 300, 400), || product(200, 300, 400));
                        assert!(left == expected && right == expected);
                    });
                });
            });
        }
    });
}

#[test]
fn a_batch_is_its_products() {
    let (batch, m, n, k) = (5, 37, 50, 19);
    let (a, b) = (values(batch * m * k, 7), values(batch * k * n, 8));
    let packed: Vec<PackedMatrix> = b
        .chunks(k * n)
        .map(|b| PackedMatrix::new(MatrixRef::row_major(b, k, n)))
        .collect();
    let mut c = vec![0.0; batch * m * n];
    gemm_packed_batch(&a, &packed, &mut c, m);
    for index in 0..batch {
        let (a, b) = (&a[index * m * k..][..m * k], &b[index * k * n..][..k * n]);
        let expected = reference(a, b, &[], (m, n, k), (false, false), false, Activation::Identity);
        assert_close(&c[index * m * n..][..m * n], &expected, k, "batch");
    }
}

#[test]
#[should_panic(expected = "product of 2x3 and 4x5 into 2x5")]
fn sizes_that_do_not_fit_are_named() {
    let mut c = [0.0; 10];
    let (left, right) = (
        MatrixRef::row_major(&[0.0; 6], 2, 3),
        MatrixRef::row_major(&[0.0; 20], 4, 5),
    );
    gemm(left, right, MatrixMut::row_major(&mut c, 2, 5), false, Epilogue::None);
}
