// A libcublas without a GPU: column-major products of float and half matrices with float sums, as cublasGemmEx and
// cublasSgemm define them, made in the order of the fake driver's default stream.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <functional>
#include <vector>

#include "include/cuda_fp16.h"

// The fake driver's.
extern "C" void emulated_work(std::function<void()> *work);

namespace {

constexpr int SUCCESS = 0, NOT_SUPPORTED = 15;
constexpr int FLOAT = 0, HALF = 2;  // CUDA_R_32F, CUDA_R_16F

float load(const void *matrix, int type, size_t index) {
    return type == FLOAT ? static_cast<const float *>(matrix)[index]
                         : __half2float(static_cast<const __half *>(matrix)[index]);
}

void store(void *matrix, int type, size_t index, float value) {
    if (type == FLOAT)
        static_cast<float *>(matrix)[index] = value;
    else
        static_cast<__half *>(matrix)[index] = __float2half(value);
}

// op(A) as (rows, columns), row by row.
std::vector<float> unpack(const void *matrix, int type, bool transposed, int rows, int columns, int leading) {
    std::vector<float> result((size_t)rows * columns);
    for (int row = 0; row < rows; ++row)
        for (int column = 0; column < columns; ++column)
            result[(size_t)row * columns + column] =
                load(matrix, type, transposed ? (size_t)row * leading + column : (size_t)column * leading + row);
    return result;
}

void multiply_now(int transpose_a, int transpose_b, int m, int n, int k, float alpha, const void *a, int a_type, int lda,
                  const void *b, int b_type, int ldb, float beta, void *c, int c_type, int ldc) {
    const std::vector<float> left = unpack(a, a_type, transpose_a != 0, m, k, lda);
    // The columns of op(B), each contiguous.
    const std::vector<float> right = unpack(b, b_type, transpose_b == 0, n, k, ldb);
    for (int column = 0; column < n; ++column)
        for (int row = 0; row < m; ++row) {
            float sum = 0.0f;
            for (int i = 0; i < k; ++i) sum += left[(size_t)row * k + i] * right[(size_t)column * k + i];
            const size_t at = (size_t)column * ldc + row;
            const float old = beta == 0.0f ? 0.0f : beta * load(c, c_type, at);
            store(c, c_type, at, alpha * sum + old);
        }
}

int multiply(int transpose_a, int transpose_b, int m, int n, int k, float alpha, const void *a, int a_type, int lda,
             const void *b, int b_type, int ldb, float beta, void *c, int c_type, int ldc) {
    const bool known = (a_type == FLOAT || a_type == HALF) && (b_type == FLOAT || b_type == HALF) &&
                       (c_type == FLOAT || c_type == HALF);
    if (!known || lda < (transpose_a ? k : m) || ldb < (transpose_b ? n : k) || ldc < m) return NOT_SUPPORTED;
    std::function<void()> work = [=] {
        multiply_now(transpose_a, transpose_b, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc);
    };
    emulated_work(&work);
    return SUCCESS;
}

}  // namespace

extern "C" {

int cublasCreate_v2(void **handle) { return *handle = (void *)1, SUCCESS; }
int cublasDestroy_v2(void *) { return SUCCESS; }
int cublasSetStream_v2(void *, void *) { return SUCCESS; }

int cublasSgemm_v2(void *, int transpose_a, int transpose_b, int m, int n, int k, const float *alpha, const float *a,
                   int lda, const float *b, int ldb, const float *beta, float *c, int ldc) {
    return multiply(transpose_a, transpose_b, m, n, k, *alpha, a, FLOAT, lda, b, FLOAT, ldb, *beta, c, FLOAT, ldc);
}

int cublasGemmEx(void *, int transpose_a, int transpose_b, int m, int n, int k, const void *alpha, const void *a,
                 int a_type, int lda, const void *b, int b_type, int ldb, const void *beta, void *c, int c_type,
                 int ldc, int, int) {
    return multiply(transpose_a, transpose_b, m, n, k, *static_cast<const float *>(alpha), a, a_type, lda, b, b_type,
                    ldb, *static_cast<const float *>(beta), c, c_type, ldc);
}

}  // extern "C"
