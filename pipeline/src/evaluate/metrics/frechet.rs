//! Fréchet distance between two normal distributions.

use super::gaussian::Gaussian;
use faer::{Mat, Side};

/// Why there is no distance.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FrechetError {
    /// The distributions live in different spaces.
    #[error("statistics of {0} features against statistics of {1} features")]
    Width(usize, usize),
    /// The statistics hold infinities or no numbers.
    #[error("the statistics hold values that are not finite")]
    NotFinite,
    /// The decomposition did not converge.
    #[error("the eigen-decomposition of the covariance did not converge")]
    NoConvergence,
}

/// What two distributions are apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FrechetDistance {
    /// The squared distance, which is what FID names.
    pub distance: f64,
    /// Rank of the first covariance, as far as its eigenvalues stand out of rounding errors. Below the number of features
    /// the statistics came from too few samples, and the distance is rough.
    pub first_rank: usize,
}

/// `|μ₁-μ₂|² + tr Σ₁ + tr Σ₂ - 2·tr (Σ₁Σ₂)^½` (Dowson & Landau 1982).
///
/// `Σ₁Σ₂` has the eigenvalues of the symmetric `Σ₁^½ Σ₂ Σ₁^½`, so two symmetric eigen-decompositions do: no square root of a
/// general matrix, no imaginary parts to drop, and right for covariances that are not of full rank.
///
/// # Errors
/// The widths differ, or values are not finite.
pub fn frechet_distance(first: &Gaussian, second: &Gaussian) -> Result<FrechetDistance, FrechetError> {
    if first.width() != second.width() {
        return Err(FrechetError::Width(first.width(), second.width()));
    }
    // The covariances are looked at where they are decomposed.
    if !first.mean.iter().chain(&second.mean).all(|value| value.is_finite()) {
        return Err(FrechetError::NotFinite);
    }
    let mean: f64 = first
        .mean
        .iter()
        .zip(&second.mean)
        .map(|(a, b)| (a - b) * (a - b))
        .sum();
    let (root, first_rank) = square_root(&first.covariance)?;
    let product = &root * &second.covariance * &root;
    let symmetric = Mat::from_fn(product.nrows(), product.ncols(), |i, j| {
        0.5 * (product[(i, j)] + product[(j, i)])
    });
    let (eigenvalues, _) = eigen(&symmetric)?;
    let noise = rounding_error(&eigenvalues);
    let cross: f64 = eigenvalues
        .iter()
        .filter(|&&value| value > noise)
        .map(|value| value.sqrt())
        .sum();
    Ok(FrechetDistance {
        distance: mean + trace(&first.covariance) + trace(&second.covariance) - 2.0 * cross,
        first_rank,
    })
}

/// The zeros of a matrix that is not of full rank come out as rounding errors up to this, whose roots would add up.
fn rounding_error(eigenvalues: &[f64]) -> f64 {
    let largest = eigenvalues.iter().copied().fold(0.0, f64::max);
    largest * eigenvalues.len() as f64 * f64::EPSILON
}

/// The root of a symmetric matrix, and the matrix' rank.
fn square_root(matrix: &Mat<f64>) -> Result<(Mat<f64>, usize), FrechetError> {
    let (values, vectors) = eigen(matrix)?;
    let noise = rounding_error(&values);
    let rank = values.iter().filter(|&&value| value > noise).count();
    let scaled = Mat::from_fn(vectors.nrows(), vectors.ncols(), |i, j| {
        vectors[(i, j)] * values[j].max(0.0).sqrt()
    });
    Ok((&scaled * vectors.transpose(), rank))
}

/// Eigenvalues and eigenvectors of a symmetric matrix.
fn eigen(matrix: &Mat<f64>) -> Result<(Vec<f64>, Mat<f64>), FrechetError> {
    let entries = || (0..matrix.ncols()).flat_map(|column| matrix.col(column).iter().copied());
    if !entries().all(f64::is_finite) {
        return Err(FrechetError::NotFinite);
    }
    let scale = entries().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let size = matrix.nrows();
    if scale == 0.0 {
        return Ok((vec![0.0; size], Mat::identity(size, size)));
    }
    // Matrices far from full rank can keep the iteration from converging. The same matrix with its whole spectrum moved
    // away from zero has the same vectors, and loses nothing that is not rounding error of the largest value.
    for shift in [0.0, 1.0] {
        let shifted = Mat::from_fn(size, size, |i, j| {
            matrix[(i, j)] / scale + if i == j { shift } else { 0.0 }
        });
        if let Ok(eigen) = shifted.self_adjoint_eigen(Side::Lower) {
            let values = eigen.S().column_vector().iter();
            let values = values.map(|value| (value - shift) * scale).collect();
            return Ok((values, eigen.U().to_owned()));
        }
    }
    Err(FrechetError::NoConvergence)
}

fn trace(matrix: &Mat<f64>) -> f64 {
    (0..matrix.nrows()).map(|index| matrix[(index, index)]).sum()
}
