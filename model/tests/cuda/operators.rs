//! Every operator of the network.

use deepflow_model::ops::{AffineNorm, Modulation, Operators};

use crate::compare;
use crate::emulation::device;

/// (samples, tokens, width): one element, less than a warp, more than a tile, nothing a power of two.
const SHAPES: [(usize, usize, usize); 5] = [(1, 1, 4), (2, 3, 8), (3, 7, 33), (2, 37, 72), (1, 16, 130)];

#[test]
fn linear() {
    let Some(cuda) = device() else { return };
    for (rows, inner, columns) in [(1, 1, 1), (3, 5, 7), (33, 17, 65), (150, 12, 40)] {
        let case = format!("linear {rows}×{inner}→{columns}");
        check!(cuda, case, |device, tape| [x: (rows, inner), weight: (columns, inner), bias: (columns,)]
            device.linear(tape, &x, &weight, &bias).unwrap());
        check!(cuda, format!("{case} GELU"), |device, tape| [x: (rows, inner), weight: (columns, inner), bias: (columns,)]
            device.gelu_linear(tape, &x, &weight, &bias).unwrap());
        check!(cuda, format!("{case} SiLU"), |device, tape| [x: (rows, inner), weight: (columns, inner), bias: (columns,)]
            device.silu_linear(tape, &x, &weight, &bias).unwrap());
    }
}

#[test]
fn linear_of_some_rows() {
    let Some(cuda) = device() else { return };
    for part in [0..4, 3..9, 8..12] {
        check!(cuda, format!("rows {part:?}"), |device, tape| [x: (5, 6), weight: (12, 6), bias: (12,)]
            device.linear_rows(tape, &x, &weight, &bias, part.clone()).unwrap());
    }
}

#[test]
fn activations_and_sums() {
    let Some(cuda) = device() else { return };
    for (rows, columns) in [(1, 1), (7, 13), (70, 41)] {
        let case = format!("{rows}×{columns}");
        check!(cuda, format!("silu {case}"), |device, tape| [x: (rows, columns)] device.silu(tape, &x).unwrap());
        check!(cuda, format!("gelu {case}"), |device, tape| [x: (rows, columns)] device.gelu_tanh(tape, &x).unwrap());
        check!(cuda, format!("add {case}"), |device, tape| [a: (rows, columns), b: (rows, columns)]
            device.add(tape, &a, &b).unwrap());
    }
}

#[test]
fn modulated_layer_norm() {
    let Some(cuda) = device() else { return };
    for (samples, tokens, width) in SHAPES {
        for scale_limit in [None, Some(0.5)] {
            let parts = Modulation {
                shift: 2,
                scale: 1,
                scale_limit,
                epsilon: 1e-6,
            };
            let case = format!("modulated norm {samples}×{tokens}×{width} limit {scale_limit:?}");
            check!(cuda, case, |device, tape| [x: (samples * tokens, width), modulation: (samples, 3 * width)]
                device.modulated_layer_norm(tape, &x, &modulation, parts).unwrap());
        }
    }
}

#[test]
fn one_modulation_for_the_whole_batch() {
    let Some(cuda) = device() else { return };
    let parts = Modulation {
        shift: 0,
        scale: 1,
        scale_limit: None,
        epsilon: 1e-6,
    };
    check!(cuda, "modulated norm, one row", |device, tape| [x: (12, 20), modulation: (1, 40)]
        device.modulated_layer_norm(tape, &x, &modulation, parts).unwrap());
    check!(cuda, "gated residual, one row", |device, tape| [x: (12, 20), modulation: (1, 40), y: (12, 20)]
        device.gated_residual(tape, &x, &modulation, 1, &y).unwrap());
}

#[test]
fn plain_and_affine_layer_norm() {
    let Some(cuda) = device() else { return };
    for (samples, tokens, width) in SHAPES {
        let rows = samples * tokens;
        let case = format!("{rows}×{width}");
        check!(cuda, format!("plain norm {case}"), |device, tape| [x: (rows, width)]
            device.plain_layer_norm(tape, &x, 1e-6).unwrap());
        check!(cuda, format!("affine norm {case}"), |device, tape| [x: (rows, width), weight: (width,), bias: (width,)]
            device.layer_norm(tape, &x, &AffineNorm {
                weight: weight.clone(),
                bias: bias.clone(),
                epsilon: 1e-5,
            }).unwrap());
    }
    // More rows than one group of a column sum.
    check!(cuda, "affine norm of many rows", |device, tape| [x: (301, 5), weight: (5,), bias: (5,)]
        device.layer_norm(tape, &x, &AffineNorm { weight: weight.clone(), bias: bias.clone(), epsilon: 1e-5 }).unwrap());
}

#[test]
fn query_key_norm() {
    let Some(cuda) = device() else { return };
    for (rows, heads, width) in [(3, 1, 5), (10, 2, 8), (37, 3, 33)] {
        let case = format!("query-key norm {rows} rows, {heads} heads of {width}");
        check!(cuda, case, |device, tape| [
            qkv: (rows, 3 * heads * width),
            query_weight: (width,), query_bias: (width,), key_weight: (width,), key_bias: (width,)
        ] {
            let query = AffineNorm { weight: query_weight.clone(), bias: query_bias.clone(), epsilon: 1e-5 };
            let key = AffineNorm { weight: key_weight.clone(), bias: key_bias.clone(), epsilon: 1e-5 };
            device.query_key_norm(tape, &qkv, heads, &query, &key).unwrap()
        });
    }
}

#[test]
fn gated_residual() {
    let Some(cuda) = device() else { return };
    for (samples, tokens, width) in SHAPES {
        let rows = samples * tokens;
        check!(cuda, format!("gated residual {samples}×{tokens}×{width}"),
            |device, tape| [x: (rows, width), modulation: (samples, 3 * width), y: (rows, width)]
            device.gated_residual(tape, &x, &modulation, 1, &y).unwrap());
    }
}

#[test]
fn attention() {
    let Some(cuda) = device() else { return };
    // (batch, tokens, heads, width of a head): one token, a tile and one more, heads wider than one, two, three warps.
    for (batch, tokens, heads, width) in [
        (1, 1, 1, 4),
        (2, 5, 3, 8),
        (1, 33, 2, 20),
        (2, 40, 1, 72),
        (1, 17, 1, 128),
    ] {
        let (rows, all) = (batch * tokens, heads * width);
        let case = format!("{batch}×{tokens}, {heads} heads of {width}");
        check!(cuda, format!("self-attention {case}"), |device, tape| [qkv: (rows, 3 * all)]
            device.self_attention(tape, &qkv, batch, heads).unwrap());
        check!(cuda, format!("cross-attention {case}"), |device, tape| [q: (rows, all), kv: (rows, 2 * all)]
            device.cross_attention(tape, &q, &kv, batch, heads).unwrap());
    }
}

#[test]
fn columns_positions_and_tables() {
    let Some(cuda) = device() else { return };
    for (rows, left, right) in [(1, 1, 1), (5, 3, 9), (40, 33, 7)] {
        check!(cuda, format!("concat {rows}×({left}+{right})"), |device, tape| [a: (rows, left), b: (rows, right)]
            device.concat(tape, &a, &b).unwrap());
    }
    check!(cuda, "embedding", |device, tape| [table: (5, 37)]
        device.embedding(tape, &table, &[4, 0, 4, 2, 4]).unwrap());
}

/// The position table gets no gradient.
#[test]
fn add_position() {
    let Some(cuda) = device() else { return };
    check!(cuda, "add position", |device, tape| [tokens: (12, 10)] {
        let position = device.try_tensor_from_vec(compare::values_as(50, 40), (4usize, 10usize)).unwrap();
        device.add_position(tape, &tokens, &position).unwrap()
    });
}

#[test]
fn fourier_features() {
    let Some(cuda) = device() else { return };
    check!(cuda, "Fourier features", |device, tape| [x: (3, 256)] {
        let features = device.fourier_features(&[0.0, 0.37, 1.0], 256).unwrap();
        device.add(tape, &x, &features).unwrap()
    });
}

#[test]
fn losses() {
    let Some(cuda) = device() else { return };
    for (samples, tokens, width) in SHAPES {
        let rows = samples * tokens;
        let case = format!("{samples}×{tokens}×{width}");
        let times: Vec<f64> = (0..samples).map(|sample| 0.25 + 0.25 * sample as f64).collect();
        // Gradients reach only the first argument: the others go in without a tape.
        check_loss!(cuda, format!("mean squared error {case}"), |device, tape| [prediction: (rows, width)] {
            let target = device.try_tensor_from_vec(compare::values_as(20, rows * width), (rows, width)).unwrap();
            device.mean_squared_error(tape, &prediction, &target).unwrap()
        });
        check_loss!(cuda, format!("acceleration loss {case}"), |device, tape| [acceleration: (rows, width)] {
            let displacement = device.try_tensor_from_vec(compare::values_as(21, rows * width), (rows, width)).unwrap();
            let velocity = device.try_tensor_from_vec(compare::values_as(22, rows * width), (rows, width)).unwrap();
            device.acceleration_loss(tape, &displacement, &velocity, &acceleration, &times).unwrap()
        });
        check_loss!(cuda, format!("alignment loss {case}"), |device, tape| [prediction: (rows, width)] {
            let target = device.try_tensor_from_vec(compare::values_as(23, rows * width), (rows, width)).unwrap();
            device.cosine_alignment_loss(tape, &prediction, &target).unwrap()
        });
    }
}

#[test]
fn weighted_sum() {
    let Some(cuda) = device() else { return };
    check_loss!(cuda, "weighted sum", |device, tape| [a: (3, 5), b: (2, 2)] {
        let target = device.try_tensor_from_vec(compare::values_as(24, 15), (3usize, 5usize)).unwrap();
        let first = device.mean_squared_error(tape, &a, &target).unwrap();
        let target = device.try_tensor_from_vec(compare::values_as(25, 4), (2usize, 2usize)).unwrap();
        let second = device.cosine_alignment_loss(tape, &b, &target).unwrap();
        device.weighted_sum(tape, &[(first, 0.25), (second, 3.0)]).unwrap()
    });
}
