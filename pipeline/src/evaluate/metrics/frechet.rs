//! Fréchet distance between two normal distributions.

use super::gaussian::Gaussian;
use faer::{Mat, Side};

/// Why there is no distance.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FrechetError {
    /// The distributions live in different spaces.
    #[error("statistics of {0} features against statistics of {1} features")]
    Width(usize, usize),
    /// The statistics hold infinities or no numbers, or the decomposition did not converge.
    #[error("the covariance has no eigenvalues (the features hold values that are not finite?)")]
    NoEigenvalues,
}

/// `|μ₁-μ₂|² + tr Σ₁ + tr Σ₂ - 2·tr (Σ₁Σ₂)^½` (Dowson & Landau 1982).
///
/// `Σ₁Σ₂` has the eigenvalues of the symmetric `Σ₁^½ Σ₂ Σ₁^½`, so two symmetric eigen-decompositions do: no square root of a
/// general matrix, no imaginary parts to drop, and right for covariances that are not of full rank.
///
/// # Errors
/// The widths differ, or values are not finite.
pub fn frechet_distance(first: &Gaussian, second: &Gaussian) -> Result<f64, FrechetError> {
    if first.width() != second.width() {
        return Err(FrechetError::Width(first.width(), second.width()));
    }
    let mean: f64 = first
        .mean
        .iter()
        .zip(&second.mean)
        .map(|(a, b)| (a - b) * (a - b))
        .sum();
    let root = square_root(&first.covariance)?;
    let product = &root * &second.covariance * &root;
    let symmetric = Mat::from_fn(product.nrows(), product.ncols(), |i, j| {
        0.5 * (product[(i, j)] + product[(j, i)])
    });
    let eigenvalues = finite(&symmetric)?
        .self_adjoint_eigenvalues(Side::Lower)
        .map_err(|_| FrechetError::NoEigenvalues)?;
    let cross: f64 = eigenvalues.iter().map(|value| value.max(0.0).sqrt()).sum();
    Ok(mean + trace(&first.covariance) + trace(&second.covariance) - 2.0 * cross)
}

fn square_root(matrix: &Mat<f64>) -> Result<Mat<f64>, FrechetError> {
    let eigen = finite(matrix)?
        .self_adjoint_eigen(Side::Lower)
        .map_err(|_| FrechetError::NoEigenvalues)?;
    let vectors = eigen.U();
    let values = eigen.S().column_vector();
    let scaled = Mat::from_fn(vectors.nrows(), vectors.ncols(), |i, j| {
        vectors[(i, j)] * values[j].max(0.0).sqrt()
    });
    Ok(&scaled * vectors.transpose())
}

fn finite(matrix: &Mat<f64>) -> Result<&Mat<f64>, FrechetError> {
    let all_finite = (0..matrix.ncols()).all(|column| matrix.col(column).iter().all(|value| value.is_finite()));
    all_finite.then_some(matrix).ok_or(FrechetError::NoEigenvalues)
}

fn trace(matrix: &Mat<f64>) -> f64 {
    (0..matrix.nrows()).map(|index| matrix[(index, index)]).sum()
}
