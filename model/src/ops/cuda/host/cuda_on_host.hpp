// CUDA C++ for a host compiler: what the kernel files use of the language, executed by the fibers of emulator.cpp.
//
// A kernel file becomes ordinary C++ when this header comes first. Blocks run one after the other; the threads of a
// block are fibers that give way only at barriers and warp exchanges, so a missing barrier shows as a wrong number in
// one of the orders the emulator runs them in. It checks what the source means, not what nvcc makes of it.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <cstddef>
#include <tuple>
#include <utility>
#include <vector>

struct Dimensions {
    unsigned x, y, z;
};

namespace emulator {

// The builtins of the running fiber.
extern Dimensions thread_index, block_index, block_size, grid_size;
extern unsigned char *dynamic_shared;

// Waits for all threads of the block.
void block_barrier();
// Waits for all lanes of the warp, `where` telling apart the places they must agree on.
void warp_barrier();
// Gives `value` to the warp and returns what lane `source` gave. All lanes must take part.
uint32_t exchange(uint32_t value, unsigned source);
unsigned lane();

using Body = void (*)(void **arguments);
struct Kernel {
    Body body;
    std::vector<size_t> sizes;  // of its arguments, in bytes
    // The arguments of a launch, each in a word of its own.
    std::vector<uint64_t> copy(void **arguments) const {
        std::vector<uint64_t> values(sizes.size());
        for (size_t i = 0; i < sizes.size(); ++i) memcpy(&values[i], arguments[i], sizes[i]);
        return values;
    }
};
struct Registration {
    Registration(const char *name, Kernel kernel);
};

// Calls a kernel with the untyped arguments of a launch.
template <auto Function, typename... A, std::size_t... I>
void call(void (*)(A...), void **arguments, std::index_sequence<I...>) {
    Function(*static_cast<A *>(arguments[I])...);
}
template <auto Function> void body(void **arguments) {
    const auto unpack = [&]<typename... A>(void (*function)(A...)) {
        call<Function>(function, arguments, std::index_sequence_for<A...>{});
    };
    unpack(Function);
}
template <typename... A> Kernel kernel(Body body, void (*)(A...)) {
    static_assert(((sizeof(A) <= sizeof(uint64_t)) && ...));
    return {body, {sizeof(A)...}};
}

}  // namespace emulator

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __align__(n) alignas(n)
// One block runs at a time: what its threads share is what the process shares.
#define __shared__ static
#define DYNAMIC_SHARED(name) float *const name = reinterpret_cast<float *>(emulator::dynamic_shared)
#define EXPORT_KERNEL(name) \
    static const emulator::Registration name##_registration(#name, emulator::kernel(emulator::body<name>, name));

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
#define gridDim emulator::grid_size

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulator::warp_barrier(); }

inline float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float __shfl_xor_sync(unsigned, float value, int mask) {
    return __uint_as_float(emulator::exchange(__float_as_uint(value), emulator::lane() ^ (unsigned)mask));
}

inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }
// Compiled with -ffp-contract=off, plain operations round like these.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }

using std::isfinite;
using std::max;
using std::min;
