// What a training sample is made of: the posterior's sample, its noise, the point on the path and the velocity target.
//
// The normal numbers are bit for bit those of `random::Stream` (datasets): Philox4x32-10 and a Box–Muller transform made
// of operations that round the same everywhere, so that a run may move between processor and GPU.
#include "common.cuh"
#include <stdint.h>

// A float whose operations are never fused into multiply-adds.
struct Rounded {
    float value;
    __device__ Rounded(float value) : value(value) {}
};
__device__ inline Rounded operator+(Rounded a, Rounded b) { return __fadd_rn(a.value, b.value); }
__device__ inline Rounded operator-(Rounded a, Rounded b) { return __fsub_rn(a.value, b.value); }
__device__ inline Rounded operator*(Rounded a, Rounded b) { return __fmul_rn(a.value, b.value); }
__device__ inline Rounded operator/(Rounded a, Rounded b) { return __fdiv_rn(a.value, b.value); }

struct Words {
    uint32_t of[4];
};

__device__ inline Words philox(Words counter, uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t first = (uint64_t)0xD2511F53u * counter.of[0], second = (uint64_t)0xCD9E8D57u * counter.of[2];
        counter = {{(uint32_t)(second >> 32) ^ counter.of[1] ^ key0, (uint32_t)second,
                    (uint32_t)(first >> 32) ^ counter.of[3] ^ key1, (uint32_t)first}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

// ln((word + ½)/2³²).
__device__ inline Rounded log_of_fraction(uint32_t word) {
    const Rounded value = (Rounded((float)word) + 0.5f) * 2.3283064365386963e-10f;
    const uint32_t bits = __float_as_uint(value.value) - 0x3f3504f3u;
    const Rounded exponent = (float)((int32_t)bits >> 23);
    const Rounded mantissa = __uint_as_float((bits & 0x007fffffu) + 0x3f3504f3u);
    const Rounded s = (mantissa - 1.0f) / (mantissa + 1.0f), s2 = s * s;
    const Rounded third = 1.0f / 3.0f, fifth = 1.0f / 5.0f, seventh = 1.0f / 7.0f, ninth = 1.0f / 9.0f;
    const Rounded tail = s2 * (third + s2 * (fifth + s2 * (seventh + s2 * ninth)));
    return exponent * 0.693147180559945309417f + Rounded(2.0f) * (s + s * tail);
}

struct Turn {
    float cosine, sine;
};

// Cosine and sine of 2π·word/2³².
__device__ inline Turn cos_sin_of_turn(uint32_t word) {
    const uint32_t quarter = (word + (1u << 29)) >> 30;
    const Rounded angle = Rounded((float)(int32_t)(word - (quarter << 30))) * (1.57079632679489661923f / 1073741824.0f);
    const Rounded a2 = angle * angle;
    const Rounded sine = angle + angle * a2 *
                                     (Rounded(-1.0f / 6.0f) +
                                      a2 * (Rounded(1.0f / 120.0f) +
                                            a2 * (Rounded(-1.0f / 5040.0f) + a2 * Rounded(1.0f / 362880.0f))));
    const Rounded cosine =
        Rounded(1.0f) + a2 * (Rounded(-0.5f) +
                              a2 * (Rounded(1.0f / 24.0f) +
                                    a2 * (Rounded(-1.0f / 720.0f) +
                                          a2 * (Rounded(1.0f / 40320.0f) + a2 * Rounded(-1.0f / 3628800.0f)))));
    const bool swapped = quarter & 1;
    const uint32_t x = __float_as_uint(swapped ? sine.value : cosine.value);
    const uint32_t y = __float_as_uint(swapped ? cosine.value : sine.value);
    return {__uint_as_float(x ^ ((quarter ^ (quarter >> 1)) & 1) << 31), __uint_as_float(y ^ (quarter >> 1) << 31)};
}

// out (samples, per_sample): row s is `Stream::new(seed, purpose, epoch, positions[s]).fill_normal`.
// Draw i is word (i mod 64)/16 of counter 16·(i/64) + i mod 16; words 0 and 1, and 2 and 3, make two normals each.
extern "C" __global__ void fill_normal(float *out, const uint64_t *positions, uint32_t key0, uint32_t key1,
                                       uint32_t purpose, uint32_t epoch, int samples, int per_sample) {
    const int counters = ceil_div(per_sample, 64) * 16;
    for (size_t i = first_element(); i < (size_t)samples * counters; i += element_stride()) {
        const int sample = (int)(i / counters), counter = (int)(i % counters);
        const uint64_t position = positions[sample];
        const Words words = philox({{(uint32_t)counter, epoch, (uint32_t)position,
                                     ((uint32_t)(position >> 32) & 0x00ffffffu) | purpose << 24}},
                                   key0, key1);
        for (int half = 0; half < 2; ++half) {
            const float radius = __fsqrt_rn((Rounded(-2.0f) * log_of_fraction(words.of[2 * half])).value);
            const Turn turn = cos_sin_of_turn(words.of[2 * half + 1]);
            const int first = counter / 16 * 64 + counter % 16 + 32 * half;
            float *const row = out + (size_t)sample * per_sample;
            if (first < per_sample) row[first] = __fmul_rn(radius, turn.cosine);
            if (first + 16 < per_sample) row[first + 16] = __fmul_rn(radius, turn.sine);
        }
    }
}
EXPORT_KERNEL(fill_normal)

// latent = factor·(mean + std·normal).
extern "C" __global__ void sample_posterior(const float *mean, const float *standard_deviation, const float *normal,
                                            float *latent, float factor, size_t length) {
    for (size_t i = first_element(); i < length; i += element_stride())
        latent[i] = factor * (mean[i] + standard_deviation[i] * normal[i]);
}
EXPORT_KERNEL(sample_posterior)

// x_t = a·data + b·noise and target = a'·data + b'·noise; path 0: a = 1-t, b = t; path 1: a = cos(πt/2), b = sin(πt/2).
// times (samples), matrices (samples, per_sample).
template <typename T>
__device__ inline void interpolate(const float *data, const float *noise, const float *times, T *x, T *target,
                                   size_t length, size_t per_sample, int path) {
    constexpr float QUARTER = 1.57079632679489661923f;
    for (size_t i = first_element(); i < length; i += element_stride()) {
        const float t = times[i / per_sample];
        float a = 1.0f - t, b = t, a_slope = -1.0f, b_slope = 1.0f;
        if (path == 1) {
            sincosf(QUARTER * t, &b, &a);
            a_slope = -QUARTER * b;
            b_slope = QUARTER * a;
        }
        x[i] = from_float<T>(a * data[i] + b * noise[i]);
        target[i] = from_float<T>(a_slope * data[i] + b_slope * noise[i]);
    }
}

// Images (batch, channels, size, size) to tokens (batch·(size/patch)², patch·patch·channels): token (row, column) holds
// (py, px, channel). `inverse` goes back.
template <typename T>
__device__ inline void patchify(const T *from, T *to, int batch, int channels, int size, int patch, bool inverse) {
    const int side = size / patch, width = patch * patch * channels;
    for (size_t i = first_element(); i < (size_t)batch * side * side * width; i += element_stride()) {
        const int channel = i % channels, px = i / channels % patch, py = i / (channels * patch) % patch;
        const int column = i / width % side, row = i / ((size_t)width * side) % side;
        const size_t sample = i / ((size_t)width * side * side);
        const size_t pixel = ((sample * channels + channel) * size + row * patch + py) * size + column * patch + px;
        if (inverse)
            to[pixel] = from[i];
        else
            to[i] = from[pixel];
    }
}

#define DIFFUSION_KERNELS(NAME, T)                                                                                     \
    extern "C" __global__ void interpolate_##NAME(const float *data, const float *noise, const float *times, T *x,     \
                                                  T *target, size_t length, size_t per_sample, int path) {             \
        interpolate<T>(data, noise, times, x, target, length, per_sample, path);                                       \
    }                                                                                                                  \
    EXPORT_KERNEL(interpolate_##NAME)                                                                                  \
    extern "C" __global__ void patchify_##NAME(const T *image, T *tokens, int batch, int channels, int size,           \
                                               int patch) {                                                            \
        patchify<T>(image, tokens, batch, channels, size, patch, false);                                               \
    }                                                                                                                  \
    EXPORT_KERNEL(patchify_##NAME)                                                                                     \
    extern "C" __global__ void unpatchify_##NAME(const T *tokens, T *image, int batch, int channels, int size,         \
                                                 int patch) {                                                          \
        patchify<T>(tokens, image, batch, channels, size, patch, true);                                                \
    }                                                                                                                  \
    EXPORT_KERNEL(unpatchify_##NAME)

DIFFUSION_KERNELS(f32, float)
DIFFUSION_KERNELS(f16, __half)
