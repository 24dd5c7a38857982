// The gated residual of an adaLN block: out = x + gate·y, the gate one value a sample and channel, read from a chunk
// of the modulation (batch, stride).
#include "common.cuh"

template <typename T>
__device__ inline void forward(const T *x, const T *modulation, const T *y, T *out, size_t length, int width,
                               int tokens, int stride, int gate) {
    for (size_t i = first_element(); i < length; i += element_stride()) {
        const size_t sample = i / ((size_t)width * tokens);
        const float factor = to_float(modulation[sample * stride + gate + i % width]);
        out[i] = from_float<T>(to_float(x[i]) + factor * to_float(y[i]));
    }
}

// Grid (columns/32, batch), blocks (32, 8): one pass over a sample's tokens gives dx, dy and the gate's gradient.
template <typename T>
__device__ inline void backward(const T *modulation, const T *y, const T *out_gradient, T *x_gradient, T *y_gradient,
                                T *modulation_gradient, int width, int tokens, int stride, int gate) {
    __shared__ float of_lane[COLUMN_LANES][WARP];
    const int column = blockIdx.x * WARP + threadIdx.x;
    const size_t at_gate = (size_t)blockIdx.y * stride + gate + column;
    float sum = 0.0f;
    if (column < width) {
        const float factor = to_float(modulation[at_gate]);
        for (int token = threadIdx.y; token < tokens; token += COLUMN_LANES) {
            const size_t at = ((size_t)blockIdx.y * tokens + token) * width + column;
            const float gradient = to_float(out_gradient[at]);
            accumulate(x_gradient + at, gradient);
            accumulate(y_gradient + at, factor * gradient);
            sum += gradient * to_float(y[at]);
        }
    }
    sum = column_sum(of_lane, sum);
    if (threadIdx.y != 0 || column >= width) return;
    accumulate(modulation_gradient + at_gate, sum);
}

#define RESIDUAL_KERNELS(NAME, T)                                                                                      \
    extern "C" __global__ void gated_residual_forward_##NAME(const T *x, const T *modulation, const T *y, T *out,      \
                                                             size_t length, int width, int tokens, int stride,         \
                                                             int gate) {                                               \
        forward<T>(x, modulation, y, out, length, width, tokens, stride, gate);                                        \
    }                                                                                                                  \
    EXPORT_KERNEL(gated_residual_forward_##NAME)                                                                       \
    extern "C" __global__ void gated_residual_backward_##NAME(                                                         \
        const T *modulation, const T *y, const T *out_gradient, T *x_gradient, T *y_gradient, T *modulation_gradient,  \
        int width, int tokens, int stride, int gate) {                                                                 \
        backward<T>(modulation, y, out_gradient, x_gradient, y_gradient, modulation_gradient, width, tokens, stride,   \
                    gate);                                                                                             \
    }                                                                                                                  \
    EXPORT_KERNEL(gated_residual_backward_##NAME)

RESIDUAL_KERNELS(f32, float)
RESIDUAL_KERNELS(f16, __half)
