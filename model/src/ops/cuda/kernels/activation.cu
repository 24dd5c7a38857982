// Element-wise operators: bias, GELU (tanh form), SiLU, sums, copies between precisions.
#include "common.cuh"

constexpr float GELU_SLOPE = 0.7978845608028654f;  // sqrt(2/π)
constexpr float GELU_CUBE = 0.044715f;

struct Gelu {
    __device__ static float value(float x) {
        return 0.5f * x * (1.0f + tanhf(GELU_SLOPE * (x + GELU_CUBE * x * x * x)));
    }
    __device__ static float slope(float x) {
        const float t = tanhf(GELU_SLOPE * (x + GELU_CUBE * x * x * x));
        return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * GELU_SLOPE * (1.0f + 3.0f * GELU_CUBE * x * x);
    }
};

struct Silu {
    __device__ static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
    __device__ static float value(float x) { return x * sigmoid(x); }
    __device__ static float slope(float x) {
        const float s = sigmoid(x);
        return s * (1.0f + x * (1.0f - s));
    }
};

template <typename F, typename T> __device__ inline void activate(const T *x, T *out, size_t length) {
    for (size_t i = first_element(); i < length; i += element_stride()) out[i] = from_float<T>(F::value(to_float(x[i])));
}

// x_gradient += out_gradient·F'(x).
template <typename F, typename T>
__device__ inline void activate_backward(const T *x, const T *out_gradient, T *x_gradient, size_t length) {
    for (size_t i = first_element(); i < length; i += element_stride())
        accumulate(x_gradient + i, to_float(out_gradient[i]) * F::slope(to_float(x[i])));
}

template <typename T> __device__ inline void add_bias(T *x, const T *bias, size_t length, int columns) {
    for (size_t i = first_element(); i < length; i += element_stride()) accumulate(x + i, to_float(bias[i % columns]));
}

template <typename T> __device__ inline void add(const T *a, const T *b, T *out, size_t length) {
    for (size_t i = first_element(); i < length; i += element_stride())
        out[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));
}

// sum += factor·x, between any two precisions.
template <typename To, typename From>
__device__ inline void add_scaled(const From *x, To *sum, float factor, size_t length) {
    for (size_t i = first_element(); i < length; i += element_stride()) accumulate(sum + i, factor * to_float(x[i]));
}

template <typename To, typename From> __device__ inline void cast(const From *x, To *out, size_t length) {
    for (size_t i = first_element(); i < length; i += element_stride()) out[i] = from_float<To>(to_float(x[i]));
}

#define ACTIVATION_KERNELS(LOWER, F, NAME, T)                                                                          \
    extern "C" __global__ void LOWER##_forward_##NAME(const T *x, T *out, size_t length) {                             \
        activate<F, T>(x, out, length);                                                                                \
    }                                                                                                                  \
    EXPORT_KERNEL(LOWER##_forward_##NAME)                                                                              \
    extern "C" __global__ void LOWER##_backward_##NAME(const T *x, const T *out_gradient, T *x_gradient,               \
                                                       size_t length) {                                                \
        activate_backward<F, T>(x, out_gradient, x_gradient, length);                                                  \
    }                                                                                                                  \
    EXPORT_KERNEL(LOWER##_backward_##NAME)

#define ELEMENTWISE_KERNELS(NAME, T)                                                                                   \
    ACTIVATION_KERNELS(gelu, Gelu, NAME, T)                                                                            \
    ACTIVATION_KERNELS(silu, Silu, NAME, T)                                                                            \
    extern "C" __global__ void add_bias_##NAME(T *x, const T *bias, size_t length, int columns) {                      \
        add_bias<T>(x, bias, length, columns);                                                                         \
    }                                                                                                                  \
    EXPORT_KERNEL(add_bias_##NAME)                                                                                     \
    extern "C" __global__ void add_##NAME(const T *a, const T *b, T *out, size_t length) { add<T>(a, b, out, length); } \
    EXPORT_KERNEL(add_##NAME)                                                                                          \
    extern "C" __global__ void add_scaled_##NAME(const T *x, T *sum, float factor, size_t length) {                    \
        add_scaled<T, T>(x, sum, factor, length);                                                                      \
    }                                                                                                                  \
    EXPORT_KERNEL(add_scaled_##NAME)

ELEMENTWISE_KERNELS(f32, float)
ELEMENTWISE_KERNELS(f16, __half)

extern "C" __global__ void cast_f32_to_f16(const float *x, __half *out, size_t length) {
    cast<__half, float>(x, out, length);
}
EXPORT_KERNEL(cast_f32_to_f16)

extern "C" __global__ void cast_f16_to_f32(const __half *x, float *out, size_t length) {
    cast<float, __half>(x, out, length);
}
EXPORT_KERNEL(cast_f16_to_f32)
