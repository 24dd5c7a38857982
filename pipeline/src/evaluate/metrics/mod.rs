//! The numbers themselves: pure functions of features, in f64.
//!
//! Golden numbers and definitions are those of the ADM evaluation suite (Dhariwal & Nichol 2021); KID is Bińkowski et
//! al. 2018.

mod frechet;
mod gaussian;
mod inception_score;
mod kernel_distance;
mod precision_recall;

pub use frechet::{frechet_distance, FrechetDistance, FrechetError};
pub use gaussian::{Gaussian, GaussianAccumulator};
pub use inception_score::{softmax, InceptionScore, InceptionScoreAccumulator};
pub use kernel_distance::{kernel_distance, kernel_subset_size, KernelDistance, KERNEL_SUBSETS};
pub use precision_recall::{manifold_pairs, precision_recall, PrecisionRecall, NEIGHBOURS};

/// Feature vectors, one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Features<T> {
    /// Numbers in one vector.
    pub width: usize,
    /// All vectors, row-major.
    pub values: Vec<T>,
}

impl<T: Copy + Into<f64> + Sync> Features<T> {
    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.values.len().checked_div(self.width).unwrap_or(0)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The `index`-th vector.
    pub fn row(&self, index: usize) -> &[T] {
        &self.values[index * self.width..(index + 1) * self.width]
    }

    /// Vectors `rows` as columns of an f64 matrix `(width, rows)`.
    fn columns(&self, rows: impl ExactSizeIterator<Item = usize>) -> faer::Mat<f64> {
        let mut matrix = faer::Mat::zeros(self.width, rows.len());
        for (column, row) in rows.enumerate() {
            for (target, &value) in matrix.col_mut(column).iter_mut().zip(self.row(row)) {
                *target = value.into();
            }
        }
        matrix
    }
}
