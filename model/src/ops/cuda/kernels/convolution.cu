// A convolution as a matrix product: the pixels under the kernel for each pixel of the result, as one row of a matrix
// (kernel rows, kernel columns, channels). Maps are (pictures, height, width, channels).
#include "common.cuh"

// What a convolution reads and how it walks. `enlarged` is 1 for a map that counts as twice as high and wide, else 0.
struct Window {
    int height, width, channels, enlarged;
    int out_height, out_width;
    int kernel_width, taps, stride, top, left;
};

// Grid (rows of the matrix), blocks (256): the rows from `first` on. `affine` (pictures, 2, channels) holds a scale and a
// shift for every channel of every picture, null for none; `silu` follows it. Outside of the picture are zeros.
template <typename T>
__device__ inline void gather(const T *x, const float *affine, T *out, int first, Window window, int silu) {
    const int row = first + blockIdx.x;
    const int column = row % window.out_width, line = row / window.out_width % window.out_height;
    const int picture = row / window.out_width / window.out_height;
    const int values = window.taps * window.channels;
    for (int i = threadIdx.x; i < values; i += blockDim.x) {
        const int channel = i % window.channels, tap = i / window.channels;
        const int seen_y = line * window.stride + tap / window.kernel_width - window.top;
        const int seen_x = column * window.stride + tap % window.kernel_width - window.left;
        const int at_y = seen_y >> window.enlarged, at_x = seen_x >> window.enlarged;
        float value = 0.0f;
        if (seen_y >= 0 && at_y < window.height && seen_x >= 0 && at_x < window.width) {
            value = to_float(x[(((size_t)picture * window.height + at_y) * window.width + at_x) * window.channels + channel]);
            if (affine != nullptr) {
                const float *const scale = affine + (size_t)picture * 2 * window.channels;
                value = value * scale[channel] + scale[window.channels + channel];
                if (silu) value = value / (1.0f + expf(-value));
            }
        }
        out[(size_t)blockIdx.x * values + i] = from_float<T>(value);
    }
}

#define CONVOLUTION_KERNELS(NAME, T)                                                                                   \
    extern "C" __global__ void gather_windows_##NAME(const T *x, const float *affine, T *out, int first, int height,   \
                                                     int width, int channels, int enlarged, int out_height,            \
                                                     int out_width, int kernel_width, int taps, int stride, int top,   \
                                                     int left, int silu) {                                             \
        gather<T>(x, affine, out, first,                                                                               \
                  Window{height, width, channels, enlarged, out_height, out_width, kernel_width, taps, stride, top,    \
                         left},                                                                                        \
                  silu);                                                                                               \
    }                                                                                                                  \
    EXPORT_KERNEL(gather_windows_##NAME)

CONVOLUTION_KERNELS(f32, float)
CONVOLUTION_KERNELS(f16, __half)
