// GroupNorm (Wu & He 2018) as a scale and a shift for every channel of every picture, to be applied by what reads the map
// (convolution.cu). Maps are (pictures, pixels, channels). Means and deviations are taken chunk by chunk and merged.
#include "common.cuh"

// Grid (channels/32, chunks, pictures), blocks (32, 8): mean and sum of squared deviations of every channel over one chunk
// of pixels, to `partial` (pictures, chunks, 2, channels).
template <typename T>
__device__ inline void measure(const T *x, float *partial, int pixels, int channels, int chunk) {
    __shared__ float of_lane[COLUMN_LANES][WARP];
    const int channel = blockIdx.x * WARP + threadIdx.x;
    const int first = blockIdx.y * chunk, last = min(pixels, first + chunk);
    const T *const picture = x + (size_t)blockIdx.z * pixels * channels;
    float sum = 0.0f;
    if (channel < channels)
        for (int pixel = first + threadIdx.y; pixel < last; pixel += COLUMN_LANES)
            sum += to_float(picture[(size_t)pixel * channels + channel]);
    const float mean = column_sum(of_lane, sum) / (last - first);
    // A second pass over values that are still in the cache: E[x²] - E[x]² would cancel.
    float squares = 0.0f;
    if (channel < channels)
        for (int pixel = first + threadIdx.y; pixel < last; pixel += COLUMN_LANES) {
            const float distance = to_float(picture[(size_t)pixel * channels + channel]) - mean;
            squares += distance * distance;
        }
    __syncthreads();
    squares = column_sum(of_lane, squares);
    if (threadIdx.y != 0 || channel >= channels) return;
    float *const out = partial + ((size_t)blockIdx.z * gridDim.y + blockIdx.y) * 2 * channels;
    out[channel] = mean;
    out[channels + channel] = squares;
}

// One warp a picture and group: merges the chunks of the group's channels into `affine` (pictures, 2, channels).
extern "C" __global__ void group_norm_affine(const float *partial, const float *weight, const float *bias, float *affine,
                                             int pictures, int pixels, int channels, int groups, int chunk,
                                             float epsilon) {
    const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= pictures * groups) return;
    const int picture = row / groups, width = channels / groups, first = row % groups * width;
    const int chunks = ceil_div(pixels, chunk);
    const float *const means = partial + (size_t)picture * chunks * 2 * channels + first;
    const float values = (float)pixels * width;
    float sum = 0.0f;
    for (int i = lane; i < chunks * width; i += WARP) {
        const int part = i / width, count = min(chunk, pixels - part * chunk);
        sum += count * means[(size_t)part * 2 * channels + i % width];
    }
    const float mean = warp_sum(sum) / values;
    float squares = 0.0f;
    for (int i = lane; i < chunks * width; i += WARP) {
        const int part = i / width, count = min(chunk, pixels - part * chunk);
        const float *const of_part = means + (size_t)part * 2 * channels + i % width;
        const float distance = *of_part - mean;
        squares += of_part[channels] + count * distance * distance;
    }
    const float inverse_std = rsqrtf(warp_sum(squares) / values + epsilon);
    float *const scale = affine + (size_t)picture * 2 * channels + first;
    for (int i = lane; i < width; i += WARP) {
        scale[i] = weight[first + i] * inverse_std;
        scale[channels + i] = bias[first + i] - mean * scale[i];
    }
}
EXPORT_KERNEL(group_norm_affine)

#define GROUP_NORM_KERNELS(NAME, T)                                                                                    \
    extern "C" __global__ void channel_moments_##NAME(const T *x, float *partial, int pixels, int channels,            \
                                                      int chunk) {                                                     \
        measure<T>(x, partial, pixels, channels, chunk);                                                               \
    }                                                                                                                  \
    EXPORT_KERNEL(channel_moments_##NAME)

GROUP_NORM_KERNELS(f32, float)
GROUP_NORM_KERNELS(f16, __half)
