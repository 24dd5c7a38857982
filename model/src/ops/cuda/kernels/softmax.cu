// Softmax over the rows of a matrix, in its place: the scores of some pixels against all others.
#include "common.cuh"

// One warp a row.
template <typename T> __device__ inline void softmax(T *x, int rows, int columns) {
    const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    T *const scores = x + (size_t)row * columns;
    float largest = -INFINITY;
    for (int i = lane; i < columns; i += WARP) largest = fmaxf(largest, to_float(scores[i]));
    largest = warp_max(largest);
    float sum = 0.0f;
    for (int i = lane; i < columns; i += WARP) sum += expf(to_float(scores[i]) - largest);
    const float factor = 1.0f / warp_sum(sum);
    for (int i = lane; i < columns; i += WARP) scores[i] = from_float<T>(expf(to_float(scores[i]) - largest) * factor);
}

#define SOFTMAX_KERNELS(NAME, T)                                                                                       \
    extern "C" __global__ void softmax_rows_##NAME(T *x, int rows, int columns) { softmax<T>(x, rows, columns); }      \
    EXPORT_KERNEL(softmax_rows_##NAME)

SOFTMAX_KERNELS(f32, float)
SOFTMAX_KERNELS(f16, __half)
