// What a training sample is made of: its noise, the point on the path and the targets, as patches.
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

// out (samples, per_sample): row s is `Stream::new(seed, purpose, epochs[s], positions[s]).fill_normal`.
// Draw i is word (i mod 64)/16 of counter 16·(i/64) + i mod 16; words 0 and 1, and 2 and 3, make two normals each.
extern "C" __global__ void fill_normal(float *out, const uint64_t *positions, const uint32_t *epochs, uint32_t key0,
                                       uint32_t key1, uint32_t purpose, int samples, int per_sample) {
    const int counters = ceil_div(per_sample, 64) * 16;
    for (size_t i = first_element(); i < (size_t)samples * counters; i += element_stride()) {
        const int sample = (int)(i / counters), counter = (int)(i % counters);
        const uint64_t position = positions[sample];
        const Words words = philox({{(uint32_t)counter, epochs[sample], (uint32_t)position,
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

// weights[2s]·data + weights[2s + 1]·noise of every sample s as tokens: latents (batch, channels, size, size), tokens
// (batch·(size/patch)², patch·patch·channels) whose values are in the order (channel, py, px), or (py, px, channel).
template <typename T>
__device__ inline void mix_patches(const float *data, const float *noise, const float *weights, T *tokens, int batch,
                                   int channels, int size, int patch, bool channel_first) {
    const int side = size / patch, width = patch * patch * channels;
    for (size_t i = first_element(); i < (size_t)batch * side * side * width; i += element_stride()) {
        const int value = i % width, column = i / width % side, row = i / ((size_t)width * side) % side;
        const size_t sample = i / ((size_t)width * side * side);
        const int channel = channel_first ? value / (patch * patch) : value % channels;
        const int px = channel_first ? value % patch : value / channels % patch;
        const int py = channel_first ? value / patch % patch : value / (channels * patch);
        const size_t pixel = ((sample * channels + channel) * size + row * patch + py) * size + column * patch + px;
        tokens[i] = from_float<T>(weights[2 * sample] * data[pixel] + weights[2 * sample + 1] * noise[pixel]);
    }
}

#define MIX_KERNEL(NAME, T)                                                                                            \
    extern "C" __global__ void mix_patches_##NAME(const float *data, const float *noise, const float *weights,         \
                                                  T *tokens, int batch, int channels, int size, int patch,             \
                                                  int channel_first) {                                                 \
        mix_patches<T>(data, noise, weights, tokens, batch, channels, size, patch, channel_first != 0);                \
    }                                                                                                                  \
    EXPORT_KERNEL(mix_patches_##NAME)

MIX_KERNEL(f32, float)
MIX_KERNEL(f16, __half)
