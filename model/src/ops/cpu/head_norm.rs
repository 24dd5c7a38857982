//! LayerNorm of every head's queries and keys within packed projections (network spec §2, q/k norm).

use super::layer_norm::{backward_row, forward_row};
use super::parallel::{for_each_chunk, map_items, rows_per_task, written, ROWS_PER_SUM};
use super::rows::add_row;
use super::rows::write_copy;

/// The affine norm of one part.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorm<'a> {
    /// Multiplies the normalised values, as wide as a head.
    pub factor: &'a [f32],
    /// Is added afterwards, as wide as a head.
    pub offset: &'a [f32],
    /// Added to the variance.
    pub epsilon: f32,
}

/// Norms of queries and keys in rows of queries, keys and values; the values pass unchanged.
#[derive(Clone, Copy, Debug)]
pub struct QueryKeyNorm<'a> {
    /// Heads of each part.
    pub heads: usize,
    /// Norm of the queries.
    pub query: HeadNorm<'a>,
    /// Norm of the keys.
    pub key: HeadNorm<'a>,
}

impl QueryKeyNorm<'_> {
    fn head_width(&self) -> usize {
        self.query.factor.len()
    }

    /// Values of a row: three parts of all heads.
    fn row_width(&self) -> usize {
        3 * self.heads * self.head_width()
    }

    /// The norm of every head of queries and keys, in the order of a row.
    fn norms(&self) -> impl Iterator<Item = (usize, &HeadNorm<'_>)> {
        let norm = |head| if head < self.heads { &self.query } else { &self.key };
        (0..2 * self.heads).map(move |head| (head, norm(head)))
    }

    /// qkv (rows, 3·heads·width) → the same with normalised queries and keys.
    pub fn forward(&self, qkv: &[f32]) -> Vec<f32> {
        let (width, columns) = (self.head_width(), self.row_width());
        let rows = rows_per_task(columns);
        let write = |out: &mut [_]| {
            for_each_chunk(out, rows * columns, |task, out| {
                for (index, out) in out.chunks_mut(columns).enumerate() {
                    let source = &qkv[(task * rows + index) * columns..][..columns];
                    let (normalized, values) = out.split_at_mut(2 * self.heads * width);
                    for ((head, norm), out) in self.norms().zip(normalized.chunks_mut(width)) {
                        let x = &source[head * width..][..width];
                        forward_row(x, norm.factor, norm.offset, norm.epsilon, out);
                    }
                    write_copy(values, &source[2 * self.heads * width..]);
                }
            });
        };
        // SAFETY: the chunks are all of the result, their rows all of a chunk, and every head's part of a row is written.
        unsafe { written(qkv.len(), write) }
    }

    /// Adds the gradient of qkv to `dqkv`; returns those of the queries' factor and offset, then the keys'.
    pub fn backward(&self, qkv: &[f32], dout: &[f32], dqkv: &mut [f32]) -> [Vec<f32>; 4] {
        let (width, columns) = (self.head_width(), self.row_width());
        let zeros = || -> [Vec<f32>; 4] { std::array::from_fn(|_| vec![0.0; width]) };
        let pieces: Vec<_> = dqkv.chunks_mut((ROWS_PER_SUM * columns).max(1)).enumerate().collect();
        let parts = map_items(pieces, |(piece, dqkv)| {
            let mut sums = zeros();
            for (row, dqkv) in dqkv.chunks_exact_mut(columns).enumerate() {
                let start = (piece * ROWS_PER_SUM + row) * columns;
                let (x, dout) = (&qkv[start..][..columns], &dout[start..][..columns]);
                for (head, norm) in self.norms() {
                    let values = head * width..(head + 1) * width;
                    let (query_sums, key_sums) = sums.split_at_mut(2);
                    let sums = if head < self.heads { query_sums } else { key_sums };
                    let [dfactor, doffset] = sums else {
                        unreachable!("two sums for each norm")
                    };
                    let dx = &mut dqkv[values.clone()];
                    backward_row(
                        &x[values.clone()],
                        &dout[values],
                        norm.factor,
                        norm.epsilon,
                        dx,
                        dfactor,
                        doffset,
                    );
                }
                let values = 2 * self.heads * width..;
                add_row(&mut dqkv[values.clone()], &dout[values]);
            }
            sums
        });
        let mut sums = zeros();
        for part in parts {
            for (sum, part) in sums.iter_mut().zip(part) {
                add_row(sum, &part);
            }
        }
        sums
    }
}
