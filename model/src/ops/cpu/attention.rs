//! Multi-head attention over packed projections. Only the logarithm of every query's normaliser is kept for the backward
//! pass; the probabilities are recomputed, a block of queries at a time.

use std::mem::MaybeUninit;

use super::activation::exp;
use super::gemm::{gemm_on_this_thread, gemm_packed, Epilogue, MatrixMut, MatrixRef, PackedMatrix, Scratch, Threads};
use super::parallel::{map_items, written};
use super::rows::{dot, scale_row, sum_by};
use super::simd::{for_each_level, multiply_add};

/// Scores computed at a time: they stay in the second cache.
const BLOCK_SCORES: usize = 1 << 16;

/// The sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    /// Samples.
    pub batch: usize,
    /// Queries of a sample.
    pub queries: usize,
    /// Keys and values of a sample.
    pub keys: usize,
    /// Heads.
    pub heads: usize,
    /// Values of a head.
    pub head_width: usize,
}

/// Where queries, keys and values lie: rows of `stride` values, the part beginning at `offset`.
#[derive(Clone, Copy, Debug)]
pub struct Projection<'a> {
    /// All rows of all samples.
    pub values: &'a [f32],
    /// Values of a row.
    pub stride: usize,
    /// First value of the part within a row.
    pub offset: usize,
}

/// The gradients of the inputs, parts of rows like the inputs themselves.
#[derive(Debug)]
pub struct HeadGradients<'a> {
    query: MatrixMut<'a>,
    key: MatrixMut<'a>,
    value: MatrixMut<'a>,
}

for_each_level! {
    /// `s ← e^(scale·s - m)` with `m` the largest `scale·s`; returns `m` and the sum.
    fn exponentials(scores: &mut [f32], scale: f32) -> (f32, f32) {
        let mut lanes = [f32::NEG_INFINITY; 16];
        let mut chunks = scores.chunks_exact(16);
        for chunk in &mut chunks {
            for (lane, &score) in lanes.iter_mut().zip(chunk) {
                *lane = if score > *lane { score } else { *lane };
            }
        }
        for (lane, &score) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane = if score > *lane { score } else { *lane };
        }
        let largest = lanes.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b)) * scale;
        for score in scores.iter_mut() {
            *score = exp::<FUSED>(multiply_add::<FUSED>(scale, *score, -largest));
        }
        (largest, sum_by([scores], |[score]| score))
    }

    /// `s ← e^(scale·s - normaliser)`.
    fn probabilities(scores: &mut [f32], scale: f32, normalizer: f32) {
        for score in scores {
            *score = exp::<FUSED>(multiply_add::<FUSED>(scale, *score, -normalizer));
        }
    }

    /// `g ← scale·p·(g - delta)`.
    fn score_gradient(gradient: &mut [f32], probability: &[f32], delta: f32, scale: f32) {
        for (gradient, &probability) in gradient.iter_mut().zip(probability) {
            *gradient = scale * probability * (*gradient - delta);
        }
    }
}

impl Attention {
    fn width(&self) -> usize {
        self.heads * self.head_width
    }

    fn scale(&self) -> f32 {
        (self.head_width as f64).powf(-0.5) as f32
    }

    /// Queries of which all scores are computed together.
    fn block(&self) -> usize {
        (BLOCK_SCORES / self.keys.max(1)).clamp(8, self.queries.max(8))
    }

    /// The right factor of one product for each block of queries.
    fn factor<'a>(&self, matrix: MatrixRef<'a>) -> Factor<'a> {
        if self.block() < self.queries {
            Factor::Packed(PackedMatrix::briefly(matrix))
        } else {
            Factor::UsedOnce(matrix)
        }
    }

    /// Sample `sample`, head `head` of a projection with `tokens` rows a sample.
    fn head<'a>(&self, part: Projection<'a>, tokens: usize, sample: usize, head: usize) -> MatrixRef<'a> {
        let start = sample * tokens * part.stride + part.offset + head * self.head_width;
        MatrixRef::with_row_stride(&part.values[start..], tokens, self.head_width, part.stride)
    }

    /// The result (batch·queries, heads·head_width), and the logarithm of every query's sum of exponentials,
    /// (batch·heads, queries).
    pub fn forward(&self, query: Projection<'_>, key: Projection<'_>, value: Projection<'_>) -> (Vec<f32>, Vec<f32>) {
        let mut normalizers = vec![0.0; self.batch * self.heads * self.queries];
        let of_sample = self.queries * self.width();
        if of_sample == 0 {
            return (Vec::new(), normalizers);
        }
        let write = |out: &mut [MaybeUninit<f32>]| {
            let heads = out.chunks_mut(of_sample).flat_map(|sample| {
                // SAFETY: `forward_head` writes a row before it scales it.
                let sample = unsafe { MatrixMut::unwritten(sample, self.queries, self.width()) };
                sample.split_columns(self.head_width)
            });
            let items: Vec<_> = heads.zip(normalizers.chunks_mut(self.queries)).enumerate().collect();
            map_items(items, |(index, (out, normalizers))| {
                let (sample, head) = (index / self.heads, index % self.heads);
                let query = self.head(query, self.queries, sample, head);
                let key = self.head(key, self.keys, sample, head);
                let value = self.head(value, self.keys, sample, head);
                self.forward_head(query, key, value, out, normalizers);
            });
        };
        // SAFETY: there is an item for every head of every sample, and `forward_head` writes all rows of its columns.
        let out = unsafe { written(self.batch * of_sample, write) };
        (out, normalizers)
    }

    fn forward_head(
        &self,
        query: MatrixRef<'_>,
        key: MatrixRef<'_>,
        value: MatrixRef<'_>,
        mut out: MatrixMut<'_>,
        normalizers: &mut [f32],
    ) {
        let (keys, scale) = (self.keys, self.scale());
        let (key, value) = (self.factor(key.transposed()), self.factor(value));
        let mut buffer = Scratch::take(self.block() * keys);
        for first in (0..self.queries).step_by(self.block()) {
            let count = self.block().min(self.queries - first);
            let scores = &mut buffer.values_mut()[..count * keys];
            multiply(
                query.rows_from(first, count),
                &key,
                MatrixMut::row_major(scores, count, keys),
                false,
            );
            let mut sums = Vec::with_capacity(count);
            for (scores, normalizer) in scores.chunks_exact_mut(keys).zip(&mut normalizers[first..]) {
                let (largest, sum) = exponentials(scores, scale);
                *normalizer = largest + sum.ln();
                sums.push(sum);
            }
            let mut out = out.rows_mut(first, count);
            multiply(
                MatrixRef::row_major(scores, count, keys),
                &value,
                out.rows_mut(0, count),
                false,
            );
            for (row, sum) in sums.into_iter().enumerate() {
                scale_row(out.row_mut(row), 1.0 / sum);
            }
        }
    }

    /// Gradients of a self-attention over `qkv` (batch·tokens, 3·width), added to `dqkv` of the same size.
    pub fn self_backward(&self, qkv: &[f32], out: &[f32], normalizers: &[f32], dout: &[f32], dqkv: &mut [f32]) {
        let samples = dqkv.chunks_mut((self.queries * 3 * self.width()).max(1));
        let samples = samples.map(|sample| MatrixMut::row_major(sample, self.queries, 3 * self.width()));
        self.write_self_gradients(qkv, out, normalizers, dout, samples, true);
    }

    /// The gradient of `qkv` by itself: what [`self_backward`](Self::self_backward) adds.
    ///
    /// # Panics
    /// When there are not as many keys as queries, or `qkv` has another size.
    pub fn self_gradient(&self, qkv: &[f32], out: &[f32], normalizers: &[f32], dout: &[f32]) -> Vec<f32> {
        let expected = self.batch * self.queries * 3 * self.width();
        assert!(
            self.keys == self.queries && qkv.len() == expected,
            "{} values for {} queries and {} keys, expected as many keys as queries and {expected} values",
            qkv.len(),
            self.queries,
            self.keys
        );
        let write = |dqkv: &mut [MaybeUninit<f32>]| {
            let samples = dqkv.chunks_mut((self.queries * 3 * self.width()).max(1));
            // SAFETY: without `accumulate`, gradients are written before others are added.
            let samples = samples.map(|sample| unsafe { MatrixMut::unwritten(sample, self.queries, 3 * self.width()) });
            self.write_self_gradients(qkv, out, normalizers, dout, samples, false);
        };
        // SAFETY: every head writes the gradients of its queries, keys and values.
        unsafe { written(qkv.len(), write) }
    }

    fn write_self_gradients<'a>(
        &self,
        qkv: &[f32],
        out: &[f32],
        normalizers: &[f32],
        dout: &[f32],
        samples: impl Iterator<Item = MatrixMut<'a>>,
        accumulate: bool,
    ) {
        let width = self.width();
        let part = |index| Projection {
            values: qkv,
            stride: 3 * width,
            offset: index * width,
        };
        let mut gradients = Vec::with_capacity(self.batch * self.heads);
        for sample in samples {
            let mut parts = sample.split_columns(self.head_width);
            let values = parts.split_off(2 * self.heads);
            let keys = parts.split_off(self.heads);
            for ((query, key), value) in parts.into_iter().zip(keys).zip(values) {
                gradients.push(HeadGradients { query, key, value });
            }
        }
        let inputs = (part(0), part(1), part(2));
        self.backward(inputs, out, normalizers, dout, gradients, accumulate);
    }

    /// Gradients of a cross-attention of `q` (batch·queries, width) over `kv` (batch·keys, 2·width), added to `dq` and
    /// `dkv` of the same sizes.
    pub fn cross_backward(
        &self,
        (q, kv): (&[f32], &[f32]),
        out: &[f32],
        normalizers: &[f32],
        dout: &[f32],
        (dq, dkv): (&mut [f32], &mut [f32]),
    ) {
        let width = self.width();
        let query = Projection {
            values: q,
            stride: width,
            offset: 0,
        };
        let part = |index| Projection {
            values: kv,
            stride: 2 * width,
            offset: index * width,
        };
        let mut gradients = Vec::with_capacity(self.batch * self.heads);
        let samples = dq
            .chunks_mut((self.queries * width).max(1))
            .zip(dkv.chunks_mut((self.keys * 2 * width).max(1)));
        for (dq, dkv) in samples {
            let queries = MatrixMut::row_major(dq, self.queries, width).split_columns(self.head_width);
            let mut keys = MatrixMut::row_major(dkv, self.keys, 2 * width).split_columns(self.head_width);
            let values = keys.split_off(self.heads);
            for ((query, key), value) in queries.into_iter().zip(keys).zip(values) {
                gradients.push(HeadGradients { query, key, value });
            }
        }
        self.backward((query, part(0), part(1)), out, normalizers, dout, gradients, true);
    }

    fn backward(
        &self,
        (query, key, value): (Projection<'_>, Projection<'_>, Projection<'_>),
        out: &[f32],
        normalizers: &[f32],
        dout: &[f32],
        gradients: Vec<HeadGradients<'_>>,
        accumulate: bool,
    ) {
        let packed = |values| Projection {
            values,
            stride: self.width(),
            offset: 0,
        };
        let items: Vec<_> = gradients.into_iter().enumerate().collect();
        map_items(items, |(index, gradients)| {
            let (sample, head) = (index / self.heads, index % self.heads);
            let inputs = HeadInputs {
                query: self.head(query, self.queries, sample, head),
                key: self.head(key, self.keys, sample, head),
                value: self.head(value, self.keys, sample, head),
                out: self.head(packed(out), self.queries, sample, head),
                dout: self.head(packed(dout), self.queries, sample, head),
                normalizers: &normalizers[index * self.queries..][..self.queries],
            };
            self.backward_head(&inputs, gradients, accumulate);
        });
    }

    fn backward_head(&self, inputs: &HeadInputs<'_>, mut gradients: HeadGradients<'_>, accumulate: bool) {
        let (keys, scale) = (self.keys, self.scale());
        let transposed_key = self.factor(inputs.key.transposed());
        let transposed_value = self.factor(inputs.value.transposed());
        let key = self.factor(inputs.key);
        let mut probability_buffer = Scratch::take(self.block() * keys);
        let mut gradient_buffer = Scratch::take(self.block() * keys);
        for first in (0..self.queries).step_by(self.block()) {
            let count = self.block().min(self.queries - first);
            let (query, dout) = (
                inputs.query.rows_from(first, count),
                inputs.dout.rows_from(first, count),
            );
            let probability = &mut probability_buffer.values_mut()[..count * keys];
            multiply(
                query,
                &transposed_key,
                MatrixMut::row_major(probability, count, keys),
                false,
            );
            for (scores, &normalizer) in probability.chunks_exact_mut(keys).zip(&inputs.normalizers[first..]) {
                probabilities(scores, scale, normalizer);
            }
            let transposed = MatrixRef::row_major(probability, count, keys).transposed();
            // Every block of queries adds to the gradients of all keys and values.
            let add = accumulate || first > 0;
            gemm_on_this_thread(transposed, dout, gradients.value.rows_mut(0, keys), add);

            let gradient = &mut gradient_buffer.values_mut()[..count * keys];
            multiply(
                dout,
                &transposed_value,
                MatrixMut::row_major(gradient, count, keys),
                false,
            );
            let rows = gradient
                .chunks_exact_mut(keys)
                .zip(probability.chunks_exact(keys))
                .enumerate();
            for (row, (gradient, probability)) in rows {
                let delta = dot(inputs.dout.row(first + row), inputs.out.row(first + row));
                score_gradient(gradient, probability, delta, scale);
            }
            let gradient = MatrixRef::row_major(gradient, count, keys);
            multiply(gradient, &key, gradients.query.rows_mut(first, count), accumulate);
            gemm_on_this_thread(gradient.transposed(), query, gradients.key.rows_mut(0, keys), add);
        }
    }
}

/// What the backward pass of one head reads.
struct HeadInputs<'a> {
    query: MatrixRef<'a>,
    key: MatrixRef<'a>,
    value: MatrixRef<'a>,
    out: MatrixRef<'a>,
    dout: MatrixRef<'a>,
    normalizers: &'a [f32],
}

/// The right factor of a head's products.
enum Factor<'a> {
    Packed(PackedMatrix),
    UsedOnce(MatrixRef<'a>),
}

fn multiply(left: MatrixRef<'_>, right: &Factor<'_>, c: MatrixMut<'_>, accumulate: bool) {
    match right {
        Factor::Packed(right) => gemm_packed(left, right, c, accumulate, Epilogue::None, Threads::Calling),
        Factor::UsedOnce(right) => gemm_on_this_thread(left, *right, c, accumulate),
    }
}
