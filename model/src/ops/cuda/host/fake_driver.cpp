// A libcuda.so.1 without a GPU: the part of the driver interface that cudarc calls, on host memory and the emulator.
//
// There is one device, a "device pointer" is a host address, and the default stream does everything at once. Copies on
// any other stream are made as late as they may be: when an event recorded behind them is waited for. Fresh memory is
// filled with NaN, and every allocation stands between guard bytes that are checked when it is freed. So what is read before
// it was written, and what is written past the end, both show. Declared after the CUDA driver API's documentation.
#include <stdio.h>
#include <stdlib.h>

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <mutex>

#include "emulator.hpp"

namespace {

enum Status : int { Success = 0, InvalidValue = 1, OutOfMemory = 2, InvalidDevice = 101, NotFound = 500, LaunchFailed = 719 };

constexpr size_t GUARD = 256;
constexpr unsigned char GUARD_BYTE = 0xc5;
constexpr size_t TOTAL_MEMORY = (size_t)16 << 30;
constexpr int COMPUTE_CAPABILITY_MAJOR = 75, COMPUTE_CAPABILITY_MINOR = 76, MEMORY_POOLS_SUPPORTED = 115;

std::mutex device;  // one kernel, one allocation at a time
std::map<uint64_t, size_t> allocations;
size_t allocated, most_allocated;

[[noreturn]] void stop(const std::string &fault) {
    fprintf(stderr, "emulated CUDA device: %s\n", fault.c_str());
    fflush(stderr);
    abort();
}

Status allocate(uint64_t *pointer, size_t bytes) {
    const std::lock_guard<std::mutex> lock(device);
    if (allocated + bytes > TOTAL_MEMORY) return OutOfMemory;
    auto *const memory = static_cast<unsigned char *>(aligned_alloc(GUARD, (bytes + 3 * GUARD - 1) / GUARD * GUARD));
    if (memory == nullptr) return OutOfMemory;
    memset(memory, GUARD_BYTE, GUARD);
    memset(memory + GUARD, 0xff, bytes);
    memset(memory + GUARD + bytes, GUARD_BYTE, GUARD);
    *pointer = (uint64_t)(memory + GUARD);
    allocations[*pointer] = bytes;
    allocated += bytes;
    most_allocated = std::max(most_allocated, allocated);
    return Success;
}

Status release(uint64_t pointer) {
    const std::lock_guard<std::mutex> lock(device);
    const auto found = allocations.find(pointer);
    if (found == allocations.end()) return pointer == 0 ? Success : InvalidValue;
    const auto *const memory = (const unsigned char *)pointer;
    for (size_t i = 0; i < GUARD; ++i)
        if (memory[i - GUARD] != GUARD_BYTE || memory[found->second + i] != GUARD_BYTE)
            stop("a kernel wrote outside an allocation of " + std::to_string(found->second) + " bytes");
    free((void *)(memory - GUARD));
    allocated -= found->second;
    allocations.erase(found);
    return Success;
}

using Clock = std::chrono::steady_clock;

struct Stream {
    std::deque<std::function<void()>> late;
    size_t made;  // how many copies were ever asked for
};

struct Event {
    Stream *stream;  // null: the default stream, which is never late
    size_t after;    // copies that were asked for before the event was recorded
    Clock::time_point time;
};

std::recursive_mutex streams;
thread_local uint64_t host_waits;  // times this thread waited for the device to be done

void catch_up(Stream &stream, size_t after) {
    const std::lock_guard<std::recursive_mutex> lock(streams);
    while (!stream.late.empty() && stream.made - stream.late.size() < after) {
        stream.late.front()();
        stream.late.pop_front();
    }
}

void await(const Event &event) {
    if (event.stream != nullptr) catch_up(*event.stream, event.after);
}

// Does `copy` at once on the default stream, some day on any other.
Status copy_on(void *stream, std::function<void()> copy) {
    if (stream == nullptr) return copy(), Success;
    const std::lock_guard<std::recursive_mutex> lock(streams);
    static_cast<Stream *>(stream)->late.push_back(std::move(copy));
    static_cast<Stream *>(stream)->made += 1;
    return Success;
}

// Any non-null value serves as a handle.
template <typename Handle> Status hand_out(Handle *handle) {
    *handle = (Handle)1;
    return Success;
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return Success; }
int cuDriverGetVersion(int *version) { return *version = 13000, Success; }
int cuGetErrorName(int, const char **text) { return *text = "emulated error", Success; }
int cuGetErrorString(int, const char **text) { return *text = "emulated error", Success; }

int cuDeviceGet(int *handle, int ordinal) { return *handle = ordinal, ordinal == 0 ? Success : InvalidDevice; }
int cuDeviceGetCount(int *count) { return *count = 1, Success; }
int cuDeviceGetName(char *name, int length, int) { return snprintf(name, (size_t)length, "host emulation"), Success; }
int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = TOTAL_MEMORY, Success; }
int cuDeviceGetAttribute(int *value, int attribute, int) {
    *value = attribute == MEMORY_POOLS_SUPPORTED     ? 1
             : attribute == COMPUTE_CAPABILITY_MAJOR ? 9
                                                     : 0;
    return Success;
}
int cuDeviceGetDefaultMemPool(void **pool, int) { return hand_out(pool); }
int cuMemPoolSetAttribute(void *, int, void *) { return Success; }
int cuMemPoolGetAttribute(void *, int, void *most_used) { return *(uint64_t *)most_used = most_allocated, Success; }

int cuDevicePrimaryCtxRetain(void **context, int) { return hand_out(context); }
int cuDevicePrimaryCtxRelease_v2(int) { return Success; }
int cuCtxSetCurrent(void *) { return Success; }
int cuCtxGetCurrent(void **context) { return hand_out(context); }

int cuStreamCreate(void **stream, unsigned) { return *stream = new Stream(), Success; }
int cuStreamDestroy_v2(void *stream) {
    catch_up(*static_cast<Stream *>(stream), SIZE_MAX);
    return delete static_cast<Stream *>(stream), Success;
}
int cuStreamSynchronize(void *stream) {
    host_waits += 1;
    if (stream != nullptr) catch_up(*static_cast<Stream *>(stream), SIZE_MAX);
    return Success;
}
int cuStreamWaitEvent(void *, void *event, unsigned) { return await(*static_cast<Event *>(event)), Success; }
int cuEventCreate(void **event, unsigned) { return *event = new Event(), Success; }
int cuEventDestroy_v2(void *event) { return delete static_cast<Event *>(event), Success; }
int cuEventRecord(void *event, void *stream) {
    const std::lock_guard<std::recursive_mutex> lock(streams);
    auto *const on = static_cast<Stream *>(stream);
    *static_cast<Event *>(event) = {on, on != nullptr ? on->made : 0, Clock::now()};
    return Success;
}
int cuEventSynchronize(void *event) { return await(*static_cast<Event *>(event)), Success; }
int cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    const auto time = static_cast<Event *>(end)->time - static_cast<Event *>(start)->time;
    return *milliseconds = std::chrono::duration<float, std::milli>(time).count(), Success;
}

// For the tests: how often the calling thread waited for the device to be done.
uint64_t emulated_host_waits() { return host_waits; }

int cuMemAlloc_v2(uint64_t *pointer, size_t bytes) { return allocate(pointer, bytes); }
int cuMemAllocAsync(uint64_t *pointer, size_t bytes, void *) { return allocate(pointer, bytes); }
int cuMemFree_v2(uint64_t pointer) { return release(pointer); }
int cuMemFreeAsync(uint64_t pointer, void *) { return release(pointer); }
int cuMemHostAlloc(void **pointer, size_t bytes, unsigned) {
    return *pointer = malloc(bytes), *pointer != nullptr ? Success : OutOfMemory;
}
int cuMemFreeHost(void *pointer) { return free(pointer), Success; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    return *free_bytes = TOTAL_MEMORY - allocated, *total = TOTAL_MEMORY, Success;
}
int cuMemsetD8_v2(uint64_t pointer, unsigned char value, size_t bytes) {
    return memset((void *)pointer, value, bytes), Success;
}
int cuMemsetD8Async(uint64_t pointer, unsigned char value, size_t bytes, void *) {
    return memset((void *)pointer, value, bytes), Success;
}
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) { return memcpy((void *)to, from, bytes), Success; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    return copy_on(stream, [=] { memcpy((void *)to, from, bytes); });
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    host_waits += 1;
    return memcpy(to, (void *)from, bytes), Success;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *) {
    return memcpy(to, (void *)from, bytes), Success;
}
int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) {
    return memcpy((void *)to, (void *)from, bytes), Success;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *) {
    return memcpy((void *)to, (void *)from, bytes), Success;
}

// The kernels are compiled in: a module's image is not looked at.
int cuModuleLoad(void **module, const char *) { return hand_out(module); }
int cuModuleLoadData(void **module, const void *) { return hand_out(module); }
int cuModuleUnload(void *) { return Success; }
int cuModuleGetFunction(void **function, void *, const char *name) {
    *function = (void *)emulator::find(name);
    return *function != nullptr ? Success : NotFound;
}
int cuFuncSetAttribute(void *, int, int) { return Success; }

int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, void *, void **arguments, void **) {
    const std::lock_guard<std::mutex> lock(device);
    const std::string fault = emulator::launch((emulator::Body)function, {grid_x, grid_y, grid_z},
                                               {block_x, block_y, block_z}, shared_bytes, arguments);
    if (fault.empty()) return Success;
    fprintf(stderr, "emulated CUDA device: %s\n", fault.c_str());
    return LaunchFailed;
}

}  // extern "C"
