//! Matrix products of `f32`: packed panels, AVX-512, AVX2, NEON or portable micro-kernels chosen at run time, rayon over
//! blocks.
//!
//! Results are the same bits for any number of threads, and any row of a product is the same bits whatever the number of
//! rows. Calls may come from any rayon task.

mod driver;
mod epilogue;
mod kernel;
mod matrix;
mod pack;
mod packed;
mod scratch;

#[cfg(test)]
mod tests;

use rayon::prelude::*;

pub use driver::Threads;
use driver::{multiply, Right};
pub use epilogue::{Epilogue, Operand};
use kernel::Kernel;
pub use matrix::{MatrixMut, MatrixRef};
pub use packed::PackedMatrix;
pub(crate) use scratch::Scratch;

/// Name of the micro-kernel this CPU gets: `avx512`, `avx2`, `neon` or `portable`.
pub fn kernel_name() -> &'static str {
    Kernel::best().name
}

/// `c = epilogue(left · right)`, or `c = epilogue(c + left · right)` when accumulating.
///
/// `left` is `(rows, k)`, `right` `(k, columns)`, `c` `(rows, columns)`; a transposed factor is
/// [`MatrixRef::transposed`], an activated one [`Operand::activated`].
///
/// # Panics
/// When the sizes do not fit together.
///
/// # Example
/// ```
/// use deepflow_model::ops::cpu::gemm::{gemm, Epilogue, MatrixMut, MatrixRef};
/// let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
/// let weight = [1.0, 0.0, -1.0];
/// let mut y = [0.0; 2];
/// gemm(
///     MatrixRef::row_major(&x, 2, 3),
///     MatrixRef::row_major(&weight, 1, 3).transposed(),
///     MatrixMut::row_major(&mut y, 2, 1),
///     false,
///     Epilogue::None,
/// );
/// assert_eq!(y, [-2.0, -2.0]);
/// ```
pub fn gemm<'a, 'b>(
    left: impl Into<Operand<'a>>,
    right: impl Into<Operand<'b>>,
    c: MatrixMut<'_>,
    accumulate: bool,
    epilogue: Epilogue<'_>,
) {
    let (left, right) = (left.into(), right.into());
    check(&left, right.matrix.rows(), right.matrix.columns(), &c, &epilogue);
    let right = Right::Matrix(right);
    multiply(Kernel::best(), left, right, c, accumulate, epilogue, Threads::All);
}

/// [`gemm`] on the calling thread, for products that are themselves tasks.
///
/// # Panics
/// When the sizes do not fit together.
pub fn gemm_on_this_thread<'a, 'b>(
    left: impl Into<Operand<'a>>,
    right: impl Into<Operand<'b>>,
    c: MatrixMut<'_>,
    accumulate: bool,
) {
    let (left, right) = (left.into(), right.into());
    check(&left, right.matrix.rows(), right.matrix.columns(), &c, &Epilogue::None);
    let right = Right::Matrix(right);
    multiply(
        Kernel::best(),
        left,
        right,
        c,
        accumulate,
        Epilogue::None,
        Threads::Calling,
    );
}

/// [`gemm`] with a right factor that was packed before.
///
/// # Panics
/// When the sizes do not fit together.
pub fn gemm_packed<'a>(
    left: impl Into<Operand<'a>>,
    right: &PackedMatrix,
    c: MatrixMut<'_>,
    accumulate: bool,
    epilogue: Epilogue<'_>,
    threads: Threads,
) {
    let left = left.into();
    check(&left, right.rows(), right.columns(), &c, &epilogue);
    multiply(
        right.kernel,
        left,
        Right::Packed(right.panels()),
        c,
        accumulate,
        epilogue,
        threads,
    );
}

/// A row of equal products `c[i] = left[i] · right[i]` with `left` `(batch, rows, k)` and `c` `(batch, rows, columns)`,
/// both without gaps, and one packed right factor each; the products run side by side.
///
/// # Panics
/// When the sizes do not fit together.
pub fn gemm_packed_batch(left: &[f32], right: &[PackedMatrix], c: &mut [f32], rows: usize) {
    let Some(first) = right.first() else { return };
    let (k, columns) = (first.rows(), first.columns());
    assert_eq!(left.len(), right.len() * rows * k, "left factors of the batch");
    assert_eq!(c.len(), right.len() * rows * columns, "products of the batch");
    if rows == 0 || columns == 0 {
        return;
    }
    c.par_chunks_mut(rows * columns).enumerate().for_each(|(index, c)| {
        let left = MatrixRef::row_major(&left[index * rows * k..], rows, k);
        let c = MatrixMut::row_major(c, rows, columns);
        gemm_packed(left, &right[index], c, false, Epilogue::None, Threads::All);
    });
}

fn check(left: &Operand<'_>, k: usize, columns: usize, c: &MatrixMut<'_>, epilogue: &Epilogue<'_>) {
    let (rows, left_k) = (left.matrix.rows(), left.matrix.columns());
    assert!(
        left_k == k && c.rows() == rows && c.columns() == columns,
        "product of {rows}x{left_k} and {k}x{columns} into {}x{}",
        c.rows(),
        c.columns()
    );
    epilogue.check(rows, columns);
}
