//! Matrix products by cuBLAS.

use cudarc::cublas::result::gemm_ex;
use cudarc::cublas::sys::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t};
use dfdx::tensor::CudaError;

use super::context::Context;
use super::precision::Precision;
use super::profile::Work;

/// `C (m,n) = op(A)·op(B) + beta·C`, all row-major without gaps; `A` is (m,k), or (k,m) when transposed.
pub(super) struct Product {
    pub rows: usize,
    pub columns: usize,
    pub inner: usize,
    pub left: (u64, bool),
    pub right: (u64, bool),
    pub accumulate: bool,
    pub out: u64,
}

impl Product {
    /// Starts it.
    pub fn run<E: Precision>(&self, context: &Context) -> Result<(), CudaError> {
        self.scaled::<E>(context, 1.0)
    }

    /// [`run`](Self::run) with the product times `factor`.
    pub fn scaled<E: Precision>(&self, context: &Context, factor: f32) -> Result<(), CudaError> {
        // cuBLAS thinks in columns: a row-major matrix is its transpose, so `Cᵀ = op(B)ᵀ·op(A)ᵀ` is asked for.
        if self.rows == 0 || self.columns == 0 || self.inner == 0 {
            return Ok(());
        }
        let operation = |transposed| match transposed {
            true => cublasOperation_t::CUBLAS_OP_T,
            false => cublasOperation_t::CUBLAS_OP_N,
        };
        let leading = |(_, transposed): (u64, bool), rows, columns| if transposed { rows } else { columns };
        let beta = if self.accumulate { 1.0f32 } else { 0.0 };
        let compute = match E::IS_SINGLE && context.tensor_float_32() {
            true => cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            false => cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        context.device.bind_to_thread()?;
        let operands = self.rows * self.inner + self.inner * self.columns;
        let results = self.rows * self.columns * if self.accumulate { 2 } else { 1 };
        let work = Work {
            bytes: ((operands + results) * size_of::<E>()) as u64,
            flops: 2 * (self.rows * self.inner * self.columns) as u64,
        };
        // SAFETY: the addresses are of buffers with the sizes named by rows, columns and inner (asserted by the
        // callers), which live until the work queued behind this call frees them; the scalars are floats as the compute
        // type demands and are read before the call returns.
        let multiply = || unsafe {
            gemm_ex(
                *context.blas.handle(),
                operation(self.right.1),
                operation(self.left.1),
                self.columns as i32,
                self.rows as i32,
                self.inner as i32,
                std::ptr::from_ref(&factor).cast(),
                self.right.0 as *const _,
                E::TYPE,
                leading(self.right, self.inner, self.columns) as i32,
                self.left.0 as *const _,
                E::TYPE,
                leading(self.left, self.rows, self.inner) as i32,
                std::ptr::from_ref(&beta).cast(),
                self.out as *mut _,
                E::TYPE,
                self.columns as i32,
                compute,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        context.watched(&format!("product_{}", E::NAME), work, || Ok(multiply()?))
    }
}
