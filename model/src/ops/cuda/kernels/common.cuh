// What every kernel file shares: precisions, and sums over a warp, a block and the columns of one.
//
// Tensors hold float or __half; everything is computed in float. A kernel is a template over the element type,
// instantiated under the names NAME_f32 and NAME_f16, which is how the launch layer finds it.
// EXPORT_KERNEL means nothing to nvcc; in the host emulation (../host) it registers the kernel with its signature.
#pragma once
#include <cuda_fp16.h>
#include <math.h>

#ifndef EXPORT_KERNEL
#define EXPORT_KERNEL(name)
#endif

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(name)                                    \
    extern __shared__ __align__(16) unsigned char name##_raw[]; \
    float *const name = reinterpret_cast<float *>(name##_raw)
#endif

constexpr unsigned FULL_WARP = 0xffffffffu;
constexpr int WARP = 32;

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }

template <typename T> __device__ inline T from_float(float value);
template <> __device__ inline float from_float<float>(float value) { return value; }
template <> __device__ inline __half from_float<__half>(float value) { return __float2half(value); }

template <typename T> __device__ inline void accumulate(T *sum, float value) {
    *sum = from_float<T>(to_float(*sum) + value);
}

__device__ inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

// The loop of an element-wise kernel: any grid covers any length.
__device__ inline size_t first_element() { return (size_t)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline size_t element_stride() { return (size_t)gridDim.x * blockDim.x; }

// Sum over the 32 lanes, known to all of them.
__device__ inline float warp_sum(float value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(FULL_WARP, value, offset);
    return value;
}

__device__ inline float warp_max(float value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, offset));
    return value;
}

// Sum over a one-dimensional block of whole warps, known to all threads. At most once a kernel: a second sum would need
// a barrier before it writes what the first may still be reading.
__device__ inline float block_sum(float value) {
    __shared__ float of_warp[WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    value = warp_sum(value);
    if (lane == 0) of_warp[warp] = value;
    __syncthreads();
    return warp_sum(lane < (int)blockDim.x / WARP ? of_warp[lane] : 0.0f);
}

// Threads that share a column in kernels that sum columns; their blocks are (32, 8).
constexpr int COLUMN_LANES = 8;

// Sum over the lanes of a column, known to all of them. Needs a barrier before `of_lane` is used again.
__device__ inline float column_sum(float (*of_lane)[WARP], float value) {
    of_lane[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    float sum = 0.0f;
    for (int lane = 0; lane < COLUMN_LANES; ++lane) sum += of_lane[lane][threadIdx.x];
    return sum;
}
