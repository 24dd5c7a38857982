// Sums in a fixed order (no atomics: the same numbers at every run): over columns, over everything.
#include "common.cuh"

// Grid (columns/32, chunks), blocks (32, 8): column sums of one chunk of rows into `partial` (chunks, columns).
template <typename T>
__device__ inline void sum_columns(const T *x, float *partial, int rows, int columns) {
    __shared__ float of_lane[COLUMN_LANES][WARP];
    const int column = blockIdx.x * WARP + threadIdx.x;
    const int chunk = ceil_div(rows, gridDim.y), first = min(rows, (int)blockIdx.y * chunk);
    const int last = min(rows, first + chunk);
    float sum = 0.0f;
    if (column < columns)
        for (int row = first + threadIdx.y; row < last; row += COLUMN_LANES)
            sum += to_float(x[(size_t)row * columns + column]);
    sum = column_sum(of_lane, sum);
    if (threadIdx.y != 0 || column >= columns) return;
    partial[(size_t)blockIdx.y * columns + column] = sum;
}

// sums[column] += Σ over chunks of partial[chunk·stride + column].
template <typename T>
__device__ inline void add_partial_columns(const float *partial, T *sums, int chunks, int columns, int stride) {
    const int column = (int)first_element();
    if (column >= columns) return;
    float sum = 0.0f;
    for (int chunk = 0; chunk < chunks; ++chunk) sum += partial[(size_t)chunk * stride + column];
    accumulate(sums + column, sum);
}

template <typename T> __device__ inline void sum_of_squares(const T *x, float *partial, size_t length) {
    float sum = 0.0f;
    for (size_t i = first_element(); i < length; i += element_stride()) sum += to_float(x[i]) * to_float(x[i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block: total = factor·Σ partial.
template <typename T>
__device__ inline void add_partial_sums(const float *partial, T *total, int count, float factor) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *total = from_float<T>(factor * sum);
}

#define REDUCE_KERNELS(NAME, T)                                                                                        \
    extern "C" __global__ void sum_columns_##NAME(const T *x, float *partial, int rows, int columns) {                 \
        sum_columns<T>(x, partial, rows, columns);                                                                     \
    }                                                                                                                  \
    EXPORT_KERNEL(sum_columns_##NAME)                                                                                  \
    extern "C" __global__ void add_partial_columns_##NAME(const float *partial, T *sums, int chunks, int columns,      \
                                                          int stride) {                                                \
        add_partial_columns<T>(partial, sums, chunks, columns, stride);                                                \
    }                                                                                                                  \
    EXPORT_KERNEL(add_partial_columns_##NAME)                                                                          \
    extern "C" __global__ void sum_of_squares_##NAME(const T *x, float *partial, size_t length) {                      \
        sum_of_squares<T>(x, partial, length);                                                                         \
    }                                                                                                                  \
    EXPORT_KERNEL(sum_of_squares_##NAME)                                                                               \
    extern "C" __global__ void add_partial_sums_##NAME(const float *partial, T *total, int count, float factor) {      \
        add_partial_sums<T>(partial, total, count, factor);                                                            \
    }                                                                                                                  \
    EXPORT_KERNEL(add_partial_sums_##NAME)

REDUCE_KERNELS(f32, float)
REDUCE_KERNELS(f16, __half)
