//! Mean and covariance of a stream of feature vectors, in memory that does not grow with their number.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

/// Vectors that are added to the covariance at once. Part of the result: the order of the sums follows from it.
const BLOCK: usize = 256;

/// A normal distribution fitted to features.
#[derive(Clone, Debug, PartialEq)]
pub struct Gaussian {
    /// Number of vectors it was fitted to; `None` for statistics that were read from a file, which do not say.
    pub count: Option<u64>,
    /// Mean, `width` values.
    pub mean: Vec<f64>,
    /// Covariance with `count - 1` in the denominator, `(width, width)`.
    pub covariance: Mat<f64>,
}

/// Sums that become a [`Gaussian`]. The result depends on the order of the vectors alone, not on how they are batched.
#[derive(Clone, Debug)]
pub struct GaussianAccumulator {
    width: usize,
    count: u64,
    /// Subtracted from every vector so that the sums do not cancel: the mean of the first block.
    shift: Vec<f64>,
    sum: Vec<f64>,
    products: Mat<f64>,
    pending: Vec<f64>,
}

impl GaussianAccumulator {
    /// Sums over no vector of `width` numbers.
    pub fn new(width: usize) -> Self {
        Self {
            width,
            count: 0,
            shift: Vec::new(),
            sum: vec![0.0; width],
            products: Mat::zeros(width, width),
            pending: Vec::with_capacity(width * BLOCK),
        }
    }

    /// Adds vectors, row-major.
    pub fn add<T: Copy + Into<f64>>(&mut self, rows: &[T]) {
        debug_assert!(rows.len().is_multiple_of(self.width));
        for row in rows.chunks_exact(self.width) {
            self.pending.extend(row.iter().map(|&value| value.into()));
            if self.pending.len() == self.width * BLOCK {
                self.flush();
            }
        }
    }

    /// Vectors added so far.
    pub fn count(&self) -> u64 {
        self.count + (self.pending.len() / self.width) as u64
    }

    fn flush(&mut self) {
        let rows = self.pending.len() / self.width;
        if rows == 0 {
            return;
        }
        if self.shift.is_empty() {
            let column = |index: usize| self.pending[index..].iter().step_by(self.width).sum::<f64>();
            self.shift = (0..self.width).map(|index| column(index) / rows as f64).collect();
        }
        let columns = Mat::from_fn(self.width, rows, |i, row| {
            self.pending[row * self.width + i] - self.shift[i]
        });
        for column in 0..rows {
            for (sum, value) in self.sum.iter_mut().zip(columns.col(column).iter()) {
                *sum += value;
            }
        }
        matmul(
            &mut self.products,
            Accum::Add,
            &columns,
            columns.transpose(),
            1.0,
            Par::rayon(0),
        );
        self.count += rows as u64;
        self.pending.clear();
    }

    /// Mean and covariance of everything that was added; `None` for fewer than two vectors.
    pub fn finish(mut self) -> Option<Gaussian> {
        self.flush();
        if self.count < 2 {
            return None;
        }
        let count = self.count as f64;
        let offset: Vec<f64> = self.sum.iter().map(|sum| sum / count).collect();
        let covariance = Mat::from_fn(self.width, self.width, |i, j| {
            // Half of the matrix decides, so that it is symmetric to the last bit.
            let (i, j) = (i.min(j), i.max(j));
            (self.products[(i, j)] - count * offset[i] * offset[j]) / (count - 1.0)
        });
        let mean = self
            .shift
            .iter()
            .zip(&offset)
            .map(|(shift, offset)| shift + offset)
            .collect();
        Some(Gaussian {
            count: Some(self.count),
            mean,
            covariance,
        })
    }
}

impl Gaussian {
    /// Numbers in a feature vector.
    pub fn width(&self) -> usize {
        self.mean.len()
    }
}
