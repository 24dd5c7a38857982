// LayerNorm over the last axis, one warp a row: modulated by a conditioning vector (adaLN: no affine part,
// LN(x)·(1+scale)+shift), with an affine part (weight, bias), or neither.
//
// A "row" need not be a row of the matrix: with `groups` > 1 each matrix row holds that many vectors of `width` values
// side by side (the heads of a packed projection), `row_stride` values apart from row to row.
// Forward keeps mean and 1/std of every row in float. Backward adds to the gradients it is given.
#include "common.cuh"

struct Rows {
    int rows, width, groups, row_stride;
    __device__ size_t start(int row) const {
        return (size_t)(row / groups) * row_stride + (size_t)(row % groups) * width;
    }
};

// shift and scale are chunks of one row of `modulation` (batch, stride); the scale is clamped to ±limit.
template <typename T> struct Modulated {
    const T *modulation;
    int stride, shift, scale, tokens;
    float limit;
    __device__ float factor(int row, int column) const {
        const float value = to_float(modulation[(size_t)(row / tokens) * stride + scale + column]);
        return 1.0f + fminf(fmaxf(value, -limit), limit);
    }
    __device__ float offset(int row, int column) const {
        return to_float(modulation[(size_t)(row / tokens) * stride + shift + column]);
    }
};

template <typename T> struct Affine {
    const T *weight, *bias;
    __device__ float factor(int, int column) const { return to_float(weight[column]); }
    __device__ float offset(int, int column) const { return to_float(bias[column]); }
};

struct Plain {
    __device__ float factor(int, int) const { return 1.0f; }
    __device__ float offset(int, int) const { return 0.0f; }
};

// The row of this warp; beyond the last row for the surplus warps of the last block.
__device__ inline int row_of_warp() { return blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; }

template <typename T, typename Transform>
__device__ inline void forward(const T *x, Transform transform, T *out, float *mean, float *inverse_std, Rows shape,
                               float epsilon) {
    const int row = row_of_warp(), lane = threadIdx.x % WARP;
    if (row >= shape.rows) return;
    const size_t start = shape.start(row);
    float sum = 0.0f;
    for (int i = lane; i < shape.width; i += WARP) sum += to_float(x[start + i]);
    const float centre = warp_sum(sum) / shape.width;
    // A second pass over values that are still in the cache: E[x²] - E[x]² would cancel.
    float squares = 0.0f;
    for (int i = lane; i < shape.width; i += WARP) {
        const float distance = to_float(x[start + i]) - centre;
        squares += distance * distance;
    }
    const float scale = rsqrtf(warp_sum(squares) / shape.width + epsilon);
    for (int i = lane; i < shape.width; i += WARP) {
        const float normal = (to_float(x[start + i]) - centre) * scale;
        out[start + i] = from_float<T>(normal * transform.factor(row, i) + transform.offset(row, i));
    }
    if (lane == 0) {
        mean[row] = centre;
        inverse_std[row] = scale;
    }
}

// dx += (h - mean(h) - x̂·mean(h·x̂))/std with h = dout·factor.
template <typename T, typename Transform>
__device__ inline void backward_input(const T *x, Transform transform, const float *mean, const float *inverse_std,
                                      const T *out_gradient, T *x_gradient, Rows shape) {
    const int row = row_of_warp(), lane = threadIdx.x % WARP;
    if (row >= shape.rows) return;
    const size_t start = shape.start(row);
    const float centre = mean[row], scale = inverse_std[row];
    float sum = 0.0f, projected = 0.0f;
    for (int i = lane; i < shape.width; i += WARP) {
        const float h = to_float(out_gradient[start + i]) * transform.factor(row, i);
        sum += h;
        projected += h * (to_float(x[start + i]) - centre) * scale;
    }
    sum = warp_sum(sum) / shape.width;
    projected = warp_sum(projected) / shape.width;
    for (int i = lane; i < shape.width; i += WARP) {
        const float h = to_float(out_gradient[start + i]) * transform.factor(row, i);
        const float normal = (to_float(x[start + i]) - centre) * scale;
        accumulate(x_gradient + start + i, (h - sum - normal * projected) * scale);
    }
}

struct ColumnSums {
    float plain, normal;
};

// Sums of dout and dout·x̂ over rows first, first+1, … last-1, a column for each threadIdx.x, rows shared out over
// threadIdx.y; known to all of them. Blocks are (32, 8).
template <typename T>
__device__ inline ColumnSums sum_columns(const T *x, const float *mean, const float *inverse_std,
                                         const T *out_gradient, Rows shape, int first, int last, int column) {
    __shared__ float of_lane[2][COLUMN_LANES][WARP];
    ColumnSums sums = {0.0f, 0.0f};
    if (column < shape.width)
        for (int row = first + threadIdx.y; row < last; row += COLUMN_LANES) {
            const size_t at = shape.start(row) + column;
            const float gradient = to_float(out_gradient[at]);
            sums.plain += gradient;
            sums.normal += gradient * (to_float(x[at]) - mean[row]) * inverse_std[row];
        }
    return {column_sum(of_lane[0], sums.plain), column_sum(of_lane[1], sums.normal)};
}

// Grid (columns/32, batch): the gradients of one sample's shift and scale, summed over its tokens in a fixed order.
// Where the scale was clamped its gradient is zero.
template <typename T>
__device__ inline void backward_modulation(const T *x, Modulated<T> transform, const float *mean,
                                           const float *inverse_std, const T *out_gradient, T *modulation_gradient,
                                           Rows shape) {
    const int column = blockIdx.x * WARP + threadIdx.x, first = blockIdx.y * transform.tokens;
    const ColumnSums sums =
        sum_columns(x, mean, inverse_std, out_gradient, shape, first, first + transform.tokens, column);
    if (threadIdx.y != 0 || column >= shape.width) return;
    const size_t sample = (size_t)blockIdx.y * transform.stride;
    accumulate(modulation_gradient + sample + transform.shift + column, sums.plain);
    const float scale = to_float(transform.modulation[sample + transform.scale + column]);
    if (fabsf(scale) <= transform.limit)
        accumulate(modulation_gradient + sample + transform.scale + column, sums.normal);
}

// Grid (columns/32, chunks): sums over one chunk of rows, to be added up by `add_partial_columns` (reduce.cu).
// `partial` is (chunks, 2·width): the weight's gradient, then the bias's.
template <typename T>
__device__ inline void backward_affine(const T *x, const float *mean, const float *inverse_std, const T *out_gradient,
                                       float *partial, Rows shape) {
    const int column = blockIdx.x * WARP + threadIdx.x;
    const int chunk = ceil_div(shape.rows, gridDim.y), first = min(shape.rows, (int)blockIdx.y * chunk);
    const ColumnSums sums =
        sum_columns(x, mean, inverse_std, out_gradient, shape, first, min(shape.rows, first + chunk), column);
    if (threadIdx.y != 0 || column >= shape.width) return;
    float *const row = partial + (size_t)blockIdx.y * 2 * shape.width;
    row[column] = sums.normal;
    row[shape.width + column] = sums.plain;
}

#define LAYER_NORM_KERNELS(NAME, T)                                                                                    \
    extern "C" __global__ void modulated_layer_norm_forward_##NAME(                                                    \
        const T *x, const T *modulation, T *out, float *mean, float *inverse_std, int rows, int width, int tokens,     \
        int stride, int shift, int scale, float limit, float epsilon) {                                                \
        forward<T>(x, Modulated<T>{modulation, stride, shift, scale, tokens, limit}, out, mean, inverse_std,           \
                   Rows{rows, width, 1, width}, epsilon);                                                              \
    }                                                                                                                  \
    EXPORT_KERNEL(modulated_layer_norm_forward_##NAME)                                                                 \
    extern "C" __global__ void modulated_layer_norm_backward_input_##NAME(                                             \
        const T *x, const T *modulation, const float *mean, const float *inverse_std, const T *out_gradient,           \
        T *x_gradient, int rows, int width, int tokens, int stride, int shift, int scale, float limit) {               \
        backward_input<T>(x, Modulated<T>{modulation, stride, shift, scale, tokens, limit}, mean, inverse_std,         \
                          out_gradient, x_gradient, Rows{rows, width, 1, width});                                      \
    }                                                                                                                  \
    EXPORT_KERNEL(modulated_layer_norm_backward_input_##NAME)                                                          \
    extern "C" __global__ void modulated_layer_norm_backward_modulation_##NAME(                                        \
        const T *x, const T *modulation, const float *mean, const float *inverse_std, const T *out_gradient,           \
        T *modulation_gradient, int rows, int width, int tokens, int stride, int shift, int scale, float limit) {      \
        backward_modulation<T>(x, Modulated<T>{modulation, stride, shift, scale, tokens, limit}, mean, inverse_std,    \
                               out_gradient, modulation_gradient, Rows{rows, width, 1, width});                        \
    }                                                                                                                  \
    EXPORT_KERNEL(modulated_layer_norm_backward_modulation_##NAME)                                                     \
    extern "C" __global__ void affine_layer_norm_forward_##NAME(const T *x, const T *weight, const T *bias, T *out,    \
                                                                float *mean, float *inverse_std, int rows, int width,  \
                                                                int groups, int row_stride, float epsilon) {           \
        forward<T>(x, Affine<T>{weight, bias}, out, mean, inverse_std, Rows{rows, width, groups, row_stride},          \
                   epsilon);                                                                                           \
    }                                                                                                                  \
    EXPORT_KERNEL(affine_layer_norm_forward_##NAME)                                                                    \
    extern "C" __global__ void affine_layer_norm_backward_input_##NAME(                                                \
        const T *x, const T *weight, const T *bias, const float *mean, const float *inverse_std,                       \
        const T *out_gradient, T *x_gradient, int rows, int width, int groups, int row_stride) {                       \
        backward_input<T>(x, Affine<T>{weight, bias}, mean, inverse_std, out_gradient, x_gradient,                     \
                          Rows{rows, width, groups, row_stride});                                                      \
    }                                                                                                                  \
    EXPORT_KERNEL(affine_layer_norm_backward_input_##NAME)                                                             \
    extern "C" __global__ void affine_layer_norm_backward_parameters_##NAME(                                           \
        const T *x, const float *mean, const float *inverse_std, const T *out_gradient, float *partial, int rows,      \
        int width, int groups, int row_stride) {                                                                       \
        backward_affine<T>(x, mean, inverse_std, out_gradient, partial, Rows{rows, width, groups, row_stride});        \
    }                                                                                                                  \
    EXPORT_KERNEL(affine_layer_norm_backward_parameters_##NAME)                                                        \
    extern "C" __global__ void plain_layer_norm_forward_##NAME(const T *x, T *out, float *mean, float *inverse_std,    \
                                                               int rows, int width, float epsilon) {                   \
        forward<T>(x, Plain{}, out, mean, inverse_std, Rows{rows, width, 1, width}, epsilon);                          \
    }                                                                                                                  \
    EXPORT_KERNEL(plain_layer_norm_forward_##NAME)                                                                     \
    extern "C" __global__ void plain_layer_norm_backward_##NAME(const T *x, const float *mean,                         \
                                                                const float *inverse_std, const T *out_gradient,       \
                                                                T *x_gradient, int rows, int width) {                  \
        backward_input<T>(x, Plain{}, mean, inverse_std, out_gradient, x_gradient, Rows{rows, width, 1, width});       \
    }                                                                                                                  \
    EXPORT_KERNEL(plain_layer_norm_backward_##NAME)

LAYER_NORM_KERNELS(f32, float)
LAYER_NORM_KERNELS(f16, __half)
