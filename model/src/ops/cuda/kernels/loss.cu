// The losses of network spec §4. Each forward kernel leaves one float a block in `partial`, which `add_partial_sums`
// (reduce.cu) adds up; each backward kernel reads the upstream gradient of the scalar from device memory.
#include "common.cuh"

template <typename T>
__device__ inline void squared_error(const T *prediction, const T *target, float *partial, size_t length) {
    float sum = 0.0f;
    for (size_t i = first_element(); i < length; i += element_stride()) {
        const float distance = to_float(prediction[i]) - to_float(target[i]);
        sum += distance * distance;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <typename T>
__device__ inline void squared_error_backward(const T *prediction, const T *target, const T *upstream,
                                              T *prediction_gradient, size_t length) {
    const float factor = to_float(*upstream) * 2.0f / length;
    for (size_t i = first_element(); i < length; i += element_stride())
        accumulate(prediction_gradient + i, factor * (to_float(prediction[i]) - to_float(target[i])));
}

// What is left of the displacement x_t - data after moving back along velocity and acceleration.
template <typename T>
__device__ inline float remaining(const T *displacement, const T *velocity, const T *acceleration, float time,
                                  size_t i) {
    return to_float(displacement[i]) - time * to_float(velocity[i]) + 0.5f * time * time * to_float(acceleration[i]);
}

// times (batch), matrices (batch, per_sample).
template <typename T>
__device__ inline void acceleration_error(const T *displacement, const T *velocity, const T *acceleration,
                                          const float *times, float *partial, size_t length, size_t per_sample) {
    float sum = 0.0f;
    for (size_t i = first_element(); i < length; i += element_stride()) {
        const float rest = remaining(displacement, velocity, acceleration, times[i / per_sample], i);
        sum += rest * rest;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// Only the acceleration gets a gradient: the velocity is behind a stop-gradient.
template <typename T>
__device__ inline void acceleration_error_backward(const T *displacement, const T *velocity, const T *acceleration,
                                                   const float *times, const T *upstream,
                                                   T *acceleration_gradient, size_t length, size_t per_sample) {
    const float factor = to_float(*upstream) / length;
    for (size_t i = first_element(); i < length; i += element_stride()) {
        const float time = times[i / per_sample];
        const float rest = remaining(displacement, velocity, acceleration, time, i);
        accumulate(acceleration_gradient + i, factor * rest * time * time);
    }
}

// Below this norm a vector has no direction: its cosine counts as 0 (torch's cosine_similarity).
constexpr float SMALLEST_NORM = 1e-8f;

struct Angle {
    float product, prediction_norm, target_norm;
};

template <typename T>
__device__ inline Angle angle_of_row(const T *prediction, const T *target, int row, int width) {
    const int lane = threadIdx.x % WARP;
    float product = 0.0f, prediction_square = 0.0f, target_square = 0.0f;
    for (int i = lane; i < width; i += WARP) {
        const float p = to_float(prediction[(size_t)row * width + i]), t = to_float(target[(size_t)row * width + i]);
        product += p * t;
        prediction_square += p * p;
        target_square += t * t;
    }
    return {warp_sum(product), sqrtf(warp_sum(prediction_square)), sqrtf(warp_sum(target_square))};
}

// One warp a row, any number of rows; `partial` gets the sum of the block's cosines.
template <typename T>
__device__ inline void cosine(const T *prediction, const T *target, float *partial, int rows, int width) {
    const int warps = blockDim.x / WARP;
    float sum = 0.0f;
    for (int row = blockIdx.x * warps + threadIdx.x / WARP; row < rows; row += gridDim.x * warps) {
        const Angle angle = angle_of_row(prediction, target, row, width);
        sum += angle.product / fmaxf(angle.prediction_norm, SMALLEST_NORM) / fmaxf(angle.target_norm, SMALLEST_NORM);
    }
    sum = block_sum(threadIdx.x % WARP == 0 ? sum : 0.0f);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// prediction_gradient += factor·upstream·d cos/d prediction.
template <typename T>
__device__ inline void cosine_backward(const T *prediction, const T *target, const T *upstream,
                                       T *prediction_gradient, int rows, int width, float factor) {
    const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    const Angle angle = angle_of_row(prediction, target, row, width);
    const float length = fmaxf(angle.prediction_norm, SMALLEST_NORM);
    const float along_target = to_float(*upstream) * factor / (length * fmaxf(angle.target_norm, SMALLEST_NORM));
    const float along_prediction =
        angle.prediction_norm < SMALLEST_NORM ? 0.0f : along_target * angle.product / (length * length);
    for (int i = lane; i < width; i += WARP) {
        const size_t at = (size_t)row * width + i;
        accumulate(prediction_gradient + at,
                   along_target * to_float(target[at]) - along_prediction * to_float(prediction[at]));
    }
}

#define LOSS_KERNELS(NAME, T)                                                                                          \
    extern "C" __global__ void squared_error_forward_##NAME(const T *prediction, const T *target, float *partial,      \
                                                            size_t length) {                                           \
        squared_error<T>(prediction, target, partial, length);                                                         \
    }                                                                                                                  \
    EXPORT_KERNEL(squared_error_forward_##NAME)                                                                        \
    extern "C" __global__ void squared_error_backward_##NAME(const T *prediction, const T *target,                     \
                                                             const T *upstream, T *prediction_gradient,            \
                                                             size_t length) {                                          \
        squared_error_backward<T>(prediction, target, upstream, prediction_gradient, length);                          \
    }                                                                                                                  \
    EXPORT_KERNEL(squared_error_backward_##NAME)                                                                       \
    extern "C" __global__ void acceleration_error_forward_##NAME(                                                      \
        const T *displacement, const T *velocity, const T *acceleration, const float *times, float *partial,           \
        size_t length, size_t per_sample) {                                                                            \
        acceleration_error<T>(displacement, velocity, acceleration, times, partial, length, per_sample);               \
    }                                                                                                                  \
    EXPORT_KERNEL(acceleration_error_forward_##NAME)                                                                   \
    extern "C" __global__ void acceleration_error_backward_##NAME(                                                     \
        const T *displacement, const T *velocity, const T *acceleration, const float *times, const T *upstream,    \
        T *acceleration_gradient, size_t length, size_t per_sample) {                                                  \
        acceleration_error_backward<T>(displacement, velocity, acceleration, times, upstream, acceleration_gradient,   \
                                       length, per_sample);                                                            \
    }                                                                                                                  \
    EXPORT_KERNEL(acceleration_error_backward_##NAME)                                                                  \
    extern "C" __global__ void cosine_forward_##NAME(const T *prediction, const T *target, float *partial, int rows,   \
                                                     int width) {                                                      \
        cosine<T>(prediction, target, partial, rows, width);                                                           \
    }                                                                                                                  \
    EXPORT_KERNEL(cosine_forward_##NAME)                                                                               \
    extern "C" __global__ void cosine_backward_##NAME(const T *prediction, const T *target, const T *upstream,     \
                                                      T *prediction_gradient, int rows, int width, float factor) {     \
        cosine_backward<T>(prediction, target, upstream, prediction_gradient, rows, width, factor);                    \
    }                                                                                                                  \
    EXPORT_KERNEL(cosine_backward_##NAME)

LOSS_KERNELS(f32, float)
LOSS_KERNELS(f16, __half)
